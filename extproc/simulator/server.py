"""The simulated model as a server on the running event loop."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from extproc.simulator.connection import Connection
from extproc.simulator.options import Options
from extproc.simulator.service import KEPT_REQUESTS, Record, Service

_BACKLOG = 4096


class Simulator:
    """`async with Simulator() as model:` serves on `model.address`; port 0 is a free one.

    Raises OSError where the address cannot be had. Leaving closes all connections at once.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        options: Options | None = None,
        kept_requests: int = KEPT_REQUESTS,
    ) -> None:
        self._host = host
        self._port = port
        self._service = Service(options or Options(), kept_requests)
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    @property
    def requests(self) -> list[Record]:
        """The last requests that reached the model, oldest first."""
        return self._service.requests

    def forget(self) -> None:
        """Begin `requests` anew."""
        self._service.forget()

    def release(self, name: str) -> int:
        """Let the answers held as `name` go on; how many there were."""
        return self._service.release(name)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._service, self._connections), self._host, self._port, backlog=_BACKLOG
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for connection in tuple(self._connections):
            connection.abort()
        await self._server.wait_closed()
        self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
