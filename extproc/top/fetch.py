"""Asking admin ports for `/usage`."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

import aiohttp

from extproc.top.page import NoUsage, Page, read

TIMEOUT: Final = 5.0
"""Seconds for one answer."""
LARGEST: Final = 32 * 1024 * 1024
"""Bytes of an answer."""

_ADDRESS = re.compile(r"(?:http://)?(?P<address>\[[0-9A-Fa-f:.]+\]:\d{1,5}|[^\[\]:/\s]+:\d{1,5})/?")


class Unanswered(Exception):
    """No page came from an address; the text begins with it."""


class Source:
    """One admin port, `HOST:PORT` or `unix:/path`. Raises ValueError for an address that is neither."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._path = address.removeprefix("unix:") if address.startswith("unix:") else None
        found = _ADDRESS.fullmatch(address)
        if not self._path and found is None:
            raise ValueError(f"expected `HOST:PORT` or `unix:/path`, got `{address}`")
        self._url = f"http://{found['address']}/usage" if found is not None else "http://admin/usage"

    async def __aenter__(self) -> Self:
        connector = aiohttp.UnixConnector(self._path) if self._path else None
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(TIMEOUT))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def page(self) -> Page:
        """What it answers. Raises Unanswered."""
        try:
            async with self._session.get(self._url, allow_redirects=False) as answer:
                if answer.status == 404:
                    raise NoUsage("it has no /usage: another program, or an older extproc")
                if answer.status != 200:
                    raise NoUsage(f"status {answer.status}")
                return read(await _content(answer))
        except TimeoutError:
            raise Unanswered(f"{self.address}: no answer within {TIMEOUT:g} s") from None
        except aiohttp.ClientConnectorError as error:
            raise Unanswered(f"{self.address}: {_reason(error)}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unanswered(f"{self.address}: {error}") from None


def _reason(error: aiohttp.ClientConnectorError) -> str:
    number = error.os_error.errno
    return f"nobody listens there: {os.strerror(number) if number and number > 0 else error.os_error.strerror}"


async def _content(answer: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for piece in answer.content.iter_chunked(64 * 1024):
        content += piece
        if len(content) > LARGEST:
            raise NoUsage(f"more than {LARGEST} bytes")
    return bytes(content)


async def pages(sources: Sequence[Source]) -> tuple[list[Page], list[Unanswered]]:
    """Of all at a time: the pages of those that answer, and why the others do not."""
    answers = await asyncio.gather(*(source.page() for source in sources), return_exceptions=True)
    found: list[Page] = []
    missing: list[Unanswered] = []
    for answer in answers:
        match answer:
            case Page():
                found.append(answer)
            case Unanswered():
                missing.append(answer)
            case BaseException():
                raise answer
    return found, missing
