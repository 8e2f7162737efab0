"""One gateway for many tests, each of which begins with a configuration of its own."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from extproc.demo.clock import MovableClock
from extproc.demo.stack import Stack
from extproc.simulator.service import Record
from support.envoy_client import Answer, Client, assert_clean, client_of
from support.settlements import Sample, samples
from support.waiting import until

CHAT = "/v1/chat/completions"
_LONGEST_WINDOW = 86_400.0
_PIECE = 64 * 1024


@dataclass
class Running:
    """Client -> Envoy -> models, and the server, whose limits go by `clock`."""

    stack: Stack
    client: Client
    clock: MovableClock

    async def begin(self, config: Mapping[str, Any]) -> None:
        """Take another configuration; nothing that was asked or counted before matters any more."""
        self.stack.configure(config)
        assert await self.stack.server.reload()
        self.clock.advance(_LONGEST_WINDOW)
        for model in (self.stack.model, *self.stack.providers.values()):
            model.forget()

    async def post(
        self,
        body: bytes | Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
        *,
        host: str = "llm.example.com",
        path: str = CHAT,
        chunked: bool = False,
        url: str = "",
        **options: str,
    ) -> Answer:
        """One request. Keyword arguments with names of the model's options are those."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        own = {f"x-sim-{name.replace('_', '-')}": value for name, value in options.items()}
        fields = {"content-type": "application/json", **own, **(headers or {})}
        client = Client(url, self.client.session) if url else self.client
        sent = _pieces(data) if chunked else BytesIO(data)
        return await client.send(data=sent, path=path, headers=fields, host=host)

    def seen(self, provider: str = "") -> Record:
        """The last request that its model got, or that of nobody."""
        return (self.stack.providers[provider] if provider else self.stack.model).requests[-1]

    @property
    def forwarded(self) -> int:
        """Requests that reached any model."""
        return sum(len(model.requests) for model in (self.stack.model, *self.stack.providers.values()))

    def used(self) -> int:
        """Hits of all counters of the embedded limiter that are not over."""
        return sum(counter.used for counter in self.stack.server.limiter.snapshot())

    async def settled(self) -> None:
        """Return when nothing is under way."""
        metrics = self.stack.server.metrics
        await until(lambda: not metrics.exchanges_open and not metrics.reports_pending)

    def samples(self, name: str) -> dict[frozenset[tuple[str, str]], float]:
        """What the metrics page says, by labels."""
        page: dict[Sample, float] = samples(self.stack.server.metrics.render()[0].decode())
        return {labels: value for (sample, labels), value in page.items() if sample == name}


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), _PIECE):
        yield body[start : start + _PIECE]


@asynccontextmanager
async def running(config: Mapping[str, Any], **options: Any) -> AsyncIterator[Running]:
    """Keyword arguments are those of Stack. S4.15 when it is over."""
    clock = MovableClock()
    async with Stack(config, clock=clock, **options) as stack:
        async with client_of(stack) as client:
            yield Running(stack, client, clock)
        await assert_clean(stack)


def compressed(body: bytes) -> tuple[bytes, Mapping[str, str]]:
    """The body in gzip, and the header that says so."""
    return gzip.compress(body), {"content-encoding": "gzip"}


def lines(log: Path) -> list[dict[str, Any]]:
    """Whole lines of a log in JSON."""
    return [json.loads(line) for line in log.read_text().rpartition("\n")[0].splitlines()]


async def logged(log: Path, host: str, count: int) -> list[dict[str, Any]]:
    """Waits for the lines about so many requests to a host, which nobody else asked for."""
    await until(lambda: len(_about(log, host)) >= count)
    return _about(log, host)


def _about(log: Path, host: str) -> list[dict[str, Any]]:
    return [line for line in lines(log) if line["host"] == host]
