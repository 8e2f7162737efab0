"""A server on loopback that answers each request with the bytes a test wants, well-formed or not."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True)
class Received:
    """One request."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


Script = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


def reply(body: bytes = b"{}", status: int = 200, *headers: str) -> bytes:
    """A whole response."""
    head = [f"HTTP/1.1 {status} S", "content-type: application/json", f"content-length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


class HttpPeer:
    """Plays `script` for each request; bytes instead of a script are what is always sent.

    `received` are the requests, `connections` how many there were, `left` is set when one of them is gone.
    """

    def __init__(self, script: Script | bytes) -> None:
        self._script = script
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.received: list[Received] = []
        self.connections = 0
        self.left = asyncio.Event()
        self.port = 0

    async def start(self, tls: ssl.SSLContext | None = None) -> HttpPeer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.drop()
        await self._server.wait_closed()

    def drop(self) -> None:
        """Close all connections."""
        for writer in self._writers:
            writer.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/ask"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        playing: asyncio.Task[None] | None = None
        try:
            while (received := await _read(reader)) is not None:
                self.received.append(received)
                playing = asyncio.create_task(self._play(received, writer))
        except ConnectionError:
            pass
        finally:
            if playing is not None:
                playing.cancel()
            self._writers.discard(writer)
            writer.close()
            self.left.set()

    async def _play(self, received: Received, writer: asyncio.StreamWriter) -> None:
        try:
            if isinstance(self._script, bytes):
                writer.write(self._script)
                await writer.drain()
            else:
                await self._script(received, writer)
        except ConnectionError:
            pass


async def _read(reader: asyncio.StreamReader) -> Received | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    method, target, _ = head[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Received(method, target, headers, body)
