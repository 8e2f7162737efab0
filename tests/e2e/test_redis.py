"""Counters in a real Redis, through the real Envoy: replicas that share them, and a Redis that goes and comes back.

Requests are counted by user, five in two minutes, and tokens by everybody together.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from support.envoy_client import Answer, Client, assert_clean, client_of
from support.processes import PATIENCE, Command, write
from support.redis_server import RedisServer, eventually
from support.waiting import until

from extproc.cli import main
from extproc.config.model import Listener
from extproc.demo.stack import LOCAL, Stack
from extproc.gateway.bootstrap import bootstrap
from extproc.gateway.ports import free_port
from extproc.gateway.process import EnvoyProcess
from extproc.server import Place, Server
from extproc.simulator import Simulator

pytestmark = pytest.mark.e2e

USER = "counting-user"
SOON = 2.0
"""Seconds: far more than an answer needs, and less than what gives up waiting for a connection."""
SECRET = "hunter2"
PASSWORD = f"{SECRET}@home"
"""As in an address; a part of it is as bad as all of it."""
STREAM = {"model": "m", "stream": True, "stream_options": {"include_usage": True}, "messages": []}
WHO = {"expression": {"key": "user", "value": "request.headers['x-user']"}}
TOKENS = {"expression": {"key": "ratelimit.hits_addend", "value": "usage.total_tokens"}}
REQUESTS = [("requests", "requests", [WHO])]
BUDGET = [("check", "tokens", [WHO]), ("report", "tokens", [WHO, TOKENS])]
LIMITS = [
    {
        "namespace": "requests",
        "name": "five-requests",
        "max_value": 5,
        "seconds": 120,
        "variables": ["descriptors[0].user"],
    },
    {"namespace": "tokens", "name": "budget", "max_value": 100, "seconds": 60},
]


def configured(storage: object, actions: Any = REQUESTS, mode: str = "deny", **sections: Any) -> dict[str, Any]:
    types = {"requests": "ratelimit", "check": "ratelimit-check", "report": "ratelimit-report"}
    return {
        "services": {
            name: {"type": kind, "endpoint": "here", "failureMode": mode, "timeout": "500ms"}
            for name, kind in types.items()
        },
        "endpoints": {"here": "embedded"},
        "storage": storage,
        "actionSets": [
            {
                "name": "all",
                "routeRuleConditions": {"hostnames": ["*"]},
                "actions": [
                    {"service": service, "scope": scope, "conditionalData": [{"data": data}]}
                    for service, scope, data in actions
                ],
            }
        ],
        "limits": LIMITS,
        "report": {"wait": "200ms"},
        **sections,
    }


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with RedisServer(tmp_path) as server:
        yield server


class Replicas:
    """Two servers with one configuration, each at its own port, and one Envoy that takes turns between them."""

    def __init__(self, config: Mapping[str, Any], directory: Path) -> None:
        self._file = write(directory / "extproc.json", {**LOCAL, **config})
        self._places = [Place([Listener(address=f"127.0.0.1:{free_port()}")], None) for _ in range(2)]
        self.model = Simulator()
        self.servers: list[Server] = []
        self.client: Client
        self.envoy: EnvoyProcess

    async def __aenter__(self) -> Replicas:
        async with AsyncExitStack() as parts:
            await parts.enter_async_context(self.model)
            parts.push_async_callback(self._drain)
            for place in self._places:
                self.servers.append(await self._serve(place))
            addresses = [server.addresses[0] for server in self.servers]
            self.envoy = await parts.enter_async_context(
                EnvoyProcess(bootstrap(upstream=self.model.address, extproc=addresses))
            )
            session = await parts.enter_async_context(aiohttp.ClientSession())
            self.client = Client(f"http://{self.envoy.address}", session)
            self._parts = parts.pop_all()
        return self

    async def __aexit__(self, *exception: Any) -> None:
        await self._parts.aclose()

    async def restart(self, number: int) -> None:
        """As a new version is rolled out."""
        await self.servers[number].drain()
        self.servers[number] = await self._serve(self._places[number])

    async def _serve(self, place: Place) -> Server:
        server = Server(self._file, place=place)
        server.load()
        await server.start()
        return server

    async def _drain(self) -> None:
        for server in self.servers:
            await server.drain()


async def counted(redis: RedisServer) -> list[int]:
    """What every counter in Redis holds."""
    return sorted([int(await redis.do("GET", key)) for key in await redis.do("KEYS", "extproc:*")])


def as_user(name: str, **more: str) -> dict[str, Any]:
    return {"headers": {"x-user": name, **more}}


async def quickly(client: Client, **options: Any) -> Answer:
    """An answer that nobody had to wait for."""
    began = time.monotonic()
    answer = await client.send(**options)
    assert time.monotonic() - began < SOON
    return answer


async def deciding(stack: Stack, client: Client) -> None:
    """Return when requests are decided on again."""
    errors = -1
    async with asyncio.timeout(PATIENCE):
        while errors != stack.server.metrics.errors:
            errors = stack.server.metrics.errors
            await client.send(**as_user("probe"))


# ── replicas ──────────────────────────────────────────────────────────────────────────────────────────


async def test_replicas_admit_exactly_the_limit(redis: RedisServer, tmp_path: Path) -> None:
    """S1.25: five of seven by turns, and five of forty at once; each replica decided on some."""
    async with Replicas(configured(redis.url), tmp_path) as gateway:
        assert await gateway.client.statuses(7, **as_user("ann")) == [200] * 5 + [429] * 2
        answers = await asyncio.gather(*(gateway.client.send(**as_user("bob")) for _ in range(40)))
        assert sorted(answer.status for answer in answers) == [200] * 5 + [429] * 35
        decisions = [server.metrics.allowed + server.metrics.denied for server in gateway.servers]
        assert sum(decisions) == 47
        assert min(decisions) > 0
        await assert_clean(gateway)


async def test_replicas_spend_one_budget(redis: RedisServer, tmp_path: Path) -> None:
    """S0.7, S1.25: 24 tokens of 100 each, checked and reported wherever Envoy goes."""
    async with Replicas(configured(redis.url, BUDGET), tmp_path) as gateway:
        assert await gateway.client.statuses(7, **as_user("ann")) == [200] * 5 + [429] * 2
        assert await counted(redis) == [120]
        reported = [server.metrics.tokens_reported for server in gateway.servers]
        assert sum(reported) == 120
        assert min(reported) > 0
        assert len(gateway.model.requests) == 5
        await assert_clean(gateway)


async def test_a_restart_forgets_nothing(redis: RedisServer, tmp_path: Path) -> None:
    """S1.25."""
    async with Replicas(configured(redis.url), tmp_path) as gateway:
        assert await gateway.client.statuses(3, **as_user("ann")) == [200] * 3
        for number in (0, 1):
            await gateway.restart(number)
        assert await gateway.client.statuses(4, **as_user("ann")) == [200] * 2 + [429] * 2


async def test_workers_share_it_too(redis: RedisServer, tmp_path: Path) -> None:
    """`serve --workers` with the cluster that it prints; the first worker is no different from the others."""
    file = write(tmp_path / "extproc.json", {**LOCAL, **configured(redis.url)})
    async with AsyncExitStack() as parts:
        out = parts.enter_context((tmp_path / "out").open("w+"))
        model = await parts.enter_async_context(Simulator())
        server = await parts.enter_async_context(Command("serve", file, "--workers", 2, stdout=out))
        ready = await server.until("ready", workers=2)
        out.seek(0)
        gateway = bootstrap(upstream=model.address, extproc=ready["listeners"])
        [upstream, _] = gateway["static_resources"]["clusters"]
        gateway["static_resources"]["clusters"] = [upstream, *yaml.safe_load(out)]
        envoy = await parts.enter_async_context(EnvoyProcess(gateway))
        session = await parts.enter_async_context(aiohttp.ClientSession())
        client = Client(f"http://{envoy.address}", session)
        assert await client.statuses(3, **as_user("ann")) == [200] * 3
        os.kill(server.of("worker started", worker=0)[-1]["pid"], signal.SIGKILL)
        ended = await server.until("worker ended", worker=0)
        assert "lost" not in ended
        assert await client.statuses(4, **as_user("ann")) == [200] * 2 + [429] * 2


async def test_limiters_for_other_gateways_share_it_too(redis: RedisServer, tmp_path: Path) -> None:
    """S1.25 the other way round: `extproc limiter --storage`, two of them, each for a host of its own."""
    limits = write(tmp_path / "limits.json", LIMITS)
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    config = configured("memory", limits=[])
    [every] = config["actionSets"]
    config["actionSets"] = []
    for number, address in enumerate(addresses):
        config["endpoints"][f"limiter-{number}"] = address
        config["services"][f"requests-{number}"] = {**config["services"]["requests"], "endpoint": f"limiter-{number}"}
        actions = [{**every["actions"][0], "service": f"requests-{number}"}]
        host = {"hostnames": [f"{number}.example"]}
        config["actionSets"].append({**every, "name": f"{number}", "routeRuleConditions": host, "actions": actions})
    async with AsyncExitStack() as parts:
        limiters = []
        for address in addresses:
            options = ("--listen", address, "--storage", redis.url, "--log-format", "json")
            limiters.append(await parts.enter_async_context(Command("limiter", limits, *options)))
        for limiter in limiters:
            await limiter.until("ready")
        stack = await parts.enter_async_context(Stack(config))
        client = await parts.enter_async_context(client_of(stack))
        found = [(await client.send(host=f"{number % 2}.example", **as_user("ann"))).status for number in range(7)]
        assert found == [200] * 5 + [429] * 2
        await assert_clean(stack)


# ── decisions while it is away ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("mode", "status"), [("deny", 500), ("allow", 200)])
async def test_redis_dies_and_comes_back(redis: RedisServer, mode: str, status: int) -> None:
    """S0.14: decided at once by failureMode; nothing needs to be restarted, and the limit holds again."""
    async with Stack(configured(redis.url, mode=mode)) as stack, client_of(stack) as client:
        assert await client.statuses(6, **as_user("ann")) == [200] * 5 + [429]
        await redis.stop()
        for _ in range(3):
            assert (await quickly(client, **as_user("ann"))).status == status
        assert stack.server.metrics.errors == 3
        await redis.start()
        await deciding(stack, client)
        assert await client.statuses(6, **as_user("ann")) == [200] * 5 + [429]
        await assert_clean(stack)


async def test_redis_is_not_there_at_the_start(tmp_path: Path) -> None:
    """A server starts all the same, and finds it."""
    redis = RedisServer(tmp_path)
    async with Stack(configured(redis.url)) as stack, client_of(stack) as client:
        assert (await quickly(client, **as_user("ann"))).status == 500
        async with redis:
            await deciding(stack, client)
            assert await client.statuses(6, **as_user("ann")) == [200] * 5 + [429]


async def test_redis_hangs(redis: RedisServer) -> None:
    """A connection that says nothing: the service's timeout decides, and what was counted stays counted."""
    config = configured(redis.url)
    async with Stack(config) as stack, client_of(stack) as client:
        assert await client.statuses(2, **as_user("ann")) == [200] * 2
        redis.signal(signal.SIGSTOP)
        try:
            assert (await quickly(client, **as_user("ann"))).status == 500
        finally:
            redis.signal(signal.SIGCONT)
        # Nobody knows whether the one without an answer was counted: here it was, once Redis went on.
        assert await client.statuses(4, **as_user("ann")) == [200] * 2 + [429] * 2


