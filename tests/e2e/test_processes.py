"""`extproc serve` and `extproc limiter` as processes behind the real Envoy: reload, drain, stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from support.envoy_client import Client, assert_clean, client_of
from support.grpc_client import connected
from support.harness import LIMITS, S0
from support.limiters import REPORT, scripted
from support.processes import Command, OutsideStack, write

from extproc.transport.process import SERVICE

pytestmark = pytest.mark.e2e

STREAM: dict[str, Any] = {
    "json": {"model": "m", "stream": True, "stream_options": {"include_usage": True}, "messages": []}
}
LIMIT = LIMITS["limits"][0]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def example(endpoint: str = "embedded", **sections: Any) -> dict[str, Any]:
    """wasm-shim's example; the endpoint of its limiter is the one word to change."""
    config: dict[str, Any] = json.loads(json.dumps(S0).replace("request.path", "request.url_path"))
    for service in config["services"].values():
        service["timeout"] = "5s"
    return {**config, "endpoints": {"limitador": endpoint}, **sections}


@asynccontextmanager
async def outside(
    config: Mapping[str, Any], directory: Path, **gateway: Any
) -> AsyncIterator[tuple[OutsideStack, Client]]:
    async with OutsideStack(config, directory, **gateway) as stack, client_of(stack) as client:
        yield stack, client


async def get(client: Client, url: str) -> tuple[int, str]:
    async with client.session.get(url) as response:
        return response.status, await response.text()


async def metric(stack: OutsideStack, client: Client, name: str) -> int:
    _, text = await get(client, f"{stack.admin}/metrics")
    [line] = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return int(float(line.rpartition(" ")[2]))


async def health(channel: grpc.aio.Channel, service: str = "") -> int:
    answer = await HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
    return int(answer.status)


# --- admin


async def test_what_an_operator_sees(tmp_path: Path) -> None:
    """S0.18: ready, alive, counting, and what runs; the two ports are in the log."""
    async with outside(example(limits=[LIMIT]), tmp_path) as (stack, client):
        assert await client.statuses(7) == [200] * 5 + [429] * 2
        await client.send(host="elsewhere.org")
        assert await get(client, f"{stack.admin}/healthz") == (200, "ok\n")
        assert await get(client, f"{stack.admin}/readyz") == (200, "ready\n")
        counters = ["configs", "hits", "misses", "allowed", "denied", "errors"]
        found = [await metric(stack, client, f"kuadrant_{name}") for name in counters]
        assert found == [1, 7, 1, 6, 2, 0]
        assert await metric(stack, client, "extproc_tokens_reported_total") == 120
        status, text = await get(client, f"{stack.admin}/config")
        assert status == 200
        assert json.loads(text)["actionSets"][0]["name"] == "basic"
        await stack.server.until("denied", times=2)
        assert [line["hits_addend"] for line in stack.server.of("consumed")] == [24] * 5
        assert [line["limit"] for line in stack.server.of("denied")] == ["name_a"] * 2
        assert all("text" not in line for line in stack.server.lines)
        await assert_clean(stack)


# --- reload


@pytest.mark.parametrize("by", ["the file's change", "SIGHUP"])
async def test_limits_change_without_a_restart(tmp_path: Path, by: str) -> None:
    """S1.24: 5 become 7, and what was used stays used; nothing else happens to those who are served."""
    limits = write(tmp_path / "limits.json", [LIMIT])
    async with outside(example(limits="limits.json"), tmp_path) as (stack, client):
        assert await client.statuses(6) == [200] * 5 + [429]
        if by == "SIGHUP":
            stack.server.signal(signal.SIGHUP)
            await stack.server.until("reloaded")
            assert await client.statuses(1) == [429]
        before = len(stack.server.of("reloaded"))
        write(limits, [{**LIMIT, "max_value": 150}])
        if by == "SIGHUP":
            stack.server.signal(signal.SIGHUP)
        await stack.server.until("reloaded", times=before + 1)
        assert await client.statuses(3) == [200] * 2 + [429]
        assert await metric(stack, client, 'extproc_reloads_total{result="rejected"}') == 0
        await assert_clean(stack)


