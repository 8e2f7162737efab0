"""Servers with the ext_proc service, gone after the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from support.harness import Gateway
from support.pki import Pki

from extproc.config.model import Listener, ServerTls
from extproc.transport.listener import GrpcServer
from extproc.transport.process import SERVICE, add_external_processor

MAX_MESSAGE = 16 * 1024 * 1024
Start = Callable[..., "object"]


class Servers:
    """Starts servers whose exchanges go to one `gateway`, with a limiter that remembers."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.gateway = Gateway()

    @property
    def reported(self) -> list[int]:
        """Hits addends of the reports so far."""
        return [call.query.hits_addend for call in self.gateway.limiter.of("report")]

    def listening(self, address: str = "127.0.0.1:0", tls: ServerTls | None = None) -> GrpcServer:
        """Bound, not yet started."""
        server = GrpcServer(MAX_MESSAGE)
        self._stack.push_async_callback(server.stop, 0)
        add_external_processor(server.server, self.gateway.open)
        server.listen([Listener(address=address, tls=tls)])
        return server

    async def start(self, address: str = "127.0.0.1:0", tls: ServerTls | None = None) -> GrpcServer:
        server = self.listening(address, tls)
        await server.start([SERVICE])
        await server.set_ready(ready=True)
        return server


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    async with AsyncExitStack() as stack:
        yield Servers(stack)


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """An authority with a `server` and a `client`; tests must not change its files."""
    made = Pki(tmp_path_factory.mktemp("pki"))
    made.sign("server")
    made.sign("client")
    return made


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Another authority, with a `client` of its own."""
    made = Pki(tmp_path_factory.mktemp("stranger"))
    made.sign("client")
    return made


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    """A path short enough for a socket."""
    return tmp_path / "s.sock"
