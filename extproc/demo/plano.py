"""Plano's LLM gateway: providers by hint and by model, their credentials, limits of prompts before they are sent."""

from __future__ import annotations

import difflib
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import orjson

from extproc.demo.caller import Answer, Caller, shown
from extproc.demo.clock import MovableClock
from extproc.demo.examples import environment, example
from extproc.demo.introduction import introduce
from extproc.demo.page import Page, StoryError, expect
from extproc.demo.stack import Stack
from extproc.simulator import Options
from extproc.simulator.service import Record

HOST = "llm.example.com"
PATH = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
KEY = "secret_key"
GPT_4, GPT_4O = "open-ai-gpt-4", "open-ai-gpt-4o"
PROVIDERS = {name: Options(name=name) for name in (GPT_4, GPT_4O)}
HINT, ROUTED = "x-arch-llm-provider-hint", "x-arch-llm-provider"
SELECTED: Mapping[str, str] = {"x-arch-ratelimit-selector": "selector-key", "selector-key": "selector-value"}
"""Of Plano's test: the header that names a header, and that one."""
POEM = "Compose a poem that explains the concept of recursion in programming."
SYSTEM = "You are a poetic assistant, skilled in explaining complex programming concepts with creative flair."
TOKENS = 50
"""Of prompts, in a minute."""
PROMPT, COMPLETION = 12, 12
"""What the simulated models report."""

BODY = b"""\
{ "model": "none",
  "temperature": 1.00e0, "seed": 123456789012345678901234567890, "user": "a", "user": "b",
  "metadata": {"trace": 1},
  "messages": [
    {"role": "system", "content": null, "name": "caf\\u00e9"},
    {"role": "user", "model": "mine", "content": [{"type": "text", "text": "Hi"}], "x": 0.10}],
  "response_format": {"type": "json_object"} }
"""
"""With whatever a gateway may lose that writes JSON anew."""
REWRITTEN = (
    BODY.replace(b'"none"', b'"gpt-4"')
    .replace(b'"model": "mine", ', b"")
    .replace(b',\n  "metadata": {"trace": 1}', b"")
)


class Ask(NamedTuple):
    """A request, and who is to get it."""

    what: str
    provider: str
    headers: Mapping[str, str] = {}
    model: str = "gpt-4"

    @property
    def sent_model(self) -> str:
        """What its provider calls the model."""
        return self.provider.removeprefix("open-ai-")


ASKS = (
    Ask("no hint", GPT_4),
    Ask(f"{HINT}: default", GPT_4, {HINT: "default"}),
    Ask(f"{HINT}: {GPT_4O}", GPT_4O, {HINT: GPT_4O}),
    Ask('"model": "omni", no hint', GPT_4O, model="omni"),
    Ask('"model": "something", no hint', GPT_4, model="something"),
    Ask(f"{ROUTED}: {GPT_4O}, of the client's", GPT_4, {ROUTED: GPT_4O}),
)


def conversation(poems: int, poem: str = POEM) -> dict[str, Any]:
    """The bodies of Plano's tests: a poem is asked for once, or three times."""
    said = {"role": "user", "content": " ".join([poem] * poems)}
    return {"model": "gpt-4", "messages": [{"role": "system", "content": SYSTEM}, said]}


async def tell(page: Page, directory: Path, log: Path, port: int = 0) -> None:
    """Play all acts. Raises StoryError when one goes otherwise, and what `Stack` raises."""
    started = time.monotonic()
    clock, config = MovableClock(), example("plano")
    with environment(OPENAI_API_KEY=KEY):
        async with _running(page, directory, port, clock, config) as caller:
            _introduce(page, caller.stack)
            await _providers(caller)
            await _body(caller)
            await _limits(caller, clock, config)
            await _refused(caller, config)
            await _untouched(caller)
            await _stream(caller)
            await _counted(caller, log)
            page.act("8. Envoy's own counters of us")
            await caller.show_envoy()
    page.line()
    page.line(f"Everything is stopped again. {time.monotonic() - started:.0f} s.")


@asynccontextmanager
async def _running(
    page: Page, directory: Path, port: int, clock: MovableClock, config: Mapping[str, Any]
) -> AsyncIterator[Caller]:
    gateway = {"listen": f"127.0.0.1:{port}"}
    stack = Stack(config, gateway=gateway, providers=PROVIDERS, directory=directory, clock=clock)
    async with stack, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield Caller(page, stack, session, host=HOST, path=PATH, question=conversation(1))