async def test_a_broken_change_is_refused_and_told(tmp_path: Path) -> None:
    """S0.D19: the old configuration stays in force, to the letter, until a good one comes."""
    good = example(limits=[LIMIT])
    async with outside(good, tmp_path) as (stack, client):
        assert await client.statuses(1) == [200]
        broken = json.loads(json.dumps(good).replace('"ratelimit-check-service", "scope"', '"no-service", "scope"'))
        stack.configure({**broken, "limits": []})
        line = await stack.server.until("reload rejected, the old configuration stays")
        assert (line["level"], line["problems"].partition(":")[0]) == ("error", "failed to parse plugin config")
        assert "actionSets[0].actions[0].service: no service is named `no-service`" in line["problems"]
        assert await client.statuses(5) == [200] * 4 + [429]
        assert await get(client, f"{stack.admin}/readyz") == (200, "ready\n")

        stack.configure({**good, "limits": [{**LIMIT, "max_value": 130}]})
        await stack.server.until("reloaded")
        assert await client.statuses(2) == [200, 429]
        assert await metric(stack, client, 'extproc_reloads_total{result="rejected"}') == 1
        await assert_clean(stack)


async def test_what_a_reload_can_change_and_what_not(tmp_path: Path) -> None:
    """The level of the log follows; a port does not, and that is said."""
    config = example(limits=[LIMIT], admin={"address": "127.0.0.1:0"})
    async with Command("serve", write(tmp_path / "c.json", {**config, "listeners": ["127.0.0.1:0"]})) as server:
        await server.until("ready")
        write(tmp_path / "c.json", {**config, "listeners": [f"unix:{tmp_path}/s.sock"], "log": {"level": "warning"}})
        server.signal(signal.SIGHUP)
        line = await server.until("a change waits for a restart")
        assert (line["level"], line["field"]) == ("warning", "listeners")
        server.signal(signal.SIGHUP)
        write(tmp_path / "c.json", {"services": 1})
        server.signal(signal.SIGHUP)
        await server.until("reload rejected, the old configuration stays")
        assert len(server.of("reloaded")) == 1


# --- stop


async def test_drain(tmp_path: Path) -> None:
    """SIGTERM: not ready first, while new requests are still served; then GOAWAY, and the stream that runs may end."""
    shutdown = {"delay": "1s", "deadline": "20s"}
    async with scripted() as limiter, outside(example(limiter.address, shutdown=shutdown), tmp_path) as (stack, client):
        address = stack.server.of("ready")[0]["listeners"][0]
        async with (
            connected(address) as channel,
            client.open(headers={"x-sim-hold": "long"}, **STREAM) as running,
        ):
            await running.content.readuntil(b"\n\n")
            assert [await health(channel, service) for service in ("", SERVICE)] == [SERVING, SERVING]

            stack.server.signal(signal.SIGTERM)
            assert (await stack.server.until("draining"))["open_exchanges"] == 1
            assert [await health(channel, service) for service in ("", SERVICE)] == [NOT_SERVING, NOT_SERVING]
            assert await get(client, f"{stack.admin}/readyz") == (503, "draining\n")
            assert await get(client, f"{stack.admin}/healthz") == (200, "ok\n")
            assert await client.statuses(2) == [200, 200]

            await _refuses(address)
            assert stack.server.of("stopped") == []
            stack.model.release("long")
            assert (await running.read()).rstrip().endswith(b"data: [DONE]")
        assert await stack.server.ended() == 0
        assert stack.server.of("stopped")[0]["reports_lost"] == 0
        assert [call.request.hits_addend for call in limiter.of(REPORT)] == [24] * 3
        await assert_clean(stack)


