"""Limitador's semantics in this process."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from itertools import pairwise

import pytest

from extproc.limiter.embedded import FREED_PER_CALL, EmbeddedLimiter
from extproc.limiter.limits import LimitSet
from extproc.limiter.seam import MAX_HITS, Code, Decision

OK, OVER, UNKNOWN = Code.OK, Code.OVER_LIMIT, Code.UNKNOWN


def used(limiter: EmbeddedLimiter) -> dict[tuple[str, ...], int]:
    return {counter.values: counter.used for counter in limiter.snapshot()}


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
    (2, [("should_rate_limit", 1, OK), ("should_rate_limit", 2, OVER), ("should_rate_limit", 1, OK)], 2),
    (2**64 - 1, [("report", MAX_HITS, OK), ("report", MAX_HITS, OK), ("check", 1, OK)], 2 * MAX_HITS),
]


@pytest.mark.parametrize(("maximum", "calls", "counted"), TABLE)
def test_semantics(make, clock, maximum: int, calls: list, counted: int) -> None:
    """Check asks for one more hit and changes nothing, report adds whatever it is told, 0 is 1."""
    limiter = EmbeddedLimiter(make.limits(make.limit(max_value=maximum)), clock)
    assert [getattr(limiter, call)(make.query(hits)).code for call, hits, _ in calls] == [c[2] for c in calls]
    assert sum(used(limiter).values()) == counted


@pytest.mark.parametrize("method", ["check", "report", "should_rate_limit"])
def test_an_empty_domain_is_unknown_and_an_unlimited_one_ok(make, clock, method: str) -> None:
    limiter = EmbeddedLimiter(make.limits(make.limit(max_value=0)), clock)
    ask = getattr(limiter, method)
    assert ask(make.query(domain="")) == Decision(UNKNOWN)
    assert ask(make.query(domain="elsewhere")) == Decision(OK)
    assert len(limiter) == 0


def test_100_tokens_a_minute_with_answers_of_24_tokens(make, clock) -> None:
    """S0.7: five answers pass (24 to 120 tokens), then none until 60 s after the first hit."""
    condition = "descriptors[0]['a'] == '1'"
    limits = make.limits(make.limit(100, 60, name="name_a", conditions=[condition]))
    limiter = EmbeddedLimiter(limits, clock)
    counts = []
    for _ in range(5):
        assert limiter.check(make.query(a="1")).code is OK
        limiter.report(make.query(24, a="1"))
        counts.append(used(limiter)[()])
        clock.now += 1
    assert counts == [24, 48, 72, 96, 120]
    for _ in range(2):
        assert limiter.check(make.query(a="1")) == Decision(OVER, limit="name_a")
    clock.now = 1_000 + 59.999
    assert limiter.check(make.query(a="1")).code is OVER
    clock.now = 1_000 + 60
    assert limiter.check(make.query(a="1")).code is OK


TIERS = [("minute", 150, 60), ("hour", 300, 3600), ("day", 800, 86400)]
WALK = [
    # seconds, who refuses
    *[(t, None) for t in (0, 1)], (2, "minute"),
    *[(t, None) for t in (61, 62)], (63, "minute"), (123, "hour"),
    *[(t, None) for t in (3602, 3603)], (3604, "minute"),
    *[(t, None) for t in (3664, 3665)], (3666, "minute"),
    *[(t, None) for t in (7204, 7205)], (7206, "minute"), (7270, "day"), (86399, "day"),
    (86401, None),
]  # fmt: skip


def test_tiers_of_a_minute_an_hour_and_a_day(make, clock) -> None:
    """S4.8 and S4.7: answers of 85 tokens; Bob has counters of his own."""
    limits = [make.limit(m, s, name=name, variables=["descriptors[0]['user-id']"]) for name, m, s in TIERS]
    limiter = EmbeddedLimiter(LimitSet(limits), clock)
    start = clock.now
    walked = []
    for second, _ in WALK:
        clock.now = start + second
        decision = limiter.check(make.query(**{"user-id": "alice"}))
        walked.append((second, decision.limit or None))
        if decision.code is OK:
            limiter.report(make.query(85, **{"user-id": "alice"}))
        assert limiter.check(make.query(**{"user-id": "bob"})).code is OK
    assert walked == WALK


@pytest.mark.parametrize(("fields", "name"), [({"name": "n", "id": "i"}, "n"), ({"id": "i"}, "i"), ({}, "")])
def test_the_refusing_limit_is_named(make, clock, fields: dict, name: str) -> None:
    limiter = EmbeddedLimiter(make.limits(make.limit(0, **fields)), clock)
    assert limiter.check(make.query()) == Decision(OVER, limit=name)


def test_should_rate_limit_adds_to_all_limits_or_to_none(make, clock) -> None:
    limits = make.limits(make.limit(10, 60, name="wide"), make.limit(5, 3600, name="narrow"))
    limiter = EmbeddedLimiter(limits, clock)
    assert limiter.should_rate_limit(make.query(5)).code is OK
    assert limiter.should_rate_limit(make.query(1)).limit == "narrow"
    assert [counter.used for counter in limiter.snapshot()] == [5, 5]


async def test_ten_thousand_callers_are_counted_exactly(make, clock) -> None:
    limiter = EmbeddedLimiter(make.limits(make.limit(4_000)), clock)
    start = asyncio.Event()

    async def caller() -> Code:
        await start.wait()
        return limiter.should_rate_limit(make.query()).code

    tasks = [asyncio.create_task(caller()) for _ in range(10_000)]
    start.set()
    codes = await asyncio.gather(*tasks)
    assert (codes.count(OK), codes.count(OVER)) == (4_000, 6_000)
    assert used(limiter) == {(): 4_000}


def test_changed_limits_keep_the_hits_of_unchanged_identities(make, clock) -> None:
    """S1.24: 5 -> 7 acts at once, what was used stays used, removed limits free their counters."""
    user = {"variables": ["descriptors[0].user"]}
    limiter = EmbeddedLimiter(make.limits(make.limit(5, **user), make.limit(1, 10)), clock)
    limiter.report(make.query(5, user="alice"))
    limiter.report(make.query(2, user="bob"))
    assert limiter.check(make.query(user="alice")).code is OVER

    limiter.replace_limits(make.limits(make.limit(9, 7200), make.limit(7, name="seven", **user)))
    assert used(limiter) == {("alice",): 5, ("bob",): 2}
    assert len(limiter) == 2
    for _ in range(2):
        assert limiter.should_rate_limit(make.query(user="alice")).code is OK
    assert limiter.should_rate_limit(make.query(user="alice")) == Decision(OVER, limit="seven")
    clock.now += 60
    assert limiter.check(make.query(user="alice")).code is OK
    limiter.replace_limits(make.limits())
    assert (len(limiter), list(limiter.snapshot())) == (0, [])


def test_snapshot_shows_what_is_used_what_remains_and_until_when(make, clock) -> None:
    limiter = EmbeddedLimiter(make.limits(make.limit(10, name="x", variables=["descriptors[0].user"])), clock)
    limiter.report(make.query(4, user="alice"))
    clock.now += 15
    limiter.report(make.query(24, user="bob"))
    shown = [(c.limit.name, c.values, c.used, c.remaining, c.resets_in) for c in limiter.snapshot()]
    assert shown == [("x", ("alice",), 4, 6, 45.0), ("x", ("bob",), 24, 0, 60.0)]
    clock.now += 45
    assert [c.values for c in limiter.snapshot()] == [("bob",)]


def filled(make, clock, counters: int) -> EmbeddedLimiter:
    limiter = EmbeddedLimiter(
        LimitSet([make.limit(variables=["descriptors[0].user"]), make.limit(namespace="b")], memo_size=1), clock
    )
    for number in range(counters):
        limiter.report(make.query(user=f"user-{number}"))
    return limiter


def test_expired_counters_are_freed_by_later_calls_of_any_domain(make, clock) -> None:
    """A bounded number a call, so that no call pays for all."""
    limiter = filled(make, clock, 100_000)
    assert len(limiter) == 100_000
    clock.now += 60
    sizes = [len(limiter)]
    while len(limiter):
        limiter.check(make.query(domain="b"))
        sizes.append(len(limiter))
    assert max(a - b for a, b in pairwise(sizes)) <= FREED_PER_CALL + 1
    assert len(sizes) <= 100_000 // FREED_PER_CALL + 2


def test_sweep_frees_every_expired_counter_at_once(make, clock) -> None:
    limiter = filled(make, clock, 1_000)
    clock.now += 30
    limiter.report(make.query(user="late"))
    clock.now += 30
    limiter.sweep()
    assert used(limiter) == {("late",): 1}
    assert len(limiter) == 1


def test_a_counter_that_starts_anew_survives_the_end_of_its_old_window(make, clock) -> None:
    limiter = filled(make, clock, 3 * FREED_PER_CALL)
    clock.now += 60
    newest = make.query(7, user=f"user-{3 * FREED_PER_CALL - 1}")
    limiter.report(newest)
    limiter.sweep()
    assert list(used(limiter).values()) == [7]
    assert len(limiter) == 1


def test_a_flood_of_distinct_values_does_not_grow_memory_without_bound(make, clock) -> None:
    """The counter that expires next gives way; the others keep their hits."""
    limits = make.limits(make.limit(variables=["descriptors[0].user"]))
    limiter = EmbeddedLimiter(limits, clock, max_counters=100)
    for number in range(1_000):
        clock.now += 0.001
        limiter.report(make.query(user=str(number)))
    assert len(limiter) == 100
    assert set(used(limiter)) == {(str(number),) for number in range(900, 1_000)}


def test_a_counter_costs_at_most_400_bytes(make, clock) -> None:
    names = [f"user-{number}" for number in range(5_000)]
    queries = [make.query(user=name) for name in names]
    limiter = filled(make, clock, 1)
    tracemalloc.start()
    try:
        for query in queries:
            limiter.report(query)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size / len(names) <= 400


@pytest.mark.parametrize("seed", range(3))
def test_many_windows_of_different_lengths_are_all_freed(make, clock, seed: int) -> None:
    random_ = random.Random(seed)
    limits = [make.limit(seconds=s, variables=["descriptors[0].user"]) for s in (1, 2, 3, 60, 61)]
    limiter = EmbeddedLimiter(LimitSet(limits), clock)
    for _ in range(2_000):
        clock.now += random_.random()
        limiter.report(make.query(user=str(random_.randrange(50))))
    live = len(list(limiter.snapshot()))
    limiter.sweep()
    assert len(limiter) == live
    clock.now += 61
    limiter.sweep()
    assert len(limiter) == 0
