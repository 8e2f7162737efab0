"""Servers as child processes."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self

import aiohttp

from bench.errors import BenchError

_START_TIMEOUT = 20.0
_STOP_TIMEOUT = 5.0
_POLL = 0.02
_LOG_TAIL = 2000


Cores = frozenset[int] | None


class Child:
    """`async with Child("floor", "-m", "bench.floor") as floor:` runs Python, or `program`, with these arguments.

    `cores` are those it may run on, all of ours when None. Waiting for it raises BenchError with the end of its log
    when it ends; leaving ends it.
    """

    def __init__(self, name: str, *arguments: str, cores: Cores = None, program: str = sys.executable) -> None:
        self._name = name
        self._arguments = (program, *arguments)
        self._cores = cores

    @property
    def pid(self) -> int:
        return self._process.pid

    async def listening(self) -> str:
        """The address in its first line, `listening on ADDRESS`."""
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), _START_TIMEOUT)
        except TimeoutError:
            line = b""
        _, found, address = line.decode().strip().partition("listening on ")
        if not found:
            raise self._failed("did not say where it listens")
        return address

    async def ready(self, admin: str) -> None:
        """Wait for `GET /readyz` on its admin address."""
        async with aiohttp.ClientSession() as session:
            for _ in range(int(_START_TIMEOUT / _POLL)):
                with suppress(aiohttp.ClientError):
                    async with session.get(f"http://{admin}/readyz") as response:
                        if response.status == 200:
                            return
                if self._process.returncode is not None:
                    break
                await asyncio.sleep(_POLL)
        raise self._failed("is not ready")

    async def accepts(self, address: str) -> None:
        """Wait until it accepts connections."""
        host, _, port = address.rpartition(":")
        for _ in range(int(_START_TIMEOUT / _POLL)):
            with suppress(OSError):
                _, writer = await asyncio.open_connection(host, port)
                writer.close()
                return
            if self._process.returncode is not None:
                break
            await asyncio.sleep(_POLL)
        raise self._failed(f"does not listen on {address}")

    def _failed(self, problem: str) -> BenchError:
        self._log.seek(0)
        return BenchError(f"{self._name} {problem}\n{self._log.read()[-_LOG_TAIL:].decode(errors='replace')}")

    async def __aenter__(self) -> Self:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = await asyncio.create_subprocess_exec(
            *self._arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._log,
            preexec_fn=None if self._cores is None else partial(os.sched_setaffinity, 0, self._cores),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), _STOP_TIMEOUT)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        self._log.close()
