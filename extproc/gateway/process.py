"""A real Envoy as a child process."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from extproc.gateway.binary import find_envoy
from extproc.gateway.errors import EnvoyFailed
from extproc.gateway.ports import ensure_free

_POLL = 0.01
_LOG_LINES = 40
_ADMIN_TIMEOUT = aiohttp.ClientTimeout(total=5)


class EnvoyProcess:
    """`async with EnvoyProcess(bootstrap(...)) as envoy:` runs Envoy; it is gone when the block is left.

    `config` needs an admin address and a listener; where their port is 0, the kernel's choice is in `admin` and
    `address`. Many can run side by side. Entering raises PortInUse, EnvoyNotFound, or EnvoyFailed with the end of
    Envoy's log when it is not ready within `start_timeout` seconds. `stop_timeout` is what it has between SIGTERM
    and SIGKILL.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        concurrency: int = 1,
        log_level: str = "warning",
        binary: Path | None = None,
        start_timeout: float = 20.0,
        stop_timeout: float = 5.0,
    ) -> None:
        self._config = config
        self._options = ("--concurrency", str(concurrency), "--log-level", log_level)
        self._binary = binary
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._log: deque[str] = deque(maxlen=_LOG_LINES)

    async def __aenter__(self) -> Self:
        binary = self._binary or find_envoy()
        for host, port in _fixed_ports(self._config):
            ensure_free(port, host)
        self._directory = tempfile.TemporaryDirectory(prefix="extproc-envoy-")
        self._http = aiohttp.ClientSession(timeout=_ADMIN_TIMEOUT)
        self._process: Process | None = None
        try:
            self._process = await self._spawn(binary)
            self.admin = await self._ready(self._process)
            self.address = await self._listening()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    @property
    def pid(self) -> int:
        """The process id, for those who measure."""
        return self._running.pid

    async def wait(self) -> int:
        """Envoy's exit status, once it is gone; negative when a signal ended it."""
        return await self._running.wait()

    async def stats(self, prefix: str = "") -> dict[str, int]:
        """Counters and gauges whose names start with `prefix`."""
        query = {"format": "json", "filter": f"^{re.escape(prefix)}"}
        rows = (await self._admin("/stats", query))["stats"]
        return {row["name"]: row["value"] for row in rows if isinstance(row.get("value"), int)}

    def log_tail(self) -> str:
        """The last lines of Envoy's log, also after it has ended."""
        with suppress(FileNotFoundError), self._path("envoy.log").open(errors="replace") as lines:
            self._log.clear()
            self._log.extend(lines)
        return "".join(self._log)

    @property
    def _running(self) -> Process:
        if self._process is None:
            raise RuntimeError("Envoy was not started")
        return self._process

    def _path(self, name: str) -> Path:
        return Path(self._directory.name, name)

    async def _spawn(self, binary: Path) -> Process:
        config = self._path("envoy.json")
        config.write_text(json.dumps(self._config))
        with self._path("envoy.log").open("wb") as log:
            return await asyncio.create_subprocess_exec(
                binary,
                *("--config-path", config),
                *("--admin-address-path", self._path("admin")),
                *self._options,
                # Hot restart shares memory between processes of one base id, so only one could run.
                "--disable-hot-restart",
                *("--file-flush-interval-msec", "50"),
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=log,
                # A group of its own: Ctrl-C must reach us first, or Envoy dies under running requests.
                process_group=0,
            )

    async def _ready(self, process: Process) -> str:
        """The admin address, once Envoy says that it is live."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._start_timeout):
                while process.returncode is None:
                    if (admin := self._admin_address()) and await self._is_live(admin):
                        return admin
                    with suppress(TimeoutError):
                        await asyncio.wait_for(process.wait(), _POLL)
        ended = process.returncode is not None
        problem = f"ended with status {process.returncode}" if ended else f"not ready in {self._start_timeout} s"
        raise EnvoyFailed(f"Envoy did not start: {problem}\n{self.log_tail()}")

    def _admin_address(self) -> str:
        """Empty until Envoy has written it; while it writes perhaps cut short, which no one answers at."""
        with suppress(FileNotFoundError):
            return self._path("admin").read_text()
        return ""

    async def _is_live(self, admin: str) -> bool:
        with suppress(aiohttp.ClientError, TimeoutError, ValueError):
            async with self._http.get(f"http://{admin}/ready") as response:
                return response.status == 200
        return False

    async def _listening(self) -> str:
        listeners = (await self._admin("/listeners", {"format": "json"}))["listener_statuses"]
        address = listeners[0]["local_address"]["socket_address"]
        return f"{_bracketed(address['address'])}:{address['port_value']}"

    async def _admin(self, path: str, query: Mapping[str, str]) -> Any:
        async with self._http.get(f"http://{self.admin}{path}", params=query) as response:
            response.raise_for_status()
            return await response.json(content_type=None)

    async def _stop(self) -> None:
        try:
            if self._process is not None:
                await self._terminate(self._process)
        finally:
            await self._http.close()
            self.log_tail()
            self._directory.cleanup()

    async def _terminate(self, process: Process) -> None:
        try:
            with suppress(ProcessLookupError):
                process.terminate()
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), self._stop_timeout)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def _fixed_ports(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    listeners = config.get("static_resources", {}).get("listeners", ())
    for holder in (config.get("admin", {}), *listeners):
        address = holder.get("address", {}).get("socket_address", {})
        if address.get("port_value"):
            yield address["address"], address["port_value"]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
