"""Acts about many models: one question in four dialects, and a stream that nobody reads to its end."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import orjson
from pydantic.alias_generators import to_camel

from extproc.demo.asker import Asker, until
from extproc.demo.page import StoryError, expect
from extproc.demo.setting import MESSAGES, MODELS_HOST, MODELS_LIMIT
from extproc.usage.usage import Usage

_USAGE = re.compile(rb'"usage(?:Metadata)?":(\{"(?:[^{}]|\{[^{}]*\})*\})')
_LOGGED_AS = {"source": "usageSource"}
_PACE_MS = 40
_PIECES = 24
_READ_PIECES = 6


class Provider(NamedTuple):
    """One API as its clients use it, what its model is to report, and what is to be counted then."""

    name: str
    answer: str
    path: str
    body: Mapping[str, Any]
    counted: Usage

    def headers(self) -> dict[str, str]:
        """Options of the simulated model."""
        return {
            "x-sim-frame-ms": "5",
            "x-sim-prompt-tokens": str(self.counted.prompt_tokens),
            "x-sim-completion-tokens": str(self.counted.completion_tokens),
            "x-sim-cached-tokens": str(self.counted.cached_tokens),
            "x-sim-cache-write-tokens": str(self.counted.cache_write_tokens),
            "x-sim-reasoning-tokens": str(self.counted.reasoning_tokens),
        }


_GPT, _CLAUDE, _GEMINI, _NOVA = "gpt-5-mini", "claude-sonnet-4-5", "gemini-2.5-flash", "amazon.nova-pro-v1:0"
_PARTS = [{"text": MESSAGES[0]["content"]}]
_reported = partial(Usage, source="reported")

OPENAI = Provider(
    "OpenAI",
    "events",
    "/v1/chat/completions",
    {"model": _GPT, "stream": True, "messages": MESSAGES},
    _reported(1200, 64, 1264, 1024, 0, 40, _GPT, dialect="openai", cost=198),
)
ANTHROPIC = Provider(
    "Anthropic",
    "JSON",
    "/v1/messages",
    {"model": _CLAUDE, "max_tokens": 1024, "messages": MESSAGES},
    _reported(1310, 70, 1380, 1024, 200, 0, _CLAUDE, dialect="anthropic", cost=2366),
)
GEMINI = Provider(
    "Gemini",
    "JSON array",
    f"/v1beta/models/{_GEMINI}:streamGenerateContent",
    {"contents": [{"role": "user", "parts": _PARTS}]},
    _reported(1180, 90, 1270, 1000, 0, 50, _GEMINI, dialect="gemini", cost=309),
)
BEDROCK = Provider(
    "Bedrock",
    "AWS events",
    f"/model/{_NOVA}/converse-stream",
    {"messages": [{"role": "user", "content": _PARTS}]},
    _reported(1250, 60, 1310, 1024, 0, 0, _NOVA, dialect="bedrock", cost=578),
)
PROVIDERS = (OPENAI, ANTHROPIC, GEMINI, BEDROCK)


async def four_providers(asker: Asker, access_log: Path) -> None:
    """Each says what was used in its own words; what is counted has one meaning."""
    page = asker.page
    page.act("5. The same question to four providers, with one expression that knows OpenAI's field alone")
    for provider in PROVIDERS:
        said = _said(await _answer(asker, provider))
        expect(f"whether {provider.name}'s client is told the usage", bool(said), provider is not OPENAI)
        page.line(f"  {provider.name:9}  {provider.answer:10}  {said or '(nothing: its client had not asked)'}")
    _expect_injected_usage(asker)
    expect("tokens counted", asker.used(MODELS_LIMIT), sum(each.counted.total_tokens for each in PROVIDERS))
    await until("lines in the access log", lambda: len(_logged(access_log)) >= len(PROVIDERS))
    counted = _logged(access_log)
    expect("the access log", counted, [provider.counted for provider in PROVIDERS])
    page.line()
    page.line("  Envoy's access log:")
    for line in _table(counted):
        page.line(f"  {line}")
    page.line(
        f"  The limiter has {asker.used(MODELS_LIMIT):,} tokens. OpenAI's stream was asked for its usage by extproc"
    )
    page.line("  (includeUsage), and the frame that came of it was taken out again.")


async def _answer(asker: Asker, provider: Provider) -> bytes:
    body = b""

    async def read(response: aiohttp.ClientResponse) -> None:
        nonlocal body
        body = await response.read()

    status = await asker.ask(read, provider.body, host=MODELS_HOST, path=provider.path, headers=provider.headers())
    expect(f"the status of {provider.name}'s answer", status, 200)
    return body


def _said(body: bytes) -> str:
    """The last usage in an answer of whatever format, as its provider names the numbers; totals are left out."""
    found = _USAGE.findall(body)
    usage = orjson.loads(found[-1]) if found else {}
    numbers = ((name, value) for name, value in usage.items() if isinstance(value, int))
    return " ".join(f"{name}={number}" for name, number in numbers if number and not name.startswith("total"))


def _expect_injected_usage(asker: Asker) -> None:
    """Of all requests only OpenAI's stream was changed on its way."""
    sent = [orjson.loads(request.body) for request in asker.stack.model.requests[-len(PROVIDERS) :]]
    asked = {**OPENAI.body, "stream_options": {"include_usage": True}}
    expect("what the models were sent", sent, [asked, *(provider.body for provider in PROVIDERS[1:])])


