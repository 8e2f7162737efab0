"""Durations as in wasm-shim's `timeout`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.config.duration import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("20ms", 0.02),
        ("1.5s", 1.5),
        ("1h30m", 5400.0),
        ("1m0.5s", 60.5),
        ("3us", 3e-6),
        ("7ns", 7e-9),
        ("0s", 0.0),
        ("0.9ns", 0.0),
        ("24h", 86400.0),
    ],
)
def test_reads_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "20 ms", "-1s", "1d", "s", "1e3s", "٣s", ".5s", "1s" * 100, "9" * 50 + "s"])
def test_refuses_what_is_no_duration(text: str) -> None:
    """S0.D19"""
    with pytest.raises(ValueError, match="such as `20ms`"):
        parse_duration(text)


def test_refuses_more_than_a_day() -> None:
    with pytest.raises(ValueError, match="at most `24h`"):
        parse_duration("24h1ns")


@given(st.integers(0, 24 * 3600 * 10**9))
def test_written_durations_read_the_same(nanoseconds: int) -> None:
    seconds = parse_duration(f"{nanoseconds}ns")
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.02, "20ms"), (0.0, "0s"), (90.0, "90s"), (5400.0, "90m"), (0.1, "100ms")]
)
def test_writes_the_largest_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
