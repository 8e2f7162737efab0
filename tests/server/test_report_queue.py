"""Reports on their way: what is repeated, what is given up, what is lost when there is no room or no time.

Time is virtual: the pauses are exact and cost nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.virtual_time import play

from extproc.limiter.metered import MeteredLimiter
from extproc.limiter.reports import LONGEST_RETRY, ReportQueue
from extproc.limiter.seam import Answer, Code, Decision, LimiterError, Metadata, Query, Reason
from extproc.telemetry.metrics import Metrics

QUERY = Query("domain-a", ((("a", "1"),),), 24)
METADATA = (("x-request-id", "rid-1"),)
OK = Decision(Code.OK)
UNREACHABLE = LimiterError("unreachable", "UNAVAILABLE: failed to connect")
Outcome = Decision | Exception


@dataclass
class Limiter:
    """Answers one outcome after another, the last one for ever; late, unless `at_once`."""

    outcomes: list[Outcome]
    at_once: bool = False
    attempts: list[float] = field(default_factory=list)
    given: list[Outcome] = field(default_factory=list)
    seen: list[tuple[Query, Metadata]] = field(default_factory=list)

    def report(self, query: Query, metadata: Metadata = ()) -> Answer:
        self.attempts.append(round(asyncio.get_running_loop().time(), 6))
        self.seen.append((query, metadata))
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        self.given.append(outcome)
        if not self.at_once:
            return self._later(outcome)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    check = should_rate_limit = report

    async def _later(self, outcome: Outcome) -> Decision:
        await asyncio.sleep(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Never:
    """A limiter that does not answer; how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def report(self, query: Query, metadata: Metadata = ()) -> Decision:
        self.asked += 1
        await asyncio.sleep(3600)
        raise AssertionError("unreachable")


@dataclass
class Result:
    """What came of one report."""

    metrics: Metrics
    pending: int

    def ended(self, result: str) -> int:
        return ended(self.metrics, result)


def ended(metrics: Metrics, result: str) -> int:
    """Reports that ended so, as a dashboard sees it."""
    return number(metrics, f'extproc_reports_total{{result="{result}"}}')


def number(metrics: Metrics, name: str) -> int:
    for line in metrics.render()[0].decode().splitlines():
        if line.startswith(f"{name} "):
            return int(float(line.rpartition(" ")[2]))
    return 0


def deliver(limiter: Limiter, *, retry_for: float = 30.0) -> Result:
    async def scene() -> Result:
        metrics = Metrics()
        queue = ReportQueue(metrics, capacity=10, retry_for=retry_for)
        task = queue.submit(limiter.report, QUERY, METADATA, "rid-1")
        if task is not None:
            await task
        await asyncio.sleep(0)
        return Result(metrics, len(queue))

    return play(scene())


def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[tuple[str, dict[str, object]]]:
    """Message and fields of what was logged, from WARNING on."""
    for record in caplog.records:
        if record.levelno >= logging.WARNING:
            yield record.getMessage(), record.fields  # type: ignore[attr-defined]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("code", [Code.OK, Code.OVER_LIMIT])
def test_a_report_that_is_answered_is_sent_once(caplog, code: Code, at_once: bool) -> None:
    """OVER_LIMIT in answer to a report is good news for nobody, but it was counted."""
    limiter = Limiter([Decision(code)], at_once)
    result = deliver(limiter)
    assert limiter.seen == [(QUERY, METADATA)]
    assert (result.ended("sent"), result.ended("failed"), result.pending) == (1, 0, 0)
    assert list(warnings(caplog)) == []


def test_pauses_between_attempts_grow_and_stay_bounded() -> None:
    """S0.D16: while no connection can be made, after 0.1 s, 0.2 s ... and then every 5 s."""
    limiter = Limiter([*[UNREACHABLE] * 9, OK])
    result = deliver(limiter)
    pauses = [round(later - earlier, 6) for earlier, later in zip(limiter.attempts, limiter.attempts[1:], strict=False)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, LONGEST_RETRY, LONGEST_RETRY, LONGEST_RETRY]
    assert (result.ended("sent"), result.metrics.report_retries) == (1, 9)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_limiter_that_comes_back_is_told_once(caplog, at_once: bool) -> None:
    """S0.D16: delivered, and not twice; nothing to warn of."""
    limiter = Limiter([UNREACHABLE, UNREACHABLE, OK], at_once)
    result = deliver(limiter)
    assert len(limiter.attempts) == 3
    assert (result.ended("sent"), result.ended("failed")) == (1, 0)
    assert list(warnings(caplog)) == []


