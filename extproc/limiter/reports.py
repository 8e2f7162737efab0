"""Reports on their way to a limiter: in tasks of their own, so that they outlive the exchange."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Literal, Protocol, TypeVar

from extproc.limiter.seam import Answer, Code, Decision, LimiterError, Metadata, Query

_LOG = logging.getLogger("extproc.report")
T = TypeVar("T")
Ask = Callable[[Query, Metadata], Answer]
FIRST_RETRY = 0.1
LONGEST_RETRY = 5.0


class ReportMetrics(Protocol):
    """What the queue counts; satisfied by extproc.telemetry.metrics.Metrics."""

    report_retries: int
    reports_pending: int

    def report_ended(self, result: Literal["sent", "dropped", "failed"], /) -> None:
        """A report was taken by the limiter, had no room in the queue, or was given up."""


class ReportQueue:
    """Sends reports, at most `capacity` under way at a time.

    A report is sent again, with growing pauses for at most `retry_for` seconds, only while no connection to the
    limiter can be made: then it cannot have been counted. After a deadline or any other error it may have been, and
    counting twice is worse than losing one. Every report that is lost is logged and counted.
    """

    def __init__(self, metrics: ReportMetrics, *, capacity: int, retry_for: float) -> None:
        self.capacity = capacity
        self.retry_for = retry_for
        self._metrics = metrics
        self._tasks: set[asyncio.Task[None]] = set()
        self._deferred: set[asyncio.Task[None]] = set()
        self._given_up = 0

    def __len__(self) -> int:
        """How many reports are under way."""
        return len(self._tasks)

    def submit(self, ask: Ask, query: Query, metadata: Metadata, request_id: str) -> asyncio.Task[None] | None:
        """Send `query` with `ask`, a limiter's method. The task that does, None when it is done. Never raises."""
        if len(self._tasks) >= self.capacity:
            self._metrics.report_ended("dropped")
            fields = _fields(query, request_id)
            _LOG.warning("rate limit report dropped: %d are under way", len(self._tasks), extra=fields)
            return None
        try:
            answer = ask(query, metadata)
        except Exception as error:  # noqa: BLE001 - told by `_send`, like one that comes later
            answer = _raising(error)
        if isinstance(answer, Decision):
            self._done(query, request_id, answer)
            return None
        return self._track(asyncio.create_task(self._send(ask, query, metadata, request_id, answer)))

    def defer(
        self, value: Awaitable[T], submit: Callable[[T], Iterable[asyncio.Task[None]]], request_id: str
    ) -> asyncio.Task[None]:
        """Have `submit` report `value` when it is there; the task ends when what it submits does.

        `flush` waits for it too. It takes no place of `capacity`: whoever makes the value bounds how many there are.
        """
        task = asyncio.create_task(self._submit_later(value, submit, request_id))
        self._deferred.add(task)
        task.add_done_callback(self._deferred.discard)
        return task

    async def _submit_later(
        self, value: Awaitable[T], submit: Callable[[T], Iterable[asyncio.Task[None]]], request_id: str
    ) -> None:
        try:
            found = await value
        except asyncio.CancelledError:
            self._give_up({"fields": {"request_id": request_id}})
            raise
        if reports := list(submit(found)):
            await asyncio.wait(reports)

    async def flush(self, deadline: float) -> int:
        """Wait at most `deadline` seconds for all reports and give up the others; how many were given up."""
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline
        before = self._given_up
        # What was deferred submits more.
        while (waiting := self._tasks | self._deferred) and (left := end - loop.time()) > 0:
            await asyncio.wait(waiting, timeout=left)
        while late := self._tasks | self._deferred:
            # Those that have not begun do so now: cancelled before that, they could tell nothing.
            await asyncio.sleep(0)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        return self._given_up - before

    def _give_up(self, extra: dict[str, object]) -> None:
        self._given_up += 1
        self._metrics.report_ended("dropped")
        _LOG.warning("rate limit report dropped: no time is left", extra=extra)

    def _track(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        self._metrics.reports_pending = len(self._tasks)
        return task

    async def _send(
        self, ask: Ask, query: Query, metadata: Metadata, request_id: str, answer: Awaitable[Decision]
    ) -> None:
        try:
            decision = await self._delivered(ask, query, metadata, answer)
        except LimiterError as error:
            self._metrics.report_ended("failed")
            _LOG.warning("rate limit report failed: %s", error, extra=_fields(query, request_id))
        except asyncio.CancelledError:
            self._give_up(_fields(query, request_id))
            raise
        except Exception:  # noqa: BLE001 - nobody awaits this task for its result
            self._metrics.report_ended("failed")
            _LOG.exception("rate limit report failed", extra=_fields(query, request_id))
        else:
            self._done(query, request_id, decision)

    async def _delivered(self, ask: Ask, query: Query, metadata: Metadata, answer: Awaitable[Decision]) -> Decision:
        """The answer to a report, after as many attempts as it may have."""
        clock = asyncio.get_running_loop().time
        give_up = clock() + self.retry_for
        pause = FIRST_RETRY
        while True:
            try:
                return await answer
            except LimiterError as error:
                if error.reason != "unreachable" or clock() + pause > give_up:
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_RETRY)
            self._metrics.report_retries += 1
            answer = _again(ask, query, metadata)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._metrics.reports_pending = len(self._tasks)

    def _done(self, query: Query, request_id: str, decision: Decision) -> None:
        """The answer to a report decides nothing: OVER_LIMIT only means that the next check will fail."""
        if decision.code is Code.UNKNOWN:
            self._metrics.report_ended("failed")
            _LOG.warning("rate limit report failed: the limiter answered UNKNOWN", extra=_fields(query, request_id))
        else:
            self._metrics.report_ended("sent")


async def _again(ask: Ask, query: Query, metadata: Metadata) -> Decision:
    answer = ask(query, metadata)
    return answer if isinstance(answer, Decision) else await answer


async def _raising(error: Exception) -> Decision:
    raise error


def _fields(query: Query, request_id: str) -> dict[str, object]:
    return {"fields": {"request_id": request_id, "domain": query.domain, "hits_addend": query.hits_addend}}
