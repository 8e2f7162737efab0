"""One HTTP/1.1 connection to the simulated model.

Answers leave in the order of their requests. One piece of a streamed answer is written per turn of the event
loop, so that each is a write of its own; a client that reads slowly stops the pieces, not just the socket.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from http import HTTPStatus
from typing import cast

import httptools

from extproc.simulator.answers import Answer, Wire, answer
from extproc.simulator.contents import fixed
from extproc.simulator.dialects.openai import failure
from extproc.simulator.options import HEADER_PREFIX, Options
from extproc.simulator.service import Header, Request, Service

MAX_BODY = 64 * 2**20
MAX_HEAD = 64 * 2**10
HOLD_LIMIT = 60.0
"""Seconds after which a held answer is cut off."""
_PREFIX = HEADER_PREFIX.encode()
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(asyncio.Protocol):
    """Parses requests, asks the service, paces the answers."""

    def __init__(self, service: Service, connections: set[Connection]) -> None:
        self._service = service
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()
        self._reading = True
        self._writable = True
        self._stalled = False
        self._answer: Answer | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._timer: asyncio.Handle | None = None
        self._holding = ""
        self._head_size: int | None = 0  # None while a body is read
        self.on_message_begin()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._connections.discard(self)
        self._waiting.clear()
        self._stop()

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._head_size is not None:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            refusal = error.__context__
            if isinstance(refusal, _Oversized):
                self._refuse(refusal.status, str(refusal))
            else:
                self._refuse(HTTPStatus.BAD_REQUEST, "not HTTP/1.1")
            return
        if self._head_size is not None and self._head_size > MAX_HEAD:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {MAX_HEAD} bytes of headers")
        elif self._waiting and self._reading:
            self._reading = False
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if self._stalled:
            self._stalled = False
            self._write_next()
        else:
            self._answer_waiting()

    # What httptools calls.

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers: list[Header] = []
        self._body: list[bytes] = []
        self._body_size = 0
        self._customised = False

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name.startswith(_PREFIX):
            self._customised = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._head_size = None
        if (b"expect", b"100-continue") in self._headers:
            self._transport.write(_CONTINUE)

    def on_body(self, data: bytes) -> None:
        self._body_size += len(data)
        if self._body_size > MAX_BODY:
            raise _Oversized(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {MAX_BODY} bytes of body")
        self._body.append(data)

    def on_message_complete(self) -> None:
        self._head_size = 0
        body = self._body
        request = Request(
            self._parser.get_method(),
            self._target,
            self._headers,
            body[0] if len(body) == 1 else b"".join(body),
            self._parser.should_keep_alive(),
            self._parser.get_http_version() == "1.0",
            self._customised,
        )
        if self._answer is None and self._writable and not self._waiting:
            self._begin(request)
        else:
            self._waiting.append(request)

    # The answers.

    def _begin(self, request: Request) -> None:
        found = self._service.answer(request)
        if isinstance(found, bytes):
            self._transport.write(found)
        else:
            self._send(found)

    def _send(self, answer: Answer) -> None:
        self._answer = answer
        self._pieces = answer.writes()
        self._holding = answer.hold
        if answer.delay:
            self._timer = self._loop.call_later(answer.delay, self._write_next)
        else:
            self._write_next()

    def _write_next(self) -> None:
        self._timer = None
        if not self._writable:
            self._stalled = True
            return
        assert self._answer is not None
        piece = next(self._pieces, None)
        if piece is None:
            self._finish(self._answer.close)
            return
        self._transport.write(piece)
        if self._holding:
            self._service.hold(self._holding, self._released)
            self._timer = self._loop.call_later(HOLD_LIMIT, self.abort)
        else:
            self._schedule(self._answer.gap)

    def _schedule(self, gap: float) -> None:
        if gap:
            self._timer = self._loop.call_later(gap, self._write_next)
        else:
            self._timer = self._loop.call_soon(self._write_next)

    def _released(self) -> None:
        self._holding = ""
        if self._timer is not None:
            self._timer.cancel()
        self._schedule(0.0)

    def _finish(self, close: bool) -> None:
        self._answer = None
        if close:
            self._waiting.clear()
            self._transport.close()
        else:
            self._answer_waiting()

    def _answer_waiting(self) -> None:
        while self._waiting and self._answer is None and self._writable:
            self._begin(self._waiting.popleft())
        if not self._waiting and not self._reading and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Nothing can be read after this request: answer and close, unless an answer is under way."""
        if self._answer is None and not self._transport.is_closing():
            refusal = answer(fixed(failure(status, message)), Options(), Wire(keep_alive=False), status)
            self._transport.write(b"".join(refusal.writes()))
        self._transport.close()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._holding:
            self._service.unhold(self._holding, self._released)
        self._answer = None


class _Oversized(Exception):
    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
