"""Giving back what was counted: S2.D19, S4.D4."""

from __future__ import annotations

from math import inf, nan
from unittest.mock import create_autospec

import grpc
import pytest

from extproc.config.model import Limit
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.limits import LimitSet
from extproc.limiter.metered import metered
from extproc.limiter.remote import RemoteLimiter
from extproc.limiter.seam import Code, Decision, LimiterError, Query, Refunding
from extproc.telemetry.metrics import Metrics

USER = ["descriptors[0]['user']"]


def used(limiter: EmbeddedLimiter) -> list[int]:
    return [counter.used for counter in limiter.snapshot()]


@pytest.mark.parametrize("algorithm", ["fixed", "gcra"])
@pytest.mark.parametrize(
    ("charged", "given_back", "left"), [(40, 40, [0]), (40, 15, [25]), (40, 2**32, [0]), (40, 0, [40]), (90, 30, [60])]
)
def test_hits_are_taken_off_and_never_more_than_there_are(
    make, clock, algorithm: str, charged: int, given_back: int, left: list[int]
) -> None:
    """A full bucket is none; a window stays open, with nothing in it."""
    limiter = EmbeddedLimiter(make.limits(make.limit(50, algorithm=algorithm)), clock)
    limiter.report(make.query(charged))
    assert limiter.refund(make.query(given_back)) == Decision(Code.OK)
    assert used(limiter) == ([] if algorithm == "gcra" and left == [0] else left)


def test_every_counter_of_the_query_and_no_other(make, clock) -> None:
    limits = [make.limit(50, variables=USER), make.limit(50, algorithm="gcra", variables=USER), make.limit(99, 3_600)]
    limiter = EmbeddedLimiter(LimitSet(limits), clock)
    for user in "ab":
        limiter.report(make.query(30, user=user))
    limiter.refund(make.query(20, user="b"))
    limiter.refund(make.query(20, user="stranger"))
    shown = {(c.limit.window.seconds, c.limit.steady, c.values): c.used for c in limiter.snapshot()}
    assert shown == {
        (60, False, ("a",)): 30,
        (60, False, ("b",)): 10,
        (60, True, ("a",)): 30,
        (60, True, ("b",)): 10,
        (3_600, False, ()): 20,
    }
    assert len(limiter) == 3
    assert limiter.tally.authorized_hits == {"domain-a": 60}


def test_there_is_room_again(make, clock) -> None:
    """S2.D19: the next prompt fits when the one before has failed and was given back."""
    for algorithm in ("fixed", "gcra"):
        limiter = EmbeddedLimiter(make.limits(make.limit(50, algorithm=algorithm)), clock)
        assert limiter.should_rate_limit(make.query(47)).code is Code.OK
        assert limiter.should_rate_limit(make.query(47)).code is Code.OVER_LIMIT
        limiter.refund(make.query(47))
        assert limiter.should_rate_limit(make.query(47)).code is Code.OK


WINDOWS = [
    # fields, seconds from the charge to the refund
    ({"seconds": 60}, 0.0),
    ({"seconds": 60}, 59.5),
    ({"seconds": 60}, 60.0),
    ({"seconds": 60}, 61.0),
    ({"seconds": 60}, 1e9),
    # 20 s before midnight
    ({"calendar": "day"}, 19.0),
    ({"calendar": "day"}, 21.0),
    ({"calendar": "month"}, 21.0),
]


@pytest.mark.parametrize(("fields", "age"), WINDOWS)
def test_what_was_counted_since_is_left(clock, fields: dict, age: float) -> None:
    """Whether the window that counted lasts, and gives back, or a new one keeps what it has."""
    start = clock.now
    limit = Limit(namespace="domain-a", max_value=50, **fields)
    limiter = EmbeddedLimiter(LimitSet([limit]), clock, wall=lambda: clock.now - start + 86_380.0)
    query = Query("domain-a", ((),), 30)
    limiter.report(query)
    clock.now += age
    limiter.report(query._replace(hits_addend=5))
    limiter.refund(query, age=age)
    assert used(limiter) == [5]


