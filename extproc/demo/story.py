"""The story of one limit: 100 tokens a minute for `*.example.com`, answers of 24 tokens."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TextIO

import aiohttp
import orjson
import yaml

from extproc.demo.stack import Stack
from extproc.simulator import Options

HOST = "trlp.example.com"
PATH = "/v1/chat/completions"
LIMIT = 100
TOKENS = 24
QUESTION = {
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "messages": [{"role": "user", "content": "Tell me a three sentence bedtime story about a unicorn."}],
}
STREAMED = {**QUESTION, "stream": True, "stream_options": {"include_usage": True}}
_WORDS = "Once upon a time a unicorn counted every word of its bedtime story.".split()
_BAR = 25
_READY_WITHIN = 15.0

PLUGIN = """\
services:
  ratelimit-check-service: {type: ratelimit-check, endpoint: limitador, failureMode: deny, timeout: 1s}
  ratelimit-report-service: {type: ratelimit-report, endpoint: limitador, failureMode: deny, timeout: 1s}
actionSets:
  - name: basic
    routeRuleConditions:
      hostnames: ["*.example.com"]
    actions:
      - service: ratelimit-check-service
        scope: domain-a
        conditionalData:
          - predicates: ['request.url_path == "/v1/chat/completions"']
            data:
              - expression: {key: a, value: "1"}
      - service: ratelimit-report-service
        scope: domain-a
        conditionalData:
          - predicates: ['request.url_path == "/v1/chat/completions"']
            data:
              - expression: {key: a, value: "1"}
              - expression: {key: ratelimit.hits_addend, value: 'responseBodyJSON("/usage/total_tokens")'}
"""
"""wasm-shim's configuration of this story."""

LIMITS = [
    {
        "namespace": "domain-a",
        "name": "name_a",
        "max_value": LIMIT,
        "seconds": 60,
        "conditions": ["descriptors[0]['a'] == '1'"],
        "variables": [],
    }
]


class StoryError(Exception):
    """Something happened otherwise than the story says."""


class Page:
    """Where the story is told."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._colour = stream.isatty()

    def line(self, text: str = "") -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def act(self, title: str) -> None:
        self.line()
        self.line(f"\033[1m{title}\033[0m" if self._colour else title)


def configuration(endpoint: str) -> dict[str, Any]:
    """The plugin's configuration and where its `limitador` is."""
    return {**yaml.safe_load(PLUGIN), "endpoints": {"limitador": endpoint}, "limits": LIMITS}


async def tell(page: Page, directory: Path, log: Path, port: int = 0) -> None:
    """Play all acts. Raises StoryError when one goes otherwise, and what `Stack` raises."""
    started = time.monotonic()
    async with _running(directory, port) as (stack, session):
        _introduce(page, stack)
        asker = _Asker(page, stack, session)
        await _json_answer(asker)
        await _streamed_answer(asker)
        await _the_limit(asker)
        stack.server.decisions.flush()
        _decisions(page, log)
        await _one_word(asker, directory)
        await _from_outside(page, stack)
    page.line()
    page.line(f"Everything is stopped again. {time.monotonic() - started:.0f} s.")


async def stay(page: Page, directory: Path, log: Path, port: int = 0) -> None:
    """Leave everything running until Ctrl-C."""
    async with _running(directory, port) as (stack, _):
        _introduce(page, stack)
        gateway_port = stack.envoy.address.rpartition(":")[2]
        page.act("Paste")
        for body in (QUESTION, STREAMED):
            page.line(
                f"  curl -i --resolve {HOST}:{gateway_port}:127.0.0.1 http://{HOST}:{gateway_port}{PATH} \\\n"
                f"    -H 'content-type: application/json' -d '{json.dumps(body)}'"
            )
        page.act("Look")
        page.line(f"  metrics        http://{stack.server.admin_address}/metrics")
        page.line(f"  configuration  {stack.config_file}   (edit it: changes are taken at once)")
        page.line(f"  decisions      tail -f {log}")
        page.line(f"  Envoy          http://{stack.envoy.admin}")
        page.line()
        page.line("Ctrl-C stops everything.")
        watching = asyncio.create_task(stack.server.watch())
        try:
            await asyncio.Event().wait()
        finally:
            watching.cancel()


