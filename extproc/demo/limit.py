"""Acts about one limit: 100 tokens a minute, answers of 24 tokens."""

from __future__ import annotations

import json
import time
from pathlib import Path

import aiohttp
import orjson

from extproc.demo.asker import Asker
from extproc.demo.page import Page, StoryError, expect
from extproc.demo.setting import QUESTION, STREAMED, TOKENS


async def json_answer(asker: Asker) -> None:
    """A JSON answer is counted."""
    asker.page.act("1. A question, answered as JSON")

    async def read(response: aiohttp.ClientResponse) -> None:
        answer = await response.json()
        asker.page.line(f"  {response.status}  usage {json.dumps(answer['usage'])}")

    expect("the status of the JSON answer", await asker.ask(read, QUESTION), 200)
    expect("tokens counted", asker.used(), TOKENS)
    asker.page.line(f"  {asker.meter()}")


async def streamed_answer(asker: Asker) -> None:
    """A stream is counted, and no frame is held."""
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

    expect("the status of the stream", await asker.ask(read, STREAMED), 200)
    if arrivals[-1] - arrivals[0] < 100:
        raise StoryError("the frames of the stream arrived all at once")
    expect("tokens counted", asker.used(), 2 * TOKENS)
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


async def exhaustion(asker: Asker) -> None:
    """The limit is crossed once, then nothing reaches the model."""
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
        expect(f"the status of request {number}", status, expected)
        asker.page.line(f"  request {number}  {status}  {asker.meter()}  {text}".rstrip())
    expect("requests that reached the model", len(asker.stack.model.requests) - asked, 3)
    asker.page.line("  The refused requests never reached the model. The one that crossed the limit did: what an")
    asker.page.line("  answer costs is known when it is over.")


def decisions(page: Page, log: Path) -> None:
    """The lines that the server wrote about the seven requests."""
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
    expect("decision lines", shown, 7)
