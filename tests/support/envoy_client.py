"""A client in front of the gateway, and what Envoy counted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from extproc.demo.stack import Stack

PATH = "/v1/chat/completions"
COUNTERS = "http.ingress.ext_proc."
MUST_BE_ZERO = ("streams_failed", "spurious_msgs_received", "message_timeouts", "rejected_header_mutations")


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class Client:
    """Sends requests to one gateway."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    @asynccontextmanager
    async def open(
        self, *, host: str = "trlp.example.com", path: str = PATH, method: str = "POST", **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Host": host, **options.pop("headers", {})}
        if method == "POST" and "data" not in options:
            options.setdefault("json", {"model": "m", "messages": [{"role": "user", "content": "Tell me a story."}]})
        async with self.session.request(method, self.url + path, headers=headers, **options) as response:
            yield response

    async def send(self, **options: Any) -> Answer:
        async with self.open(**options) as response:
            return Answer(response.status, response.headers, await response.read())

    async def statuses(self, count: int, **options: Any) -> list[int]:
        return [(await self.send(**options)).status for _ in range(count)]


@asynccontextmanager
async def client_of(stack: Stack) -> AsyncIterator[Client]:
    """A client that shows bodies as they come over the wire."""
    async with aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield Client(stack.url, session)


async def ext_proc_counters(stack: Stack) -> dict[str, int]:
    """Envoy's own view of us, by short name."""
    found = await stack.envoy.stats("http.")
    return {name.rpartition(".")[2]: value for name, value in found.items() if ".ext_proc." in name}


async def assert_clean(stack: Stack) -> None:
    """S4.15: nothing failed between Envoy and us."""
    counters = await ext_proc_counters(stack)
    assert {name: counters.get(name) for name in MUST_BE_ZERO} == dict.fromkeys(MUST_BE_ZERO, 0)
    assert counters["streams_started"] > 0
