"""Limits whose windows are the calendar's, with a clock for time that passes and another for what day it is."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.config.model import Limit
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.limits import LimitSet
from extproc.limiter.seam import Code, Query, Quota

HOUR = 3_600
DAY = 24 * HOUR
ASKED = Query("d", ((("user", "alice"),),))


class Clocks:
    """`now` runs since some start; the wall clock shows as much more, until someone sets it."""

    def __init__(self, wall: str, zone: str = "Europe/Berlin") -> None:
        self.now = 5_000.0
        self.ahead = datetime.fromisoformat(wall).replace(tzinfo=ZoneInfo(zone)).timestamp() - self.now

    def limiter(self, *limits: Limit) -> EmbeddedLimiter:
        return EmbeddedLimiter(LimitSet(limits), lambda: self.now, lambda: self.now + self.ahead)


def calendar(maximum: int, unit: str, zone: str = "Europe/Berlin", **fields) -> Limit:
    fields = {"namespace": "d", "variables": ["descriptors[0].user"]} | fields
    return Limit(max_value=maximum, calendar=unit, time_zone=zone, **fields)


def left(limiter: EmbeddedLimiter) -> float:
    """Seconds that the one counter lives."""
    return next(limiter.snapshot()).resets_in


BEGINNINGS = [
    # unit, first hit, seconds to the end
    ("minute", "2026-11-21T10:17:15", 45),
    ("hour", "2026-11-21T10:15:00", 45 * 60),
    ("day", "2026-11-21T18:00:00", 6 * HOUR),
    ("day", "2026-03-29T00:00:00", 23 * HOUR),
    ("day", "2026-10-25T00:00:00", 25 * HOUR),
    ("week", "2026-11-22T12:00:00", 12 * HOUR),
    ("month", "2026-02-01T00:00:00", 28 * DAY),
]


@pytest.mark.parametrize(("unit", "first_hit", "length"), BEGINNINGS)
def test_a_calendar_window_ends_with_its_unit(unit: str, first_hit: str, length: int) -> None:
    """However late in the unit its first hit came: a day with 23 or 25 hours too, a week on Sunday night."""
    clocks = Clocks(first_hit)
    limiter = clocks.limiter(calendar(1, unit))
    assert limiter.should_rate_limit(ASKED).code is Code.OK
    assert left(limiter) == length
    clocks.now += length - 0.5
    assert limiter.should_rate_limit(ASKED).quotas[0].resets_in == pytest.approx(0.5)
    clocks.now += 0.5
    assert limiter.should_rate_limit(ASKED).code is Code.OK


def test_a_day_begins_where_the_user_is() -> None:
    clocks = Clocks("2026-11-21T22:00:00", "UTC")
    limiter = clocks.limiter(calendar(1, "day", "UTC"), calendar(1, "day", "Asia/Tokyo"), calendar(1, "day"))
    limiter.report(ASKED)
    assert [counter.resets_in / HOUR for counter in limiter.snapshot()] == [2, 17, 1]


def test_a_calendar_and_a_window_from_the_first_hit_count_side_by_side() -> None:
    """100 in 24 hours from the first hit, and 150 a day: midnight helps with the one, and not with the other."""
    clocks = Clocks("2026-11-21T20:00:00")
    first_hit = Limit(namespace="d", max_value=100, seconds=DAY, name="24 h", variables=["descriptors[0].user"])
    limiter = clocks.limiter(calendar(150, "day", name="day"), first_hit)
    limiter.report(ASKED._replace(hits_addend=150))
    assert limiter.check(ASKED).quotas == (
        Quota("24 h", 100, 0, float(DAY), DAY),
        Quota("day", 150, 0, 4.0 * HOUR, DAY),
    )
    clocks.now += 4 * HOUR
    assert limiter.check(ASKED).limit == "24 h"
    clocks.now += 20 * HOUR
    assert limiter.check(ASKED).code is Code.OK


SET = [
    # the wall clock is set by so much, after the first hit
    -10 * 365 * DAY,
    -DAY,
    -60,
    60,
    DAY,
    10 * 365 * DAY,
]


@pytest.mark.parametrize("jump", SET)
def test_a_window_ends_when_it_was_to_end_whatever_the_wall_clock_does(jump: float) -> None:
    """Set back it makes no window endless, set forth it frees nobody early."""
    clocks = Clocks("2026-11-21T18:00:00")
    limiter = clocks.limiter(calendar(1, "day"))
    limiter.report(ASKED)
    clocks.ahead += jump
    assert limiter.check(ASKED).quotas[0].resets_in == 6 * HOUR
    clocks.now += 6 * HOUR
    assert limiter.should_rate_limit(ASKED).code is Code.OK
    assert 0 < left(limiter) <= DAY


@given(st.lists(st.tuples(st.floats(-1e12, 1e12), st.floats(0, 2 * DAY)), max_size=10))
def test_any_sequence_of_jumps_leaves_windows_that_end(jumps: list[tuple[float, float]]) -> None:
    clocks = Clocks("2026-11-21T18:00:00")
    limiter = clocks.limiter(calendar(3, "day"))
    for jump, passes in jumps:
        clocks.ahead += jump
        clocks.now += passes
        limiter.report(ASKED)
        assert 0 < left(limiter) <= 25 * HOUR
    clocks.now += 25 * HOUR
    assert limiter.should_rate_limit(ASKED).code is Code.OK


def test_a_calendar_limit_keeps_its_hits_when_limits_change() -> None:
    clocks = Clocks("2026-11-21T18:00:00")
    limiter = clocks.limiter(calendar(5, "day"))
    limiter.report(ASKED._replace(hits_addend=5))
    limiter.replace_limits(LimitSet([calendar(7, "day"), calendar(7, "day", "UTC")]))
    assert [(c.limit.window.seconds, c.used) for c in limiter.snapshot()] == [(DAY, 5)]
    limiter.report(ASKED)
    assert [(str(c.limit.window), c.used, c.resets_in / HOUR) for c in limiter.snapshot()] == [
        ("day in Europe/Berlin", 6, 6),
        ("day in UTC", 1, 7),
    ]
