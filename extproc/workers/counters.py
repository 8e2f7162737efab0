"""The first worker counts for the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.messages import Unreadable, decode_query
from extproc.limiter.seam import Decision, Query
from extproc.transport.listener import ListenError
from extproc.workers.wire import Frame, Frames, Kind, decode_refund, encode_decision, encode_frame

_Ask = Callable[[Query], Decision]
_Refund = Callable[[bytes], Decision]


class CountersServer:
    """Serves `limiter` on the socket `path`. Who may open that may count: its folder has to be private."""

    def __init__(self, path: Path, limiter: EmbeddedLimiter) -> None:
        self._path = path
        self._limiter = limiter
        self._calls: dict[int, _Ask] = {
            Kind.CHECK: limiter.check,
            Kind.REPORT: limiter.report,
            Kind.SHOULD_RATE_LIMIT: limiter.should_rate_limit,
        }
        self._conversations: set[_Conversation] = set()
        self._server: asyncio.Server

    async def start(self) -> None:
        """Listen, also in place of one that died. Raises ListenError."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_unix_server(self._converse, str(self._path))
        except OSError as error:
            raise ListenError(f"the socket of the workers' counters, `{self._path}`: {error}") from None

    def stop(self) -> None:
        """Stop at once: every question was answered when it came."""
        self._server.close()
        for conversation in tuple(self._conversations):
            conversation.close()
        with suppress(OSError):
            self._path.unlink()

    def _converse(self) -> _Conversation:
        return _Conversation(self._calls, self._refund, self._conversations)

    def _refund(self, body: bytes) -> Decision:
        query, age = decode_refund(body)
        return self._limiter.refund(query, age=age)


class _Conversation(asyncio.Protocol):
    """Answers one worker; does not listen while that one does not."""

    def __init__(self, calls: dict[int, _Ask], refund: _Refund, others: set[_Conversation]) -> None:
        self._calls = calls
        self._refund = refund
        self._others = others
        self._frames = Frames()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._others.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._others.discard(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._transport.write(b"".join(map(self._answer, self._frames.feed(data))))
        except Unreadable:
            self._transport.abort()

    def pause_writing(self) -> None:
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    def close(self) -> None:
        self._transport.close()

    def _answer(self, frame: Frame) -> bytes:
        call = self._calls.get(frame.kind)
        try:
            decision = call(decode_query(frame.body)) if call is not None else self._other(frame)
            return encode_frame(frame.number, Kind.DECISION, encode_decision(decision))
        except Unreadable as error:
            return encode_frame(frame.number, Kind.UNREADABLE, str(error).encode())

    def _other(self, frame: Frame) -> Decision:
        if frame.kind != Kind.REFUND:
            raise Unreadable(f"a question of kind {frame.kind}")
        return self._refund(frame.body)
