"""Clients for what a load generator does not show: single frames, connections that wait, callers by the thousand."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from bench.errors import BenchError
from bench.load import HOST

_STAMP = re.compile(rb'"content":"(\d{6,})"')
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_LONGEST_FRAME = 4096


def request(path: str, body: bytes, *headers: str) -> bytes:
    lines = (
        f"POST {path} HTTP/1.1",
        f"host: {HOST}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *headers,
    )
    return "\r\n".join((*lines, "", "")).encode() + body


class Reader(asyncio.Protocol):
    """Sends one request. Keeps the ages of stamped frames in ms, the number of bytes, and not the bytes."""

    def __init__(self, sent: bytes) -> None:
        self._sent = sent
        self._tail = b""
        self._head = b""
        self.ages: list[float] = []
        self.received = 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport
        transport.write(self._sent)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if not self.received:
            self._head = data[:12]
        self.received += len(data)
        if len(data) > _LONGEST_FRAME * 4:
            return
        data = self._tail + data
        end = 0
        for found in _STAMP.finditer(data):
            self.ages.append((now - int(found[1])) / 1e6)
            end = found.end()
        self._tail = data[end:][-_LONGEST_FRAME:]

    def connection_lost(self, error: Exception | None) -> None:
        if self.done.done():
            return
        if error is not None or self._head != b"HTTP/1.1 200":
            self.done.set_exception(BenchError(f"an answer failed: {error or self._head!r}"))
        else:
            self.done.set_result(None)


async def connect(address: str, path: str, body: bytes) -> Reader:
    host, _, port = address.rpartition(":")
    sent = request(path, body, "connection: close")
    _, reader = await asyncio.get_running_loop().create_connection(lambda: Reader(sent), host, int(port))
    return reader


async def frame_ages(address: str, path: str, body: bytes, streams: int, gap: float) -> list[float]:
    """How old, in ms, each frame of `streams` parallel streams was on arrival.

    The streams begin evenly spread over `gap` seconds, the time between two frames: in step they would measure
    a queue of their own making.
    """
    readers = []
    for _ in range(streams):
        readers.append(await connect(address, path, body))
        await asyncio.sleep(gap / streams)
    await asyncio.gather(*(reader.done for reader in readers))
    return [age for reader in readers for age in reader.ages]


async def download(address: str, path: str, body: bytes) -> int:
    """Reads a whole answer and keeps nothing of it; its size on the wire in bytes."""
    reader = await connect(address, path, body)
    await reader.done
    return reader.received


async def while_waiting(
    address: str, path: str, body: bytes, count: int, reached: Callable[[], Awaitable[None]]
) -> None:
    """Holds `count` requests open until `reached` returns, then drops them."""
    readers = [await connect(address, path, body) for _ in range(count)]
    try:
        await reached()
    finally:
        for reader in readers:
            reader.done.cancel()
            reader.transport.abort()


async def in_turn(
    address: str, path: str, body: bytes, headers: Sequence[str], rate: float, connections: int
) -> tuple[list[float], float]:
    """How long, in ms, each of `len(headers)` requests took, each with a header of its own, and in s all of them.

    They are sent at `rate` a second altogether, or as soon as a connection is free. Raises BenchError unless every
    answer is a 200.
    """
    begun = time.monotonic()
    due = [(begun + number / rate, request(path, body, header)) for number, header in enumerate(headers)]
    callers = [_calls(address, due[number::connections]) for number in range(connections)]
    latencies = [took for each in await asyncio.gather(*callers) for took in each]
    return latencies, time.monotonic() - begun


async def _calls(address: str, due: Iterable[tuple[float, bytes]]) -> list[float]:
    """Sends each request when it is due, one after the other over one connection."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    took = []
    try:
        for moment, sent in due:
            if (wait := moment - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            begun = time.monotonic()
            writer.write(sent)
            await _answer(reader)
            took.append((time.monotonic() - begun) * 1000)
    finally:
        writer.close()
    return took


async def _answer(reader: asyncio.StreamReader) -> None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not head.startswith(b"HTTP/1.1 200") or length is None:
            raise BenchError(f"an answer failed: {head[:12]!r}")
        await reader.readexactly(int(length[1]))
    except (OSError, asyncio.IncompleteReadError) as error:
        raise BenchError(f"an answer failed: {error}") from None
