"""Names of counters in Redis."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.config.model import Limit
from extproc.limiter.limits import CompiledLimit, LimitSet
from extproc.limiter.redis_keys import CounterKeys, head_of
from extproc.limiter.redis_link import slot_of

WALL = 1_767_222_000.0
TEXT = st.text(st.sampled_from("a%:{}3A25\n é\ud800"), max_size=6)
PAIRS = st.tuples(TEXT, TEXT)
USER_AND_MODEL = ["descriptors[0]['model']", "descriptors[0]['user']"]


def limit(**fields: Any) -> CompiledLimit:
    written = {"namespace": "llm", "max_value": 5, "variables": USER_AND_MODEL} | fields
    return LimitSet([Limit(**({"seconds": 60} | written if "calendar" not in written else written))]).limits[0]


def tag_of(key: bytes) -> str:
    """What a cluster hashes of a key: from its first brace to the next closing one."""
    return key[key.index(b"{") + 1 : key.index(b"}")].decode()


def test_what_a_key_looks_like() -> None:
    key = CounterKeys("extproc", limit()).key(("gpt", "alice"), WALL)
    assert key.startswith(b"extproc:{llm}:")
    assert key.endswith(b":gpt:alice")
    assert len(key) == len(b"extproc:{llm}:0123456789ab:gpt:alice")
    day = CounterKeys("extproc", limit(calendar="day", time_zone="Europe/Berlin")).key(("gpt", "alice"), WALL)
    assert day.endswith(b":gpt:alice:2026-01-01T0000+0100")


@pytest.mark.parametrize("fields", [{}, {"calendar": "month"}])
@given(one=PAIRS, other=PAIRS)
def test_every_counter_has_a_key_of_its_own_that_tells_its_values(
    fields: dict[str, Any], one: tuple[str, str], other: tuple[str, str]
) -> None:
    keys = CounterKeys("extproc", limit(**fields))
    key = keys.key(one, WALL)
    assert keys.values(key, WALL) == one
    assert head_of(key, "extproc") == keys.head
    assert (key == keys.key(other, WALL)) == (one == other)


@given(st.text(min_size=1, max_size=20))
def test_all_counters_of_a_namespace_are_in_one_slot(namespace: str) -> None:
    first, second = (CounterKeys("p", limit(namespace=namespace, seconds=seconds)) for seconds in (60, 600))
    one, other = first.key(("{a}", "b"), WALL), second.key(("}", "{"), WALL)
    assert tag_of(one) == tag_of(other) != ""
    assert slot_of(tag_of(one)) == first.slot == second.slot


def test_a_slot_is_what_a_cluster_says() -> None:
    """CLUSTER KEYSLOT of these names."""
    assert [slot_of(tag) for tag in ("foo", "123456789", "user1000")] == [12182, 12739, 3443]


@pytest.mark.parametrize(
    "fields",
    [
        {"namespace": "other"},
        {"seconds": 61},
        {"calendar": "minute"},
        {"conditions": ["descriptors[0]['a'] == '1'"]},
        {"variables": USER_AND_MODEL[:1]},
    ],
)
def test_limits_that_differ_share_no_counter(fields: dict[str, Any]) -> None:
    assert CounterKeys("p", limit(**fields)).head != CounterKeys("p", limit()).head


def test_a_limit_that_is_written_anew_finds_its_counters_again() -> None:
    """Names and maxima may change, and conditions and variables be in another order."""
    anew = limit(max_value=9, name="renamed", id="x", variables=USER_AND_MODEL[::-1])
    assert CounterKeys("p", anew).head == CounterKeys("p", limit()).head


@pytest.mark.parametrize("tail", [b"", b"x", b"x:y:z", b"\xff:y", b"x:%"])
def test_what_is_no_key_of_a_limit(tail: bytes) -> None:
    keys = CounterKeys("p", limit())
    assert keys.values(keys.head + tail, WALL) is None


@pytest.mark.parametrize("key", [b"", b"p", b"p:", b"p:{a", b"p:{a}", b"p:{a}:", b"p:{a}:b"])
def test_what_is_no_key_of_a_counter_has_no_head(key: bytes) -> None:
    assert head_of(key, "p") == b""


def test_a_counter_of_the_calendar_is_of_its_period() -> None:
    keys = CounterKeys("p", limit(calendar="minute"))
    key = keys.key(("a", "b"), WALL)
    assert keys.values(key, WALL + 59) == ("a", "b")
    assert keys.values(key, WALL + 60) is None
    assert keys.length(WALL + 59) == 61_000
