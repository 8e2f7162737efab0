"""How long a limit counts before it starts anew."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Final, Protocol
from zoneinfo import ZoneInfo

from extproc.config.errors import shown
from extproc.config.model import CalendarUnit, Limit

MINUTE: Final = 60
HOUR: Final = 3_600
DAY: Final = 86_400
NOMINAL: Final[dict[CalendarUnit, int]] = {
    "minute": MINUTE,
    "hour": HOUR,
    "day": DAY,
    "week": 7 * DAY,
    "month": 30 * DAY,
}
"""Seconds of a calendar unit, as it usually is."""

OPENED: Final = 0.001
"""Seconds that two clocks may differ about the first hit of a window."""

_LAST = 253_000_000_000.0
"""In the year 9987. A clock that shows anything beyond is wrong, and soon after there are no dates."""


class Window(Protocol):
    """The length of a limit's windows. One that is opened ends by itself, whatever a clock does meanwhile.

    `str(window)` tells it from all others: "60 s", "60 s (gcra)", "day in Europe/Berlin".
    """

    @property
    def seconds(self) -> int:
        """Its length; of a calendar window its usual one."""

    def ends_in(self, wall: float) -> float:
        """Seconds until a window ends that is opened at `wall`, in seconds since 1970: more than 0."""

    def period(self, wall: float) -> str:
        """The calendar's period at `wall`, as `2026-11-21T0000+0100`: when it began. "" of a fixed window."""

    def was_open(self, left: float, age: float, wall: float) -> bool:
        """Whether a window with so many seconds left was open `age` seconds before `wall`, which is now."""


@dataclass(frozen=True, slots=True)
class FixedWindow:
    """So many seconds from its first hit."""

    seconds: int

    def ends_in(self, wall: float) -> float:
        """As Window's."""
        return float(self.seconds)

    def period(self, wall: float) -> str:
        """As Window's."""
        return ""

    def was_open(self, left: float, age: float, wall: float) -> bool:
        """As Window's."""
        return age <= self.seconds - left + OPENED

    def __str__(self) -> str:
        return f"{self.seconds} s"


@dataclass(frozen=True, slots=True)
class SteadyRefill:
    """No windows: a bucket, which is full `seconds` after it was empty, and never starts anew."""

    seconds: int

    def ends_in(self, wall: float) -> float:
        """As Window's, of an empty bucket."""
        return float(self.seconds)

    def period(self, wall: float) -> str:
        """As Window's: none."""
        return ""

    def was_open(self, left: float, age: float, wall: float) -> bool:
        """As Window's: always."""
        return True

    def __str__(self) -> str:
        return f"{self.seconds} s (gcra)"


class CalendarWindow:
    """From the first hit to the end of the calendar's minute, hour, day, week (from Monday) or month.

    A day around a change of the clocks has 23 or 25 hours, and begins with its first moment where there is no
    midnight. Raises ValueError for a time zone that is not in the IANA database.
    """

    __slots__ = ("_current", "_zone", "seconds", "time_zone", "unit")

    def __init__(self, unit: CalendarUnit, time_zone: str = "UTC") -> None:
        self.unit: CalendarUnit = unit
        self.time_zone = time_zone
        self.seconds = NOMINAL[unit]
        self._zone = _zone(time_zone)
        self._current = _NEVER

    def ends_in(self, wall: float) -> float:
        """As Window's."""
        wall = _sane(wall)
        return self._period(wall).end - wall

    def period(self, wall: float) -> str:
        """As Window's."""
        return self._period(_sane(wall)).label

    def was_open(self, left: float, age: float, wall: float) -> bool:
        """As Window's: whether it belongs to the same period."""
        return self.period(wall - age) == self.period(wall)

    def __str__(self) -> str:
        return f"{self.unit} in {self.time_zone}"

    def _period(self, wall: float) -> _Period:
        """The period of `wall`; that of the call before nearly always."""
        current = self._current
        if not current.start <= wall < current.end:
            start, end = self._hour(wall) if self.seconds <= HOUR else self._days(wall)
            label = datetime.fromtimestamp(start, self._zone).strftime("%Y-%m-%dT%H%M%z")
            current = self._current = _Period(start, end, label)
        return current

    def _hour(self, wall: float) -> tuple[float, float]:
        """Begin and end of a minute or an hour, which zones shift against those of UTC but make no longer."""
        second = int(wall)
        offset = datetime.fromtimestamp(second, self._zone).utcoffset()
        assert offset is not None
        start = second - (second + offset.total_seconds()) % self.seconds
        return start, start + self.seconds

    def _days(self, wall: float) -> tuple[float, float]:
        """Begin and end of what begins at midnight."""
        first = self._first_day(datetime.fromtimestamp(wall, self._zone).date())
        start = self._midnight(first)
        # Clocks that are set back over midnight show a day twice, and a new one that began is not left again.
        while start > wall:
            first = self._first_day(first - timedelta(days=1))
            start = self._midnight(first)
        while (end := self._midnight(following := self._next(first))) <= wall:
            first, start = following, end
        return start, end

    def _first_day(self, day: date) -> date:
        match self.unit:
            case "week":
                return day - timedelta(days=day.weekday())
            case "month":
                return day.replace(day=1)
            case _:
                return day

    def _next(self, first: date) -> date:
        """The first day of the period after the one that begins with `first`."""
        match self.unit:
            case "week":
                return first + timedelta(days=7)
            case "month":
                return (first + timedelta(days=31)).replace(day=1)
            case _:
                return first + timedelta(days=1)

    def _midnight(self, day: date) -> float:
        """When `day` begins: of two midnights the first, and where there is none the moment that skips it."""
        return datetime.combine(day, time(), self._zone).timestamp()


def window_of(limit: Limit) -> Window:
    """The window of a limit as written. Raises ValueError, whose text names the field, for an unknown time zone."""
    if limit.calendar is not None:
        try:
            return CalendarWindow(limit.calendar, limit.time_zone)
        except ValueError as error:
            raise ValueError(f"time_zone: {error}") from None
    assert limit.seconds is not None
    return SteadyRefill(limit.seconds) if limit.algorithm == "gcra" else FixedWindow(limit.seconds)


@dataclass(frozen=True, slots=True)
class _Period:
    start: float
    end: float
    label: str


_NEVER = _Period(0.0, 0.0, "")


def _sane(wall: float) -> float:
    return min(max(wall, 0.0), _LAST)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"expected the name of a time zone, as `Europe/Berlin`, found {shown(name)}") from None