@pytest.mark.parametrize("retry_for", [0.0, 0.05, 0.1, 1.0, 30.0])
def test_it_is_given_up_in_time(caplog, retry_for: float) -> None:
    """S0.15, S0.D16: no attempt begins after `retry_for`; one line says what was lost."""
    limiter = Limiter([UNREACHABLE])
    result = deliver(limiter, retry_for=retry_for)
    assert limiter.attempts[-1] <= retry_for
    assert len(limiter.attempts) == {0.0: 1, 0.05: 1, 0.1: 2, 1.0: 4, 30.0: 11}[retry_for]
    assert result.ended("failed") == 1
    [(message, fields)] = warnings(caplog)
    assert message == "rate limit report failed: unreachable: UNAVAILABLE: failed to connect"
    assert fields == {"request_id": "rid-1", "domain": "domain-a", "hits_addend": 24}


@pytest.mark.parametrize("reason", ["deadline", "refused", "nonsense"])
@pytest.mark.parametrize("at_once", [True, False])
def test_what_may_have_been_counted_is_not_sent_again(caplog, reason: Reason, at_once: bool) -> None:
    """S0.D16: counting twice is worse than losing one."""
    limiter = Limiter([LimiterError(reason, "detail"), OK], at_once)
    result = deliver(limiter)
    assert len(limiter.attempts) == 1
    assert (result.ended("failed"), result.ended("sent"), result.metrics.report_retries) == (1, 0, 0)
    assert [message for message, _ in warnings(caplog)] == [f"rate limit report failed: {reason}: detail"]


def test_nor_is_a_repeated_one(caplog) -> None:
    limiter = Limiter([UNREACHABLE, LimiterError("deadline", "late"), OK])
    assert deliver(limiter).ended("failed") == 1
    assert len(limiter.attempts) == 2
    assert len(list(warnings(caplog))) == 1


@pytest.mark.parametrize("at_once", [True, False])
def test_unknown_is_a_failure(caplog, at_once: bool) -> None:
    """S0.15: Limitador's answer to an empty domain."""
    assert deliver(Limiter([Decision(Code.UNKNOWN)], at_once)).ended("failed") == 1
    [(message, fields)] = warnings(caplog)
    assert message == "rate limit report failed: the limiter answered UNKNOWN"
    assert fields["request_id"] == "rid-1"


@pytest.mark.parametrize("at_once", [True, False])
def test_a_defect_of_a_limiter_stays_inside(caplog, at_once: bool) -> None:
    """`submit` never raises, its task neither; the defect is told with its traceback."""
    assert deliver(Limiter([ZeroDivisionError("bug")], at_once)).ended("failed") == 1
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info[0] is ZeroDivisionError


def test_a_full_queue_drops_counts_and_warns(caplog) -> None:
    """S0.D16: bounded; those already under way are not touched, and there is room again when one has ended."""

    async def scene() -> None:
        metrics = Metrics()
        queue = ReportQueue(metrics, capacity=2, retry_for=30)
        gate = asyncio.Event()
        asked: list[int] = []

        async def report(query: Query, _: Metadata) -> Decision:
            asked.append(query.hits_addend)
            await gate.wait()
            return OK

        tasks = [queue.submit(report, Query("d", (), hits), (), f"rid-{hits}") for hits in (1, 2, 3)]
        await asyncio.sleep(0)
        assert (asked, tasks[2], len(queue)) == ([1, 2], None, 2)
        assert (ended(metrics, "dropped"), number(metrics, "extproc_reports_pending")) == (1, 2)
        gate.set()
        await asyncio.gather(*(task for task in tasks if task is not None))
        await asyncio.sleep(0)
        assert (len(queue), number(metrics, "extproc_reports_pending"), ended(metrics, "sent")) == (0, 0, 2)
        assert queue.submit(report, QUERY, (), "rid-4") is not None
        assert await queue.flush(1) == 0

    play(scene())
    [(message, fields)] = warnings(caplog)
    assert message == "rate limit report dropped: 2 are under way"
    assert fields["request_id"] == "rid-3"


def test_flush_waits_for_reports_and_for_their_repetitions() -> None:
    async def scene() -> tuple[int, float, int]:
        metrics = Metrics()
        queue = ReportQueue(metrics, capacity=10, retry_for=30)
        queue.submit(Limiter([UNREACHABLE, UNREACHABLE, OK]).report, QUERY, (), "rid-1")
        lost = await queue.flush(5)
        return lost, asyncio.get_running_loop().time(), ended(metrics, "sent")

    lost, took, sent = play(scene())
    assert (lost, sent) == (0, 1)
    assert took == pytest.approx(0.3)


