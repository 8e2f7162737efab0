"""`extproc` commands as processes, and the real Envoy before such a server."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from extproc.demo.stack import LOCAL
from extproc.gateway.bootstrap import bootstrap
from extproc.gateway.process import EnvoyProcess
from extproc.simulator import Simulator

Line = dict[str, Any]
PATIENCE = 20.0


class Command:
    """`async with Command("serve", path) as server:` runs `python -m extproc serve path`.

    `lines` are its log lines so far; what is no JSON (gRPC's own words) stands under `text`. What it prints goes to
    the file `stdout`, if there is one.
    """

    def __init__(self, *arguments: object, stdout: IO[str] | int = DEVNULL) -> None:
        self._arguments = [str(argument) for argument in arguments]
        self._stdout = stdout
        self.lines: list[Line] = []
        self._more = asyncio.Condition()
        self._over = False

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "extproc", *self._arguments, stdin=DEVNULL, stdout=self._stdout, stderr=PIPE
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        await self._reading

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self) -> int:
        """The exit status, once all was read."""
        async with asyncio.timeout(PATIENCE):
            await self._reading
            return await self._process.wait()

    async def until(self, event: str, *, times: int = 1, **fields: Any) -> Line:
        """The `times`th line of `event` with `fields`, waiting for it."""
        return (await self._until(lambda: self.of(event, **fields), times))[times - 1]

    def of(self, event: str, **fields: Any) -> list[Line]:
        wanted = {"event": event, **fields}.items()
        return [line for line in self.lines if wanted <= line.items()]

    async def _until(self, found: Callable[[], list[Line]], times: int) -> list[Line]:
        async with asyncio.timeout(PATIENCE), self._more:
            await self._more.wait_for(lambda: len(found()) >= times or self._over)
        if len(found()) < times:
            raise AssertionError(f"the process ended first: {self.lines}")
        return found()

    async def _read(self) -> None:
        assert self._process.stderr is not None
        async for raw in self._process.stderr:
            try:
                line: Line = json.loads(raw)
            except ValueError:
                line = {"text": raw.decode(errors="replace").rstrip()}
            async with self._more:
                self.lines.append(line)
                self._more.notify_all()
        async with self._more:
            self._over = True
            self._more.notify_all()


async def run(*arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command that ends by itself."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "extproc", *map(str, arguments), stdin=DEVNULL, stdout=PIPE, stderr=PIPE
    )
    try:
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def write(path: Path, document: Any) -> Path:
    """`document` as JSON at `path`, in one step as an editor does."""
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(document))
    draft.replace(path)
    return path


class OutsideStack:
    """Client -> Envoy -> model as in extproc.demo.stack, with `extproc serve` as a process of its own.

    `gateway` are keyword arguments of `bootstrap`.
    """

    def __init__(self, config: Mapping[str, Any], directory: Path, **gateway: Any) -> None:
        self.config_file = directory / "extproc.json"
        self.configure(config)
        self.model = Simulator()
        self.server = Command("serve", self.config_file)
        self.envoy: EnvoyProcess
        self.admin: str
        self._gateway = gateway

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as parts:
            await parts.enter_async_context(self.model)
            await parts.enter_async_context(self.server)
            ready = await self.server.until("ready")
            self.admin = f"http://{ready['admin']}"
            options = {"upstream": self.model.address, "extproc": ready["listeners"][0], **self._gateway}
            self.envoy = await parts.enter_async_context(EnvoyProcess(bootstrap(**options)))
            self._parts = parts.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._parts.aclose()

    def configure(self, config: Mapping[str, Any]) -> None:
        write(self.config_file, {**LOCAL, **config})

    @property
    def url(self) -> str:
        return f"http://{self.envoy.address}"
