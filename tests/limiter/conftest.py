"""What the limiter tests share: a clock that tests move, limits in one line, servers that go away with the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import grpc
import pytest

from extproc.config.model import Endpoint, Limit
from extproc.limiter.channel import open_channel
from extproc.limiter.limits import LimitSet
from extproc.limiter.seam import Query

Handle = Callable[[str, bytes, Any], Awaitable[bytes]]
"""From the path of a call, its message and its context to the answer."""
Setup = Callable[[grpc.aio.Server], None]


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Make:
    """Short forms."""

    @staticmethod
    def limit(max_value: int = 100, seconds: int = 60, **fields: Any) -> Limit:
        return Limit(**({"namespace": "domain-a", "max_value": max_value, "seconds": seconds} | fields))

    @staticmethod
    def limits(*limits: Limit) -> LimitSet:
        return LimitSet(limits)

    @staticmethod
    def query(hits: int = 1, domain: str = "domain-a", **entries: str) -> Query:
        return Query(domain, (tuple(entries.items()),), hits)


@pytest.fixture
def make() -> type[Make]:
    return Make


class _AnyMethod(grpc.GenericRpcHandler):
    """Serves every method with one function."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(partial(self._handle, handler_call_details.method))


def answering(handle: Handle) -> Setup:
    """A server that answers every call by `handle`."""
    return lambda server: server.add_generic_rpc_handlers((_AnyMethod(handle),))


class Net:
    """Servers and channels on the loopback interface, closed after the test."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.stack = stack
        self.servers: list[grpc.aio.Server] = []

    async def serve(self, setup: Setup, address: str = "127.0.0.1:0", credentials: Any = None) -> str:
        """Start a server with the services that `setup` adds; its address is returned."""
        server = grpc.aio.server()
        setup(server)
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
        await server.start()
        self.stack.push_async_callback(server.stop, None)
        self.servers.append(server)
        return address if address.startswith("unix:") else f"127.0.0.1:{port}"

    async def answer(self, handle: Handle, address: str = "127.0.0.1:0") -> str:
        return await self.serve(answering(handle), address)

    def channel(self, address: str, **fields: Any) -> grpc.aio.Channel:
        channel = open_channel(Endpoint(address=address, **fields))
        self.stack.push_async_callback(channel.close)
        return channel


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    async with AsyncExitStack() as stack:
        yield Net(stack)