async def test_keys_of_another_program(redis: RedisServer) -> None:
    """Nothing is overwritten, and nothing decided; other users are not concerned."""
    async with Stack(configured(redis.url)) as stack, client_of(stack) as client:
        assert (await client.send(**as_user("ann"))).status == 200
        [key] = await redis.do("KEYS", "*")
        await redis.do("DEL", key)
        await redis.do("RPUSH", key, "not", "a", "counter")
        assert (await client.send(**as_user("ann"))).status == 500
        assert await redis.do("LRANGE", key, 0, -1) == [b"not", b"a", b"counter"]
        assert (await client.send(**as_user("bob"))).status == 200


# ── reports while it is away ──────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def answer_under_way(stack: Stack, client: Client) -> AsyncIterator[aiohttp.ClientResponse]:
    """The first frame of a streamed answer is there; `finish` has the rest."""
    async with client.open(json=STREAM, **as_user("ann", **{"x-sim-hold": "on"})) as response:
        await asyncio.wait_for(response.content.readuntil(b"\n\n"), 5)
        yield response


async def finish(stack: Stack, response: aiohttp.ClientResponse) -> None:
    """The rest comes at once and whole, whatever becomes of its report."""
    began = time.monotonic()
    stack.model.release("on")
    rest = await response.read()
    assert rest.rstrip().endswith(b"data: [DONE]")
    assert time.monotonic() - began < SOON


