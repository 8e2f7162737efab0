"""Plays transcripts through the real exchange, in the place of Envoy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from accounting.answer import answer_of
from accounting.events import compact
from accounting.transcript import Transcript
from extproc.active import activate
from extproc.config.load import parse_config
from extproc.exchange import Exchange, Surroundings
from extproc.limiter.reports import ReportQueue
from extproc.limiter.seam import Answer, Code, Decision, Metadata, Query
from extproc.telemetry.decisions import DecisionLog
from extproc.telemetry.metrics import Metrics
from extproc.telemetry.spending import Spending
from extproc.usage.estimate import Estimator
from extproc.usage.held import PromptBudget
from extproc.usage.usage import Usage
from extproc.usage.vocabulary import Vocabulary
from extproc.wire.external_processor_pb2 import ProcessingRequest, ProcessingResponse
from extproc.wire.processing_mode_pb2 import ProcessingMode

HOST = "model.example.com"
CONFIGURATION = {
    "services": {"report": {"type": "ratelimit-report", "endpoint": "limiter"}},
    "endpoints": {"limiter": "embedded"},
    "estimates": {"prompt": "text"},
    "actionSets": [
        {
            "name": "accounting",
            "routeRuleConditions": {"hostnames": [HOST]},
            "actions": [
                {
                    "service": "report",
                    "scope": "accounting",
                    "conditionalData": [
                        {
                            "data": [
                                {"static": {"key": "all", "value": "1"}},
                                {"expression": {"key": "ratelimit.hits_addend", "value": "usage.total_tokens"}},
                            ]
                        }
                    ],
                }
            ],
        }
    ],
}
_FLUSH = 30.0
"""Seconds that an estimate may take."""


@dataclass(frozen=True, slots=True)
class Played:
    """What came of an exchange: every usage that was settled, and the hits of every report. Both should be one."""

    usages: tuple[Usage, ...]
    hits: tuple[int, ...]

    @property
    def usage(self) -> Usage | None:
        """None unless there was exactly one."""
        return self.usages[0] if len(self.usages) == 1 else None


class Stage:
    """Plays any number of transcripts; call `close` when done. Without a loaded vocabulary estimates go by sizes."""

    def __init__(self, vocabulary: Vocabulary | None = None) -> None:
        loaded = parse_config(orjson.dumps(CONFIGURATION).decode(), name="accounting.json", base=Path())
        self._limiter = _Limiter()
        active = activate(loaded, lambda _, service: self._limiter)
        self._plan = active.plan
        self._metrics = _Metrics()
        report = active.config.report
        self._reports = ReportQueue(self._metrics, capacity=report.queue, retry_for=report.retry_for)
        self._estimator = Estimator(vocabulary, seed=0)
        prompts = PromptBudget(active.config.estimates.held)
        self._shared = Surroundings(
            self._metrics, self._reports, Spending((), 1), DecisionLog(), self._estimator, prompts
        )

    async def play(self, transcript: Transcript) -> Played:
        """One exchange from its first message to its last report. Raises TranscriptError."""
        self._metrics.usages.clear()
        self._limiter.hits.clear()
        exchange = Exchange(self._plan, self._shared)
        try:
            await _converse(exchange, transcript)
        finally:
            exchange.close()
            await self._reports.flush(_FLUSH)
        return Played(tuple(self._metrics.usages), tuple(self._limiter.hits))

    def close(self) -> None:
        """Let the tokenizer's threads go."""
        self._estimator.close()


async def _converse(exchange: Exchange, transcript: Transcript) -> None:
    """Send what Envoy would: bodies only where they were asked for, and no end where there was none."""
    request = transcript.request
    wanted = await _send(exchange, _request_headers(request.path, request.headers))
    body = request.body.encode() if isinstance(request.body, str) else compact(request.body).encode()
    if wanted.request_body_mode:
        await _send(exchange, _body("request_body", body, ends=True))
    response = transcript.response
    headers = {":status": str(response.status), "content-type": response.content_type, **response.headers}
    if transcript.encoding is not None:
        headers["content-encoding"] = transcript.encoding
    wanted = await _send(exchange, _headers("response_headers", headers))
    if not wanted.response_body_mode:
        return
    for message in _answer(transcript):
        await _send(exchange, message)


def _answer(transcript: Transcript) -> Iterator[ProcessingRequest]:
    for chunk in answer_of(transcript).chunks:
        yield _body("response_body", chunk, ends=False)
    if transcript.ending == "complete":
        yield _body("response_body", b"", ends=True)


async def _send(exchange: Exchange, message: ProcessingRequest) -> ProcessingMode:
    """What the reply wants to be sent from now on."""
    reply = exchange.receive(message)
    assert reply is not None
    data = reply if isinstance(reply, bytes) else await reply
    exchange.digest()
    return ProcessingResponse.FromString(data).mode_override


def _request_headers(path: str, headers: Mapping[str, str]) -> ProcessingRequest:
    pseudo = {":method": "POST", ":scheme": "https", ":authority": HOST, ":path": path}
    return _headers("request_headers", {**pseudo, "content-type": "application/json", **headers})


def _headers(kind: str, headers: Mapping[str, str]) -> ProcessingRequest:
    message = ProcessingRequest()
    for key, value in headers.items():
        getattr(message, kind).headers.headers.add(key=key.lower(), raw_value=value.encode())
    return message


def _body(kind: str, data: bytes, *, ends: bool) -> ProcessingRequest:
    message = ProcessingRequest()
    getattr(message, kind).body = data
    getattr(message, kind).end_of_stream = ends
    return message


class _Metrics(Metrics):
    """Remembers what was settled."""

    def __init__(self) -> None:
        super().__init__()
        self.usages: list[Usage] = []

    def used(self, usage: Usage, provider: str, seconds: float, first_token: float | None) -> None:
        self.usages.append(usage)
        super().used(usage, provider, seconds, first_token)


class _Limiter:
    """Remembers the hits of every report."""

    def __init__(self) -> None:
        self.hits: list[int] = []

    def check(self, query: Query, metadata: Metadata = ()) -> Answer:
        return Decision(Code.OK)

    def should_rate_limit(self, query: Query, metadata: Metadata = ()) -> Answer:
        return self.report(query, metadata)

    def report(self, query: Query, metadata: Metadata = ()) -> Answer:
        self.hits.append(query.hits_addend)
        return Decision(Code.OK)
