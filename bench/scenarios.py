"""The scenarios: what the model answers, who asks, and what is measured."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench import beside, clients, load, proc, prompts, users
from bench.errors import BenchError
from bench.results import Value
from bench.stack import CHAT, Stack

MB = 1024  # in KiB, proc(5)'s unit
_HEADERS_MESSAGES = 2
_READ_MESSAGES = 1
"""More of them where the request is read, which comes in one piece."""
_HUGE = 200_000_000
_VECTORS, _DIMENSIONS = 700, 1536
_VECTOR = 28_000
"""Bytes that a vector has at least, as text."""
_EXCHANGES = 1000
_STREAMS = 50
_GAP = 0.02
_FEW_USERS = 100


@dataclass(frozen=True, slots=True)
class Length:
    """How long a measurement lasts: about `seconds` a run; `share` scales what has a fixed size."""

    seconds: float
    share: float = 1.0


Values = Mapping[str, Value]
Measurement = Callable[[Stack, bytes, Length], Awaitable[Values]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """`options` go to the model, `body` is every request's; `users` are the callers that a server has to know.

    `work` is what a server does with requests.
    """

    name: str
    options: Callable[[Length], tuple[str, ...]]
    body: bytes
    measure: Measurement
    repeated: bool = True
    servers: tuple[str, ...] = ("direct", "floor", "embedded", "remote")
    path: str = CHAT
    users: Callable[[Length], int] = lambda _: 0
    work: prompts.Work | None = None


def body(**fields: Any) -> bytes:
    """A chat completion request."""
    document: dict[str, Any] = {"model": "llama", "messages": [{"role": "user", "content": "Say hello."}]}
    return json.dumps(document | fields).encode()


def _loaded(connections: int, warm_up: int, rate: int | None = None) -> Measurement:
    """Keeps `connections` busy, with as many requests as the warm-up lets expect for the time.

    With `rate`, so many requests a second and connection, whatever the server could take.
    """

    async def measure(stack: Stack, body: bytes, length: Length) -> Values:
        before = await stack.counts()
        warm = await load.run(stack.url, body, requests=warm_up, connections=connections, headers=stack.headers)
        await stack.settled(before, warm_up)
        rate_of_all = warm.requests_per_s if rate is None else float(rate * connections)
        requests = max(warm_up if rate is None else connections, round(rate_of_all * length.seconds))

        before, cpu_before = await stack.counts(), stack.cpu()
        seen = await load.run(
            stack.url, body, requests=requests, connections=connections, rate=rate, headers=stack.headers
        )
        counts = await stack.settled(before, requests)
        cpu = {name: value - cpu_before[name] for name, value in stack.cpu().items()}
        others = _HEADERS_MESSAGES + (_READ_MESSAGES if stack.work is not None else 0)
        chunks = counts.sent - others * requests
        return {
            "requests_per_s": seen.requests_per_s,
            "cpu_us_per_request": _micro(cpu.get("server"), requests),
            "cpu_us_per_chunk": _micro(cpu.get("server"), chunks),
            "chunks_per_request": chunks / requests if chunks > 0 else None,
            "envoy_cpu_us_per_request": _micro(cpu["envoy"], requests),
            "limiter_cpu_us_per_request": _micro(cpu.get("limiter"), requests),
            "redis_cpu_us_per_request": _micro(cpu.get("redis"), requests),
            "p50_ms": seen.p50_ms,
            "p99_ms": seen.p99_ms,
            "requests": requests,
            **_memory(stack),
        }

    return measure


async def _paced(stack: Stack, body: bytes, length: Length) -> Values:
    """The age of each frame on arrival: p50 and p99 are of frames, not of requests."""
    before, cpu_before = await stack.counts(), stack.cpu()
    ages = await clients.frame_ages(stack.envoy.address, stack.path, body, _STREAMS, _GAP)
    counts = await stack.settled(before, _STREAMS)
    if len(ages) != _STREAMS * _frames(length):
        raise BenchError(f"{len(ages)} of {_STREAMS * _frames(length)} frames arrived")
    chunks = counts.sent - _HEADERS_MESSAGES * _STREAMS
    cpu = stack.cpu()
    return {
        "cpu_us_per_chunk": _micro(cpu["server"] - cpu_before["server"], chunks) if "server" in cpu else None,
        "chunks_per_request": chunks / _STREAMS if chunks > 0 else None,
        "p50_ms": load.percentile(ages, 50),
        "p99_ms": load.percentile(ages, 99),
        "frames": len(ages),
        **_memory(stack),
    }


async def _idle(stack: Stack, body: bytes, length: Length) -> Values:
    """Exchanges that wait for the model: what one of them holds."""
    count = round(_EXCHANGES * length.share)
    before = await stack.counts()
    pid = stack.pids["server"]
    resident = proc.memory(pid).rss
    held: list[proc.Memory] = []

    async def reached() -> None:
        since = await stack.counted(before, lambda counts: counts.sent >= count)
        since.check(requests=count, closed=0)
        held.append(proc.memory(pid))

    await clients.while_waiting(stack.envoy.address, stack.path, body, count, reached)
    return {
        "kb_per_exchange": (held[0].rss - resident) / count,
        "exchanges": count,
        "rss_mb": held[0].rss / MB,
        "peak_mb": held[0].peak / MB,
    }


def _downloaded(size: Callable[[Length], int]) -> Measurement:
    """One answer of at least so many bytes: how far the peak rises above what was resident before."""

    async def measure(stack: Stack, body: bytes, length: Length) -> Values:
        pid = stack.pids["server"]
        before = await stack.counts()
        proc.reset_peak(pid)
        resident = proc.memory(pid).rss
        received = await clients.download(stack.envoy.address, stack.path, body)
        if received < size(length):
            raise BenchError(f"{received} of {size(length)} bytes arrived")
        counts = await stack.settled(before, 1)
        return {
            "growth_mb": (proc.memory(pid).peak - resident) / MB,
            "chunks_per_request": float(counts.sent - _HEADERS_MESSAGES),
            **_memory(stack),
        }

    return measure


async def _many_users(stack: Stack, body: bytes, length: Length) -> Values:
    return {**await users.measure(stack, body, length.seconds), **_memory(stack)}


async def _beside(stack: Stack, prompt: bytes, length: Length) -> Values:
    return {**await beside.measure(stack, prompt, body(), length.seconds), **_memory(stack)}


def _memory(stack: Stack) -> Values:
    if "server" not in stack.pids:
        return {"rss_mb": None, "peak_mb": None}
    found = proc.memory(stack.pids["server"])
    return {"rss_mb": found.rss / MB, "peak_mb": found.peak / MB}


def _micro(seconds: float | None, count: int) -> Value:
    return seconds * 1e6 / count if seconds is not None and count > 0 else None


def _frames(length: Length) -> int:
    return max(1, round(length.seconds / _GAP))


def _huge_size(length: Length) -> int:
    return round(_HUGE * length.share)


def _vectors(length: Length) -> int:
    return max(1, round(_VECTORS * length.share))


def _embeddings(length: Length) -> tuple[str, ...]:
    return "--vectors", str(_vectors(length)), "--dimensions", str(_DIMENSIONS)


def _many(length: Length) -> int:
    return round(users.USERS * length.share)


_PROMPT = prompts.conversation()
_STREAM = body(stream=True, stream_options={"include_usage": True})
_MEASURED = ("floor", "embedded", "remote")
_READING = ("direct", "floor", "embedded")
_STREAMED = ("direct", "floor", "blind", "embedded", "remote")
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("json", lambda _: (), body(), _loaded(16, 500)),
        Scenario("steady", lambda _: (), body(), _loaded(16, 100, rate=20)),
        Scenario(
            "tiers",
            lambda _: (),
            body(),
            _loaded(16, 500),
            servers=("direct", "floor", "embedded", "redis"),
            users=lambda _: _FEW_USERS,
        ),
        Scenario("sse", lambda _: ("--frames", "200", "--frame-ms", "2"), _STREAM, _loaded(8, 16), True, _STREAMED),
        Scenario(
            "large",
            lambda _: ("--size", "1000000"),
            body(messages=[{"role": "user", "content": "word " * 40_000}]),
            _loaded(4, 40),
        ),
        Scenario("rewrite", lambda _: (), _PROMPT, _loaded(4, 40, rate=20), servers=_READING, work=prompts.EDITED),
        Scenario("guard", lambda _: (), _PROMPT, _beside, servers=_READING, work=prompts.SEARCHED),
        Scenario(
            "pace",
            lambda length: ("--frames", str(_frames(length)), "--frame-ms", str(_GAP * 1000), "--stamp", "true"),
            _STREAM,
            _paced,
            repeated=False,
            servers=_STREAMED,
        ),
        Scenario("users", lambda _: (), body(), _many_users, False, ("embedded", "redis"), users=_many),
        Scenario("idle", lambda _: ("--first-byte-ms", "600000"), body(), _idle, False, _MEASURED),
        Scenario(
            "huge",
            lambda length: ("--size", str(_huge_size(length))),
            body(),
            _downloaded(_huge_size),
            False,
            _MEASURED,
        ),
        Scenario(
            "embeddings",
            _embeddings,
            json.dumps({"model": "embed", "input": "Say hello."}).encode(),
            _downloaded(lambda length: _vectors(length) * _VECTOR),
            False,
            _MEASURED,
            "/v1/embeddings",
        ),
    )
}
