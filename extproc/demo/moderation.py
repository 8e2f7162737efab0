"""The webhook guard of examples/, as a child process."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from extproc.demo.page import StoryError

SERVER = Path(__file__).parents[2] / "examples" / "webhook-guard" / "server.py"
_PATIENCE = 10.0


@asynccontextmanager
async def moderation(*words: str, server: Path = SERVER) -> AsyncIterator[str]:
    """Where it can be asked; it refuses `words`.

    Raises FileNotFoundError in an installation without the examples, StoryError where it does not start.
    """
    environment = {name: value for name, value in os.environ.items() if name != "GUARD_TOKEN"}
    process = await asyncio.create_subprocess_exec(*_command(server, words), stderr=PIPE, env=environment)
    try:
        yield await _address(process)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


def _command(server: Path, words: Sequence[str]) -> list[str]:
    if not server.exists():
        raise FileNotFoundError(f"{server} is not there: the examples come with the repository")
    return [sys.executable, str(server), "--port", "0", *(option for word in words for option in ("--deny", word))]


async def _address(process: Process) -> str:
    """Out of the first line of its log."""
    assert process.stderr is not None
    try:
        async with asyncio.timeout(_PATIENCE):
            line = (await process.stderr.readline()).decode(errors="replace")
    except TimeoutError:
        line = f"not within {_PATIENCE:.0f} s"
    found = re.search(r"http://\S+", line)
    if found is None:
        raise StoryError(f"the webhook did not start: {line.strip()}")
    return found[0] + "/"
