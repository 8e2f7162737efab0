"""Buckets in Redis: the same decisions as in memory, in one round trip; and refunds there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from hashlib import sha1
from math import inf
from pathlib import Path
from typing import Any

import pytest
from support.redis_server import RedisServer

from extproc.config.model import Limit, Storage
from extproc.limiter import redis_script
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.limits import LimitSet
from extproc.limiter.redis_limiter import RedisLimiter
from extproc.limiter.redis_store import RedisStore
from extproc.limiter.seam import MAX_HITS, Code, Decision, LimiterError, Query, Quota, Refunding

OK, OVER = Code.OK, Code.OVER_LIMIT
PATIENT = 5.0
USER = "descriptors[0]['user']"
START = 1_767_222_000_000_000
"""Microseconds."""

Share = Callable[..., Awaitable[RedisLimiter]]


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
async def share(redis: RedisServer) -> AsyncIterator[Share]:
    async with AsyncExitStack() as stack:

        async def connect(*limits: Limit, prefix: str = "extproc", **options: Any) -> RedisLimiter:
            store = RedisStore(Storage(url=redis.url, prefix=prefix))
            await store.start()
            stack.push_async_callback(store.close)
            return RedisLimiter(store, LimitSet(limits), **options)

        yield connect


class RedisClock:
    """Microseconds that the script takes for those of TIME, and the limiter in memory too."""

    def __init__(self, redis: RedisServer) -> None:
        self.now = START
        self._redis = redis

    def __call__(self) -> float:
        return self.now / 1e6

    async def move(self, microseconds: int) -> None:
        self.now += microseconds
        await self._redis.do("SET", "clock", self.now)


@pytest.fixture
async def clock(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> RedisClock:
    script = redis_script.SCRIPT.replace("redis.call('TIME')", "{0, redis.call('GET', 'clock')}")
    assert script != redis_script.SCRIPT
    monkeypatch.setattr(redis_script, "_EVALSHA", (b"EVALSHA", sha1(script.encode()).hexdigest()))
    monkeypatch.setattr(redis_script, "_EVAL", (b"EVAL", script))
    clock = RedisClock(redis)
    await clock.move(0)
    return clock


def bucket(max_value: int, seconds: int = 60, **fields: Any) -> Limit:
    written = {"namespace": "domain-a", "max_value": max_value, "seconds": seconds, "algorithm": "gcra"}
    return Limit(**(written | fields))


async def answer(limiter: Refunding, method: str, query: Query) -> Decision:
    found = getattr(limiter, method)(query)
    return found if isinstance(found, Decision) else await found


async def used(limiter: RedisLimiter) -> dict[tuple[str, ...], int]:
    return {counter.values: counter.used for counter in await limiter.counters(100)}


def _quotas(decision: Decision) -> dict[str, tuple[int, int, Any, int]]:
    """By limit: those that are over at the same time come in any order. Redis tells milliseconds, rounded up."""
    return {
        q.limit: (q.maximum, q.remaining, pytest.approx(q.resets_in, abs=0.0011), q.window) for q in decision.quotas
    }


@pytest.mark.parametrize("tells", [False, True])
async def test_any_sequence_of_calls_at_any_time_is_answered_as_in_memory(
    redis: RedisServer, share: Share, clock: RedisClock, tells: bool
) -> None:
    """By one clock: decisions, who refuses, what remains and for how long, and what is taken."""
    for seed in range(25):
        choose = random.Random(seed)
        limits = [
            bucket(choose.randrange(12), 7_200 + 77 * number, name=str(number), variables=[USER][: choose.randrange(2)])
            for number in range(choose.randint(1, 4))
        ]
        memory = EmbeddedLimiter(LimitSet(limits), clock)
        shared = await share(*limits, prefix=f"run-{seed}")
        memory.tells_quotas = shared.tells_quotas = tells
        view = shared.view(PATIENT)
        for _ in range(40):
            await clock.move(choose.choice([0, 1, 250_000, 600_000_000, 3_600_000_000]))
            if choose.random() < 0.05:
                # Only upwards: of a lower one Redis forgets sooner, by its own clock.
                raised = choose.randrange(1, 4)
                limits = [limit.model_copy(update={"max_value": limit.max_value + raised}) for limit in limits]
                memory.replace_limits(LimitSet(limits))
                shared.replace_limits(LimitSet(limits))
            method = choose.choice(["check", "report", "should_rate_limit", "refund"])
            query = Query("domain-a", ((("user", choose.choice("ab")),),), choose.randrange(6))
            expected, found = await answer(memory, method, query), await answer(view, method, query)
            assert (found.code, found.unlimited) == (expected.code, expected.unlimited), (seed, method, query)
            assert _quotas(found) == _quotas(expected), (seed, method, query)


async def test_50_a_minute_with_prompts_of_47(share: Share, clock: RedisClock) -> None:
    """S2.20, S2.14."""
    view = (await share(bucket(50, name="minute"))).view(PATIENT)
    prompt = Query("domain-a", ((),), 47)
    assert (await answer(view, "should_rate_limit", prompt)).code is OK
    refusal = await answer(view, "should_rate_limit", prompt)
    assert refusal.quotas == (Quota("minute", 50, 3, pytest.approx(52.8, abs=0.001), 60),)
    await clock.move(52_700_000)
    assert (await answer(view, "should_rate_limit", prompt)).code is OVER
    await clock.move(100_000)
    assert (await answer(view, "should_rate_limit", prompt)).code is OK
    too_large = await answer(view, "should_rate_limit", prompt._replace(hits_addend=51))
    assert too_large.quotas == (Quota("minute", 50, 0, inf, 60),)


async def test_buckets_and_windows_together_count_all_or_nothing(make, share: Share) -> None:
    """With the real clock of Redis, two servers at once."""
    limits = [bucket(100, 3_600, name="bucket", variables=[USER]), make.limit(80, 3_600, name="w", variables=[USER])]
    views = [(await share(*limits)).view(PATIENT) for _ in range(2)]
    queries = [make.query(5, user=user) for user in "ab" * 20]
    found = await asyncio.gather(*(answer(views[n % 2], "should_rate_limit", q) for n, q in enumerate(queries)))
    assert [decision.code for decision in found].count(OK) == 2 * 80 // 5
    assert {decision.limit for decision in found} == {"", "w"}
    limiter = await share(*limits)
    shown = sorted((c.limit.label, c.values, c.used, c.remaining) for c in await limiter.counters(9))
    assert shown == [("bucket", (u,), 80, 20) for u in "ab"] + [("w", (u,), 80, 0) for u in "ab"]


async def test_a_bucket_lives_until_it_is_full(redis: RedisServer, share: Share) -> None:
    limiter = await share(bucket(50))
    view = limiter.view(PATIENT)
    await answer(view, "report", Query("domain-a", ((),), 75))
    (key,) = await redis.do("KEYS", "*")
    assert 89_000 < await redis.do("PTTL", key) <= 90_000
    (counter,) = await limiter.counters(9)
    assert (counter.used, counter.remaining, round(counter.resets_in)) == (75, 0, 90)
    await answer(view, "refund", Query("domain-a", ((),), 50))
    assert 28_000 < await redis.do("PTTL", key) <= 30_000
    await answer(view, "refund", Query("domain-a", ((),), 50))
    assert await redis.do("EXISTS", key) == 0


@pytest.mark.parametrize(
    ("maximum", "seconds"), [(2**64 - 1, 1), (1, 2**63 - 1), (2**64 - 1, 2**63 - 1), (0, 60), (1, 1)]
)
async def test_numbers_of_any_size(share: Share, maximum: int, seconds: int) -> None:
    limiter = await share(bucket(maximum, seconds))
    view = limiter.view(PATIENT)
    for method in ("report", "should_rate_limit", "check", "refund", "report"):
        decision = await answer(view, method, Query("domain-a", ((),), MAX_HITS))
        assert all(0 <= quota.remaining <= maximum and quota.resets_in > 0 for quota in decision.quotas)
    assert all(0 <= count <= 2 * MAX_HITS for count in (await used(limiter)).values())


@pytest.mark.parametrize("foreign", ["hunter2", "5", "5 ", "nan 5", "1.2.3 5", "-1 5", "9e999 5", "1 " + "9" * 30])
@pytest.mark.parametrize("method", ["check", "report", "should_rate_limit", "refund"])
async def test_keys_of_another_program_are_told_from_buckets(
    redis: RedisServer, share: Share, foreign: str, method: str
) -> None:
    limiter = await share(bucket(5))
    view, query = limiter.view(PATIENT), Query("domain-a", ((),), 2)
    await answer(view, "report", query)
    (key,) = await redis.do("KEYS", "*")
    await redis.do("SET", key, foreign)
    with pytest.raises(LimiterError, match="are not all counters"):
        await answer(view, method, query)
    assert await redis.do("GET", key) == foreign.encode()
    assert await used(limiter) in ({}, {(): 0})


AGES = [
    # fields, seconds since the hits were counted, whether they come back
    ({"seconds": 600}, 0.0, True),
    ({"seconds": 600}, 60.0, False),
    ({"seconds": 600}, inf, False),
    ({"seconds": 600, "algorithm": "gcra"}, 60.0, True),
    ({"calendar": "day"}, 20.0, True),
    ({"calendar": "day"}, 40.0, False),
    ({"calendar": "day"}, inf, False),
]


@pytest.mark.parametrize(("fields", "age", "gives"), AGES)
async def test_a_window_that_began_later_keeps_what_it_has(
    share: Share, fields: dict[str, Any], age: float, gives: bool
) -> None:
    """Half a minute after midnight, in a window that has just begun."""
    limiter = await share(Limit(namespace="domain-a", max_value=50, **fields), wall=lambda: 86_430.0)
    query = Query("domain-a", ((),), 30)
    await answer(limiter.view(PATIENT), "report", query)
    assert (await limiter.view(PATIENT).refund(query._replace(hits_addend=20), (), age)).code is OK
    assert (await used(limiter))[()] == (10 if gives else 30)


async def test_a_refund_does_not_prolong_a_window_and_opens_none(make, redis: RedisServer, share: Share) -> None:
    limiter = await share(make.limit(50, 600))
    view = limiter.view(PATIENT)
    await answer(view, "refund", make.query(5))
    assert await redis.do("KEYS", "*") == []
    await answer(view, "report", make.query(5))
    (key,) = await redis.do("KEYS", "*")
    await redis.do("PEXPIRE", key, 590_000)
    await answer(view, "refund", make.query(2**32))
    assert await redis.do("GET", key) == b"0"
    assert 500_000 < await redis.do("PTTL", key) <= 590_000
    assert (await answer(view, "should_rate_limit", make.query(50))).code is OK
