"""An exchange without a network: messages in, replies and RPCs out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from extproc.active import Active, activate
from extproc.config.load import parse_config
from extproc.config.model import Config, Service
from extproc.exchange import Exchange, Surroundings
from extproc.facts import RequestFacts
from extproc.identity.seam import AuthAnswer, Authenticator, Verdict
from extproc.limiter.reports import ReportQueue
from extproc.limiter.seam import Answer, Code, Decision, Metadata, Query
from extproc.telemetry.decisions import DecisionLog
from extproc.telemetry.metrics import Metrics
from extproc.telemetry.spending import Spending
from extproc.usage.estimate import Estimator
from extproc.usage.held import PromptBudget
from extproc.wire.external_processor_pb2 import ProcessingRequest, ProcessingResponse

OK = Decision(Code.OK)
OVER_LIMIT = Decision(Code.OVER_LIMIT)
UNKNOWN = Decision(Code.UNKNOWN)

S0: dict[str, Any] = {
    "services": {
        "ratelimit-check-service": {"type": "ratelimit-check", "endpoint": "limitador", "failureMode": "deny"},
        "ratelimit-report-service": {"type": "ratelimit-report", "endpoint": "limitador", "failureMode": "deny"},
    },
    "actionSets": [
        {
            "name": "basic",
            "routeRuleConditions": {"hostnames": ["*.example.com"]},
            "actions": [
                {
                    "service": "ratelimit-check-service",
                    "scope": "domain-a",
                    "conditionalData": [
                        {
                            "predicates": ['request.path == "/v1/chat/completions"'],
                            "data": [{"expression": {"key": "a", "value": "1"}}],
                        }
                    ],
                },
                {
                    "service": "ratelimit-report-service",
                    "scope": "domain-a",
                    "conditionalData": [
                        {
                            "predicates": ['request.path == "/v1/chat/completions"'],
                            "data": [
                                {"expression": {"key": "a", "value": "1"}},
                                {
                                    "expression": {
                                        "key": "ratelimit.hits_addend",
                                        "value": 'responseBodyJSON("/usage/total_tokens")',
                                    }
                                },
                            ],
                        }
                    ],
                },
            ],
        }
    ],
}
"""wasm-shim's example configuration, word for word."""

ENDPOINTS = {"endpoints": {"limitador": "embedded"}}
LIMITS = {
    "limits": [
        {
            "namespace": "domain-a",
            "name": "name_a",
            "max_value": 100,
            "seconds": 60,
            "conditions": ["descriptors[0]['a'] == '1'"],
            "variables": [],
        }
    ]
}


def configured(base: Mapping[str, Any] = S0, **sections: Any) -> dict[str, Any]:
    """`base` with more sections, endpoints included."""
    return {**deepcopy(dict(base)), **ENDPOINTS, **sections}


@dataclass
class Call:
    """One RPC as a limiter saw it."""

    method: str
    query: Query
    metadata: Metadata

    @property
    def entries(self) -> dict[str, str]:
        """The first descriptor."""
        return dict(self.query.descriptors[0])


Outcome = Decision | Exception | Awaitable[Decision]


@dataclass
class RecordingLimiter:
    """Answers what it is told to, and remembers what it was asked."""

    answers: dict[str, Callable[[], Outcome]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def check(self, query: Query, metadata: Metadata = ()) -> Answer:
        return self._answer("check", query, metadata)

    def report(self, query: Query, metadata: Metadata = ()) -> Answer:
        return self._answer("report", query, metadata)

    def should_rate_limit(self, query: Query, metadata: Metadata = ()) -> Answer:
        return self._answer("should_rate_limit", query, metadata)

    def _answer(self, method: str, query: Query, metadata: Metadata) -> Answer:
        self.calls.append(Call(method, query, metadata))
        outcome = self.answers.get(method, lambda: OK)()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def of(self, method: str) -> list[Call]:
        return [call for call in self.calls if call.method == method]


@dataclass
class RecordingAuthenticator:
    """Answers what it is told to, and remembers for whom it was asked."""

    answer: Callable[[], Verdict | Exception | Awaitable[Verdict]] = Verdict
    calls: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def authenticate(self, facts: RequestFacts, scope: str, metadata: Metadata = ()) -> AuthAnswer:
        self.calls.append((scope, dict(facts.headers)))
        answer = self.answer()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def authenticator_for(self, config: Config, service: Service) -> Authenticator:
        """It stands for every ext_authz server."""
        return self


def compiled(config: Mapping[str, Any], limiter: Any, authenticator: Any = None) -> Active:
    """A configuration as a server would use it."""
    loaded = parse_config(orjson.dumps(config).decode(), name="test.json", base=Path.cwd())
    return activate(loaded, lambda _, service: limiter, authenticator)


class Gateway:
    """Stands where Envoy stands: sends messages of one exchange after another."""

    def __init__(self, config: Mapping[str, Any] | None = None, limiter: Any = None, authenticator: Any = None) -> None:
        self.limiter = RecordingLimiter() if limiter is None else limiter
        self.active = compiled(configured() if config is None else config, self.limiter, authenticator)
        self.metrics = Metrics()
        self.decisions = DecisionLog()
        self.spending = Spending(self.active.plan.labels.names, self.active.config.metrics.series)
        report = self.active.config.report
        self.reports = ReportQueue(self.metrics, capacity=report.queue, retry_for=report.retry_for)
        self.estimator = Estimator()
        self.prompts = PromptBudget(self.active.config.estimates.held)

    def open(self) -> Exchange:
        shared = Surroundings(self.metrics, self.reports, self.spending, self.decisions, self.estimator, self.prompts)
        return Exchange(self.active.plan, shared)

    async def send(self, exchange: Exchange, *messages: ProcessingRequest) -> list[ProcessingResponse]:
        """The replies to `messages`, which stop at an immediate response as Envoy does."""
        replies: list[ProcessingResponse] = []
        for message in messages:
            reply = exchange.receive(message)
            if reply is None:
                continue
            data = reply if isinstance(reply, bytes) else await reply
            exchange.digest()
            replies.append(ProcessingResponse.FromString(data))
            if replies[-1].HasField("immediate_response"):
                break
        return replies

    async def exchange(self, *messages: ProcessingRequest) -> list[ProcessingResponse]:
        """A whole exchange."""
        exchange = self.open()
        try:
            return await self.send(exchange, *messages)
        finally:
            exchange.close()
            await self.reports.flush(5)
            self.decisions.flush()


def kinds(replies: Iterable[ProcessingResponse]) -> list[str | None]:
    return [reply.WhichOneof("response") for reply in replies]
