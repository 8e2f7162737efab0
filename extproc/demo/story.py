"""The story as a whole: what it runs on, and its acts in order."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from extproc.demo import limit, limiter, providers
from extproc.demo.asker import Asker
from extproc.demo.introduction import introduce
from extproc.demo.page import Page, expect
from extproc.demo.setting import HOST, LIMIT, MODELS_HOST, PATH, QUESTION, STREAMED, TOKENS, configuration
from extproc.demo.stack import Stack
from extproc.simulator import Options

_WORDS = "Once upon a time a unicorn counted every word of its bedtime story.".split()


async def tell(page: Page, directory: Path, log: Path, port: int = 0) -> None:
    """Play all acts. Raises StoryError when one goes otherwise, and what `Stack` raises."""
    started = time.monotonic()
    access_log = directory / "access.log"
    async with _running(directory, access_log, port) as (stack, session):
        _introduce(page, stack)
        asker = Asker(page, stack, session)
        await limit.json_answer(asker)
        await limit.streamed_answer(asker)
        await limit.exhaustion(asker)
        stack.server.decisions.flush()
        limit.decisions(page, log)
        await providers.four_providers(asker, access_log)
        await providers.hang_up(asker, log)
        await limiter.one_word(asker, directory)
        await _from_outside(page, stack)
    page.line()
    page.line(f"Everything is stopped again. {time.monotonic() - started:.0f} s.")
    page.line("Keys, tiers and windows have stories of their own: extproc demo maas, extproc demo gloo;")
    page.line("so have providers and prompts, and what must not be asked: extproc demo plano, extproc demo guard.")


async def stay(page: Page, directory: Path, log: Path, port: int = 0) -> None:
    """Leave everything running until Ctrl-C."""
    access_log = directory / "access.log"
    async with _running(directory, access_log, port) as (stack, _):
        _introduce(page, stack)
        page.act("Paste")
        for body in (QUESTION, STREAMED):
            _curl(page, stack, HOST, PATH, json.dumps(body))
        for provider in providers.PROVIDERS:
            _curl(page, stack, MODELS_HOST, provider.path, json.dumps(provider.body))
        page.act("Look")
        page.line(f"  metrics        http://{stack.server.admin_address}/metrics")
        page.line(f"  configuration  {stack.config_file}   (edit it: changes are taken at once)")
        page.line(f"  decisions      tail -f {log}")
        page.line(f"  access log     tail -f {access_log}")
        page.line(f"  Envoy          http://{stack.envoy.admin}")
        page.line()
        page.line("Ctrl-C stops everything.")
        await stack.server.watch()


def _curl(page: Page, stack: Stack, host: str, path: str, body: str) -> None:
    port = stack.envoy.address.rpartition(":")[2]
    page.line(
        f"  curl -i --output - --resolve {host}:{port}:127.0.0.1 'http://{host}:{port}{path}' \\\n"
        f"    -H 'content-type: application/json' -d '{body}'"
    )


@asynccontextmanager
async def _running(directory: Path, access_log: Path, port: int) -> AsyncIterator[tuple[Stack, aiohttp.ClientSession]]:
    model = Options(frames=len(_WORDS), frame_ms=40.0, text="word ")
    gateway = {"listen": f"127.0.0.1:{port}", "access_log": access_log}
    stack = Stack(configuration("embedded"), model=model, gateway=gateway, directory=directory)
    timeout = aiohttp.ClientTimeout(total=30)
    async with stack, aiohttp.ClientSession(timeout=timeout) as session:
        yield stack, session


def _introduce(page: Page, stack: Stack) -> None:
    introduce(page, stack, "Token limits on the real Envoy")
    page.line(f"  The limit: {LIMIT} tokens in 60 seconds for *.example.com. Each answer costs {TOKENS}.")


async def _from_outside(page: Page, stack: Stack) -> None:
    page.act("8. Envoy's own counters of us")
    counters = {
        name.rpartition(".")[2]: value
        for name, value in (await stack.envoy.stats("http.")).items()
        if ".ext_proc." in name
    }
    page.line(f"  {counters['streams_started']} requests, {counters['stream_msgs_sent']} messages")
    for name in ("streams_failed", "spurious_msgs_received", "message_timeouts", "rejected_header_mutations"):
        expect(name, counters[name], 0)
        page.line(f"  {name} {counters[name]}")
