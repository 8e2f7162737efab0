"""The client of the story."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp

from extproc.demo.page import Page, StoryError
from extproc.demo.setting import HOST, LIMIT, LIMITS, PATH
from extproc.demo.stack import Stack

_BAR = 25
_PATIENCE = 5.0
_PAUSE = 0.01

Read = Callable[[aiohttp.ClientResponse], Awaitable[Any]]


class Asker:
    """Asks the model through the gateway and shows what came of it."""

    def __init__(self, page: Page, stack: Stack, session: aiohttp.ClientSession) -> None:
        self.page = page
        self.stack = stack
        self._session = session

    async def ask(
        self,
        read: Read,
        body: Mapping[str, Any],
        *,
        host: str = HOST,
        path: str = PATH,
        headers: Mapping[str, str] | None = None,
    ) -> int:
        """The status of one request whose answer `read` reads."""
        headers = {"Host": host, **(headers or {})}
        async with self._session.post(self.stack.url + path, json=body, headers=headers) as response:
            await read(response)
            return response.status

    def used(self, limit: str = str(LIMITS[0]["name"])) -> int:
        """Tokens that the embedded limiter has counted for a limit."""
        return sum(counter.used for counter in self.stack.server.limiter.snapshot() if counter.limit.label == limit)

    def meter(self) -> str:
        """The counter of the limit as a bar."""
        used = self.used()
        filled = min(_BAR, round(used / LIMIT * _BAR))
        return f"{'█' * filled}{'·' * (_BAR - filled)} {used:>3} of {LIMIT}"


async def until(what: str, condition: Callable[[], object]) -> None:
    """Wait for what happens after an answer has left. Raises StoryError when it does not, within seconds."""
    for _ in range(round(_PATIENCE / _PAUSE)):
        if condition():
            return
        await asyncio.sleep(_PAUSE)
    raise StoryError(f"{what}: not within {_PATIENCE:.0f} s")
