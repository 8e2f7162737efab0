"""Calls and hits by namespace."""

from __future__ import annotations

import tracemalloc

from extproc.limiter.tally import MAX_LIMITS, MAX_NAMESPACES, OTHER, Tally


def test_calls_and_hits_are_counted_by_namespace_and_refusals_by_limit() -> None:
    tally = Tally()
    for _ in range(3):
        tally.allowed("a")
    tally.allowed("b")
    tally.refused("a", "minute")
    tally.refused("a", "")
    tally.refused("a", "minute")
    tally.counted("a", 30)
    tally.counted("a", 2**40)
    assert tally.authorized_calls == {"a": 3, "b": 1}
    assert tally.limited_calls == {("a", "minute"): 2, ("a", ""): 1}
    assert tally.authorized_hits == {"a": 30 + 2**40}


def test_namespaces_come_from_calls_so_only_the_first_are_told_apart() -> None:
    tally = Tally()
    for number in range(MAX_NAMESPACES + 100):
        tally.allowed(f"n{number}")
        tally.counted(f"n{number}", 2)
    tally.allowed("n0")
    assert len(tally.authorized_calls) == len(tally.authorized_hits) == MAX_NAMESPACES + 1
    assert (tally.authorized_calls["n0"], tally.authorized_calls[OTHER]) == (2, 100)
    assert tally.authorized_hits[OTHER] == 200
    assert sum(tally.authorized_calls.values()) == MAX_NAMESPACES + 101


def test_refusals_beyond_the_bound_are_counted_together() -> None:
    tally = Tally()
    for number in range(MAX_LIMITS + 100):
        tally.refused("a", f"l{number}")
    assert len(tally.limited_calls) == MAX_LIMITS + 1
    assert tally.limited_calls[OTHER, OTHER] == 100


def test_long_names_cost_little_and_every_name_can_be_encoded() -> None:
    tally = Tally()
    tracemalloc.start()
    for number in range(50):
        tally.allowed("x" * 100_000 + str(number))
        tally.counted("x" * 100_000 + str(number), 1)
        tally.refused("\ud800" * 100_000, "y" * 100_000)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert tally.authorized_calls == tally.authorized_hits == {"x" * 128: 50}
    assert tally.limited_calls == {("?" * 128, "y" * 128): 50}
    assert kept < 100_000
