"""Counting and timing the calls to a limiter."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from time import perf_counter
from typing import Literal, Protocol

from extproc.limiter.seam import Answer, Code, Decision, Limiter, LimiterError, Metadata, Query, Reason, Refunding

Method = Literal["check", "report", "should_rate_limit", "refund"]
Result = Literal["ok", "over_limit", "unknown"] | Reason
_RESULTS: dict[Code, Result] = {Code.OK: "ok", Code.OVER_LIMIT: "over_limit", Code.UNKNOWN: "unknown"}


class CallMetrics(Protocol):
    """What is counted; satisfied by extproc.telemetry.metrics.Metrics."""

    def limiter_call(self, endpoint: str, method: Method, result: Result, seconds: float, /) -> None:
        """One call, its result and how long the answer took."""

    def limiter_answers(self, endpoint: str, /) -> Mapping[Method, dict[Result, int]]:
        """Where to count answers that were there at once."""


def metered(limiter: Limiter, endpoint: str, metrics: CallMetrics) -> Limiter:
    """`limiter`, counted and timed; one that is Refunding still is."""
    if isinstance(limiter, Refunding):
        return MeteredRefunding(limiter, endpoint, metrics)
    return MeteredLimiter(limiter, endpoint, metrics)


class MeteredLimiter:
    """A limiter that counts what another one answers, and times what it had to wait for."""

    __slots__ = ("_checks", "_endpoint", "_limiter", "_metrics", "_reports", "_shoulds")

    def __init__(self, limiter: Limiter, endpoint: str, metrics: CallMetrics) -> None:
        self._limiter = limiter
        self._endpoint = endpoint
        self._metrics = metrics
        answers = metrics.limiter_answers(endpoint)
        self._checks = answers["check"]
        self._reports = answers["report"]
        self._shoulds = answers["should_rate_limit"]

    def check(self, query: Query, metadata: Metadata = ()) -> Answer:
        """As the limiter's."""
        answer = self._limiter.check(query, metadata)
        if not isinstance(answer, Decision):
            return self._timed("check", answer)
        self._checks[_RESULTS[answer.code]] += 1
        return answer

    def report(self, query: Query, metadata: Metadata = ()) -> Answer:
        """As the limiter's."""
        answer = self._limiter.report(query, metadata)
        if not isinstance(answer, Decision):
            return self._timed("report", answer)
        self._reports[_RESULTS[answer.code]] += 1
        return answer

    def should_rate_limit(self, query: Query, metadata: Metadata = ()) -> Answer:
        """As the limiter's."""
        answer = self._limiter.should_rate_limit(query, metadata)
        if not isinstance(answer, Decision):
            return self._timed("should_rate_limit", answer)
        self._shoulds[_RESULTS[answer.code]] += 1
        return answer

    async def _timed(self, method: Method, answer: Awaitable[Decision]) -> Decision:
        started = perf_counter()
        try:
            decision = await answer
        except LimiterError as error:
            self._metrics.limiter_call(self._endpoint, method, error.reason, perf_counter() - started)
            raise
        self._metrics.limiter_call(self._endpoint, method, _RESULTS[decision.code], perf_counter() - started)
        return decision


class MeteredRefunding(MeteredLimiter):
    """The same of a limiter that can give back."""

    __slots__ = ("_refund", "_refunds")

    def __init__(self, limiter: Refunding, endpoint: str, metrics: CallMetrics) -> None:
        super().__init__(limiter, endpoint, metrics)
        self._refund = limiter.refund
        self._refunds = metrics.limiter_answers(endpoint)["refund"]

    def refund(self, query: Query, metadata: Metadata = (), age: float = 0.0) -> Answer:
        """As the limiter's."""
        answer = self._refund(query, metadata, age)
        if not isinstance(answer, Decision):
            return self._timed("refund", answer)
        self._refunds[_RESULTS[answer.code]] += 1
        return answer
