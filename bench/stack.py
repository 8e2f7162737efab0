"""What is measured: load -> Envoy -> model, with a server beside Envoy."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bench import proc, tiers
from bench.child import Child, Cores
from bench.errors import BenchError
from bench.load import HOST
from bench.prompts import Work
from extproc.gateway import EnvoyProcess, bootstrap, free_port

SERVERS = ("direct", "floor", "blind", "embedded", "remote", "redis")
CHAT = "/v1/chat/completions"
_CORES = sorted(os.sched_getaffinity(0))
SERVER_CORES: Cores = frozenset(_CORES[-1:]) if len(_CORES) > 1 else None
"""The server under test has a core of its own: what others put into its caches would be counted as its time."""
OTHER_CORES: Cores = frozenset(_CORES[:-1]) if len(_CORES) > 1 else None
MANY = 10**15
"""A limit that no run reaches."""
_STATS = "http.gateway.ext_proc."
_FAULTS = (
    "streams_failed",
    "spurious_msgs_received",
    "message_timeouts",
    "failure_mode_allowed",
    "rejected_header_mutations",
    "immediate_responses_sent",
)
_METERED = re.compile(r'^extproc_usage_total\{source="reported"\} (\S+)$', re.MULTILINE)
_LOST = re.compile(r'^extproc_reports_total\{result="(dropped|failed)"\} (\S+)$', re.MULTILINE)
_SETTLE = 10.0
_POLL = 0.02
LIMITS: Sequence[Mapping[str, Any]] = [
    {
        "namespace": "bench",
        "max_value": MANY,
        "seconds": 3600,
        "conditions": ["descriptors[0]['a'] == '1'"],
        "variables": [],
    }
]


@dataclass(frozen=True, slots=True)
class Counts:
    """Envoy's counters of its side of ext_proc, and how often the server read usage in an answer.

    `metered` is None for servers that do not meter. `faults` are Envoy's, and reports that the server lost.
    """

    started: int = 0
    closed: int = 0
    sent: int = 0
    metered: int | None = None
    faults: Mapping[str, int] = field(default_factory=dict)

    def since(self, before: Counts) -> Counts:
        faults = {name: count - before.faults.get(name, 0) for name, count in self.faults.items()}
        metered = None if self.metered is None else self.metered - (before.metered or 0)
        return Counts(
            self.started - before.started, self.closed - before.closed, self.sent - before.sent, metered, faults
        )

    def check(self, requests: int, closed: int | None = None) -> None:
        """Raises BenchError unless `requests` streams were opened, and closed and metered, without a fault.

        `closed`: how many of them, where not all.
        """
        closed = requests if closed is None else closed
        faults = {name: count for name, count in self.faults.items() if count}
        if faults:
            raise BenchError("counted " + ", ".join(f"{name} {count}" for name, count in faults.items()))
        if (self.started, self.closed) != (requests, closed):
            raise BenchError(f"{requests} requests, but {self.started} streams started and {self.closed} closed")
        if self.metered not in (None, closed):
            raise BenchError(f"{closed} answers, but usage was read in {self.metered}: the server did not meter")


@dataclass(frozen=True, slots=True)
class Stack:
    """One Envoy and its server.

    `pids` are those of `server`, `limiter`, `redis` and `envoy`, as far as there are any; `admin` is the server's
    address, `users` how many callers it knows, `work` what it does with requests.
    """

    server: str
    envoy: EnvoyProcess
    pids: Mapping[str, int]
    path: str
    users: int = 0
    admin: str | None = None
    work: Work | None = None

    @property
    def url(self) -> str:
        return f"http://{self.envoy.address}{self.path}"

    @property
    def headers(self) -> tuple[str, ...]:
        """What each request carries where all are of one caller."""
        return (tiers.credential(0),) if self.users else ()

    async def works(self) -> None:
        """Raises BenchError unless our server does its `work`: one that does not, would be fast."""
        if self.work is None or self.admin is None:
            return
        before = await self.counts()
        headers = {"host": HOST, "content-type": "application/json"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(self.url, data=self.work.probe) as response,
        ):
            status, answer = response.status, await response.text()
        if status != self.work.status or self.work.says not in answer:
            raise BenchError(f"the server does not do its work: it answered {status} {answer[:200]}")
        await self.counted(before, lambda counts: counts.closed >= counts.started > 0)

    async def counts(self) -> Counts:
        stats = {name.removeprefix(_STATS): value for name, value in (await self.envoy.stats(_STATS)).items()}
        metrics = await _metrics(self.admin) if self.admin else None
        return Counts(
            stats.get("streams_started", 0),
            stats.get("streams_closed", 0),
            stats.get("stream_msgs_sent", 0),
            None if metrics is None else parse_metered(metrics),
            {name: stats.get(name, 0) for name in _FAULTS} | parse_lost(metrics or ""),
        )

    async def counted(self, before: Counts, enough: Callable[[Counts], bool]) -> Counts:
        """The counts since `before` once they are `enough`, or after some seconds in which they are not."""
        for _ in range(int(_SETTLE / _POLL)):
            since = (await self.counts()).since(before)
            if enough(since):
                break
            await asyncio.sleep(_POLL)
        return since

    async def settled(self, before: Counts, requests: int) -> Counts:
        """The counts since `before`, once every stream is closed; raises BenchError as `Counts.check`."""
        if self.server == "direct":
            return Counts()
        since = await self.counted(before, lambda counts: counts.closed >= counts.started and counts.metered != 0)
        since.check(requests)
        return since

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far, process by process."""
        return {name: proc.cpu_seconds(pid) for name, pid in self.pids.items()}

    def resident(self, name: str) -> int | None:
        """Resident memory of a process in KiB, None when there is no such process."""
        return proc.memory(self.pids[name]).rss if name in self.pids else None


