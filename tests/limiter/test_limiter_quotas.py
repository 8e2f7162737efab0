"""What clients are told of limits."""

from __future__ import annotations

from math import inf, nextafter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.limiter.quotas import MAX_LISTED, ratelimit_headers, retry_after
from extproc.limiter.seam import Quota

MINUTE = Quota("minute", 150, 0, 41.2, 60)
HOUR = Quota("hour", 300, 130, 3_000.0, 3_600)

HEADERS = [
    # quotas, limit, remaining, reset
    ([MINUTE], '150, 150;w=60;name="minute"', "0", "42"),
    ([HOUR, MINUTE], '300, 300;w=3600;name="hour", 150;w=60;name="minute"', "130", "3000"),
    ([HOUR._replace(limit="")], "300, 300;w=3600", "130", "3000"),
    ([HOUR._replace(limit="", window=0)], "300, 300", "130", "3000"),
    ([MINUTE._replace(maximum=2**64 - 1)], f'{2**64 - 1}, {2**64 - 1};w=60;name="minute"', "0", "42"),
    ([MINUTE._replace(limit='a"b\\c\n\x7fé\ud800;d')], '150, 150;w=60;name="a?b?c????;d"', "0", "42"),
    ([MINUTE._replace(limit="x" * 500)], f'150, 150;w=60;name="{"x" * 128}"', "0", "42"),
    ([MINUTE._replace(resets_in=0.0)], '150, 150;w=60;name="minute"', "0", "0"),
]


@pytest.mark.parametrize(("quotas", "limit", "remaining", "reset"), HEADERS)
def test_headers_as_limitador_and_envoy_write_them(quotas: list[Quota], limit: str, remaining: str, reset: str) -> None:
    assert ratelimit_headers(quotas) == (
        ("x-ratelimit-limit", limit),
        ("x-ratelimit-remaining", remaining),
        ("x-ratelimit-reset", reset),
    )


def test_no_reset_where_waiting_does_not_help() -> None:
    assert ratelimit_headers([MINUTE._replace(resets_in=inf)]) == (
        ("x-ratelimit-limit", '150, 150;w=60;name="minute"'),
        ("x-ratelimit-remaining", "0"),
    )


def test_no_headers_for_no_quotas() -> None:
    assert ratelimit_headers(()) == ()


def test_a_hundred_limits_are_not_all_listed() -> None:
    limits = dict(ratelimit_headers([MINUTE] * 100))["x-ratelimit-limit"].split(", ")
    assert len(limits) == 1 + MAX_LISTED


WAITS = [
    ([], None),
    ([MINUTE], 42),
    ([HOUR, MINUTE], 3_000),
    ([MINUTE, HOUR], 3_000),
    ([MINUTE._replace(resets_in=0.0)], 1),
    ([MINUTE._replace(resets_in=0.01)], 1),
    ([MINUTE._replace(resets_in=nextafter(60.0, inf))], 61),
    ([MINUTE._replace(resets_in=inf), HOUR], None),
    ([HOUR, MINUTE._replace(resets_in=inf)], None),
]


@pytest.mark.parametrize(("quotas", "seconds"), WAITS)
def test_seconds_after_which_to_try_again(quotas: list[Quota], seconds: int | None) -> None:
    """Never too few: who waits so long is let through."""
    assert retry_after(quotas) == seconds


quotas = st.builds(
    Quota,
    st.text(max_size=200),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.floats(0, allow_nan=False),
    st.integers(0, 2**62),
)


@given(st.lists(quotas, max_size=30))
def test_any_quotas_make_headers_that_http_can_carry(quotas: list[Quota]) -> None:
    for _, value in ratelimit_headers(quotas):
        assert value.isascii()
        assert value.isprintable()
        assert len(value) < 3_000
