"""Durations as CEL and Go write them."""

from __future__ import annotations

import re
from typing import Any

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s|us|ns)")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")


def parse_duration(text: Any) -> Any:
    """Seconds in `text` (`20ms`, `1.5s`, `1h30m`); raises ValueError for any other string.

    A float is handed back as it is, so that defaults in seconds pass.
    """
    if isinstance(text, float):
        return text
    if not isinstance(text, str) or not _WHOLE.fullmatch(text):
        raise ValueError("expected a duration such as `20ms`, `1.5s` or `1h30m`")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
