"""The other workers count where the first does."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import cast

from extproc.config.model import Service
from extproc.limiter.messages import Unreadable, encode_query
from extproc.limiter.seam import Decision, LimiterError, Metadata, Query
from extproc.workers.wire import MAX_BODY, NUMBERS, Frame, Frames, Kind, decode_decision, encode_frame, encode_refund

_PAUSE = 0.1
"""Seconds between attempts to connect, each of which costs next to nothing."""


class SharedCounters:
    """The counters behind the socket `path`; connects, and again when the connection is lost.

    To be made within the event loop.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._line: _Line | None = None
        self._connected = asyncio.Event()
        self._keeping = asyncio.create_task(self._keep())

    def limiter_for(self, service: Service) -> SharedLimiter:
        """Counts for `service`, whose timeout is that of each call."""
        return SharedLimiter(self, service.timeout)

    async def connect(self, patience: float) -> None:
        """Return when connected, or after `patience` seconds."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._connected.wait(), patience)

    async def close(self) -> None:
        """Hang up; calls are unreachable from then on."""
        self._keeping.cancel()
        await asyncio.wait((self._keeping,))
        if self._line is not None:
            self._line.close()

    async def ask(self, kind: Kind, body: bytes, within: float) -> Decision:
        """The answer to a question.

        Raises LimiterError: `unreachable` where nothing was sent, so that nothing can have been counted.
        """
        line = self._line
        if line is None or line.busy:
            raise LimiterError("unreachable", f"the worker that counts {'is away' if line is None else 'is stuck'}")
        if len(body) > MAX_BODY:
            raise LimiterError("refused", f"a query of {len(body)} bytes")
        try:
            async with asyncio.timeout(within):
                return _decision(await line.ask(kind, body))
        except TimeoutError:
            raise LimiterError("deadline", f"no answer within {within:g} s") from None
        except Unreadable as error:
            raise LimiterError("nonsense", str(error)) from None

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            with suppress(OSError):
                _, self._line = await loop.create_unix_connection(_Line, str(self._path))
                self._connected.set()
                await self._line.lost.wait()
            self._line = None
            self._connected.clear()
            await asyncio.sleep(_PAUSE)


class SharedLimiter:
    """A limiter whose counters another worker has; methods raise LimiterError when awaited."""

    def __init__(self, counters: SharedCounters, timeout: float) -> None:
        self._counters = counters
        self._timeout = timeout

    async def check(self, query: Query, metadata: Metadata = ()) -> Decision:
        """As the first worker's."""
        return await self._counters.ask(Kind.CHECK, encode_query(query), self._timeout)

    async def report(self, query: Query, metadata: Metadata = ()) -> Decision:
        """As the first worker's."""
        return await self._counters.ask(Kind.REPORT, encode_query(query), self._timeout)

    async def should_rate_limit(self, query: Query, metadata: Metadata = ()) -> Decision:
        """As the first worker's."""
        return await self._counters.ask(Kind.SHOULD_RATE_LIMIT, encode_query(query), self._timeout)

    async def refund(self, query: Query, metadata: Metadata = (), age: float = 0.0) -> Decision:
        """As the first worker's."""
        return await self._counters.ask(Kind.REFUND, encode_refund(query, age), self._timeout)


class _Line(asyncio.Protocol):
    """One connection. `busy` while the other side does not read; `lost` when it is over."""

    def __init__(self) -> None:
        self.busy = False
        self.lost = asyncio.Event()
        self._frames = Frames()
        self._asked: dict[int, asyncio.Future[Frame]] = {}
        self._last = 0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport

    async def ask(self, kind: Kind, body: bytes) -> Frame:
        """The answer. Raises LimiterError when the connection is lost before it comes."""
        self._last = number = (self._last + 1) % NUMBERS
        answer: asyncio.Future[Frame] = self._loop.create_future()
        self._asked[number] = answer
        self._transport.write(encode_frame(number, kind, body))
        try:
            return await answer
        finally:
            del self._asked[number]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._frames.feed(data):
                asked = self._asked.get(frame.number)
                if asked is not None and not asked.done():
                    asked.set_result(frame)
        except Unreadable:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.busy = True
        self.lost.set()
        for asked in self._asked.values():
            if not asked.done():
                # It may have been counted: what was asked was sent.
                asked.set_exception(LimiterError("refused", "the worker that counts went away during the call"))

    def pause_writing(self) -> None:
        self.busy = True

    def resume_writing(self) -> None:
        self.busy = False

    def close(self) -> None:
        self._transport.close()


def _decision(frame: Frame) -> Decision:
    if frame.kind == Kind.UNREADABLE:
        raise Unreadable(frame.body.decode("utf-8", "replace"))
    return decode_decision(frame.body)
