"""The real redis-server, in every arrangement that a storage may have. Skips the test where there is none."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import hiredis
import pytest

from support.pki import Pki

PATIENCE = 10.0
_PAUSE = 0.005


def free_port() -> int:
    """A port that was free a moment ago; not too high, because a cluster's bus is 10,000 above it."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55_000:
            return port


class RedisServer:
    """`async with RedisServer(folder) as redis:` runs redis-server on a port and a socket of its own.

    `options` are its directives, as `requirepass="secret"`. `stop` and `start` keep the port; what it held is lost,
    the scripts too. With `pki` it speaks TLS only.
    """

    def __init__(self, folder: Path, *, port: int | None = None, pki: Pki | None = None, **options: object) -> None:
        if shutil.which("redis-server") is None:
            pytest.skip("needs redis-server")
        self.port = port or free_port()
        self.folder = folder / f"redis-{self.port}"
        self.folder.mkdir()
        # The path of a socket has at most 107 bytes, which a test's folder may exceed.
        self.socket = f"/tmp/redis-test-{self.port}.sock"
        self._options = options
        self._sentinel = False
        if pki is not None:
            pki.sign("redis")
            files = {"cert": pki / "redis.crt", "key": pki / "redis.key", "ca-cert": pki / "ca.crt"}
            self._options |= {f"tls-{name}-file": path for name, path in files.items()}
            self._options |= {"port": 0, "tls-port": self.port, "tls-auth-clients": "no", "tls-cluster": "no"}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"redis://{self.address}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Run it, and return once it answers PING."""
        config = self.folder / "redis.conf"
        config.write_text("".join(f"{name} {value}\n" for name, value in self._directives().items()))
        arguments = [str(config), *(["--sentinel"] if self._sentinel else [])]
        self._process = await asyncio.create_subprocess_exec(
            "redis-server", *arguments, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        await eventually(self._pings, f"redis-server on port {self.port} did not start")

    async def stop(self) -> None:
        """Kill it at once."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            self._process = None
            Path(self.socket).unlink(missing_ok=True)  # noqa: ASYNC240

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def do(self, *command: object) -> Any:
        """The reply to one command, over the socket, past TLS and ports; with the password if there is one."""
        reader, writer = await asyncio.open_unix_connection(self.socket)
        try:
            password = self._options.get("requirepass")
            if password is not None and command[0] != "AUTH":
                writer.write(hiredis.pack_command(("AUTH", str(password))))
            writer.write(hiredis.pack_command(tuple(map(_argument, command))))
            replies = hiredis.Reader()
            for _ in range(2 if password is not None else 1):
                while (reply := replies.gets()) is False:
                    replies.feed(await reader.read(65536) or _gone())
        finally:
            writer.close()
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def _directives(self) -> dict[str, object]:
        fixed = {"bind": "127.0.0.1", "unixsocket": self.socket, "dir": self.folder, "save": '""'}
        return fixed | {"port": self.port} | {name.replace("_", "-"): value for name, value in self._options.items()}

    async def _pings(self) -> bool:
        try:
            return bool(await self.do("PING"))
        except (OSError, hiredis.ReplyError):
            return False


class Sentinel(RedisServer):
    """A Sentinel that watches `master` under the name `service`."""

    def __init__(self, folder: Path, master: RedisServer, service: str = "counters", **options: object) -> None:
        super().__init__(folder, **options)
        self._sentinel = True
        self._monitor = f"monitor {service} 127.0.0.1 {master.port} 1"

    def _directives(self) -> dict[str, object]:
        directives = super()._directives() | {"sentinel": self._monitor}
        del directives["save"]
        return directives


@asynccontextmanager
async def cluster(folder: Path, nodes: int = 1, **options: object) -> AsyncIterator[list[RedisServer]]:
    """A cluster of masters; each knows all others, and has an equal share of the slots."""
    servers = [RedisServer(folder, cluster_enabled="yes", **options) for _ in range(nodes)]
    try:
        for index, server in enumerate(servers):
            await server.start()
            await server.do("CLUSTER", "ADDSLOTSRANGE", index * 16384 // nodes, (index + 1) * 16384 // nodes - 1)
            await server.do("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            if index:
                await server.do("CLUSTER", "MEET", "127.0.0.1", servers[0].port)
        for server in servers:
            await eventually(lambda server=server: _whole(server), "the cluster did not form")
        yield servers
    finally:
        for server in servers:
            await server.stop()


async def eventually(holds: Callable[[], Awaitable[object]], otherwise: str) -> None:
    """Return once `holds` does; raises TimeoutError that says `otherwise`."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not await holds():  # noqa: ASYNC110 - what another process does has no event
                await asyncio.sleep(_PAUSE)
    except TimeoutError:
        raise TimeoutError(otherwise) from None


async def _whole(server: RedisServer) -> bool:
    return b"cluster_state:ok" in await server.do("CLUSTER", "INFO")


def _argument(value: object) -> str | bytes | int:
    return value if isinstance(value, bytes | int) else str(value)


def _gone() -> bytes:
    raise ConnectionResetError
