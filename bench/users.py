"""Many users: does a request of the ten-thousandth cost more than one of the first, and what does each of them hold?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench import clients, load, proc, tiers
from bench.results import Value, ratio
from bench.stack import Stack

USERS = 10_000
RATE = 500
"""Requests a second altogether: less than the server could take, so that no queue makes a request cheaper."""
_CONNECTIONS = 16
_KIB = 1024


@dataclass(frozen=True, slots=True)
class Round:
    """What requests, one after the other at RATE, cost the server, and how long each took."""

    cpu_us: float
    latencies: Sequence[float]
    requests_per_s: float


async def measure(stack: Stack, body: bytes, seconds: float) -> dict[str, Value]:
    """Every user asks once, then once again; before and after that one user asks for some `seconds`.

    Only the first of them are told apart in metrics. What those beyond hold is in the limiter, and among the callers.
    """
    everybody = [tiers.credential(number) for number in range(stack.users)]
    somebody = everybody[:1] * round(RATE * seconds)
    first, others = everybody[: tiers.SERIES], everybody[tiers.SERIES :]
    await _round(stack, body, somebody)

    one = [await _round(stack, body, somebody)]
    before, redis_before = stack.resident("server"), stack.resident("redis")
    new = [await _round(stack, body, first)]
    between = stack.resident("server")
    if others:
        new.append(await _round(stack, body, others))
    after, redis_after = stack.resident("server"), stack.resident("redis")
    known = await _round(stack, body, everybody)
    one.append(await _round(stack, body, somebody))

    one_us, new_us = mean_us(one), mean_us(new)
    return {
        "requests_per_s": known.requests_per_s,
        "one_user_us": one_us,
        "new_users_us": new_us,
        "new_to_one": ratio(new_us, one_us),
        "known_users_us": known.cpu_us,
        "known_to_one": ratio(known.cpu_us, one_us),
        "bytes_per_user": bytes_each(before, after, len(everybody)),
        "bytes_per_user_beyond_metrics": bytes_each(between, after, len(others)),
        "redis_bytes_per_user": bytes_each(redis_before, redis_after, len(everybody)),
        "p50_ms": load.percentile(known.latencies, 50),
        "p99_ms": load.percentile(known.latencies, 99),
        "users": stack.users,
    }


async def _round(stack: Stack, body: bytes, headers: Sequence[str]) -> Round:
    before, cpu_before = await stack.counts(), proc.cpu_seconds(stack.pids["server"])
    latencies, seconds = await clients.in_turn(stack.envoy.address, stack.path, body, headers, RATE, _CONNECTIONS)
    await stack.settled(before, len(headers))
    cpu = proc.cpu_seconds(stack.pids["server"]) - cpu_before
    return Round(cpu * 1e6 / len(headers), latencies, len(headers) / seconds)


def mean_us(rounds: Sequence[Round]) -> float:
    """What one of all their requests cost."""
    requests = sum(len(each.latencies) for each in rounds)
    return sum(each.cpu_us * len(each.latencies) for each in rounds) / requests


def bytes_each(before: int | None, after: int | None, users: int) -> Value:
    """From resident memory in KiB; None where there is no such process, or there are no such users."""
    return None if before is None or after is None or not users else (after - before) * _KIB / users
