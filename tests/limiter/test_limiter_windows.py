"""How long windows are, in zones that change their clocks too."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.config.model import Limit
from extproc.limiter.limits import InvalidLimit, LimitSet
from extproc.limiter.windows import NOMINAL, CalendarWindow, FixedWindow, window_of

HOUR = 3_600.0
DAY = 24 * HOUR
ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",  # changed its clocks a minute after midnight
    "America/Sao_Paulo",  # had days without midnight
    "Australia/Lord_Howe",  # changes them by half an hour
    "Asia/Kathmandu",  # is 5:45 ahead
    "Pacific/Apia",  # skipped a day
    "Pacific/Kiritimati",
]
UNITS = list(NOMINAL)


def epoch(text: str, zone: str = "Europe/Berlin", fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def test_a_fixed_window_is_as_long_as_it_says_whenever_it_begins() -> None:
    window = FixedWindow(90)
    assert [window.ends_in(wall) for wall in (0.0, 1e9, -5.0, 1e300)] == [90.0] * 4
    assert (window.seconds, window.period(1e9), str(window)) == (90, "", "90 s")


LENGTHS = [
    # unit, from, seconds to the end, period
    ("minute", "2026-11-21T10:17:15", 45.0, "2026-11-21T1017+0100"),
    ("hour", "2026-11-21T10:17:15", 42 * 60 + 45.0, "2026-11-21T1000+0100"),
    ("day", "2026-11-21T00:00:00", DAY, "2026-11-21T0000+0100"),
    ("day", "2026-11-21T23:59:59.75", 0.25, "2026-11-21T0000+0100"),
    ("day", "2026-03-29T00:00:00", 23 * HOUR, "2026-03-29T0000+0100"),
    ("day", "2026-10-25T00:00:00", 25 * HOUR, "2026-10-25T0000+0200"),
    ("day", "2026-10-25T12:00:00", 12 * HOUR, "2026-10-25T0000+0200"),
    ("week", "2026-11-23T00:00:00", 7 * DAY, "2026-11-23T0000+0100"),
    ("week", "2026-11-22T23:00:00", HOUR, "2026-11-16T0000+0100"),
    ("week", "2026-03-23T00:00:00", 7 * DAY - HOUR, "2026-03-23T0000+0100"),
    ("month", "2026-02-01T00:00:00", 28 * DAY, "2026-02-01T0000+0100"),
    ("month", "2028-02-01T00:00:00", 29 * DAY, "2028-02-01T0000+0100"),
    ("month", "2026-10-01T00:00:00", 31 * DAY + HOUR, "2026-10-01T0000+0200"),
    ("month", "2026-12-31T23:00:00", HOUR, "2026-12-01T0000+0100"),
]


@pytest.mark.parametrize(("unit", "begin", "left", "period"), LENGTHS)
def test_calendar_windows_end_with_their_unit(unit, begin: str, left: float, period: str) -> None:
    """A day has 23 or 25 hours when clocks change, a week begins on Monday, a month has as many days as it has."""
    window = CalendarWindow(unit, "Europe/Berlin")
    assert window.ends_in(epoch(begin)) == left
    assert window.period(epoch(begin)) == period


def test_the_hour_that_comes_twice_is_two_hours() -> None:
    window = CalendarWindow("hour", "Europe/Berlin")
    first, second = (epoch("2026-10-25T02:30:00", fold=fold) for fold in (0, 1))
    assert [window.ends_in(first), window.ends_in(second)] == [1_800.0, 1_800.0]
    assert [window.period(first), window.period(second)] == ["2026-10-25T0200+0200", "2026-10-25T0200+0100"]


def test_a_day_without_midnight_begins_with_its_first_moment() -> None:
    window = CalendarWindow("day", "America/Sao_Paulo")
    before = epoch("2017-10-14T23:00:00", "America/Sao_Paulo")
    assert window.ends_in(before) == HOUR
    assert window.ends_in(before + HOUR) == 23 * HOUR
    assert window.period(before + HOUR) == "2017-10-15T0100-0200"


def test_a_day_that_was_skipped_has_no_window() -> None:
    window = CalendarWindow("day", "Pacific/Apia")
    before = epoch("2011-12-29T23:00:00", "Pacific/Apia")
    assert window.ends_in(before) == HOUR
    assert window.period(before + HOUR) == "2011-12-31T0000+1400"


def test_a_day_that_shows_its_last_hour_twice_goes_on() -> None:
    """At 0:01 clocks went back to 23:01: the new day had begun, and it does not begin again."""
    window = CalendarWindow("day", "America/St_Johns")
    midnight = epoch("2010-11-07T00:00:00", "America/St_Johns")
    walls = [midnight - 30, midnight + 30, midnight + 90, midnight + HOUR + 90]
    assert [window.period(wall) for wall in walls] == ["2010-11-06T0000-0230"] + ["2010-11-07T0000-0230"] * 3


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("unit", UNITS)
def test_periods_follow_each_other_and_have_names_of_their_own(unit, zone: str) -> None:
    """Through every change of clocks of two years: each begins where the one before ended."""
    window = CalendarWindow(unit, zone)
    step = timedelta(days=731) if unit in ("day", "week", "month") else timedelta(hours=30)
    starts = ["2010-10-20", "2011-12-28", "2017-10-14", "2026-03-07", "2026-03-28", "2026-10-24", "2026-10-31"]
    for text in starts:
        wall = epoch(text, zone)
        end = wall + step.total_seconds()
        walls = [wall]
        while walls[-1] < end:
            walls.append(walls[-1] + window.ends_in(walls[-1]))
        periods = [window.period(wall) for wall in walls]
        assert len(set(periods)) == len(periods)
        assert all(
            CalendarWindow(unit, zone).period(before + share * (after - before)) == period
            for (before, after), period in zip(pairwise(walls), periods, strict=False)
            for share in (0.01, 0.99)
            if zone != "Australia/Lord_Howe" or unit != "hour"  # where half an hour belongs to no hour
        )


walls = st.floats(allow_nan=False) | st.floats(0, 2e9)


@given(st.sampled_from(UNITS), st.sampled_from(ZONES), st.lists(walls, min_size=1, max_size=8))
def test_no_jump_of_the_clock_makes_a_window_endless(unit, zone: str, jumps: list[float]) -> None:
    """Any sequence of times, forth and back, before 1970 and after the end of dates: a window ends within its unit."""
    window = CalendarWindow(unit, zone)
    longest = window.seconds + (25 * HOUR if window.seconds >= DAY else 0) + (DAY if unit == "month" else 0)
    for wall in jumps:
        assert 0 < window.ends_in(wall) <= longest
        assert window.period(wall) == CalendarWindow(unit, zone).period(wall)
        assert window.ends_in(wall) == CalendarWindow(unit, zone).ends_in(wall)


NOT_ZONES = ["Mars/Olympus", "", "..", "../UTC", "/etc/passwd", "Europe", "a\0b", "Europe/Berlin\n", "é", "x" * 5_000]


@pytest.mark.parametrize("zone", NOT_ZONES)
def test_an_unknown_time_zone_is_named_at_its_place(zone: str) -> None:
    limit = Limit(namespace="d", max_value=1, calendar="day", time_zone=zone)
    with pytest.raises(InvalidLimit, match=r"^limits\[1\]\.time_zone: expected the name of a time zone") as caught:
        LimitSet([Limit(namespace="d", max_value=1, seconds=1), limit])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_the_window_of_a_limit() -> None:
    assert window_of(Limit(namespace="d", max_value=1, seconds=120)) == FixedWindow(120)
    calendar = window_of(Limit(namespace="d", max_value=1, calendar="week", time_zone="Asia/Tokyo"))
    assert (str(calendar), calendar.seconds) == ("week in Asia/Tokyo", 604_800)
    assert str(window_of(Limit(namespace="d", max_value=1, calendar="month"))) == "month in UTC"