@asynccontextmanager
async def _running(directory: Path, port: int) -> AsyncIterator[tuple[Stack, aiohttp.ClientSession]]:
    model = Options(frames=len(_WORDS), frame_ms=40.0, text="word ")
    stack = Stack(configuration("embedded"), model=model, gateway={"listen": f"127.0.0.1:{port}"}, directory=directory)
    timeout = aiohttp.ClientTimeout(total=30)
    async with stack, aiohttp.ClientSession(timeout=timeout) as session:
        yield stack, session


def _introduce(page: Page, stack: Stack) -> None:
    page.line("Token limits on the real Envoy")
    page.line()
    page.line(f"  client ──> Envoy {stack.envoy.address} ──> simulated model {stack.model.address}")
    page.line("               │ ext_proc")
    page.line(f"               └──> extproc {stack.server.addresses[0]}, with the embedded limiter")
    page.line()
    page.line(f"  The limit: {LIMIT} tokens in 60 seconds for *.example.com. Each answer costs {TOKENS}.")


class _Asker:
    """Asks the model through the gateway and shows what came of it."""

    def __init__(self, page: Page, stack: Stack, session: aiohttp.ClientSession) -> None:
        self.page = page
        self.stack = stack
        self.session = session

    async def ask(self, read: Callable[[aiohttp.ClientResponse], Awaitable[Any]], body: Mapping[str, Any]) -> int:
        """The status of one request whose answer `read` reads."""
        headers = {"Host": HOST}
        async with self.session.post(self.stack.url + PATH, json=body, headers=headers) as response:
            await read(response)
            return response.status

    @property
    def used(self) -> int:
        """Tokens that the embedded limiter has counted."""
        return sum(counter.used for counter in self.stack.server.limiter.snapshot())

    def meter(self) -> str:
        """The counter as a bar."""
        filled = min(_BAR, round(self.used / LIMIT * _BAR))
        return f"{'█' * filled}{'·' * (_BAR - filled)} {self.used:>3} of {LIMIT}"


async def _json_answer(asker: _Asker) -> None:
    asker.page.act("1. A question, answered as JSON")

    async def read(response: aiohttp.ClientResponse) -> None:
        answer = await response.json()
        asker.page.line(f"  {response.status}  usage {json.dumps(answer['usage'])}")

    _expect("the status of the JSON answer", await asker.ask(read, QUESTION), 200)
    _expect("tokens counted", asker.used, TOKENS)
    asker.page.line(f"  {asker.meter()}")


async def _streamed_answer(asker: _Asker) -> None:
    asker.page.act("2. The same question as a stream: every frame passes as it comes")
    started = time.monotonic()
    arrivals: list[float] = []

    async def read(response: aiohttp.ClientResponse) -> None:
        async for line in response.content:
            if not line.startswith(b"data: "):
                continue
            arrivals.append((time.monotonic() - started) * 1000)
            shown = _shown(line[6:].strip())
            if len(arrivals) <= 3 or not shown.startswith("content"):
                asker.page.line(f"  +{arrivals[-1]:4.0f} ms  {shown}")
            elif len(arrivals) == 4:
                asker.page.line("      ...")

    _expect("the status of the stream", await asker.ask(read, STREAMED), 200)
    if arrivals[-1] - arrivals[0] < 100:
        raise StoryError("the frames of the stream arrived all at once")
    _expect("tokens counted", asker.used, 2 * TOKENS)
    asker.page.line(f"  {asker.meter()}")


def _shown(frame: bytes) -> str:
    """What matters of one frame."""
    if frame == b"[DONE]":
        return "[DONE]"
    document = orjson.loads(frame)
    if document.get("usage"):
        return f"usage {json.dumps(document['usage'])}"
    choice = document["choices"][0]
    return (
        f"content {json.dumps(choice['delta'].get('content', ''))}"
        if choice["delta"]
        else f"finish_reason {choice['finish_reason']}"
    )


