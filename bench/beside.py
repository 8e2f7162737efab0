"""Small requests beside long prompts: how much longer do they take than alone?"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bench import clients, load, proc
from bench.load import Load, percentile
from bench.results import Value
from bench.stack import Stack

RATE = 320
"""Small requests a second, one after the other."""
PROMPT_RATE = 20
"""Long prompts a second, over one connection: none waits for another."""
_CONNECTIONS = 16
_WARM_UP = 0.5
_HEADER = "user-agent: bench"


async def measure(stack: Stack, prompt: bytes, other: bytes, seconds: float) -> dict[str, Value]:
    """The requests `other` alone, then beside long ones."""
    await _alone(stack, other, _WARM_UP)
    alone = await _alone(stack, other, seconds)
    before = _cpu(stack)
    beside, prompts = await _beside(stack, prompt, other, seconds)
    after = _cpu(stack)
    cpu = None if before is None or after is None else after - before
    return {"requests_per_s": (len(beside) + prompts.requests) / seconds, **compared(alone, beside, prompts, cpu)}


def compared(alone: Sequence[float], beside: Sequence[float], prompts: Load, cpu: float | None) -> dict[str, Value]:
    """From what small requests took alone and beside prompts, in ms, and the server's CPU seconds beside them.

    p50 and p99 are those of the small ones, beside prompts.
    """
    requests = len(beside) + prompts.requests
    return {
        "cpu_us_per_request": None if cpu is None else cpu * 1e6 / requests,
        "p50_ms": percentile(beside, 50),
        "p99_ms": percentile(beside, 99),
        "added_p50_ms": percentile(beside, 50) - percentile(alone, 50),
        "added_p99_ms": percentile(beside, 99) - percentile(alone, 99),
        "prompt_p50_ms": prompts.p50_ms,
        "prompt_p99_ms": prompts.p99_ms,
        "requests": requests,
        "prompts": prompts.requests,
    }


async def _alone(stack: Stack, other: bytes, seconds: float) -> Sequence[float]:
    before = await stack.counts()
    latencies = await _small(stack, other, seconds)
    await stack.settled(before, len(latencies))
    return latencies


async def _beside(stack: Stack, prompt: bytes, other: bytes, seconds: float) -> tuple[Sequence[float], Load]:
    before = await stack.counts()
    count = max(1, round(PROMPT_RATE * seconds))
    latencies, prompts = await asyncio.gather(
        _small(stack, other, seconds), load.run(stack.url, prompt, requests=count, connections=1, rate=PROMPT_RATE)
    )
    await stack.settled(before, len(latencies) + count)
    return latencies, prompts


async def _small(stack: Stack, other: bytes, seconds: float) -> Sequence[float]:
    """How long, in ms, each of these requests took."""
    headers = [_HEADER] * round(RATE * seconds)
    latencies, _ = await clients.in_turn(stack.envoy.address, stack.path, other, headers, RATE, _CONNECTIONS)
    return latencies


def _cpu(stack: Stack) -> float | None:
    return proc.cpu_seconds(stack.pids["server"]) if "server" in stack.pids else None