@asynccontextmanager
async def model(*options: str) -> AsyncIterator[str]:
    """The address of a simulated model with these command line options."""
    async with Child("the model", "-m", "extproc.simulator", "--listen", "127.0.0.1:0", *options) as child:
        yield await child.listening()


def missing(server: str) -> str:
    """Why `server` cannot run on this machine, "" when it can."""
    if server == "redis" and shutil.which("redis-server") is None:
        return "redis-server is not installed: apt-get install redis-server"
    return ""


@asynccontextmanager
async def stack(
    server: str, upstream: str, directory: Path, path: str = CHAT, users: int = 0, work: Work | None = None
) -> AsyncIterator[Stack]:
    """A running stack; raises BenchError for a server that does not start. `directory` takes its configuration.

    With `users` the server asks who calls, and they have limits of their own; with `work` it reads requests.
    """
    async with AsyncExitStack() as running:
        pids: dict[str, int] = {}
        address = admin = None
        if server == "floor":
            asks = ("--request-body",) if work is not None else ()
            child = Child("the floor", "-m", "bench.floor", *asks, cores=SERVER_CORES)
            floor = await running.enter_async_context(child)
            address, pids["server"] = await floor.listening(), floor.pid
        elif server != "direct":
            document = asking(users, directory) if users else checking()
            document |= {} if work is None else work.sections
            if server == "remote":
                limiter, pids["limiter"] = await _limiter(running, directory)
                document |= {"endpoints": {"limiter": limiter}, "limits": []}
            if server == "redis":
                document["storage"], pids["redis"] = await _redis(running)
            address, admin, pids["server"] = await _ours(running, server, document, directory)
        envoy = await running.enter_async_context(EnvoyProcess(bootstrap(upstream=upstream, extproc=address)))
        yield Stack(server, envoy, pids | {"envoy": envoy.pid}, path, users, admin, work)


async def _ours(
    running: AsyncExitStack, server: str, document: Mapping[str, Any], directory: Path
) -> tuple[str, str, int]:
    address, admin = (f"127.0.0.1:{free_port()}" for _ in range(2))
    listening = {"listeners": [address], "admin": {"address": admin}}
    path = _written({**document, **listening}, directory / f"serve-{server}.json")
    module = "bench.blind" if server == "blind" else "extproc"
    child = await running.enter_async_context(Child("extproc serve", "-m", module, "serve", path, cores=SERVER_CORES))
    await child.ready(admin)
    return address, admin, child.pid


async def _limiter(running: AsyncExitStack, directory: Path) -> tuple[str, int]:
    address = f"127.0.0.1:{free_port()}"
    path = _written(LIMITS, directory / "limits.json")
    child = Child("extproc limiter", "-m", "extproc", "limiter", "--listen", address, path)
    await running.enter_async_context(child)
    await child.accepts(address)
    return address, child.pid


async def _redis(running: AsyncExitStack) -> tuple[str, int]:
    """Without a file: what it holds is gone with it."""
    port = str(free_port())
    options = ("--bind", "127.0.0.1", "--port", port, "--save", "", "--logfile", "/dev/stderr")
    child = Child("redis-server", *options, program="redis-server")
    await running.enter_async_context(child)
    await child.accepts(f"127.0.0.1:{port}")
    return f"redis://127.0.0.1:{port}", child.pid


async def _metrics(admin: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"http://{admin}/metrics") as response:
        return await response.text()


def parse_metered(metrics: str) -> int:
    """How many answers' usage was read; raises BenchError where the metric is missing."""
    found = _METERED.search(metrics)
    if found is None:
        raise BenchError("no usage in the server's metrics")
    return round(float(found[1]))


def parse_lost(metrics: str) -> dict[str, int]:
    """Reports that did not reach the limiter, by what became of them."""
    return {f"reports_{result}": round(float(count)) for result, count in _LOST.findall(metrics)}


def _written(document: Any, path: Path) -> str:
    path.write_text(json.dumps(document))
    return str(path)


def asking(users: int, directory: Path) -> dict[str, Any]:
    """Who calls, and may they: `tiers.documents`, written into `directory`."""
    path = _written(tiers.documents(users), directory / "policies.json")
    types = ("ratelimit", "ratelimit-check", "ratelimit-report")
    services = {f"{kind}-service": _service(kind, "limitador") for kind in types}
    return {"services": services, "actionSets": [], "policies": [path], "onNoLimit": "deny"}


def checking() -> dict[str, Any]:
    """Check and report as in wasm-shim's example, with a limit that is never reached."""
    data = [{"expression": {"key": "a", "value": "'1'"}}]
    used = {"key": "ratelimit.hits_addend", "value": "responseBodyJSON('/usage/total_tokens')"}
    services = {name: _service(f"ratelimit-{name}", "limiter") for name in ("check", "report")}
    actions = [
        {"service": "check", "scope": "bench", "conditionalData": [{"data": data}]},
        {"service": "report", "scope": "bench", "conditionalData": [{"data": [*data, {"expression": used}]}]},
    ]
    return {
        "services": services,
        "actionSets": [{"name": "bench", "routeRuleConditions": {"hostnames": [HOST]}, "actions": actions}],
        "endpoints": {"limiter": "embedded"},
        "limits": LIMITS,
    }


def _service(kind: str, endpoint: str) -> dict[str, str]:
    """With more patience than by default: whatever else runs on the machine, a slow answer is an answer."""
    return {"type": kind, "endpoint": endpoint, "failureMode": "deny", "timeout": "1s"}