async def test_a_report_waits_for_redis_to_come_back(redis: RedisServer) -> None:
    """The answer ends as the model ended it; 24 tokens are counted later, exactly once."""
    async with Stack(configured(redis.url, BUDGET)) as stack, client_of(stack) as client:
        metrics = stack.server.metrics
        async with answer_under_way(stack, client) as response:
            await redis.stop()
            await finish(stack, response)
        await until(lambda: metrics.report_retries > 0)
        assert (metrics.reports_pending, metrics.reports["sent"]) == (1, 0)
        await redis.start()
        await until(lambda: metrics.reports["sent"] == 1, PATIENCE)
        assert metrics.reports_pending == 0
        assert await counted(redis) == [24]
        await assert_clean(stack)


async def test_a_report_is_given_up_in_time(redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """`report.retryFor`; it is logged and counted."""
    config = configured(redis.url, BUDGET, report={"wait": "200ms", "retryFor": "0s"})
    async with Stack(config) as stack, client_of(stack) as client:
        async with answer_under_way(stack, client) as response:
            await redis.stop()
            await finish(stack, response)
        await until(lambda: stack.server.metrics.reports["failed"] == 1)
        assert "rate limit report failed: unreachable: Redis at 127.0.0.1" in caplog.text
        await assert_clean(stack)


async def test_a_report_without_an_answer_is_not_repeated(redis: RedisServer) -> None:
    """It may have been counted, and it was: twice would be worse than once."""
    async with Stack(configured(redis.url, BUDGET)) as stack, client_of(stack) as client:
        async with answer_under_way(stack, client) as response:
            redis.signal(signal.SIGSTOP)
            try:
                await finish(stack, response)
                await until(lambda: stack.server.metrics.reports["failed"] == 1)
            finally:
                redis.signal(signal.SIGCONT)
        assert stack.server.metrics.report_retries == 0
        assert await counted(redis) == [24]
        await assert_clean(stack)


# ── windows, and what is told ─────────────────────────────────────────────────────────────────────────


async def test_a_window_ends_where_redis_says_so(redis: RedisServer) -> None:
    """S1.10: the first hit opens it, later ones do not prolong it; then all five are back."""
    async with Stack(configured(redis.url)) as stack, client_of(stack) as client:
        assert (await client.send(**as_user("ann"))).status == 200
        [key] = await redis.do("KEYS", "extproc:*")
        assert 100_000 < await redis.do("PTTL", key) <= 120_000
        await redis.do("PEXPIRE", key, 60_000)
        assert await client.statuses(4, **as_user("ann")) == [200] * 4
        refused = await client.send(**as_user("ann"))
        assert refused.status == 429
        assert 40 < int(refused.headers["retry-after"]) <= 60
        assert await redis.do("PTTL", key) <= 60_000
        await redis.do("PEXPIRE", key, 1)
        await eventually(lambda: _gone(redis, key), "the window did not end")
        assert await client.statuses(6, **as_user("ann")) == [200] * 5 + [429]


async def _gone(redis: RedisServer, key: bytes) -> bool:
    return not await redis.do("EXISTS", key)


async def test_headers_tell_what_all_replicas_have_left(redis: RedisServer, tmp_path: Path) -> None:
    """`rateLimitHeaders: always`, and S4.10's refusal."""
    async with Replicas(configured(redis.url, rateLimitHeaders="always"), tmp_path) as gateway:
        answers = [await gateway.client.send(**as_user("ann")) for _ in range(6)]
        told = [(answer.status, answer.headers["x-ratelimit-remaining"]) for answer in answers]
        assert told == [(200, str(left)) for left in (4, 3, 2, 1, 0)] + [(429, "0")]
        assert {answer.headers["x-ratelimit-limit"] for answer in answers} == {'5, 5;w=120;name="five-requests"'}
        assert all(60 < int(answer.headers["x-ratelimit-reset"]) <= 120 for answer in answers)
        assert answers[-1].headers["x-envoy-ratelimited"] == "true"
        await assert_clean(gateway)


LABELS = {"metrics": {"labels": {"user": ["request.headers['x-user']"]}}}
RATIO = 'extproc_limit_used_ratio{namespace="requests",limit="five-requests"}'
REFUSALS = 'extproc_limit_refusals_total{namespace="requests",limit="five-requests"} 1'


@pytest.mark.usefixtures("_unshortened")
async def test_pages_tell_what_is_in_redis(redis: RedisServer, capsys: pytest.CaptureFixture[str]) -> None:
    """S1.20: `/usage`, `/metrics` and `extproc top` of a server that counted nothing itself."""
    config = configured(redis.url, **LABELS)
    async with Stack(config) as other, client_of(other) as client:
        assert await client.statuses(4, **as_user("ann")) == [200] * 4
        async with Stack(config) as stack:
            admin = stack.server.admin_address
            [limit] = json.loads(await fetch(client, admin, "/usage"))["limits"]
            assert (limit["limit"], limit["used"], limit["maximum"]) == ("five-requests", 4, 5)
            assert f"{RATIO} 0.8" in await fetch(client, admin, "/metrics")
            out = await top(admin, capsys)
            assert "ann" in out
            assert "five-requests" in out


@pytest.mark.usefixtures("_unshortened")
async def test_pages_without_redis(redis: RedisServer, capsys: pytest.CaptureFixture[str]) -> None:
    """They come at once, with all that is known without it."""
    async with Stack(configured(redis.url, **LABELS)) as stack, client_of(stack) as client:
        assert await client.statuses(6, **as_user("ann")) == [200] * 5 + [429]
        await redis.stop()
        assert (await client.send(**as_user("ann"))).status == 500
        admin = stack.server.admin_address
        page = json.loads(await fetch(client, admin, "/usage"))
        [row] = page["rows"]
        assert (page["limits"], row["requests"]) == ([], {"allowed": 5, "refused": 1})
        metrics = (await fetch(client, admin, "/metrics")).splitlines()
        assert REFUSALS in metrics
        assert not any(line.startswith(RATIO) for line in metrics)
        assert "ann" in await top(admin, capsys)


@pytest.fixture
def _unshortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have a narrow terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)