def _logged(access_log: Path) -> list[Usage]:
    """What Envoy was told about the answers of this route."""
    # A line that is being written lacks its end.
    lines = access_log.read_text().rpartition("\n")[0].splitlines()
    entries = [entry for entry in map(orjson.loads, lines) if entry["host"] == MODELS_HOST]
    logged_as = {field: _LOGGED_AS.get(field, to_camel(field)) for field in Usage._fields}
    return [Usage(**{field: entry[name] for field, name in logged_as.items()}) for entry in entries]


def _table(rows: Sequence[Usage]) -> list[str]:
    cells = [["dialect", "model", "prompt", "cached", "completion", "reasoning", "total", "source", "cost"]]
    for row in rows:
        numbers = (row.prompt_tokens, row.cached_tokens, row.completion_tokens, row.reasoning_tokens, row.total_tokens)
        cost = "" if row.cost is None else f"${row.cost / 1e6:.6f}"
        cells.append([row.dialect, row.model, *(f"{number:,}" for number in numbers), row.source, cost])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = range(2, 7)
    return [
        "  ".join(
            cell.rjust(width) if index in numeric else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


async def hang_up(asker: Asker, log: Path) -> None:
    """What was delivered is counted, though the answer never came to its end."""
    page, whole = asker.page, ANTHROPIC.counted.prompt_tokens + _PIECES
    page.act("6. A stream of Anthropic's, and a client that hangs up in the middle")
    before = asker.used(MODELS_LIMIT)
    await _read_in_part(asker)
    page.line(f"  {_READ_PIECES} of {_PIECES} pieces, then the connection is gone")
    await until("a report", lambda: asker.used(MODELS_LIMIT) > before)
    asker.stack.server.decisions.flush()
    entry = _last_decision(log)
    fields = ("hits_addend", "usage", "ending", "model")
    page.line(f"  {entry['event']}  {' '.join(f'{field}={entry[field]}' for field in fields)}")
    expect("the decision", (entry["usage"], entry["ending"], entry["model"]), ("estimated", "client_gone", _CLAUDE))
    hits, prompt = entry["hits_addend"], ANTHROPIC.counted.prompt_tokens
    expect("tokens counted", asker.used(MODELS_LIMIT) - before, hits)
    if not prompt + _READ_PIECES <= hits < whole:
        raise StoryError(f"tokens counted: {hits}, expected {prompt + _READ_PIECES} or more, and less than {whole}")
    page.line(
        f"  {prompt:,} of the prompt, which the stream began with, and {hits - prompt} for the text that had passed;"
    )
    page.line(f"  the whole answer would have been {_PIECES}.")


def _last_decision(log: Path) -> dict[str, Any]:
    entries: list[dict[str, Any]] = [orjson.loads(line) for line in log.read_text().splitlines()]
    return next(entry for entry in reversed(entries) if entry["event"] == "consumed")


async def _read_in_part(asker: Asker) -> None:
    async def read(response: aiohttp.ClientResponse) -> None:
        pieces = 0
        async for line in response.content:
            pieces += line.startswith(b"event: content_block_delta")
            if pieces == _READ_PIECES:
                response.close()
                return
        raise StoryError(f"the stream ended after {pieces} pieces")

    stream = {**ANTHROPIC.body, "stream": True}
    options = {"x-sim-frames": _PIECES, "x-sim-completion-tokens": _PIECES, "x-sim-frame-ms": _PACE_MS}
    headers = ANTHROPIC.headers() | {name: str(value) for name, value in options.items()}
    await asker.ask(read, stream, host=MODELS_HOST, path=ANTHROPIC.path, headers=headers)