def test_a_window_that_began_between_the_charge_and_its_answer_is_taken_for_the_one_that_counted(make, clock) -> None:
    """The only race that is left: age is counted from the answer."""
    limiter = EmbeddedLimiter(make.limits(make.limit(50)), clock)
    limiter.report(make.query(30))
    clock.now += 60
    limiter.report(make.query(20))
    clock.now += 10
    limiter.refund(make.query(15), age=10.5)
    assert used(limiter) == [20]
    limiter.refund(make.query(15), age=10)
    assert used(limiter) == [5]


def test_a_bucket_takes_back_what_is_still_missing_however_old(make, clock) -> None:
    """What has flowed back already is there once, not twice."""
    limiter = EmbeddedLimiter(make.limits(make.limit(60, algorithm="gcra")), clock)
    limiter.report(make.query(30))
    clock.now += 20
    limiter.refund(make.query(30), age=20)
    assert used(limiter) == []
    limiter.report(make.query(90))
    clock.now += 80
    limiter.refund(make.query(5), age=80)
    assert used(limiter) == [5]


@pytest.mark.parametrize("age", [-1.0, inf, -inf, nan])
def test_an_age_that_is_none_breaks_nothing(make, clock, age: float) -> None:
    limits = [make.limit(50), Limit(namespace="domain-a", max_value=50, calendar="day")]
    limiter = EmbeddedLimiter(LimitSet(limits), clock)
    limiter.report(make.query(30))
    assert limiter.refund(make.query(30), age=age).code is Code.OK
    assert set(used(limiter)) <= {0, 30}


def test_nowhere_to_give_back_to(make, clock) -> None:
    limiter = EmbeddedLimiter(make.limits(make.limit(50)), clock)
    assert limiter.refund(make.query(domain="")) == Decision(Code.UNKNOWN)
    assert limiter.refund(make.query(domain="elsewhere")) == Decision(Code.OK)
    assert limiter.refund(make.query(5)) == Decision(Code.OK)
    assert len(limiter) == 0


def test_who_can_give_back(make) -> None:
    """The embedded limiter, metered or not; not one behind gRPC, where hits have no sign."""
    embedded = EmbeddedLimiter(make.limits(make.limit()))
    remote = RemoteLimiter(create_autospec(grpc.aio.Channel), 1.0)
    assert isinstance(embedded, Refunding)
    assert isinstance(metered(embedded, "embedded", Metrics()), Refunding)
    assert not isinstance(remote, Refunding)
    assert not isinstance(metered(remote, "limitador", Metrics()), Refunding)


async def test_refunds_are_in_the_metrics(make) -> None:
    """At once, later, or not at all; with the age they were given."""
    metrics, told = Metrics(), []

    class Later(EmbeddedLimiter):
        async def refund(self, query, metadata=(), age=0.0):
            told.append((metadata, age))
            if age > 5:
                raise LimiterError("deadline", "late")
            return Decision(Code.OK)

    for kind in (EmbeddedLimiter, Later):
        limiter = metered(kind(make.limits(make.limit())), "embedded", metrics)
        assert isinstance(limiter, Refunding)
        answer = limiter.refund(make.query(), (("x", "y"),), 2.5)
        assert (answer if isinstance(answer, Decision) else await answer).code is Code.OK
    with pytest.raises(LimiterError):
        await limiter.refund(make.query(), age=6.0)
    assert told == [((("x", "y"),), 2.5), ((), 6.0)]
    text = metrics.render()[0].decode()
    assert 'extproc_limiter_calls_total{endpoint="embedded",method="refund",result="ok"} 2.0' in text
    assert 'extproc_limiter_calls_total{endpoint="embedded",method="refund",result="deadline"} 1.0' in text
