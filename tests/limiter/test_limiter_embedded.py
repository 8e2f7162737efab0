"""Limitador's semantics in this process."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from itertools import pairwise
from math import inf

import pytest

from extproc.limiter.embedded import VISITED_PER_CALL, EmbeddedLimiter
from extproc.limiter.limits import LimitSet
from extproc.limiter.rows import CANDIDATES, SLICE
from extproc.limiter.seam import MAX_HITS, Code, Decision, Query, Quota

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
    assert ask(make.query(domain="elsewhere")) == Decision(OK, unlimited=method != "report")
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
        refusing = Quota("name_a", 100, 0, 55.0, 60)
        assert limiter.check(make.query(a="1")) == Decision(OVER, limit="name_a", quotas=(refusing,))
    clock.now = 1_000 + 59.999
    assert limiter.check(make.query(a="1")).code is OVER
    clock.now = 1_000 + 60
    assert limiter.check(make.query(a="1")).code is OK


TIERS = [("minute", 150, 60), ("hour", 300, 3600), ("day", 800, 86400)]
WALK = [
    # seconds, who refuses: first the one that does so longest
    (0, []), (1, []), (2, ["minute"]),
    (61, []), (62, []), (63, ["hour", "minute"]), (123, ["hour"]),
    (3602, []), (3603, []), (3604, ["minute"]),
    (3664, []), (3665, []), (3666, ["hour", "minute"]),
    (7204, []), (7205, []), (7206, ["day", "minute"]), (7270, ["day"]), (86399, ["day"]),
    (86401, []),
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
        walked.append((second, [quota.limit for quota in decision.quotas]))
        assert decision.limit == (decision.quotas[0].limit if decision.quotas else "")
        if decision.code is OK:
            limiter.report(make.query(85, **{"user-id": "alice"}))
        assert limiter.check(make.query(**{"user-id": "bob"})).code is OK
    assert walked == WALK


def test_who_waits_as_told_is_let_through(make, clock) -> None:
    """S4.8: the first quota of a refusal says when all that refuse have started anew, and not a moment too late."""
    limits = [make.limit(m, s, name=name, variables=["descriptors[0].user"]) for name, m, s in TIERS]
    limiter = EmbeddedLimiter(LimitSet(limits), clock)
    waited = []
    for _ in range(40):
        decision = limiter.check(make.query(user="alice"))
        if decision.code is OVER:
            wait = decision.quotas[0].resets_in
            waited.append((decision.limit, wait))
            clock.now += wait - 0.001
            assert limiter.check(make.query(user="alice")).code is OVER
            clock.now += 0.002
            assert limiter.check(make.query(user="alice")).code is OK
        limiter.report(make.query(85, user="alice"))
    assert {limit for limit, _ in waited} == {"minute", "hour", "day"}


def played(limiter: EmbeddedLimiter, make, requests: int, hits: int = 1, **entries: str) -> list[Code]:
    """Codes of requests one after another, charged `hits` when they are over."""
    codes = []
    for _ in range(requests):
        codes.append(limiter.check(make.query(**entries)).code)
        if codes[-1] is OK:
            limiter.report(make.query(hits, **entries))
    return codes


TOKEN_TIERS = [("free", 100, 4), ("premium", 500, 17)]


@pytest.mark.parametrize(("tier", "maximum", "allowed"), TOKEN_TIERS)
def test_tokens_of_tiers(make, clock, tier: str, maximum: int, allowed: int) -> None:
    """S1.19: answers of 30 tokens; the one that crosses the maximum passes. Both tiers live in one namespace."""
    limits = [
        make.limit(most, conditions=[f"descriptors[0].tier == '{name}'"], variables=["descriptors[0].user"])
        for name, most, _ in TOKEN_TIERS
    ]
    limiter = EmbeddedLimiter(LimitSet(limits), clock)
    codes = played(limiter, make, allowed + 2, 30, tier=tier, user="alice")
    assert codes == [OK] * allowed + [OVER, OVER]
    assert [(c.limit.max_value, c.used) for c in limiter.snapshot()] == [(maximum, 30 * allowed)]
    others = {"free": "premium", "premium": "free"}
    assert limiter.check(make.query(tier=others[tier], user="alice")).code is OK


def test_requests_come_back_120_seconds_after_the_first(make, clock) -> None:
    """S1.6, S1.9, S1.10: 5 in 2 minutes for each user of the free tier."""
    limits = make.limits(
        make.limit(5, 120, conditions=["descriptors[0]['limit.free'] == '1'"], variables=["descriptors[0].user"])
    )
    limiter = EmbeddedLimiter(limits, clock)

    def ask(user: str) -> Code:
        return limiter.should_rate_limit(make.query(**{"limit.free": "1", "user": user})).code

    for _ in range(7):
        clock.now += 10
        last = ask("free1")
    assert (last, limiter.check(make.query(**{"limit.free": "1", "user": "free1"})).quotas[0].resets_in) == (OVER, 60)
    assert [ask("free2") for _ in range(6)] == [OK] * 5 + [OVER]
    clock.now += 59.999
    assert ask("free1") is OVER
    clock.now += 0.001
    assert [ask("free1") for _ in range(6)] == [OK] * 5 + [OVER]


def test_of_two_tiers_at_once_the_lower_wins(make, clock) -> None:
    """S1.D2: a user in groups `free,premium` has both counters; a premium user the larger one alone."""
    limits = make.limits(
        *(
            make.limit(
                most, 120, name=tier, conditions=[f"descriptors[0].{tier} == '1'"], variables=["descriptors[0].user"]
            )
            for tier, most in (("free", 5), ("premium", 20))
        )
    )
    limiter = EmbeddedLimiter(limits, clock)
    both = [limiter.should_rate_limit(make.query(free="1", premium="1", user="u")) for _ in range(6)]
    assert [decision.limit for decision in both] == [""] * 5 + ["free"]
    one = [limiter.should_rate_limit(make.query(premium="1", user="v")).code for _ in range(21)]
    assert one == [OK] * 20 + [OVER]


def test_a_denied_token_check_uses_up_no_request(make, clock) -> None:
    """S1.29: requests and tokens of one user, in one namespace; tokens are asked for first."""
    limits = make.limits(
        make.limit(5, 120, name="requests", conditions=["descriptors[0].r == '1'"], variables=["descriptors[0].user"]),
        make.limit(100, 60, name="tokens", conditions=["descriptors[0].t == '1'"], variables=["descriptors[0].user"]),
    )
    limiter = EmbeddedLimiter(limits, clock)
    told = []
    for _ in range(7):
        decision = limiter.check(make.query(t="1", user="u"))
        if decision.code is OK:
            decision = limiter.should_rate_limit(make.query(r="1", user="u"))
        if decision.code is OK:
            limiter.report(make.query(50, t="1", user="u"))
        told.append(decision.limit)
    assert told == ["", ""] + ["tokens"] * 5
    assert {c.limit.name: c.used for c in limiter.snapshot()} == {"requests": 2, "tokens": 100}
    clock.now += 60
    assert limiter.check(make.query(t="1", user="u")).code is OK
    assert [limiter.should_rate_limit(make.query(r="1", user="u")).limit for _ in range(4)] == ["", "", "", "requests"]


def test_input_and_output_tokens_are_limited_separately(make, clock) -> None:
    limits = make.limits(
        *(
            make.limit(most, name=kind, conditions=[f"descriptors[0].{kind} == '1'"], variables=["descriptors[0].user"])
            for kind, most in (("input", 1_000), ("output", 100))
        )
    )
    limiter = EmbeddedLimiter(limits, clock)
    limiter.report(make.query(900, input="1", user="u"))
    limiter.report(make.query(120, output="1", user="u"))
    assert limiter.check(make.query(input="1", user="u")).code is OK
    assert limiter.check(make.query(output="1", user="u")).limit == "output"
    assert limiter.check(make.query(input="1", output="1", user="u")).limit == "output"


def test_a_limit_that_waiting_does_not_help_comes_first(make, clock) -> None:
    """More hits than the maximum, as one of a limit of 0, never pass."""
    limits = make.limits(
        make.limit(2, 60, name="minute"), make.limit(3, 3600, name="hour"), make.limit(0, 30, name="none")
    )
    limiter = EmbeddedLimiter(limits, clock)
    limiter.report(make.query(3))
    clock.now += 10
    decision = limiter.check(make.query())
    assert decision.limit == "none"
    assert decision.quotas == (
        Quota("none", 0, 0, inf, 30),
        Quota("hour", 3, 0, 3590.0, 3600),
        Quota("minute", 2, 0, 50.0, 60),
    )
    limiter.replace_limits(make.limits(make.limit(2, 60, name="minute"), make.limit(9, 3600, name="hour")))
    clock.now += 60
    assert limiter.should_rate_limit(make.query(3)).quotas == (Quota("minute", 2, 2, inf, 60),)


def test_allowed_decisions_tell_what_remains_when_asked_to(make, clock) -> None:
    limits = make.limits(
        make.limit(10, 60, name="minute"),
        make.limit(5, 3600, name="hour"),
        make.limit(5, 9, name="other", namespace="b"),
    )
    limiter = EmbeddedLimiter(limits, clock)
    assert limiter.check(make.query()).quotas == ()
    limiter.tells_quotas = True
    fresh = (Quota("hour", 5, 5, 3600.0, 3600), Quota("minute", 10, 10, 60.0, 60))
    assert limiter.check(make.query()) == Decision(OK, quotas=fresh)
    clock.now += 5
    added = (Quota("hour", 5, 3, 3600.0, 3600), Quota("minute", 10, 8, 60.0, 60))
    assert limiter.should_rate_limit(make.query(2)) == Decision(OK, quotas=added)
    limiter.report(make.query(7))
    clock.now += 60
    assert limiter.check(make.query()).quotas == (Quota("hour", 5, 0, 3540.0, 3600),)
    assert limiter.check(make.query(domain="c")) == Decision(OK, unlimited=True)
    assert limiter.report(make.query()) == Decision(OK)


def test_counts_stop_at_the_largest_number(make, clock) -> None:
    limiter = EmbeddedLimiter(make.limits(make.limit(2**64 - 1)), clock)
    for _ in range(3):
        limiter.report(Query("domain-a", ((),), 2**63))
    assert used(limiter) == {(): 2**64 - 1}
    assert limiter.check(make.query()).code is OVER
    limiter = EmbeddedLimiter(make.limits(make.limit()), clock)
    limiter.report(Query("domain-a", ((),), 2**70))
    assert used(limiter) == {(): 2**64 - 1}


@pytest.mark.parametrize(("fields", "name"), [({"name": "n", "id": "i"}, "n"), ({"id": "i"}, "i"), ({}, "")])
def test_the_refusing_limit_is_named(make, clock, fields: dict, name: str) -> None:
    limiter = EmbeddedLimiter(make.limits(make.limit(0, **fields)), clock)
    assert limiter.check(make.query()) == Decision(OVER, limit=name, quotas=(Quota(name, 0, 0, inf, 60),))


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
    for _ in range(2):
        assert limiter.should_rate_limit(make.query(user="alice")).code is OK
    assert limiter.should_rate_limit(make.query(user="alice")).limit == "seven"
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


def test_limits_that_come_and_go_keep_to_their_rows(make, clock) -> None:
    """Users are added and forgotten between changes; what stays keeps its hits, what comes back begins anew."""
    user = {"variables": ["descriptors[0].user"]}
    minute, hour, day = (make.limit(9, seconds, **user) for seconds in (60, 3_600, 86_400))
    limiter = EmbeddedLimiter(make.limits(minute, hour), clock)
    for name in "abc":
        limiter.report(make.query(user=name))
    limiter.replace_limits(make.limits(hour, day))
    for name in "cde":
        limiter.report(make.query(user=name))
    clock.now += 3_600
    limiter.sweep()
    limiter.replace_limits(make.limits(day, minute))
    limiter.report(make.query(3, user="d"))
    shown = sorted((c.limit.window.seconds, c.values[0], c.used) for c in limiter.snapshot())
    assert shown == [(60, "d", 3), (86_400, "c", 1), (86_400, "d", 4), (86_400, "e", 1)]
    assert len(limiter) == 3


def filled(make, clock, counters: int) -> EmbeddedLimiter:
    limiter = EmbeddedLimiter(
        LimitSet([make.limit(variables=["descriptors[0].user"]), make.limit(namespace="b")]), clock
    )
    for number in range(counters):
        limiter.report(make.query(user=f"user-{number}"))
    return limiter


def test_expired_counters_are_freed_by_later_reports_of_any_domain(make, clock) -> None:
    """A bounded number a call, so that no call pays for all."""
    limiter = filled(make, clock, 50_000)
    assert len(limiter) == 50_000
    clock.now += 60
    sizes = [len(limiter)]
    while len(limiter) > 1 and len(sizes) <= 50_000:
        limiter.report(make.query(domain="b"))
        sizes.append(len(limiter))
    assert max(a - b for a, b in pairwise(sizes)) <= VISITED_PER_CALL + 1
    assert len(sizes) <= 50_000 // VISITED_PER_CALL + 2


def test_garbage_never_piles_up(make, clock) -> None:
    """A new user with each of a hundred reports a second, who never comes back: two minutes' worth at most."""
    limiter = EmbeddedLimiter(make.limits(make.limit(variables=["descriptors[0].user"])), clock)
    most = 0
    for number in range(60_000):
        clock.now += 0.01
        limiter.report(make.query(user=str(number)))
        most = max(most, len(limiter))
    assert 6_000 <= most <= 12_000