async def top(admin: str | None, capsys: pytest.CaptureFixture[str]) -> str:
    """What `extproc top --once` prints."""
    assert await asyncio.to_thread(main, ["top", "--once", "--admin", str(admin)]) == 0
    return capsys.readouterr().out


async def fetch(client: Client, admin: str | None, path: str) -> str:
    """A page of the admin port, which nobody had to wait for."""
    began = time.monotonic()
    async with client.session.get(f"http://{admin}{path}") as page:
        text = await page.text()
    assert (page.status, time.monotonic() - began < SOON) == (200, True)
    return text


# ── secrets, and mistakes ─────────────────────────────────────────────────────────────────────────────

BAD_STORAGES = [
    (f"redis://me:{PASSWORD}@redis:port", "storage.url: the port is not a number"),
    (f"redis://me:{PASSWORD}@redis:6379/first", "storage.url: the database is a number"),
    (f"redi://me:{PASSWORD}@redis:6379", "storage.url: expected `memory`, `redis://`"),
    (f"redis://me:{PASSWORD}@", "storage.url: the host is missing"),
    (f"redis://me:{PASSWORD}@a:1,b:2", "storage.url: expected one server"),
    (f"redis+cluster://me:{PASSWORD}@a:1/2", "storage.url: a cluster has no databases"),
    (f"redis+sentinel://me:{PASSWORD}@a:1", "storage.url: the service is missing"),
    ({"url": f"redis://me:{PASSWORD}@redis", "passwordFile": "x"}, "storage.passwordFile: "),
    ({"url": f"redis://me:{PASSWORD}@redis", "tls": {}}, "storage.tls: belongs to `rediss://`"),
    ({"url": f"redis://me:{PASSWORD}@redis", "prefix": "a b"}, "storage.prefix: expected"),
    ({"uri": f"redis://me:{PASSWORD}@redis"}, "storage.uri: "),
    ([f"redis://me:{PASSWORD}@redis"], "storage: "),
]


