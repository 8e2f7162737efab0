"""A client of the gateway, and what it is shown of metrics."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import aiohttp

from extproc.demo.page import Page, StoryError, expect
from extproc.demo.stack import Stack

_CLEAN = ("streams_failed", "spurious_msgs_received", "message_timeouts", "rejected_header_mutations")
_SAMPLE = re.compile(r"(?m)^([a-z_]+(?:\{.*\})?) ([0-9.e+]+)$")


class Answer(NamedTuple):
    """What a client gets."""

    status: int
    headers: Mapping[str, str]
    body: str


class Piece(NamedTuple):
    """Of a stream: what came `at` so many seconds after the question."""

    at: float
    data: bytes


class Caller:
    """Sends the same question again and again, as whom it is told."""

    def __init__(
        self, page: Page, stack: Stack, session: aiohttp.ClientSession, *, host: str, path: str, question: Any
    ) -> None:
        self.page = page
        self.stack = stack
        self._session = session
        self._host = host
        self._path = path
        self._question = question

    async def ask(
        self, headers: Mapping[str, str], *, host: str = "", path: str = "", url: str = "", **changes: Any
    ) -> Answer:
        """The question once, to another gateway with `url`; `changes` are fields of it."""
        body = json.dumps({**self._question, **changes}).encode()
        return await self.send(body, headers, host=host, path=path, url=url)

    async def send(
        self, body: bytes, headers: Mapping[str, str], *, host: str = "", path: str = "", url: str = ""
    ) -> Answer:
        """One request with this body, whatever it is."""
        sent = {"Host": host or self._host, "content-type": "application/json", **headers}
        where = (url or self.stack.url) + (path or self._path)
        async with self._session.post(where, data=body, headers=sent) as response:
            return Answer(response.status, response.headers, await response.text())

    async def stream(self, headers: Mapping[str, str], *, host: str = "", **changes: Any) -> list[Piece]:
        """The answer to the question as it comes. Raises StoryError unless it is one."""
        sent = {"Host": host or self._host, **headers}
        where, began = self.stack.url + self._path, time.monotonic()
        async with self._session.post(where, json={**self._question, **changes}, headers=sent) as response:
            expect("the status of a stream", response.status, 200)
            return [Piece(time.monotonic() - began, data) async for data in response.content.iter_any()]

    async def statuses(self, count: int, headers: Mapping[str, str], *, host: str = "") -> list[int]:
        """Those of some requests, one after the other."""
        return [(await self.ask(headers, host=host)).status for _ in range(count)]

    async def metrics(self) -> dict[str, int]:
        """What the admin port says now, by a metric's name and labels."""
        async with self._session.get(f"http://{self.stack.server.admin_address}/metrics") as response:
            return {name: round(float(value)) for name, value in _SAMPLE.findall(await response.text())}

    async def show_metrics(self, expected: Mapping[str, int]) -> None:
        """Raises StoryError unless the metrics have these samples."""
        found = await self.metrics()
        for name, value in expected.items():
            if name not in found:
                family = name.partition("{")[0]
                raise StoryError(f"no metric {name}, only {[other for other in found if other.startswith(family)]}")
            expect(name, found[name], value)
            self.page.line(f"  {name} {found[name]}")

    async def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Exchange the configuration of the running server."""
        self.stack.configure(config)
        expect("the reload", await self.stack.server.reload(), True)

    async def show_envoy(self) -> None:
        """Envoy's own counters of us, which tell whether all went by the rules."""
        stats = await self.stack.envoy.stats("http.")
        counters = {name.rpartition(".")[2]: value for name, value in stats.items() if ".ext_proc." in name}
        for name in _CLEAN:
            expect(name, counters[name], 0)
        self.page.line(f"  {counters['streams_started']} requests, " + ", ".join(f"{name} 0" for name in _CLEAN))


def shown(headers: Mapping[str, str], names: Iterable[str]) -> str:
    """Some of the headers, as `name: value`."""
    return ", ".join(f"{name}: {headers[name]}" for name in names if name in headers)