def test_sweep_frees_every_expired_counter_at_once(make, clock) -> None:
    limiter = filled(make, clock, 1_000)
    clock.now += 30
    limiter.report(make.query(user="late"))
    clock.now += 30
    limiter.sweep()
    assert used(limiter) == {("late",): 1}
    assert len(limiter) == 1


def test_a_counter_that_starts_anew_survives_the_end_of_its_old_window(make, clock) -> None:
    limiter = filled(make, clock, 100)
    clock.now += 60
    limiter.report(make.query(7, user="user-99"))
    limiter.sweep()
    assert used(limiter) == {("user-99",): 7}
    assert len(limiter) == 1


def test_a_flood_of_distinct_values_does_not_grow_memory_without_bound(make, clock) -> None:
    """Rows that expire early give way: the newest stay, and those with a longer window, in a smaller table too."""
    limits = make.limits(
        make.limit(variables=["descriptors[0].user"]),
        make.limit(seconds=86_400, conditions=["descriptors[0].paid == '1'"], variables=["descriptors[0].user"]),
        make.limit(namespace="b", seconds=1_000, variables=["descriptors[0].user"]),
    )
    limiter = EmbeddedLimiter(limits, clock, max_rows=100)
    for number in range(5):
        limiter.report(make.query(7, paid="1", user=f"paying-{number}"))
        limiter.report(make.query(3, domain="b", user=f"other-{number}"))
    for number in range(1_000):
        clock.now += 0.001
        limiter.report(make.query(user=str(number)))
        assert len(limiter) <= 100
    found = used(limiter)
    assert len(limiter) == 100
    assert [found[(f"paying-{number}",)] for number in range(5)] == [7] * 5
    assert [found[(f"other-{number}",)] for number in range(5)] == [3] * 5
    assert {(str(number),) for number in range(1_000 - CANDIDATES, 1_000)} <= found.keys()


