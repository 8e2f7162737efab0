"""Durations as CEL and Go write them: `20ms`, `1.5s`, `1h30m`."""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS = {"h": 3600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_PART = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)(h|ms|m|s|us|ns)")
_WHOLE = re.compile(rf"(?:{_PART.pattern}){{1,6}}")
_LONGEST = 24 * _UNITS["h"]

PATTERN = r"^([0-9]{1,18}(\.[0-9]{1,18})?(h|m|s|ms|us|ns)){1,6}$"
"""A duration, for JSON Schema."""
DURATION = "a duration such as `20ms`, `1.5s` or `1h30m`"


def parse_duration(text: str) -> float:
    """Seconds in `text`, cut to whole nanoseconds. Raises ValueError for anything else and above 24 hours."""
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"expected {DURATION}")
    nanoseconds = int(sum(Fraction(number) * _UNITS[unit] for number, unit in _PART.findall(text)))
    if nanoseconds > _LONGEST:
        raise ValueError("expected a duration of at most `24h`")
    return nanoseconds / 10**9


def format_duration(seconds: float) -> str:
    """The text that `parse_duration` reads as `seconds`: a whole number of the largest unit that allows it."""
    nanoseconds = round(seconds * 10**9)
    if nanoseconds == 0:
        return "0s"
    unit = next(unit for unit, length in _UNITS.items() if nanoseconds % length == 0)
    return f"{nanoseconds // _UNITS[unit]}{unit}"
