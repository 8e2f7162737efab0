"""Rate limit services as processes: envoyproxy/ratelimit with a real Redis, and `extproc limiter`.

Each keeps its address however often it is killed and started.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import subprocess
import tempfile
from asyncio.subprocess import DEVNULL, Process
from pathlib import Path
from typing import Self

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from extproc.gateway.ports import free_port
from support.processes import Command
from support.redis_server import RedisServer

VERSION = "v1.4.1-0.20260122083618-3fb702589d36"
"""The project tags no releases."""
PACKAGE = f"github.com/envoyproxy/ratelimit/src/service_cmd@{VERSION}"
BINARY_VARIABLE = "ENVOY_RATELIMIT_BINARY"
BUILD_VARIABLE = "EXTPROC_BUILD_RATELIMIT"
_READY_WITHIN = 15
_BUILD_WITHIN = 900
_SOON = (("grpc.initial_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 50))


def ratelimit_binary() -> Path:
    """envoyproxy/ratelimit: $ENVOY_RATELIMIT_BINARY, or the one built before; built now if $EXTPROC_BUILD_RATELIMIT.

    A build takes most of a minute on two idle cores, so nothing else starts one. Without a binary the test is skipped.
    """
    if chosen := os.environ.get(BINARY_VARIABLE):
        return Path(chosen)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "extproc"
    binary = cache / f"envoy-ratelimit-{VERSION}"
    if not binary.exists():
        if not os.environ.get(BUILD_VARIABLE):
            pytest.skip(f"envoyproxy/ratelimit is not built; with {BUILD_VARIABLE}=1 it is, by Go")
        _build(binary)
    return binary


def _build(binary: Path) -> None:
    """Install the Go package as `binary`; of several processes one does it, the others wait for it."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("envoyproxy/ratelimit needs Go to be built")
    binary.parent.mkdir(parents=True, exist_ok=True)
    lock_file = binary.with_name(f"{binary.name}.lock")
    with lock_file.open("w") as lock, tempfile.TemporaryDirectory(dir=binary.parent) as folder:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if binary.exists():
            return
        environment = {**os.environ, "GOBIN": folder, "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0"}
        command = (go, "install", "-trimpath", "-ldflags=-s -w", PACKAGE)
        try:
            subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=_BUILD_WITHIN)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"`go install {PACKAGE}` failed: {error.stderr[-300:].strip()}")
        except subprocess.TimeoutExpired:
            pytest.skip(f"`go install {PACKAGE}` took longer than {_BUILD_WITHIN} s")
        Path(folder, "service_cmd").replace(binary)


class EnvoyRatelimit:
    """`async with EnvoyRatelimit(limits, folder) as service:` runs envoyproxy/ratelimit with a Redis of its own.

    `limits` is its file, `settings` are more of its environment variables. `kill` and `start` leave the Redis, which
    is `storage`, alone.
    """

    def __init__(self, limits: Path, folder: Path, **settings: str) -> None:
        self._binary = ratelimit_binary()
        self.storage = RedisServer(folder)
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        (folder / "config").mkdir()
        shutil.copy(limits, folder / "config" / "limits.yaml")
        self._log = folder / "ratelimit.log"
        self._environment = {
            "GRPC_HOST": "127.0.0.1",
            "GRPC_PORT": str(port),
            **dict.fromkeys(("HOST", "DEBUG_HOST"), "127.0.0.1"),
            **dict.fromkeys(("PORT", "DEBUG_PORT"), "0"),
            "RUNTIME_ROOT": str(folder),
            "RUNTIME_WATCH_ROOT": "false",
            "REDIS_SOCKET_TYPE": "tcp",
            "REDIS_URL": self.storage.address,
            "REDIS_TIMEOUT": "1s",
            "USE_STATSD": "false",
            "DISABLE_STATS": "true",
            "HEALTHY_WITH_AT_LEAST_ONE_CONFIG_LOADED": "true",
            "LIMIT_RESPONSE_HEADERS_ENABLED": "true",
            **settings,
        }
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        await self.storage.start()
        try:
            await self.start()
        except BaseException:
            await self.storage.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
        await self.storage.stop()

    async def start(self) -> None:
        """Run it, and return once its health service says that it has its limits."""
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                self._binary, env=self._environment, stdin=DEVNULL, stdout=log, stderr=log
            )
        try:
            await _serving(self.address)
        except Exception as error:
            await self.kill()
            raise AssertionError(f"envoyproxy/ratelimit did not start: {self._log.read_text()[-2000:]}") from error
        except BaseException:
            await self.kill()
            raise

    async def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await process.wait()


class ExtprocLimiter:
    """`async with ExtprocLimiter(limits) as service:` runs `extproc limiter`."""

    storage = None

    def __init__(self, limits: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._limits = limits
        self._process: Command | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def start(self) -> None:
        """Run it, and return once it is ready."""
        process = Command("limiter", self._limits, "--listen", self.address, "--log-format", "json")
        self._process = await process.__aenter__()
        await process.until("ready")

    async def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await process.__aexit__(None, None, None)


RateLimitService = EnvoyRatelimit | ExtprocLimiter


async def _serving(address: str) -> None:
    """Return when the gRPC health service at `address` says that envoyproxy/ratelimit is there."""
    async with grpc.aio.insecure_channel(address, options=_SOON) as channel:
        asked = HealthCheckRequest(service="ratelimit")
        async for told in HealthStub(channel).Watch(asked, timeout=_READY_WITHIN, wait_for_ready=True):
            if told.status == HealthCheckResponse.SERVING:
                return
    raise ConnectionError(f"no health service at {address}")
