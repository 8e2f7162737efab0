"""Limits with `algorithm: gcra`: a burst, and then a steady pace; in memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, field
from fractions import Fraction
from math import inf, isnan

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extproc.admin.usage import nearest
from extproc.config.model import Limit
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.gcra import MOST, TOLERANCE, Pace, whole
from extproc.limiter.limits import LimitSet
from extproc.limiter.quotas import ratelimit_headers, retry_after
from extproc.limiter.seam import MAX_HITS, Code, Decision, Query, Quota

OK, OVER = Code.OK, Code.OVER_LIMIT
KEY = "descriptors[0]['selector-key']"
USER = ["descriptors[0]['user']"]


def bucket(max_value: int, seconds: int = 60, **fields) -> Limit:
    return Limit(
        **({"namespace": "domain-a", "max_value": max_value, "seconds": seconds, "algorithm": "gcra"} | fields)
    )


def limiter_of(clock, *limits: Limit, **options) -> EmbeddedLimiter:
    return EmbeddedLimiter(LimitSet(limits), clock, **options)


def standing(limiter: EmbeddedLimiter) -> dict[tuple[str, ...], tuple[int, int, float]]:
    return {c.values: (c.used, c.remaining, round(c.resets_in, 6)) for c in limiter.snapshot()}


TABLE = [
    # max, [(method, hits, code)], hits taken at the end
    (2, [("check", 1, OK), ("check", 99, OK), ("check", 0, OK)], 0),
    (2, [("report", 1, OK), ("check", 5, OK), ("report", 1, OK), ("check", 0, OVER)], 2),
    (2, [("report", 0, OK), ("check", 1, OK), ("report", 0, OK), ("check", 1, OVER)], 2),
    (2, [("report", 3, OK), ("report", 3, OK), ("check", 1, OVER)], 6),
    (0, [("check", 1, OVER), ("should_rate_limit", 1, OVER), ("report", 1, OK), ("check", 1, OVER)], 0),
    (2, [("should_rate_limit", 2, OK), ("should_rate_limit", 1, OVER), ("check", 1, OVER)], 2),
    (2, [("should_rate_limit", 3, OVER), ("should_rate_limit", 0, OK), ("should_rate_limit", 0, OK)], 2),
    (2**64 - 1, [("report", MAX_HITS, OK), ("report", MAX_HITS, OK), ("check", 1, OK)], 2 * MAX_HITS),
    (9, [("report", 2**52, OK), ("report", 2**52, OK), ("report", 2**70, OK), ("check", 1, OVER)], MOST),
]


@pytest.mark.parametrize(("maximum", "calls", "counted"), TABLE)
def test_semantics_without_time(clock, maximum: int, calls: list, counted: int) -> None:
    """As of a window: check asks for one more hit and changes nothing, report adds whatever it is told, 0 is 1."""
    limiter = limiter_of(clock, bucket(maximum))
    codes = [getattr(limiter, call)(Query("domain-a", ((),), hits)).code for call, hits, _ in calls]
    assert codes == [code for _, _, code in calls]
    assert sum(used for used, _, _ in standing(limiter).values()) == counted


UNITS = [("second", 1), ("minute", 60), ("hour", 3_600), ("day", 86_400)]


@pytest.mark.parametrize(("unit", "seconds"), UNITS)
def test_50_in_a_unit_with_prompts_of_47(make, clock, unit: str, seconds: int) -> None:
    """S2.20: a second prompt of 47 fits when 44 of 50 have flowed back: in a minute after 52.8 s."""
    limiter = limiter_of(clock, bucket(50, seconds, name=unit))
    assert limiter.should_rate_limit(make.query(47)).code is OK
    wait = 44 * seconds / 50
    refusal = limiter.should_rate_limit(make.query(47))
    assert refusal.quotas == (Quota(unit, 50, 3, pytest.approx(wait), seconds),)
    clock.now += wait * 0.9999
    assert limiter.should_rate_limit(make.query(47)).code is OVER
    clock.now = 1_000 + wait
    assert limiter.should_rate_limit(make.query(47)).code is OK
    assert standing(limiter) == {(): (50, 0, seconds)}


def test_one_request_larger_than_the_bucket(make, clock) -> None:
    """S2.14: refused also when it is full, and no wait is told, for none would help."""
    limiter = limiter_of(clock, bucket(50, name="minute"))
    refusal = limiter.should_rate_limit(make.query(51))
    assert refusal == Decision(OVER, limit="minute", quotas=(Quota("minute", 50, 50, inf, 60),))
    assert retry_after(refusal.quotas) is None
    assert limiter.should_rate_limit(make.query(50)).code is OK


def prompts(**limits: tuple[int, list[str], bool]) -> list[Limit]:
    """Of models: tokens an hour, conditions on a header, and whether its values are told apart."""
    return [
        bucket(
            tokens,
            3_600,
            name=model,
            conditions=[f"descriptors[0]['model'] == '{model}'", *conditions],
            variables=[KEY] if by_value else [],
        )
        for model, (tokens, conditions, by_value) in limits.items()
    ]


ONLY_VALUE = [f"{KEY} == 'selector-value'"]
PROMPTS = [
    # name, limits, [(model, header's value, tokens, fits)]
    (
        "S2.16 a limit for a key has a bucket for each of its values",
        prompts(gpt4=(100, [], True)),
        [("gpt4", "value1", 50, OK), ("gpt4", "value2", 60, OK), ("gpt4", "value1", 70, OVER)],
    ),
    (
        "S2.17 another model, or another key",
        prompts(gpt4=(100, [], True)),
        [("gpt3", "value1", 5_000, OK), ("gpt4", None, 5_000, OK)],
    ),
    (
        "S2.18 a limit for one value",
        prompts(gpt4=(100, ONLY_VALUE, False)),
        [("gpt4", "other", 5_000, OK), ("gpt4", "selector-value", 100, OK), ("gpt4", "selector-value", 1, OVER)],
    ),
    (
        "S2.19 two models with the same selector",
        prompts(gpt4=(100, ONLY_VALUE, False), gpt5=(200, ONLY_VALUE, False)),
        [
            ("gpt4", "selector-value", 100, OK),
            ("gpt5", "selector-value", 200, OK),
            ("gpt4", "selector-value", 1, OVER),
            ("gpt5", "selector-value", 1, OVER),
        ],
    ),
]


@pytest.mark.parametrize(("limits", "calls"), [row[1:] for row in PROMPTS], ids=[row[0] for row in PROMPTS])
def test_limits_of_prompts(make, clock, limits: list[Limit], calls: list) -> None:
    limiter = limiter_of(clock, *limits)
    for model, value, tokens, code in calls:
        entries = {"model": model} | ({} if value is None else {"selector-key": value})
        assert limiter.should_rate_limit(make.query(tokens, **entries)).code is code


def test_a_debt_is_paid_back(make, clock) -> None:
    """What crosses the limit is counted whole, and flows back at the same pace: 24 of 50 a minute beyond it."""
    limiter = limiter_of(clock, bucket(50, name="minute"))
    limiter.report(make.query(74))
    assert standing(limiter) == {(): (74, 0, 88.8)}
    assert limiter.check(make.query()).quotas == (Quota("minute", 50, 0, pytest.approx(30.0), 60),)
    clock.now += 30
    assert limiter.check(make.query()).code is OK
    clock.now += 58.8
    assert standing(limiter) == {}


def test_what_a_client_is_told(make, clock) -> None:
    """Refused: when its hits will fit. Allowed: when the bucket will be full again, which it may be already."""
    limiter = limiter_of(clock, bucket(60, name="minute"))
    limiter.tells_quotas = True
    assert ratelimit_headers(limiter.check(make.query()).quotas)[1:] == (
        ("x-ratelimit-remaining", "60"),
        ("x-ratelimit-reset", "0"),
    )
    assert limiter.should_rate_limit(make.query(45)).quotas == (Quota("minute", 60, 15, 45.0, 60),)
    refusal = limiter.should_rate_limit(make.query(20))
    assert refusal.quotas == (Quota("minute", 60, 15, 5.0, 60),)
    assert retry_after(refusal.quotas) == 5


def test_buckets_and_windows_together_count_all_or_nothing(make, clock) -> None:
    """The limit that refuses longest comes first, whatever it is."""
    window = make.limit(80, 60, name="window")
    limiter = limiter_of(clock, bucket(100, 3_600, name="bucket"), window, bucket(70, name="small"))
    assert limiter.should_rate_limit(make.query(60)).code is OK
    refusal = limiter.should_rate_limit(make.query(50))
    assert [(quota.limit, quota.resets_in) for quota in refusal.quotas] == [
        ("bucket", 360.0),
        ("window", 60.0),
        ("small", pytest.approx(240 / 7)),
    ]
    assert [c.used for c in limiter.snapshot()] == [60, 60, 60]
    clock.now += 60
    assert limiter.should_rate_limit(make.query(50)).limit == "bucket"
    assert limiter.should_rate_limit(make.query(41)).code is OK
    assert [c.used for c in limiter.snapshot()] == [100, 41, 41]


def test_a_changed_maximum_keeps_what_was_taken(make, clock) -> None:
    """S1.24: it acts at once; a bucket is another limit than a window of the same length."""
    limiter = limiter_of(clock, bucket(50))
    limiter.report(make.query(50))
    limiter.replace_limits(make.limits(bucket(70)))
    assert standing(limiter)[()][:2] == (50, 20)
    limiter.replace_limits(make.limits(bucket(40)))
    assert standing(limiter)[()][:2] == (50, 0)
    clock.now += 60
    assert standing(limiter) == {}
    limiter.report(make.query(30))
    limiter.replace_limits(make.limits(make.limit(40), bucket(0, 61)))
    assert standing(limiter) == {}
    assert len(LimitSet([make.limit(40), bucket(40)]).limits) == 2


def test_a_bucket_that_is_full_is_forgotten(make, clock) -> None:
    """Later than a window would be: a debt has to be remembered."""
    limiter = limiter_of(clock, bucket(50, variables=USER), make.limit(50, variables=USER))
    limiter.report(make.query(25, user="a"))
    limiter.report(make.query(75, user="b"))
    clock.now += 60
    limiter.sweep()
    assert (len(limiter), standing(limiter)) == (1, {("b",): (25, 25, 30.0)})
    clock.now += 30
    limiter.sweep()
    assert len(limiter) == 0
    limiter.report(make.query(1, user="c"))
    assert standing(limiter) == {("c",): (1, 49, 60.0)}


def test_a_bucket_costs_eight_bytes_more_than_a_window(make, clock) -> None:
    """Of a row: three numbers in place of two. One for nothing costs no row for long."""

    def size(*limits: Limit) -> float:
        tracemalloc.start()
        limiter = limiter_of(clock, *limits)
        for number in range(8_000):
            limiter.report(make.query(user=f"{number:036}"))
        found = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(limiter) == 8_000
        return found / 8_000

    lengths = (3_600, 7_200, 86_400)
    windows = size(*(make.limit(9, seconds, variables=USER) for seconds in lengths))
    buckets = size(*(bucket(9, seconds, variables=USER) for seconds in lengths))
    assert buckets - windows < 8 * len(lengths) * 1.2
    limiter = limiter_of(clock, bucket(0, variables=USER))
    for number in range(1_000):
        limiter.report(make.query(user=str(number)))
    assert len(limiter) < 10


async def test_whoever_looks_sees_what_is_missing_and_when_the_bucket_is_full(make, clock) -> None:
    limiter = limiter_of(clock, bucket(50, name="minute", variables=USER), make.limit(100, name="window"))
    limiter.report(make.query(60, user="a"))
    limiter.report(make.query(5, user="b"))
    clock.now += 12
    shown = [
        (use.limit, use.used, use.maximum, round(use.resets_in, 6), use.window) for use in await nearest(limiter, 9)
    ]
    assert shown == [("minute", 50, 50, 60.0, 60), ("window", 65, 100, 48.0, 60)]


@dataclass
class Reference:
    """The generic cell rate algorithm as the textbook has it, in fractions: `arrival` is when the bucket is full."""

    maximum: int
    seconds: int
    arrival: dict[str, Fraction] = field(default_factory=dict)

    def at(self, user: str, now: Fraction) -> Fraction:
        return max(self.arrival.get(user, now), now)

    def fits(self, user: str, hits: int, now: Fraction) -> bool:
        return hits <= self.maximum and self.taken(user, now) + hits <= self.maximum

    def taken(self, user: str, now: Fraction) -> Fraction:
        return (self.at(user, now) - now) * self.maximum / self.seconds

    def move(self, user: str, hits: int, now: Fraction) -> None:
        if self.maximum:
            self.arrival[user] = max(now, self.at(user, now) + Fraction(hits * self.seconds, self.maximum))


STEPS = st.one_of(
    st.tuples(
        st.sampled_from(["check", "report", "should_rate_limit", "refund"]), st.sampled_from("ab"), st.integers(0, 9)
    ),
    st.tuples(st.just("advance"), st.integers(0, 12).map(lambda quarters: quarters / 4), st.just(0)),
    st.tuples(st.just("sweep"), st.just(""), st.just(0)),
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 7)), min_size=1, max_size=3, unique_by=lambda pair: pair[1]),
    st.lists(STEPS, max_size=40),
)
def test_any_sequence_of_calls_agrees_with_the_textbook(limits: list[tuple[int, int]], steps: list) -> None:
    now = [1_000.0]
    models = [Reference(maximum, seconds) for maximum, seconds in limits]
    limiter = EmbeddedLimiter(LimitSet(bucket(m, s, name=str(s), variables=USER) for m, s in limits), lambda: now[0])
    for step, user, hits in steps:
        exact = Fraction(now[0])
        if step == "advance":
            now[0] += user
            continue
        if step == "sweep":
            limiter.sweep()
            continue
        asked = 1 if step == "check" else hits if step == "refund" else hits or 1
        refusing = {str(m.seconds) for m in models if not m.fits(user, asked, exact)}
        decision = getattr(limiter, step)(Query("domain-a", ((("user", user),),), hits))
        if step in ("check", "should_rate_limit"):
            assert {quota.limit for quota in decision.quotas} == refusing
        if step != "check" and not (step == "should_rate_limit" and refusing):
            for model in models:
                model.move(user, -asked if step == "refund" else asked, exact)
        for counter in limiter.snapshot():
            model = next(m for m in models if m.seconds == counter.limit.window.seconds)
            taken = model.taken(counter.values[0], exact)
            assert counter.used == -(-taken // 1)
            assert counter.resets_in == pytest.approx(float(taken * model.seconds / model.maximum), abs=1e-9)


PAUSES = st.floats(0, 200, allow_nan=False)


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 10_000),
    st.integers(1, 100_000),
    st.lists(st.tuples(PAUSES, st.integers(1, 10_000)), max_size=30),
)
def test_no_interval_has_more_than_a_burst_and_what_flows_back_in_it(
    maximum: int, seconds: int, calls: list[tuple[float, int]]
) -> None:
    now = [1e6]
    limiter = EmbeddedLimiter(LimitSet([bucket(maximum, seconds)]), lambda: now[0])
    taken: list[tuple[float, int]] = []
    for pause, hits in calls:
        now[0] += pause
        if limiter.should_rate_limit(Query("domain-a", ((),), hits)).code is OK:
            taken.append((now[0], hits))
    for first, (start, _) in enumerate(taken):
        total = 0
        for at, hits in taken[first:]:
            total += hits
            assert total <= maximum + maximum * (at - start) / seconds + 2 * TOLERANCE


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 1_000), st.integers(1, 10**6), st.integers(0, 3_000), st.integers(1, 1_000), PAUSES)
def test_who_waits_as_told_is_let_through(maximum: int, seconds: int, before: int, hits: int, pause: float) -> None:
    """And who waits half of it is not."""
    now = [1e6]
    limiter = EmbeddedLimiter(LimitSet([bucket(maximum, seconds)]), lambda: now[0])
    query = Query("domain-a", ((),), hits)
    limiter.report(query._replace(hits_addend=before))
    now[0] += pause
    refusal = limiter.should_rate_limit(query)
    if refusal.code is OVER and hits <= maximum:
        start, wait = now[0], refusal.quotas[0].resets_in
        if wait * maximum / seconds > 0.001:
            now[0] = start + wait / 2
            assert limiter.should_rate_limit(query).code is OVER
        now[0] = start + wait
        assert limiter.should_rate_limit(query).code is OK


@settings(deadline=None, max_examples=200)
@given(
    st.integers(0, 2**64 - 1),
    st.integers(1, 2**63 - 1),
    st.lists(
        st.tuples(
            st.sampled_from(["report", "should_rate_limit", "refund"]),
            st.integers(1, 2**32),
            st.floats(0, 1e12, allow_nan=False),
        ),
        max_size=10,
    ),
)
def test_numbers_of_any_size_neither_overflow_nor_jump(maximum: int, seconds: int, calls: list) -> None:
    """What is left only grows with time, and nothing is told that is no number."""
    now = [1e6]
    limiter = EmbeddedLimiter(LimitSet([bucket(maximum, seconds)]), lambda: now[0])
    limiter.tells_quotas = True
    for method, hits, pause in calls:
        query = Query("domain-a", ((),), hits)
        getattr(limiter, method)(query)
        (before,) = limiter.check(query).quotas
        now[0] += pause
        (after,) = limiter.check(query).quotas
        assert 0 <= before.remaining <= after.remaining <= maximum
        assert not isnan(after.resets_in)
        assert after.resets_in >= 0
        assert all(0 <= c.used <= MOST and 0 <= c.resets_in < inf for c in limiter.snapshot())


def test_the_arithmetic() -> None:
    """A clock that goes back gives and takes nothing; nothing flows into a bucket for 0."""
    pace = Pace(50, 60)
    assert (pace.left(47, 52.8), pace.left(47, -5), pace.left(1, 1e300)) == (pytest.approx(3), 47, 0)
    assert (pace.takes(5), Pace(0, 60).takes(5), Pace(0, 60).left(5, 60)) == (6, inf, 5)
    assert [whole(taken) for taken in (0, TOLERANCE / 2, 0.5, 3 + TOLERANCE / 2, 3 + 2 * TOLERANCE)] == [0, 0, 1, 3, 4]
