"""Which counters there are in Redis: for people who look, and a bounded part of them."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from heapq import nlargest
from typing import NamedTuple

from extproc.limiter.embedded import Counter
from extproc.limiter.gcra import Pace, whole
from extproc.limiter.limits import CompiledLimit, Values
from extproc.limiter.redis_keys import CounterKeys, head_of
from extproc.limiter.redis_wire import RedisError, Reply, Wire

SCANNED = 20_000
"""Counters that are looked at, at most."""
_COUNT = re.compile(rb"[0-9]{1,16}")
_BUCKET = re.compile(rb"([0-9]+(?:\.[0-9]+)?(?:e-[0-9]+)?) ([0-9]{1,16})")
_STEPS = 800
_STEP = 250
"""Keys at a time: about a millisecond, in which we, or Redis, do nothing else."""


class _Found(NamedTuple):
    wire: Wire
    key: bytes
    counter: CounterKeys
    values: Values
    used: int

    @property
    def nearness(self) -> float:
        maximum = self.counter.limit.max_value
        return self.used / maximum if maximum else math.inf


async def scan(
    wires: Iterable[Wire], prefix: str, known: Mapping[bytes, CounterKeys], wall: float, at_most: int
) -> list[Counter]:
    """The counters of `known` limits, by `head`, that are nearest to their maximum, at most `at_most`.

    No more than SCANNED are looked at. Raises RedisError.
    """
    found: dict[bytes, _Found] = {}
    left = SCANNED
    for wire in wires:
        async for keys in _keys(wire, prefix):
            candidates = [key for key in keys if head_of(key, prefix) in known][:left]
            left -= len(candidates)
            # SCAN may show a key twice.
            found |= {each.key: each for each in await _read(wire, prefix, candidates, known, wall)}
            if not left:
                break
    nearest = nlargest(at_most, found.values(), key=lambda each: each.nearness)
    return list(await asyncio.gather(*(_counter(each, wall) for each in nearest)))


async def _keys(wire: Wire, prefix: str) -> AsyncIterator[list[bytes]]:
    cursor = b"0"
    for _ in range(_STEPS):
        reply = await wire.ask("SCAN", cursor, "MATCH", f"{prefix}:{{*", "COUNT", _STEP)
        cursor, keys = _pair(reply)
        yield keys
        if cursor == b"0":
            return


async def _read(
    wire: Wire, prefix: str, keys: list[bytes], known: Mapping[bytes, CounterKeys], wall: float
) -> list[_Found]:
    """Those of `keys` that are counters of now."""
    by_slot: dict[int, list[bytes]] = {}
    for key in keys:
        by_slot.setdefault(known[head_of(key, prefix)].slot, []).append(key)
    now = await _time(wire) if any(known[head_of(key, prefix)].limit.steady for key in keys) else 0.0
    found = []
    for together in by_slot.values():
        for key, value in zip(together, await wire.ask("MGET", *together), strict=True):
            counter = known[head_of(key, prefix)]
            values = counter.values(key, wall)
            used = _used(counter.limit, value, now) if value is not None else None
            if values is not None and used is not None:
                found.append(_Found(wire, key, counter, values, used))
    return found


def _used(limit: CompiledLimit, value: bytes, now: float) -> int | None:
    """The hits of a counter at `now`, in seconds of Redis' clock; None of what is none."""
    if not limit.steady:
        return int(value) if _COUNT.fullmatch(value) else None
    bucket = _BUCKET.fullmatch(value)
    if bucket is None:
        return None
    taken, at = map(float, bucket.groups())
    return whole(Pace(limit.max_value, limit.window.seconds).left(taken, now - at / 1e6))


async def _time(wire: Wire) -> float:
    match await wire.ask("TIME"):
        case [bytes(seconds), bytes(microseconds)]:
            return int(seconds) + int(microseconds) / 1e6
        case _:
            raise RedisError("TIME was answered with something else")


async def _counter(found: _Found, wall: float) -> Counter:
    limit = found.counter.limit
    left: int = await found.wire.ask("PTTL", found.key)
    calendar = bool(limit.window.period(wall))
    return Counter(
        limit=limit,
        values=found.values,
        used=found.used,
        remaining=max(0, limit.max_value - found.used),
        resets_in=limit.window.ends_in(wall) if calendar or left < 0 else left / 1000,
    )


def _pair(reply: Reply) -> tuple[bytes, list[bytes]]:
    match reply:
        case [bytes(cursor), list(keys)]:
            return cursor, keys
        case _:
            raise RedisError("SCAN was answered with something else")