async def _the_limit(asker: _Asker) -> None:
    asker.page.act("3. On and on, until the limit")
    asked = len(asker.stack.model.requests)
    for number, expected in ((3, 200), (4, 200), (5, 200), (6, 429), (7, 429)):
        text = ""

        async def read(response: aiohttp.ClientResponse) -> None:
            nonlocal text
            ratelimited = response.headers.get("x-envoy-ratelimited")
            body = (await response.text()).strip()
            text = f"{body}, x-envoy-ratelimited: {ratelimited}" if response.status == 429 else ""

        status = await asker.ask(read, QUESTION)
        _expect(f"the status of request {number}", status, expected)
        asker.page.line(f"  request {number}  {status}  {asker.meter()}  {text}".rstrip())
    _expect("requests that reached the model", len(asker.stack.model.requests) - asked, 3)
    asker.page.line("  The refused requests never reached the model. The one that crossed the limit did: what an")
    asker.page.line("  answer costs is known when it is over.")


def _decisions(page: Page, log: Path) -> None:
    page.act("4. What the server wrote about it")
    shown = 0
    for line in log.read_text().splitlines():
        entry = orjson.loads(line)
        if entry["event"] in ("consumed", "denied") and shown < 7:
            fields = " ".join(
                f"{key}={entry[key]}" for key in ("decision", "code", "limit", "hits_addend") if key in entry
            )
            page.line(f"  {entry['event']:9} {fields}  request_id={entry['request_id'][:8]}…")
            shown += 1
    _expect("decision lines", shown, 7)


async def _one_word(asker: _Asker, directory: Path) -> None:
    asker.page.act("5. One word changed: the limiter as a process of its own")
    limits = directory / "limits.json"
    limits.write_text(json.dumps(LIMITS))
    async with _limiter_process(limits) as (address, read_log):
        asker.page.line(f"  endpoints: {{limitador: embedded}}  ->  {{limitador: {address}}}")
        asker.stack.configure(configuration(address))
        _expect("the reload", await asker.stack.server.reload(), True)

        async def ignore(response: aiohttp.ClientResponse) -> None:
            await response.read()

        statuses = [await asker.ask(ignore, QUESTION) for _ in range(6)]
        _expect("statuses with the remote limiter", statuses, [200] * 5 + [429])
        asker.page.line(f"  {'  '.join(map(str, statuses))}")
        reports = await read_log("hits_addend: 24", 5)
        asker.page.line(f"  its log, five times: {reports[0]}")


@asynccontextmanager
async def _limiter_process(limits: Path) -> AsyncIterator[tuple[str, Callable[[str, int], Awaitable[list[str]]]]]:
    """`extproc limiter` on a free port: its address, and a function that waits for lines of its log."""
    command = [
        sys.executable,
        "-m",
        "extproc",
        "limiter",
        str(limits),
        "--listen",
        "127.0.0.1:0",
        "--log-format",
        "json",
    ]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    stderr = process.stderr
    assert stderr is not None

    async def lines(containing: str, count: int) -> list[str]:
        found: list[str] = []
        async with asyncio.timeout(_READY_WITHIN):
            while len(found) < count:
                line = await stderr.readline()
                if not line:
                    raise StoryError("the limiter process ended")
                entry = orjson.loads(line)
                if containing in entry["event"]:
                    found.append(entry.get("listen") or entry["event"])
        return found

    try:
        yield (await lines("ready", 1))[0], lines
    finally:
        process.terminate()
        await process.wait()


async def _from_outside(page: Page, stack: Stack) -> None:
    page.act("6. Envoy's own counters of us")
    counters = {
        name.rpartition(".")[2]: value
        for name, value in (await stack.envoy.stats("http.")).items()
        if ".ext_proc." in name
    }
    page.line(f"  {counters['streams_started']} requests, {counters['stream_msgs_sent']} messages")
    for name in ("streams_failed", "spurious_msgs_received", "message_timeouts", "rejected_header_mutations"):
        _expect(name, counters[name], 0)
        page.line(f"  {name} {counters[name]}")


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise StoryError(f"{what}: {found}, expected {expected}")