def _introduce(page: Page, stack: Stack) -> None:
    introduce(page, stack, "Providers and limits of prompts on the real Envoy")
    page.line(
        f"  deploy/examples/plano: two providers, and {TOKENS} tokens of prompts a minute for some of their clients."
    )


async def _providers(caller: Caller) -> None:
    page = caller.page
    page.act("1. Which provider: Envoy routes by a header that extproc sets, whatever the client sent")
    for ask in ASKS:
        answer = await caller.ask({"authorization": "Bearer the-client's", **ask.headers}, model=ask.model)
        seen = seen_by(caller.stack, ask.provider)
        headers = dict(seen.headers)
        page.line(f"  {ask.what:53} {answer.status}  {answer.headers.get('x-sim-name', '')}")
        expect(f"the answer to {ask.what}", (answer.status, answer.headers.get("x-sim-name")), (200, ask.provider))
        expect("the credential", headers.get("authorization"), f"Bearer {KEY}")
        expect("the routing header", [value for name, value in seen.headers if name == ROUTED], [ask.provider])
        expect("whether the hint goes on", HINT in headers, False)
        expect("the model", orjson.loads(seen.body)["model"], ask.sent_model)
    expect("requests that went elsewhere", len(caller.stack.model.requests), 0)
    page.line("  The models see their own key in place of the client's, their own name for the model, and no hint.")


def seen_by(stack: Stack, provider: str) -> Record:
    """The last request that it got. Raises StoryError where there was none."""
    requests = stack.providers[provider].requests
    if not requests:
        raise StoryError(f"nothing arrived at {provider}")
    return requests[-1]


async def _body(caller: Caller) -> None:
    page = caller.page
    page.act("2. What becomes of a body: three things, and every other byte stays")
    await caller.send(BODY, {})
    arrived = seen_by(caller.stack, GPT_4).body
    lines = difflib.unified_diff(BODY.decode().splitlines(), arrived.splitlines(), "sent", "arrived", lineterm="", n=9)
    for line in list(lines)[3:]:
        page.line(f"  {line}")
    expect("the body", arrived, REWRITTEN.decode())


async def _limits(caller: Caller, clock: MovableClock, config: Mapping[str, Any]) -> None:
    page = caller.page
    page.act(f"3. {TOKENS} tokens of prompts a minute, counted before a model is called")
    poem = "Compose a poem that explains the idea of recursion in code."
    asked = len(caller.stack.providers[GPT_4].requests)
    await _limited(caller, "Plano's poem, three times", 429, **conversation(3))
    await _limited(caller, "a poem", 200, **conversation(1, poem))
    tokens = used(caller.stack)
    await _limited(caller, "the same again", 429, **conversation(1, poem))
    # What was taken flows back steadily: it fits again when no more than the rest is missing.
    wait = 60 * (2 * tokens - TOKENS) / TOKENS
    clock.advance(wait - 1)
    await _limited(caller, f"after {wait - 1:.1f} s", 429, **conversation(1, poem))
    clock.advance(1)
    await _limited(caller, f"after {wait:.1f} s, {tokens} tokens again", 200, **conversation(1, poem))
    await _limited(caller, "another value", 200, {"selector-key": "other"}, **conversation(3))
    await _limited(caller, "another model", 200, **{**conversation(3), "model": "gpt-4o"})
    expect("prompts that reached gpt-4", len(caller.stack.providers[GPT_4].requests) - asked, 3)
    refusal = await caller.ask(SELECTED, **conversation(3))
    page.line(f"  {refusal.body}")
    expect("the type of the error", orjson.loads(refusal.body)["error"]["code"], "rate_limit_exceeded")
    expect("whether the value of the selector is shown", SELECTED["selector-key"] in refusal.body, False)
    await _in_plano_s_words(caller, config)


async def _limited(caller: Caller, what: str, status: int, headers: Mapping[str, str] = SELECTED, **body: Any) -> None:
    answer = await caller.ask(headers, **body)
    about = shown(answer.headers, ("x-ratelimit-remaining", "retry-after"))
    caller.page.line(f"  {what:38} {answer.status}  {about}".rstrip())
    expect(f"the status of {what}", answer.status, status)


def used(stack: Stack) -> int:
    """Tokens of prompts that the embedded limiter has counted."""
    return sum(counter.used for counter in stack.server.limiter.snapshot())