def four_limits(make) -> LimitSet:
    """What a user of a tier has: a limit of requests, and tokens in three windows."""
    return make.limits(
        *(
            make.limit(
                max_value,
                seconds,
                name=name,
                conditions=[f"descriptors[0]['{kind}'] == '1'"],
                variables=["descriptors[0]['user']"],
            )
            for name, max_value, seconds, kind in (
                ("requests", 5, 120, "request"),
                ("minute", 150, 60, "token"),
                ("hour", 300, 3_600, "token"),
                ("day", 800, 86_400, "token"),
            )
        )
    )


def test_a_user_with_four_counters_costs_at_most_400_bytes(make, clock) -> None:
    """All told, with the text of a user id as long as a UUID, which nobody else holds; where a dict has just grown."""
    users = 44_000
    limiter = EmbeddedLimiter(four_limits(make), clock)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(users):
            user = f"{number:036}"
            limiter.should_rate_limit(Query("domain-a", ((("request", "1"), ("user", user)),)))
            limiter.report(Query("domain-a", ((("token", "1"), ("user", user)),), 24))
        size = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(list(limiter.snapshot())) == 4 * users
    assert size / users <= 400


def test_forgotten_users_give_their_memory_back(make, clock) -> None:
    limiter = EmbeddedLimiter(four_limits(make), clock)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(20_000):
            limiter.report(make.query(token="1", user=str(number)))
        full = tracemalloc.get_traced_memory()[0] - before
        clock.now += 86_400
        limiter.sweep()
        left = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert left < full / 100


