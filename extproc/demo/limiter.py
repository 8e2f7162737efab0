"""The act in which the limiter becomes a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import orjson

from extproc.demo.asker import Asker
from extproc.demo.page import StoryError, expect
from extproc.demo.setting import LIMITS, QUESTION, configuration

_READY_WITHIN = 15.0

ReadLog = Callable[[str, int], Awaitable[list[str]]]


async def one_word(asker: Asker, directory: Path) -> None:
    """Another endpoint for the same service."""
    asker.page.act("7. One word changed: the limiter as a process of its own")
    limits = directory / "limits.json"
    limits.write_text(json.dumps(LIMITS))
    async with _limiter_process(limits) as (address, read_log):
        asker.page.line(f"  endpoints: {{limitador: embedded}}  ->  {{limitador: {address}}}")
        asker.stack.configure(configuration(address))
        expect("the reload", await asker.stack.server.reload(), True)

        async def ignore(response: aiohttp.ClientResponse) -> None:
            await response.read()

        statuses = [await asker.ask(ignore, QUESTION) for _ in range(6)]
        expect("statuses with the remote limiter", statuses, [200] * 5 + [429])
        asker.page.line(f"  {'  '.join(map(str, statuses))}")
        reports = await read_log("hits_addend: 24", 5)
        asker.page.line(f"  its log, five times: {reports[0]}")


@asynccontextmanager
async def _limiter_process(limits: Path) -> AsyncIterator[tuple[str, ReadLog]]:
    """`extproc limiter` on a free port: its address, and a function that waits for lines of its log."""
    listen = ("--listen", "127.0.0.1:0", "--log-format", "json")
    command = (sys.executable, "-m", "extproc", "limiter", str(limits), *listen)
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    stderr = process.stderr
    assert stderr is not None

    async def lines(containing: str, count: int) -> list[str]:
        found: list[str] = []
        async with asyncio.timeout(_READY_WITHIN):
            while len(found) < count:
                line = await stderr.readline()
                if not line:
                    raise StoryError("the limiter process ended")
                entry = orjson.loads(line)
                if containing in entry["event"]:
                    found.append(entry.get("listen") or entry["event"])
        return found

    try:
        yield (await lines("ready", 1))[0], lines
    finally:
        process.terminate()
        await process.wait()
