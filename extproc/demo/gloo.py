"""A Gloo AI Gateway's demo: JWTs, access by claims, and token budgets in three windows at once."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import orjson

from extproc.demo.caller import Answer, Caller, shown
from extproc.demo.clock import MovableClock
from extproc.demo.examples import example
from extproc.demo.introduction import introduce
from extproc.demo.page import Page, expect
from extproc.demo.stack import Stack
from extproc.demo.tokens import Issuer, bearer, tampered
from extproc.gateway import EnvoyProcess, bootstrap, jwt_authn_filter, rbac_filter
from extproc.simulator import Options

HOST = "gateway.example:8080"
PATH = "/qwen"
MODEL_PATH = "/v1/chat/completions"
ISSUER = "solo.io"
ALICE: Mapping[str, Any] = {"org": "solo.io", "sub": "alice", "team": "dev", "llms": {"openai": ["gpt-3.5-turbo"]}}
BOB: Mapping[str, Any] = {
    "org": "solo.io",
    "sub": "bob",
    "team": "ops",
    "llms": {"mistralai": ["mistral-large-latest"]},
}
DEVELOPERS = {"org": "solo.io", "team": "dev"}
QUESTION = {
    "model": "qwen:0.5b",
    "messages": [
        {"role": "system", "content": "You are a solutions architect for kubernetes networking"},
        {"role": "user", "content": "Write me a 20 word pitch on why I should use a service mesh"},
    ],
}
PROMPT, COMPLETION = 59, 26
MODEL = Options(prompt_tokens=PROMPT, completion_tokens=COMPLETION, frames=1, text="Use a service mesh.")
DENIED = "RBAC: access denied"
MINUTE, HOUR, DAY = "per-user-counter-minute", "per-user-counter-hour", "per-user-counter-day"
_A_DAY = 86_400


class Step(NamedTuple):
    """A request so many seconds after the first, and the limit that refuses it; of several the longest."""

    at: int
    refused_by: str = ""


WALK = (
    *(Step(0), Step(1), Step(2, MINUTE)),
    *(Step(61), Step(62), Step(63, HOUR), Step(123, HOUR)),
    *(Step(3602), Step(3603), Step(3604, MINUTE), Step(3664), Step(3665), Step(3666, HOUR)),
    *(Step(7204), Step(7205), Step(7206, DAY), Step(7270, DAY), Step(86399, DAY), Step(86401)),
)
"""What 85 tokens an answer come to with 150 a minute, 300 an hour and 800 a day."""


async def tell(page: Page, directory: Path, log: Path, port: int = 0) -> None:
    """Play all acts. Raises StoryError when one goes otherwise, and what `Stack` raises."""
    started = time.monotonic()
    config = example("gloo")
    models = config["authConfigs"]["viewer"].pop("models")  # is an act of its own
    clock, issuer = MovableClock(), Issuer(ISSUER)
    async with _running(page, directory, port, clock, issuer, config) as caller:
        _introduce(page, caller.stack)
        await _tokens(caller, issuer)
        await _claims(caller, issuer)
        clock.advance(_A_DAY)
        await _a_minute(caller, issuer, log)
        clock.advance(_A_DAY)
        await _walk(caller, issuer, clock, log)
        await _counted(caller)
        config["authConfigs"]["viewer"]["models"] = models
        await _models(caller, issuer, config)
        page.act("7. Envoy's own counters of us")
        await caller.show_envoy()
    page.line()
    page.line(f"Everything is stopped again. {time.monotonic() - started:.0f} s.")


@asynccontextmanager
async def _running(
    page: Page, directory: Path, port: int, clock: MovableClock, issuer: Issuer, config: Mapping[str, Any]
) -> AsyncIterator[Caller]:
    gateway = {
        "listen": f"127.0.0.1:{port}",
        "filters_before": [jwt_authn_filter(issuer=ISSUER, jwks=issuer.jwks)],
        "rewrites": {PATH: MODEL_PATH},
    }
    stack = Stack(config, model=MODEL, gateway=gateway, directory=directory, clock=clock)
    async with stack, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield Caller(page, stack, session, host=HOST, path=PATH, question=QUESTION)


def _introduce(page: Page, stack: Stack) -> None:
    introduce(page, stack, "JWTs, claims and tiers on the real Envoy", filters="jwt_authn ─> rbac ─> ext_proc")
    page.line("  deploy/examples/gloo: 150 tokens a minute, 300 an hour, 800 a day for each user. An answer costs 85.")
    page.line("  The tokens of Alice and Bob are signed by a key made just now.")


async def _tokens(caller: Caller, issuer: Issuer) -> None:
    page = caller.page
    page.act("1. jwt_authn: who has no valid token hears it from Envoy, and extproc is not asked")
    alice = issuer.token(**ALICE)
    for what, headers, body in (
        ("no token", {}, "Jwt is missing"),
        ("Alice's, with another team", bearer(tampered(alice, team="ops")), "Jwt verification fails"),
    ):
        answer = await caller.ask(headers)
        page.line(f"  {what:27} {answer.status}  {answer.body}")
        page.line(f"  {'':27}      {shown(answer.headers, ['www-authenticate'])}")
        expect(f"the answer to {what}", (answer.status, answer.body), (401, body))
    expect("requests that extproc was asked about", caller.stack.server.metrics.hits, 0)
    for what, claims in (("Alice's", ALICE), ("Bob's", BOB)):
        _show_answer(caller, what, await caller.ask(bearer(issuer.token(**claims))))
    seen = caller.stack.model.requests[-1]
    expect("what the model sees", (seen.target, "authorization" in dict(seen.headers)), (MODEL_PATH, False))
    page.line(f"  The model sees {seen.target}, and no token.")


def _show_answer(caller: Caller, what: str, answer: Answer) -> None:
    expect(f"the status of {what} request", answer.status, 200)
    document = orjson.loads(answer.body)
    usage = document["usage"]
    counts = [usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
    expect("the answer", (document["model"], counts), ("qwen:0.5b", [PROMPT, COMPLETION, PROMPT + COMPLETION]))
    caller.page.line(f"  {what:27} {answer.status}  model {document['model']}, usage {'/'.join(map(str, counts))}")


async def _claims(caller: Caller, issuer: Issuer) -> None:
    page, stack = caller.page, caller.stack
    page.act("2. rbac: only the team `dev` of the organisation `solo.io`, until this filter is removed again")
    filters = [jwt_authn_filter(issuer=ISSUER, jwks=issuer.jwks), rbac_filter(DEVELOPERS)]
    config = bootstrap(
        upstream=stack.model.address,
        extproc=stack.server.addresses,
        filters_before=filters,
        rewrites={PATH: MODEL_PATH},
    )
    async with EnvoyProcess(config) as stricter:
        for what, claims, expected in (("Alice's", ALICE, (200, "")), ("Bob's", BOB, (403, DENIED))):
            answer = await caller.ask(bearer(issuer.token(**claims)), url=f"http://{stricter.address}")
            told = answer.body if answer.status != 200 else ""
            page.line(f"  {what:27} {answer.status}  {told}".rstrip())
            expect(f"the answer to {what} request", (answer.status, told), expected)


async def _a_minute(caller: Caller, issuer: Issuer, log: Path) -> None:
    page = caller.page
    page.act("3. 150 tokens a minute (a day later: the limiter's clock is moved on)")
    for name, claims in (("Alice", ALICE), ("Bob", BOB)):
        headers = bearer(issuer.token(**claims))
        for number, status in ((1, 200), (2, 200), (3, 429)):
            answer = await caller.ask(headers)
            about = _refusal(caller, answer, log) if answer.status == 429 else ""
            page.line(f"  {name:5} {number}  {answer.status}  {about}".rstrip())
            expect(f"the status of {name}'s request {number}", answer.status, status)
    page.line("  The answer that goes over the limit is given, the next one is not; Alice's are not Bob's.")


def _refusal(caller: Caller, answer: Answer, log: Path) -> str:
    told = ("x-envoy-ratelimited", "retry-after", "content-length")
    expect("the headers of a refusal", [answer.headers.get(name) for name in told[::2]], ["true", "0"])
    expect("the limit", _refused_by(caller, log), MINUTE)
    return shown(answer.headers, told)


async def _walk(caller: Caller, issuer: Issuer, clock: MovableClock, log: Path) -> None:
    page = caller.page
    page.act("4. A day of Alice's, and which limit refuses (another day later; the clock is moved on at every step)")
    headers = bearer(issuer.token(**ALICE))
    before = 0
    for at, limit in WALK:
        clock.advance(at - before)
        before = at
        answer = await caller.ask(headers)
        refused_by = _refused_by(caller, log) if answer.status == 429 else ""
        page.line(f"  {at:>6} s  {answer.status}  {refused_by}".rstrip())
        expect(f"the answer after {at} s", (answer.status, refused_by), (429 if limit else 200, limit))


def _refused_by(caller: Caller, log: Path) -> str:
    """The limit that the last decision names."""
    caller.stack.server.decisions.flush()
    limit: str = orjson.loads(log.read_text().splitlines()[-1])["limit"]
    return limit


async def _counted(caller: Caller) -> None:
    caller.page.act("5. What Alice and Bob used, under Gloo's names")
    answers = {
        # One in act 1, one in act 2, two in act 3, then those of the walk.
        ("dev", "alice"): 4 + sum(not step.refused_by for step in WALK),
        ("ops", "bob"): 3,
    }
    expected = {}
    for (team, user), count in answers.items():
        labels = f'{{llm="openai",model="qwen:0.5b",team="{team}",org="solo.io",id="{user}"}}'
        expected[f"ai_prompt_tokens_total{labels}"] = PROMPT * count
        expected[f"ai_completion_tokens_total{labels}"] = COMPLETION * count
    await caller.show_metrics(expected)
    refusals = {limit: sum(step.refused_by == limit for step in WALK) for limit in (MINUTE, HOUR, DAY)}
    refusals[MINUTE] += 2
    await caller.show_metrics(
        {
            f'extproc_limit_refusals_total{{namespace="models",limit="{limit}"}}': count
            for limit, count in refusals.items()
        }
    )


async def _models(caller: Caller, issuer: Issuer, config: Mapping[str, Any]) -> None:
    page = caller.page
    page.act(f"6. Models by claim: `models: {config['authConfigs']['viewer']['models']}`, reloaded")
    await caller.reconfigure(config)
    for name, claims, model, expected in (
        ("Alice", ALICE, "gpt-4", (403, DENIED)),
        ("Alice", ALICE, "gpt-3.5-turbo", (200, "")),
        ("Bob", BOB, "gpt-3.5-turbo", (403, DENIED)),
    ):
        answer = await caller.ask(bearer(issuer.token(**claims)), model=model)
        told = answer.body if answer.status != 200 else ""
        page.line(f"  {name:5} {model:14} {answer.status}  {told}".rstrip())
        expect(f"the answer to {name} about {model}", (answer.status, told), expected)
