"""A model whose every byte a test sends, so that nothing about an ending is left to timing."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_LENGTH = re.compile(rb"(?mi)^content-length: *(\d+)")
_RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing throws away what was not sent and tells the other side by RST."""


class HandAnswer:
    """The answer to one request, whose head has left."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, chunked: bool) -> None:
        self._reader = reader
        self._writer = writer
        self._chunked = chunked

    async def send(self, data: bytes) -> None:
        """One write; a chunk of its own where the answer is chunked."""
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        await self._writer.drain()

    def end(self) -> None:
        """The end that a chunked answer has."""
        self._writer.write(b"0\r\n\r\n")

    def close(self) -> None:
        """No more bytes, and the connection closed in good order."""
        self._writer.close()

    def reset(self) -> None:
        """RST."""
        connection = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._writer.transport.abort()

    async def gone(self) -> None:
        """Return when the other side has hung up."""
        async with asyncio.timeout(10):
            with suppress(ConnectionError):
                await self._reader.read()
        self._writer.close()


class HandModel:
    """Answers every request with the same head, and leaves the body to the test: `await model.answer()`.

    Without a `length` the body is chunked.
    """

    def __init__(self) -> None:
        self.address = ""
        self.content_type = "text/event-stream"
        self.length: int | None = None
        self._answers: asyncio.Queue[HandAnswer] = asyncio.Queue()

    async def answer(self) -> HandAnswer:
        """The next one, once its request has arrived."""
        async with asyncio.timeout(10):
            return await self._answers.get()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        await reader.readexactly(0 if length is None else int(length[1]))
        framing = "transfer-encoding: chunked" if self.length is None else f"content-length: {self.length}"
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: {self.content_type}\r\n{framing}\r\n\r\n".encode())
        self._answers.put_nowait(HandAnswer(reader, writer, chunked=self.length is None))


@asynccontextmanager
async def hand_model() -> AsyncIterator[HandModel]:
    """A started HandModel."""
    model = HandModel()
    server = await asyncio.start_server(model.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    model.address = f"{host}:{port}"
    async with server:
        yield model
