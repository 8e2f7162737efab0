"""Several workers behind the real Envoy, which has the cluster that they print: one limit, and deaths."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import yaml
from support.envoy_client import Client, assert_clean
from support.harness import LIMITS, S0
from support.processes import Command, write

from extproc.gateway.bootstrap import bootstrap, extproc_cluster
from extproc.gateway.process import EnvoyProcess
from extproc.simulator import Simulator

pytestmark = pytest.mark.e2e

LIMIT = LIMITS["limits"][0]
LOCAL = {
    "listeners": ["127.0.0.1:0"],
    "admin": {"address": "127.0.0.1:0"},
    "shutdown": {"delay": "0s", "deadline": "5s"},
    "report": {"wait": "5s"},
}


class Group(NamedTuple):
    """Client -> Envoy -> model, with `extproc serve --workers` as processes."""

    server: Command
    envoy: EnvoyProcess
    client: Client

    def answered_by(self) -> list[int]:
        """Which worker decided, one exchange after another; lines of a worker are in order."""
        return [line["worker"] for line in self.server.lines if line.get("event") in ("consumed", "denied")]

    async def kill(self, index: int) -> None:
        started = self.server.of("worker started", worker=index)
        os.kill(started[-1]["pid"], signal.SIGKILL)
        await self.server.until("worker ended", worker=index)


@asynccontextmanager
async def workers(count: int, directory: Path, **limit: Any) -> AsyncIterator[Group]:
    """Started as an operator would: what is printed becomes Envoy's cluster, word for word."""
    config: dict[str, Any] = json.loads(json.dumps(S0).replace("request.path", "request.url_path"))
    for service in config["services"].values():
        service["timeout"] = "5s"
    file = write(
        directory / "c.json",
        {**config, **LOCAL, "endpoints": {"limitador": "embedded"}, "limits": [{**LIMIT, **limit}]},
    )
    async with AsyncExitStack() as parts:
        out = parts.enter_context((directory / "out").open("w+"))
        model = await parts.enter_async_context(Simulator())
        server = await parts.enter_async_context(Command("serve", file, "--workers", count, stdout=out))
        ready = await server.until("ready", workers=count)
        out.seek(0)
        [cluster] = yaml.safe_load(out)
        assert cluster == extproc_cluster(ready["listeners"])
        gateway = bootstrap(upstream=model.address, extproc=ready["listeners"])
        [upstream, _] = gateway["static_resources"]["clusters"]
        gateway["static_resources"]["clusters"] = [upstream, cluster]
        envoy = await parts.enter_async_context(EnvoyProcess(gateway))
        session = await parts.enter_async_context(aiohttp.ClientSession())
        yield Group(server, envoy, Client(f"http://{envoy.address}", session))


async def test_one_limit_for_all(tmp_path: Path) -> None:
    """S0.7, S1.25: 24 of 100 each, so five pass and two do not, whichever worker Envoy asks; each refusal is whole."""
    async with workers(3, tmp_path) as group:
        answers = [await group.client.send() for _ in range(7)]
        assert [answer.status for answer in answers] == [200] * 5 + [429] * 2
        refused = answers[5:]
        assert len({(answer.body, answer.headers["x-envoy-ratelimited"]) for answer in refused}) == 1
        assert [set(answer.headers) for answer in refused] == [set(refused[0].headers)] * 2
        await group.server.until("consumed", times=5)
        await group.server.until("denied", times=2)
        assert set(group.answered_by()) == {0, 1, 2}
        assert {line["limit"] for line in group.server.of("denied")} == {"name_a"}
        await assert_clean(group)
        group.server.signal(signal.SIGTERM)
        assert await group.server.ended() == 0


async def test_a_worker_dies(tmp_path: Path) -> None:
    """Envoy asks the other one; the dead one is back at its port, and the count goes on as if nothing had been."""
    async with workers(2, tmp_path, max_value=24 * 12) as group:
        await group.kill(1)
        assert await group.client.statuses(4) == [200] * 4
        await group.server.until("ready", worker=1, times=2)
        assert await group.client.statuses(10) == [200] * 8 + [429] * 2
        await group.server.until("consumed", times=12)
        assert set(group.answered_by()[:4]) == {0}
        assert set(group.answered_by()[4:]) == {0, 1}


async def test_the_worker_that_counts_dies(tmp_path: Path) -> None:
    """The other one answers as failureMode says, until the first is back, with fresh counters."""
    async with workers(2, tmp_path, max_value=48) as group:
        assert await group.client.statuses(3) == [200] * 2 + [429]
        await group.kill(0)
        [ended] = group.server.of("worker ended")
        assert (ended["level"], ended["lost"]) == ("error", "all counters")
        assert await group.client.statuses(1) == [500]
        await group.server.until("ready", worker=0, times=2)
        statuses: list[int] = []
        while 429 not in statuses:
            # The other one may take a moment to find that the first is back.
            statuses += await group.client.statuses(1)
        assert set(statuses) <= {200, 429, 500}
        assert statuses.count(200) == 2