async def test_the_counters_nearest_to_their_maximum(make, clock) -> None:
    limits = make.limits(
        make.limit(1_000, name="day", seconds=86_400, variables=["descriptors[0].user"]),
        make.limit(100, name="minute", variables=["descriptors[0].user"]),
        make.limit(0, name="none", namespace="b"),
    )
    limiter = EmbeddedLimiter(limits, clock)
    assert await limiter.counters(5) == []
    for user, hits in (("a", 10), ("b", 250), ("c", 99), ("d", 40)):
        limiter.report(make.query(hits, user=user))
    limiter.report(make.query(domain="b"))
    clock.now += 10
    found = await limiter.counters(5)
    assert [(c.limit.name, c.values, c.used, c.remaining) for c in found] == [
        ("none", (), 1, 0),
        ("minute", ("b",), 250, 0),
        ("minute", ("c",), 99, 1),
        ("minute", ("d",), 40, 60),
        ("day", ("b",), 250, 750),
    ]
    assert [c.resets_in for c in found][1] == 50.0
    assert len(await limiter.counters(100)) == 9
    assert await limiter.counters(0) == []
    clock.now += 50
    assert [c.limit.name for c in await limiter.counters(100)] == ["day"] * 4


async def test_others_run_while_counters_are_looked_through(make, clock) -> None:
    """Users who come, go and are limited anew meanwhile neither fail nor hide those who stay."""
    limiter = EmbeddedLimiter(make.limits(make.limit(100, variables=["descriptors[0].user"])), clock)
    for number in range(4 * SLICE):
        if number == SLICE:
            clock.now += 30
        limiter.report(make.query(1, user=f"early-{number}" if number < SLICE else f"late-{number}"))
    for number in range(5):
        limiter.report(make.query(90, user=f"late-{SLICE + number * 500}"))
    looking = asyncio.create_task(limiter.counters(5))
    turns = 0
    while not looking.done():
        await asyncio.sleep(0)
        turns += 1
        if turns == 2:
            clock.now += 30
            limiter.sweep()
        limiter.report(make.query(1, user=f"new-{turns}"))
    assert turns >= 4
    assert {c.values for c in await looking} == {(f"late-{SLICE + number * 500}",) for number in range(5)}
    assert [c.used for c in await looking] == [91] * 5