async def _in_plano_s_words(caller: Caller, config: Mapping[str, Any]) -> None:
    legacy = deepcopy(dict(config))
    legacy["promptLimits"]["legacyErrorBody"] = True
    await caller.reconfigure(legacy)
    answer = await caller.ask(SELECTED, **conversation(3))
    caller.page.line(f"  legacyErrorBody: true   {answer.status}  {answer.body}")
    selector = 'Header { key: "selector-key", value: "selector-value" }'
    expected = f"exceeded limit provider=gpt-4, selector={selector}, tokens_used="
    expect("Plano's words", answer.body.rstrip("0123456789"), expected)
    await caller.reconfigure(config)


async def _refused(caller: Caller, config: Mapping[str, Any]) -> None:
    page = caller.page
    page.act("4. What is refused at once")
    asked = models_asked(caller.stack)
    await _told(caller, "an unknown hint", await caller.ask({HINT: "gpt-17"}))
    await _told(caller, "no JSON", await caller.send(b'{"messages": [{"role": "system",}]}', {}))
    without_key = deepcopy(dict(config))
    without_key["providers"][1].pop("credential")
    await caller.reconfigure(without_key)
    answer = await caller.ask({HINT: GPT_4O})
    await _told(caller, "a provider without a key", answer)
    expected = f'No access key configured for selected LLM Provider "{GPT_4O}"'
    expect("the message", orjson.loads(answer.body)["error"]["message"], expected)
    await caller.reconfigure(config)
    expect("requests that reached a model", models_asked(caller.stack) - asked, 0)


async def _told(caller: Caller, what: str, answer: Answer) -> None:
    caller.page.line(f"  {what:26} {answer.status}  {orjson.loads(answer.body)['error']['message']}")
    expect(f"the status of {what}", answer.status, 400)


def models_asked(stack: Stack) -> int:
    """Requests that reached a model of whomever."""
    return sum(len(model.requests) for model in (stack.model, *stack.providers.values()))


async def _untouched(caller: Caller) -> None:
    page = caller.page
    page.act("5. What is no chat completion goes on as it is, with the key")
    body = b'{"input": ["a", "b"], "model": "text-embedding-3-small", "metadata": {}}'
    for what, path, sent in (("embeddings", EMBEDDINGS, body), ("an empty body", PATH, b"")):
        answer = await caller.send(sent, {"x-sim-echo": "true"}, path=path)
        seen = seen_by(caller.stack, GPT_4)
        page.line(f"  {what:14} {answer.status}  {len(sent)} bytes, the same that were sent")
        expect(f"the answer to {what}", (answer.status, answer.body), (200, sent.decode()))
        expect("the credential", dict(seen.headers).get("authorization"), f"Bearer {KEY}")


async def _stream(caller: Caller) -> None:
    page = caller.page
    page.act("6. A stream comes event by event")
    pieces = await caller.stream({"x-sim-frame-ms": "20"}, stream=True, stream_options={"include_usage": True})
    page.line(f"  {len(pieces)} pieces, the first {pieces[-1].at - pieces[0].at:.2f} s before the last")
    if len(pieces) < 10:
        raise StoryError(f"a stream of 15 events came in {len(pieces)} pieces")
    expect("the end of the stream", pieces[-1].data.endswith(b"data: [DONE]\n\n"), True)


async def _counted(caller: Caller, log: Path) -> None:
    page = caller.page
    page.act("7. What was used, by provider")
    answers = {
        # Those of act 1; then one in act 2, three in act 3, the stream.
        GPT_4: sum(ask.provider == GPT_4 for ask in ASKS) + 1 + 3 + 1,
        GPT_4O: sum(ask.provider == GPT_4O for ask in ASKS) + 1,
    }
    expected = {}
    for name, count in answers.items():
        labels = f'gen_ai_provider_name="{name}",gen_ai_response_model="{name.removeprefix("open-ai-")}"'
        for kind, tokens in (("input", PROMPT), ("output", COMPLETION)):
            expected[f'gen_ai_client_token_usage_sum{{{labels},gen_ai_token_type="{kind}"}}'] = tokens * count
    await caller.show_metrics({**expected, "ratelimited_rq": 5})
    caller.stack.server.decisions.flush()
    told = _last(log, "consumed")
    names = ("total_tokens", "completion_tokens", "model", "end_stream")
    page.line(f"  {told['event']} " + " ".join(f"{name}={told[name]}" for name in names))
    expect("what the log says of the stream", [told[name] for name in names[:2]], [PROMPT + COMPLETION, COMPLETION])


def _last(log: Path, event: str) -> dict[str, Any]:
    """The last line of its kind."""
    entries = (orjson.loads(line) for line in reversed(log.read_text().splitlines()))
    return next(entry for entry in entries if entry["event"] == event)