@pytest.mark.parametrize(("storage", "message"), BAD_STORAGES)
def test_check_says_what_is_wrong_with_a_storage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], storage: object, message: str
) -> None:
    """At its field, and never with the password."""
    assert main(["check", str(write(tmp_path / "extproc.json", configured(storage)))]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert SECRET not in err


async def test_no_password_is_ever_shown(tmp_path: Path) -> None:
    """In no log line at any level and on no page: served, killed, reloaded, not let in."""
    async with AsyncExitStack() as parts:
        redis = await parts.enter_async_context(RedisServer(tmp_path, requirepass=PASSWORD))
        url = f"redis://{USER}:{PASSWORD}@{redis.address}"
        await redis.do("ACL", "SETUSER", USER, "on", f">{PASSWORD}", "~*", "+@all")
        config = {**LOCAL, **configured(url, log={"level": "debug"})}
        file = write(tmp_path / "extproc.json", config)
        server = await parts.enter_async_context(Command("serve", file))
        ready = await server.until("ready")
        model = await parts.enter_async_context(Simulator())
        gateway = bootstrap(upstream=model.address, extproc=ready["listeners"])
        envoy = await parts.enter_async_context(EnvoyProcess(gateway))
        session = await parts.enter_async_context(aiohttp.ClientSession())
        client = Client(f"http://{envoy.address}", session)
        shown: list[str] = []

        async def look() -> None:
            for path in ("/config", "/metrics", "/usage", "/"):
                shown.append(await fetch(client, ready["admin"], path))

        assert await client.statuses(6, **as_user("ann")) == [200] * 5 + [429]
        await look()
        # Redis 7.2 and later name the user in what they answer to this.
        await redis.do("ACL", "SETUSER", USER, "-evalsha")
        assert (await client.send(**as_user("ann"))).status == 500
        await server.until("denied: no decision")
        await redis.stop()
        assert (await client.send(**as_user("ann"))).status == 500
        await said(server, "is away")
        # It comes back without that user: nobody is let in.
        await redis.start()
        await said(server, "refuses us")
        assert (await client.send(**as_user("ann"))).status == 500
        changes = (f"{url}/1", "waits for a restart"), (f"{url}/x", "storage.url"), ({"uri": url}, "storage.uri")
        for storage, words in changes:
            write(file, {**config, "storage": storage})
            server.signal(signal.SIGHUP)
            await said(server, words)
        await look()
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0
        shown += [json.dumps(line) for line in server.lines]
        assert f"redis://***@{redis.address}" in "".join(shown)
        assert not [text for text in shown if SECRET in text or USER in text]


async def said(server: Command, words: str) -> None:
    """Return when there is a line with `words`."""
    await until(lambda: any(words in json.dumps(line) for line in server.lines), PATIENCE)
