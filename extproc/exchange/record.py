"""What is known of one exchange, and what exchanges share."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum, auto
from time import monotonic
from typing import Any

from extproc.limiter.reports import ReportQueue
from extproc.limiter.seam import Metadata, Quota
from extproc.plan.evaluation import Evaluation
from extproc.plan.labels import Who
from extproc.plan.plan import ActionSet, Plan
from extproc.telemetry.decisions import DecisionLog
from extproc.telemetry.metrics import Ending, Metrics
from extproc.telemetry.spending import Spending
from extproc.usage.estimate import Estimator
from extproc.usage.held import HeldPrompt, PromptBudget
from extproc.wire.external_processor_pb2 import ProcessingRequest
from extproc.wire.processing_mode_pb2 import ProcessingMode

_LOG = logging.getLogger("extproc.exchange")
_STREAMED = (ProcessingMode.STREAMED, ProcessingMode.FULL_DUPLEX_STREAMED)


class State(Enum):
    """How far an exchange is."""

    NEW = auto()
    REQUEST = auto()
    FORWARDED = auto()
    READING = auto()
    SETTLED = auto()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What exchanges share."""

    metrics: Metrics
    reports: ReportQueue
    spending: Spending
    decisions: DecisionLog
    estimator: Estimator
    prompts: PromptBudget


class Record:
    """Filled in by those who find out; read by whoever comes after."""

    __slots__ = (
        "action_set",
        "changes",
        "duplex_request",
        "duplex_response",
        "evaluation",
        "metadata",
        "metered",
        "model",
        "namespace",
        "path",
        "plan",
        "prompt",
        "quotas",
        "request_id",
        "request_size",
        "shared",
        "shown",
        "started",
        "state",
        "status",
        "streamed_request",
        "strips_usage",
        "who",
    )

    def __init__(self, plan: Plan, shared: Surroundings) -> None:
        self.plan = plan
        """That of the beginning: a reload never changes an exchange half-way."""
        self.shared = shared
        self.started = monotonic()
        self.state = State.NEW
        self.request_id = ""
        self.metadata: Metadata = ()
        self.action_set: ActionSet | None = None
        self.evaluation: Evaluation | None = None
        self.who: Who = ()
        self.namespace = ""
        """Domain of the first limiter that was asked."""
        self.changes = b""
        """More of the reply to the request's head: what of it is to change."""
        self.shown: tuple[tuple[str, str], ...] = ()
        """Headers that the client is to see."""
        self.quotas: tuple[Quota, ...] = ()
        self.path = b""
        self.request_size = 0
        self.model = ""
        """That the request names."""
        self.prompt: HeldPrompt | None = None
        self.metered = False
        """Whether requests of its method have a model generate."""
        self.strips_usage = False
        """Whether the model was asked for usage that the client is not to see."""
        self.status = 0
        self.streamed_request = False
        self.duplex_request = False
        self.duplex_response = False

    def note_modes(self, message: ProcessingRequest) -> None:
        """The first message tells how bodies are sent; in full duplex they must be sent back."""
        if self.state is State.NEW and message.HasField("protocol_config"):
            modes = message.protocol_config
            self.streamed_request = modes.request_body_mode in _STREAMED
            self.duplex_request = modes.request_body_mode == ProcessingMode.FULL_DUPLEX_STREAMED
            self.duplex_response = modes.response_body_mode == ProcessingMode.FULL_DUPLEX_STREAMED

    def end(self, ending: Ending) -> None:
        """Nothing more will happen."""
        self.state = State.SETTLED
        self.shared.metrics.exchange_ended(ending)

    def log(self, level: int, event: str, **fields: Any) -> None:
        """Write a line now."""
        _LOG.log(level, event, extra={"fields": {**self.about, **fields}})

    def defect(self, kind: str) -> None:
        """One of ours, on the way of a message of `kind`: called where it is caught."""
        self.shared.metrics.errors += 1
        _LOG.exception("internal error", extra={"fields": {"request_id": self.request_id, "message": kind}})

    @property
    def about(self) -> dict[str, Any]:
        """What every log line of this exchange begins with."""
        about: dict[str, Any] = {"request_id": self.request_id, "action_set": self.action_set_name}
        who = zip(self.plan.labels.names, self.who, strict=False)  # nobody yet: a refusal before that
        about.update((name, value) for name, value in who if value)
        return about

    @property
    def action_set_name(self) -> str:
        """ "" before it is known."""
        return self.action_set.name if self.action_set is not None else ""