def test_flush_gives_up_at_its_deadline_and_says_what_was_lost(caplog) -> None:
    async def scene() -> tuple[int, float, int, int]:
        metrics = Metrics()
        queue = ReportQueue(metrics, capacity=10, retry_for=30)
        never = Never()
        queue.submit(never.report, QUERY, (), "rid-hangs")
        queue.submit(Limiter([UNREACHABLE]).report, QUERY, (), "rid-retries")
        lost = await queue.flush(2)
        await asyncio.sleep(0)
        return lost, asyncio.get_running_loop().time(), ended(metrics, "dropped"), len(queue)

    lost, took, dropped, pending = play(scene())
    assert (lost, dropped, pending) == (2, 2, 0)
    assert took == pytest.approx(2)
    assert {fields["request_id"] for _, fields in warnings(caplog)} == {"rid-hangs", "rid-retries"}


def test_flush_of_nothing_takes_no_time() -> None:
    async def scene() -> tuple[int, float]:
        return await ReportQueue(Metrics(), capacity=1, retry_for=1).flush(60), asyncio.get_running_loop().time()

    assert play(scene()) == (0, 0.0)


OUTCOMES = st.sampled_from(
    [
        OK,
        Decision(Code.OVER_LIMIT),
        Decision(Code.UNKNOWN),
        UNREACHABLE,
        LimiterError("deadline", "late"),
        LimiterError("refused", "no"),
        ValueError("bug"),
    ]
)


@given(st.lists(st.lists(OUTCOMES, min_size=1, max_size=5), max_size=12), st.integers(1, 12), st.booleans())
def test_every_report_ends_exactly_once(reports: list[list[Outcome]], capacity: int, at_once: bool) -> None:
    """Sent, failed or dropped: the three add up, nothing is left under way, and only what cannot have been counted
    was sent again."""

    async def scene() -> None:
        metrics = Metrics()
        queue = ReportQueue(metrics, capacity=capacity, retry_for=30)
        limiters = [Limiter(list(outcomes), at_once) for outcomes in reports]
        for limiter in limiters:
            queue.submit(MeteredLimiter(limiter, "l", metrics).report, QUERY, (), "rid")
        assert await queue.flush(3600) == 0
        await asyncio.sleep(0)
        assert len(queue) == metrics.reports_pending == 0
        assert sum(ended(metrics, result) for result in ("sent", "failed", "dropped")) == len(reports)
        for limiter in limiters:
            assert all(outcome is UNREACHABLE for outcome in limiter.given[:-1])

    play(scene())


CALLS: list[tuple[Outcome, str]] = [
    (OK, "ok"),
    (Decision(Code.OVER_LIMIT), "over_limit"),
    (Decision(Code.UNKNOWN), "unknown"),
    (UNREACHABLE, "unreachable"),
    (LimiterError("deadline", ""), "deadline"),
    (LimiterError("refused", ""), "refused"),
    (LimiterError("nonsense", ""), "nonsense"),
]


@pytest.mark.parametrize(("outcome", "result"), CALLS, ids=[result for _, result in CALLS])
@pytest.mark.parametrize("method", ["check", "report", "should_rate_limit"])
def test_calls_that_wait_are_counted_by_result_and_timed(outcome: Outcome, result: str, method: str) -> None:
    """S0.18."""
    metrics = Metrics()

    async def scene() -> None:
        with suppress(LimiterError):
            await getattr(MeteredLimiter(Limiter([outcome]), "lim", metrics), method)(QUERY)

    play(scene())
    assert number(metrics, f'extproc_limiter_calls_total{{endpoint="lim",method="{method}",result="{result}"}}') == 1
    assert number(metrics, f'extproc_limiter_seconds_count{{endpoint="lim",method="{method}"}}') == 1


@pytest.mark.parametrize(
    ("code", "result"), [(Code.OK, "ok"), (Code.OVER_LIMIT, "over_limit"), (Code.UNKNOWN, "unknown")]
)
@pytest.mark.parametrize("method", ["check", "report", "should_rate_limit"])
def test_calls_that_are_answered_at_once_are_counted_by_result(code: Code, result: str, method: str) -> None:
    """S0.18."""
    metrics = Metrics()

    async def scene() -> None:
        getattr(MeteredLimiter(Limiter([Decision(code)], at_once=True), "lim", metrics), method)(QUERY)

    play(scene())
    assert number(metrics, f'extproc_limiter_calls_total{{endpoint="lim",method="{method}",result="{result}"}}') == 1
