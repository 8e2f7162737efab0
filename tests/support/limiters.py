"""Limiters behind gRPC that fail the way a test tells them to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc

from extproc.limiter.seam import Limiter
from extproc.limiter.server import add_limiter_service
from extproc.wire.rls_pb2 import RateLimitRequest, RateLimitResponse

Context = Any
Answer = Callable[[Context], Awaitable[bytes]]

CHECK = "CheckRateLimit"
REPORT = "Report"


def answering(data: bytes) -> Answer:
    """Always these bytes."""

    async def answer(_: Context) -> bytes:
        return data

    return answer


OK = answering(RateLimitResponse(overall_code=RateLimitResponse.OK).SerializeToString())
UNKNOWN = answering(RateLimitResponse().SerializeToString())
GARBAGE = answering(b"\xff\xff")


async def unavailable(context: Context) -> bytes:
    """The server's own word that it cannot: whether it counted is not known."""
    return await context.abort(grpc.StatusCode.UNAVAILABLE, "storage is down")


async def hangs(_: Context) -> bytes:
    """No answer at all."""
    await asyncio.Event().wait()
    raise AssertionError


def after(event: asyncio.Event, then: Answer = OK) -> Answer:
    """Answers when `event` is set."""

    async def answer(context: Context) -> bytes:
        await event.wait()
        return await then(context)

    return answer


@dataclass(frozen=True)
class Call:
    """One RPC as it arrived."""

    method: str
    request: RateLimitRequest
    metadata: dict[str, str]


@dataclass
class ScriptedLimiter:
    """Answers each method by `answers`, OK unless told otherwise, and remembers what it was asked.

    It listens on `address` between `start` and `stop`, as often as a test likes.
    """

    address: str
    answers: dict[str, Answer] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    _called: asyncio.Condition = field(default_factory=asyncio.Condition)
    _server: grpc.aio.Server | None = None

    @property
    def running(self) -> bool:
        return self._server is not None

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((_AnyMethod(self._handle),))
        port = self._server.add_insecure_port(self.address)
        if not self.address.startswith("unix:"):
            self.address = f"{self.address.rpartition(':')[0]}:{port}"
        await self._server.start()

    async def stop(self) -> None:
        """Close every connection at once."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)

    async def called(self, method: str, times: int = 1) -> None:
        """Return when `method` has arrived so often."""
        async with asyncio.timeout(10), self._called:
            await self._called.wait_for(lambda: len(self.of(method)) >= times)

    def of(self, method: str) -> list[Call]:
        return [call for call in self.calls if call.method == method]

    async def _handle(self, path: str, message: bytes, context: Context) -> bytes:
        method = path.rpartition("/")[2]
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        async with self._called:
            self.calls.append(Call(method, RateLimitRequest.FromString(message), metadata))
            self._called.notify_all()
        return await self.answers.get(method, OK)(context)


class _AnyMethod(grpc.GenericRpcHandler):
    def __init__(self, handle: Callable[[str, bytes, Context], Awaitable[bytes]]) -> None:
        self._handle = handle

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(partial(self._handle, handler_call_details.method))


@asynccontextmanager
async def scripted(address: str = "127.0.0.1:0", **answers: Answer) -> AsyncIterator[ScriptedLimiter]:
    """A started ScriptedLimiter that is gone when the block is left."""
    limiter = ScriptedLimiter(address, dict(answers))
    await limiter.start()
    try:
        yield limiter
    finally:
        await limiter.stop()


@asynccontextmanager
async def served(limiter: Limiter) -> AsyncIterator[str]:
    """The project's own limiter service for `limiter`; its address."""
    server = grpc.aio.server()
    add_limiter_service(server, limiter)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
