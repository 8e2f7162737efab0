"""The limiter whose counters are in Redis: the semantics of the one in memory, for any number of servers."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from support.redis_server import RedisServer, eventually

from extproc.config.model import Limit, Storage
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.limits import LimitSet
from extproc.limiter.redis_keys import SLACK
from extproc.limiter.redis_limiter import RedisLimiter
from extproc.limiter.redis_script import MAX_COUNT
from extproc.limiter.redis_store import RedisStore
from extproc.limiter.seam import MAX_HITS, Code, Decision, Limiter, LimiterError, Query, Quota

OK, OVER, UNKNOWN = Code.OK, Code.OVER_LIMIT, Code.UNKNOWN
PATIENT = 5.0
USER = "descriptors[0]['user']"

Share = Callable[..., Awaitable[RedisLimiter]]


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
async def share(redis: RedisServer) -> AsyncIterator[Share]:
    """Makes limiters that share one Redis, each with connections of its own."""
    async with AsyncExitStack() as stack:

        async def connect(limits: LimitSet, prefix: str = "extproc", **options: Any) -> RedisLimiter:
            store = RedisStore(Storage(url=redis.url, prefix=prefix))
            await store.start()
            stack.push_async_callback(store.close)
            return RedisLimiter(store, limits, **options)

        yield connect


async def answer(limiter: Limiter, method: str, query: Query) -> Decision:
    found = getattr(limiter, method)(query)
    return found if isinstance(found, Decision) else await found


async def used(limiter: RedisLimiter) -> dict[tuple[str, ...], int]:
    return {counter.values: counter.used for counter in await limiter.counters(100)}


TABLE = [
    # max, [(method, hits, code)], hits counted at the end
    (2, [("check", 1, OK), ("check", 1, OK), ("check", 1, OK)], 0),
    (2, [("check", 99, OK), ("check", 0, OK)], 0),
    (2, [("report", 1, OK), ("check", 5, OK), ("report", 1, OK), ("check", 0, OVER)], 2),
    (2, [("report", 0, OK), ("check", 1, OK), ("report", 0, OK), ("check", 1, OVER)], 2),
    (2, [("report", 3, OK), ("report", 3, OK), ("check", 1, OVER)], 6),
    (0, [("check", 1, OVER), ("should_rate_limit", 1, OVER), ("report", 1, OK)], 1),
    (2, [("should_rate_limit", 2, OK), ("should_rate_limit", 1, OVER), ("check", 1, OVER)], 2),
    (2, [("should_rate_limit", 3, OVER), ("should_rate_limit", 0, OK), ("should_rate_limit", 0, OK)], 2),
    (2**64 - 1, [("report", MAX_HITS, OK), ("should_rate_limit", MAX_HITS, OK), ("check", 1, OK)], 2 * MAX_HITS),
]


async def test_semantics(make, share: Share) -> None:
    """Check asks for one more hit and changes nothing, report adds whatever it is told, 0 is 1."""
    for number, (maximum, calls, counted) in enumerate(TABLE):
        limiter = await share(make.limits(make.limit(max_value=maximum)), f"row-{number}")
        view = limiter.view(PATIENT)
        assert [(await answer(view, call, make.query(hits))).code for call, hits, _ in calls] == [c[2] for c in calls]
        assert sum((await used(limiter)).values()) == counted


@pytest.mark.parametrize("method", ["check", "report", "should_rate_limit"])
def test_what_no_limit_is_for_is_answered_without_redis(make, method: str) -> None:
    store = RedisStore(Storage(url="redis://127.0.0.1:1"))
    view = RedisLimiter(store, make.limits(make.limit(max_value=0))).view(PATIENT)
    assert getattr(view, method)(make.query(domain="")) == Decision(UNKNOWN)
    known = method != "report"
    assert getattr(view, method)(make.query(domain="elsewhere")) == Decision(OK, unlimited=known)


def _limits(choose: random.Random) -> list[Limit]:
    """Some limits, no two of the same length: which of those ends last is a matter of microseconds."""
    return [
        Limit(
            namespace="domain-a",
            name=f"limit-{number}",
            max_value=choose.randrange(12),
            seconds=600 + 100 * number,
            conditions=choose.choice([[], ["descriptors[0]['model'] == 'm1'"]]),
            variables=choose.choice([[], [USER], [USER, "descriptors[0]['model']"]]),
        )
        for number in range(choose.randint(1, 5))
    ]


def _query(choose: random.Random) -> Query:
    entries = {"user": choose.choice(["alice", "b:b", "b%3Ab", "ü", ""]), "model": choose.choice(["m1", "m2"])}
    return Query("domain-a", (tuple(entries.items()),), choose.randrange(6))


def _rounded(decision: Decision) -> Decision:
    """Without the time that the test itself takes."""
    quotas = tuple(quota._replace(resets_in=round(quota.resets_in, -1)) for quota in decision.quotas)
    return Decision(decision.code, decision.headers, decision.limit, quotas)


@pytest.mark.parametrize("tells", [False, True])
async def test_any_sequence_of_calls_is_answered_as_by_the_limiter_in_memory(share: Share, tells: bool) -> None:
    """Decisions, the limits that refuse, what remains and for how long, and the counts of calls."""
    for seed in range(25):
        choose = random.Random(seed)
        limits = _limits(choose)
        memory = EmbeddedLimiter(LimitSet(limits))
        redis = await share(LimitSet(limits), f"run-{seed}")
        memory.tells_quotas = redis.tells_quotas = tells
        for _ in range(40):
            if choose.random() < 0.05:
                limits = [limit.model_copy(update={"max_value": choose.randrange(12)}) for limit in limits]
                memory.replace_limits(LimitSet(limits))
                redis.replace_limits(LimitSet(limits))
            method, query = choose.choice(["check", "report", "should_rate_limit", "refund"]), _query(choose)
            expected = await answer(memory, method, query)
            found = await answer(redis.view(PATIENT), method, query)
            assert _rounded(found) == _rounded(expected), (seed, method, query)
        assert (redis.tally.authorized_calls, redis.tally.limited_calls, redis.tally.authorized_hits) == (
            memory.tally.authorized_calls,
            memory.tally.limited_calls,
            memory.tally.authorized_hits,
        )
        everything = {(c.limit.identity, c.values): (c.used, c.remaining) for c in memory.snapshot()}
        shown = {(c.limit.identity, c.values): (c.used, c.remaining) for c in await redis.counters(1_000)}
        assert shown == everything


async def test_two_servers_that_share_a_redis_admit_exactly_the_limit(make, share: Share) -> None:
    """S1.25: calls that take turns, and calls at once."""
    limits = make.limits(make.limit(5, 120, name="free", variables=[USER]))
    views = [(await share(limits)).view(PATIENT) for _ in range(2)]
    turns = [(await answer(views[n % 2], "should_rate_limit", make.query(user="alice"))).code for n in range(7)]
    assert turns == [OK] * 5 + [OVER] * 2
    at_once = await asyncio.gather(
        *(answer(views[n % 2], "should_rate_limit", make.query(user="bob")) for n in range(200))
    )
    assert sum(decision.code is OK for decision in at_once) == 5


async def test_all_or_nothing(make, share: Share) -> None:
    """A call that one limit refuses is counted by none."""
    limiter = await share(make.limits(make.limit(100, 60, name="wide"), make.limit(1, 3600, name="narrow")))
    decision = await answer(limiter.view(PATIENT), "should_rate_limit", make.query(2))
    assert (decision.code, decision.limit) == (OVER, "narrow")
    assert await used(limiter) == {}


async def test_the_first_hit_sets_the_end_of_a_window_and_no_other(make, share: Share, redis: RedisServer) -> None:
    limiter = await share(make.limits(make.limit(2, 60)))
    view = limiter.view(PATIENT)
    await answer(view, "report", make.query(1))
    (key,) = await redis.do("KEYS", "*")
    assert 59_000 < await redis.do("PTTL", key) <= 60_000
    await redis.do("PEXPIRE", key, 30_000)
    await answer(view, "report", make.query(1))
    await answer(view, "should_rate_limit", make.query(1))
    assert 29_000 < await redis.do("PTTL", key) <= 30_000
    (quota,) = (await answer(view, "check", make.query(1))).quotas
    assert (quota.remaining, round(quota.resets_in)) == (0, 30)


async def test_a_window_that_is_over_begins_anew(make, share: Share, redis: RedisServer) -> None:
    limiter = await share(make.limits(make.limit(1, 60)))
    view = limiter.view(PATIENT)
    await answer(view, "report", make.query(9))
    (key,) = await redis.do("KEYS", "*")
    await redis.do("PEXPIRE", key, 1)

    async def gone() -> bool:
        return not await redis.do("EXISTS", key)

    await eventually(gone, "the counter did not expire")
    assert (await answer(view, "should_rate_limit", make.query(1))).code is OK
    assert 59_000 < await redis.do("PTTL", key) <= 60_000


async def test_a_counter_that_somebody_made_everlasting_ends_again(make, share: Share, redis: RedisServer) -> None:
    limiter = await share(make.limits(make.limit(5, 60)))
    await answer(limiter.view(PATIENT), "report", make.query(1))
    (key,) = await redis.do("KEYS", "*")
    await redis.do("PERSIST", key)
    await answer(limiter.view(PATIENT), "report", make.query(1))
    assert await redis.do("GET", key) == b"2"
    assert 59_000 < await redis.do("PTTL", key) <= 60_000


async def test_windows_of_the_calendar_end_with_it(share: Share, redis: RedisServer) -> None:
    """A counter for each period, kept a minute longer for clocks that are late."""
    now = [1_767_222_000.0]
    day = Limit(namespace="d", name="daily", max_value=2, calendar="day", time_zone="Europe/Berlin")
    limiter = await share(LimitSet([day]), wall=lambda: now[0])
    view, query = limiter.view(PATIENT), Query("d", ((),), 2)
    now[0] -= 100
    left = LimitSet([day]).limits[0].window.ends_in(now[0])
    await answer(view, "report", query)
    (key,) = await redis.do("KEYS", "*")
    assert abs(await redis.do("PTTL", key) - (left + SLACK) * 1000) < 1_000
    refusal = await answer(view, "check", query)
    assert refusal.quotas == (Quota("daily", 2, 0, left, 86_400),)
    assert [counter.resets_in for counter in await limiter.counters(9)] == [left]
    now[0] += left
    assert (await answer(view, "check", query)).code is OK
    assert await limiter.counters(9) == []


@pytest.mark.parametrize(
    "foreign",
    [("RPUSH", "hunter2"), ("SET", "hunter2"), ("SET", "1.5"), ("SET", "-1"), ("SET", "007"), ("SET", "9" * 30)],
)
@pytest.mark.parametrize("method", ["check", "report", "should_rate_limit"])
async def test_keys_of_another_program_are_told_from_counters(
    make, share: Share, redis: RedisServer, foreign: tuple[str, str], method: str
) -> None:
    """The error says which prefix is in conflict and not what was found; nothing is counted, not even elsewhere."""
    limiter = await share(make.limits(make.limit(5, 60), make.limit(5, 3600)), "mine")
    view = limiter.view(PATIENT)
    await answer(view, "report", make.query(1))
    keys = sorted(await redis.do("KEYS", "*"))
    await redis.do("DEL", keys[0])
    await redis.do(foreign[0], keys[0], foreign[1])
    with pytest.raises(LimiterError, match="`mine:`") as caught:
        await answer(view, method, make.query(2))
    assert caught.value.reason == "nonsense"
    assert foreign[1] not in str(caught.value)
    assert await redis.do("GET", keys[1]) == b"1"
    assert await redis.do("TYPE", keys[0]) == (b"list" if foreign[0] == "RPUSH" else b"string")


async def test_counts_stop_before_they_overflow(make, share: Share, redis: RedisServer) -> None:
    limiter = await share(make.limits(make.limit(2**64 - 1, 2**62)))
    view = limiter.view(PATIENT)
    await answer(view, "report", make.query(1))
    (key,) = await redis.do("KEYS", "*")
    await redis.do("SET", key, MAX_COUNT - 1, "KEEPTTL")
    for _ in range(2):
        assert (await answer(view, "report", make.query(MAX_HITS))).code is OK
        assert await redis.do("GET", key) == str(MAX_COUNT).encode()
    assert (await answer(view, "should_rate_limit", make.query(MAX_HITS))).code is OK


async def test_only_counters_of_limits_are_shown_the_nearest_to_their_maximum_first(
    make, share: Share, redis: RedisServer
) -> None:
    limits = make.limits(
        make.limit(10, 60, name="tight", variables=[USER]), make.limit(100, 3600, name="wide", variables=[USER])
    )
    limiter = await share(limits)
    for user, hits in (("alice", 4), ("bob", 9), ("a:b%", 12)):
        await answer(limiter.view(PATIENT), "report", make.query(hits, user=user))
    await redis.do("SET", "extproc:{domain-a}:000000000000:x", 5)
    await redis.do("SET", "extproc:other", 5)
    await redis.do("SET", b"extproc:{\xff}:", 5)
    shown = [(c.limit.label, c.values, c.used, c.remaining, round(c.resets_in)) for c in await limiter.counters(4)]
    assert shown == [
        ("tight", ("a:b%",), 12, 0, 60),
        ("tight", ("bob",), 9, 1, 60),
        ("tight", ("alice",), 4, 6, 60),
        ("wide", ("a:b%",), 12, 88, 3600),
    ]


async def test_two_limiters_with_other_prefixes_do_not_meet(make, share: Share) -> None:
    limits = make.limits(make.limit(1, 60))
    first, second = await share(limits, "blue"), await share(limits, "green")
    await answer(first.view(PATIENT), "report", make.query(1))
    assert (await answer(first.view(PATIENT), "check", make.query(1))).code is OVER
    assert (await answer(second.view(PATIENT), "check", make.query(1))).code is OK


async def test_forged_users_take_no_memory_here(make, share: Share) -> None:
    """Any number of them: what is kept of a user is kept in Redis."""
    limiter = await share(make.limits(make.limit(5, 60, variables=[USER]), make.limit(50, 3600, variables=[USER])))
    view = limiter.view(PATIENT)

    async def forge(start: int) -> int:
        for batch in range(start, start + 2_500, 500):
            await asyncio.gather(*(view.report(make.query(1, user=f"{n:032}")) for n in range(batch, batch + 500)))
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before, after = await forge(0), await forge(2_500)
    finally:
        tracemalloc.stop()
    assert after - before < 2_500 * 20
