"""What is known of one exchange, and what exchanges share."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from time import monotonic
from typing import Any

from extproc import replies
from extproc.limiter.reports import ReportQueue
from extproc.limiter.seam import Descriptor, Metadata, Query, Quota
from extproc.plan.action import Refund
from extproc.plan.evaluation import Evaluation
from extproc.plan.guarding import PlannedGuard
from extproc.plan.labels import Who
from extproc.plan.plan import ActionSet, Plan
from extproc.providers.provider import Provider
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


@dataclass(frozen=True, slots=True)
class Precharged:
    """Hits that a limiter counted before the call; `refund` gives them back, where that is possible.

    What `keeps` stays when the model was called, whatever came of that. It is `settled` when a report went with it.
    """

    query: Query
    refund: Refund | None
    keeps: bool
    when: float
    """By the monotonic clock."""
    settled: bool = False


Precharges = dict[tuple[str, str, Descriptor], Precharged]
"""By endpoint, domain and first descriptor."""


class Record:
    """Filled in by those who find out; read by whoever comes after."""

    __slots__ = (
        "_removed",
        "_set",
        "action_set",
        "called",
        "duplex_request",
        "duplex_response",
        "evaluation",
        "guards",
        "guards_answers",
        "metadata",
        "metered",
        "model",
        "namespace",
        "path",
        "plan",
        "precharged",
        "prompt",
        "provider",
        "quotas",
        "request_id",
        "request_size",
        "reroutes",
        "shared",
        "shown",
        "started",
        "state",
        "status",
        "streamed_request",
        "streamed_response",
        "strips_usage",
        "who",
        "withholds_answers",
    )

    def __init__(self, plan: Plan, shared: Surroundings) -> None:
        self.plan = plan
        """That of the beginning: a reload never changes an exchange half-way."""
        self.shared = shared
        self.started = monotonic()
        self.state = State.NEW
        self.request_id = ""
        self._set: dict[str, str] = {}
        self._removed: dict[str, None] = {}
        self.metadata: Metadata = ()
        self.action_set: ActionSet | None = None
        self.evaluation: Evaluation | None = None
        self.who: Who = ()
        self.namespace = ""
        """Domain of the first limiter that was asked."""
        self.reroutes = False
        """Whether the gateway has to choose its route anew."""
        self.shown: tuple[tuple[str, str], ...] = ()
        """Headers that the client is to see."""
        self.quotas: tuple[Quota, ...] = ()
        self.path = b""
        self.request_size = 0
        self.model = ""
        """That the request names."""
        self.prompt: HeldPrompt | None = None
        self.guards: tuple[PlannedGuard, ...] = ()
        """Who looks at what is asked and answered."""
        self.guards_answers = False
        """Whether somebody looks at what is answered."""
        self.withholds_answers = False
        """Whether what is answered may be kept from the client."""
        self.called = False
        """Whether the model was asked."""
        self.provider: Provider | None = None
        """Where the request goes, as far as that is ours to choose."""
        self.precharged: Precharges = {}
        """What was charged before the call, until it is settled."""
        self.metered = False
        """Whether requests of its method have a model generate."""
        self.strips_usage = False
        """Whether the model was asked for usage that the client is not to see."""
        self.status = 0
        self.streamed_request = False
        self.streamed_response = False
        self.duplex_request = False
        self.duplex_response = False

    def note_modes(self, message: ProcessingRequest) -> None:
        """The first message tells how bodies are sent; in full duplex they must be sent back."""
        if self.state is State.NEW and message.HasField("protocol_config"):
            modes = message.protocol_config
            self.streamed_response = modes.response_body_mode in _STREAMED
            self.streamed_request = modes.request_body_mode in _STREAMED
            self.duplex_request = modes.request_body_mode == ProcessingMode.FULL_DUPLEX_STREAMED
            self.duplex_response = modes.response_body_mode == ProcessingMode.FULL_DUPLEX_STREAMED

    def change_headers(self, change: Iterable[tuple[str, str]], remove: Iterable[str]) -> None:
        """Let the model see the request without the headers `remove`, then with those of `change`.

        What was to be set before and is removed now is not set: Envoy removes first, whatever the order.
        """
        for name in remove:
            self._set.pop(name, None)
            self._removed[name] = None
        self._set.update((name.lower(), value) for name, value in change)

    @property
    def changes(self) -> bytes:
        """More of the reply to the request's head: what of it is to change."""
        if not (self._set or self._removed or self.reroutes):
            return b""
        return replies.request_changes(tuple(self._set.items()), tuple(self._removed), reroute=self.reroutes)

    def guard_with(self, guards: tuple[PlannedGuard, ...]) -> None:
        """These look at the exchange."""
        self.guards = guards
        answers = [planned.guard for planned in guards if planned.guard.answers is not None]
        self.guards_answers = bool(answers)
        self.withholds_answers = any(guard.enforces for guard in answers)

    def end(self, ending: Ending) -> None:
        """Nothing more will happen."""
        self.state = State.SETTLED
        self.shared.metrics.exchange_ended(ending)

    def log(self, level: int, event: str, **fields: Any) -> None:
        """Write a line now."""
        _LOG.log(level, event, extra={"fields": {**self.about, **fields}})

    def trace(self, event: str) -> None:
        """Write a line now, where somebody looks that closely."""
        if _LOG.isEnabledFor(logging.DEBUG):
            self.log(logging.DEBUG, event)

    def defect(self, kind: str) -> None:
        """One of ours, on the way of a message of `kind`: called where it is caught."""
        self.shared.metrics.errors += 1
        _LOG.exception("internal error", extra={"fields": {"request_id": self.request_id, "message": kind}})

    @property
    def denies_on_failure(self) -> bool:
        """Whether a decision that is not reached may be a refusal."""
        plan, action_set = self.plan, self.action_set
        if action_set is None:  # a defect before it is found must not open a way around all of them
            return plan.denies_on_failure
        guarded = any(planned.guard.enforces for planned in self.guards or plan.guards.by_name.values())
        return action_set.denies_on_failure or guarded or plan.routing is not None

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