async def test_limits_may_change_while_counters_are_looked_through(make, clock) -> None:
    """With the same users in other rows since."""
    old = make.limit(100, variables=["descriptors[0].user"])
    new = make.limit(100, 30, variables=["descriptors[0].user"])
    limiter = EmbeddedLimiter(make.limits(old), clock)
    for number in range(2 * SLICE):
        limiter.report(make.query(1, user=str(number)))
    looking = asyncio.create_task(limiter.counters(10))
    shown = limiter.snapshot()
    next(shown)
    await asyncio.sleep(0)
    limiter.replace_limits(make.limits(new))
    clock.now += 60
    limiter.sweep()
    limiter.report(make.query(1, user="another"))
    assert await looking == []
    assert list(shown) == []


def test_calls_are_tallied(make, clock) -> None:
    """S1.11: as Limitador counts: what was allowed, what was refused by which limit, and hits."""
    limiter = EmbeddedLimiter(make.limits(make.limit(5, 120, name="free")), clock)
    for _ in range(7):
        limiter.should_rate_limit(make.query())
    limiter.report(make.query(30))
    limiter.check(make.query())
    limiter.check(make.query(domain="elsewhere"))
    limiter.check(make.query(domain=""))
    assert limiter.tally.authorized_calls == {"domain-a": 5, "elsewhere": 1}
    assert limiter.tally.limited_calls == {("domain-a", "free"): 3}
    assert limiter.tally.authorized_hits == {"domain-a": 35}


@pytest.mark.parametrize("seed", range(3))
def test_many_windows_of_different_lengths_are_all_freed(make, clock, seed: int) -> None:
    random_ = random.Random(seed)
    limits = [make.limit(seconds=s, variables=["descriptors[0].user"]) for s in (1, 2, 3, 60, 61)]
    limiter = EmbeddedLimiter(LimitSet(limits), clock)
    for _ in range(2_000):
        clock.now += random_.random()
        limiter.report(make.query(user=str(random_.randrange(50))))
    live = len({counter.values for counter in limiter.snapshot()})
    limiter.sweep()
    assert len(limiter) == live
    clock.now += 61
    limiter.sweep()
    assert len(limiter) == 0