async def _refuses(address: str) -> None:
    """Return when no new connection is taken any more."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except ConnectionRefusedError:
                return
            writer.close()
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("allow", [False, True], ids=["fail closed", "fail open"])
async def test_a_deadline_ends_the_drain(tmp_path: Path, allow: bool) -> None:
    """A stream that takes too long is cut from us, settled with what it had used, and the report is delivered."""
    config_of = {"shutdown": {"delay": "0s", "deadline": "300ms"}}
    async with (
        scripted() as limiter,
        outside(example(limiter.address, **config_of), tmp_path, failure_mode_allow=allow) as (stack, client),
        client.open(headers={"x-sim-hold": "long", "x-sim-usage": "every"}, **STREAM) as running,
    ):
        await running.content.readuntil(b"\n\n")
        stack.server.signal(signal.SIGTERM)
        assert await stack.server.ended() == 0
        assert stack.server.of("stopped")[0]["reports_lost"] == 0
        assert [call.request.hits_addend for call in limiter.of(REPORT)] == [13]
        if allow:
            stack.model.release("long")
            assert (await running.read()).rstrip().endswith(b"data: [DONE]")
        else:
            with pytest.raises(aiohttp.ClientPayloadError):
                await running.read()


async def test_reports_that_cannot_be_delivered_do_not_hold_the_process(tmp_path: Path) -> None:
    """The limiter is gone: reports are retried until the deadline, then lost one by one, in the log."""
    shutdown = {"delay": "0s", "deadline": "0s"}
    async with (
        scripted(f"unix:{tmp_path}/l.sock") as limiter,
        outside(example(limiter.address, shutdown=shutdown), tmp_path) as (stack, client),
    ):
        async with client.open(headers={"x-sim-hold": "h"}) as response:
            await limiter.stop()
            stack.model.release("h")
            await response.read()
        stack.server.signal(signal.SIGTERM)
        assert await stack.server.ended() == 0
        assert stack.server.of("stopped")[0]["reports_lost"] == 1
        [lost] = stack.server.of("rate limit report dropped: no time is left")
        assert (lost["level"], lost["hits_addend"]) == ("warning", 24)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
async def test_a_second_signal_stops_at_once(tmp_path: Path, number: signal.Signals, status: int) -> None:
    """Whoever cannot wait need not."""
    config = example(limits=[LIMIT], shutdown={"delay": "1h"}, listeners=["127.0.0.1:0"], admin=None)
    async with Command("serve", write(tmp_path / "c.json", config)) as server:
        await server.until("ready")
        server.signal(number)
        await server.until("draining")
        server.signal(number)
        assert await server.ended() == status
        assert [line for line in server.lines if "text" in line] == []


async def test_a_socket_is_gone_after_the_end_and_replaced_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    config = example(limits=[LIMIT], listeners=[f"unix:{path}"], admin=None, shutdown={"delay": "0s"})
    file = write(tmp_path / "c.json", config)
    for number, status in ((signal.SIGKILL, -9), (signal.SIGTERM, 0)):
        async with Command("serve", file) as server:
            await server.until("ready")
            async with connected(f"unix:{path}") as channel:
                assert await health(channel) == SERVING
            server.signal(number)
            assert await server.ended() == status
    assert "s.sock" not in os.listdir(tmp_path)


# --- the limiter as a process


@asynccontextmanager
async def limiter_process(limits: Path, *options: str) -> AsyncIterator[tuple[Command, str]]:
    async with Command("limiter", limits, "--listen", "127.0.0.1:0", *options) as limiter:
        yield limiter, (await limiter.until("ready"))["listen"]


async def test_the_same_story_with_the_limiter_elsewhere(tmp_path: Path) -> None:
    """S0.1, S0.7, S1.25: one word of the configuration changed; two servers share counters, a restart keeps them."""
    limits = write(tmp_path / "limits.json", [LIMIT])
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    report = {"wait": "5s"}
    async with limiter_process(limits) as (limiter, address):
        async with outside(example(address, report=report), first) as (one, one_client):
            async with outside(example(address, report=report), second) as (two, two_client):
                assert [await one_client.statuses(1), await two_client.statuses(1)] == [[200], [200]]
                assert await one_client.statuses(1) == [200]
                await assert_clean(two)
            await assert_clean(one)
        async with outside(example(address, report=report), second) as (_, client):
            assert await client.statuses(4, **STREAM) == [200, 200, 429, 429]
        reports = [line["event"] for line in limiter.lines if "hits_addend: 24" in line.get("event", "")]
        assert len(reports) == 5
        assert "domain-a" in reports[0]


async def test_a_limiter_process(tmp_path: Path) -> None:
    """Its limits follow their file, its health and metrics answer, SIGTERM ends it well."""
    limits = write(tmp_path / "limits.json", [LIMIT])
    async with limiter_process(limits, "--admin", "127.0.0.1:0") as (limiter, address):
        async with outside(example(address, report={"wait": "5s"}), tmp_path) as (stack, client):
            assert await client.statuses(6) == [200] * 5 + [429]
            write(limits, [{**LIMIT, "max_value": "many"}])
            assert "max_value" in (await limiter.until("reload rejected, the old limits stay"))["problems"]
            write(limits, [{**LIMIT, "max_value": 150}])
            await limiter.until("reloaded")
            assert await client.statuses(3) == [200] * 2 + [429]
            await assert_clean(stack)
        async with connected(address) as channel:
            for service in ("", "kuadrant.service.ratelimit.v1.RateLimitService"):
                assert await health(channel, service) == SERVING
        limiter.signal(signal.SIGTERM)
        assert await limiter.ended() == 0
