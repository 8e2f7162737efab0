"""Models as a Service: API keys and tiers from Kuadrant's documents, then token budgets, then tokens of an issuer."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import aiohttp

from extproc.demo.caller import Caller, shown
from extproc.demo.clock import MovableClock
from extproc.demo.examples import example
from extproc.demo.introduction import introduce
from extproc.demo.page import Page, expect
from extproc.demo.stack import Stack
from extproc.demo.tokens import Issuer, bearer
from extproc.gateway import jwt_authn_filter
from extproc.simulator import Options

HOST = "simulator.maas.local"
OTHER_HOST = "qwen3.maas.local"
PATH = "/v1/chat/completions"
NAMESPACE = "llm/simulator-domain-route"
QUESTION = {
    "model": "simulator-model",
    "messages": [{"role": "user", "content": "Test request"}],
    "max_tokens": 10,
}
MODEL = Options(prompt_tokens=10, completion_tokens=20, frames=1, text="Hello!")
KEYCLOAK = "http://keycloak.keycloak-system.svc.cluster.local:8080/realms/maas"
METRICS = {"families": ["maas"]}
"""Names of the dashboards of Models as a Service, beside ours."""
_WINDOW = 120


class Turn(NamedTuple):
    """One user's part of the test script; of its lines `first` are shown, then the last three."""

    title: str
    name: str
    key: str
    requests: int
    limit: int
    first: int

    @property
    def expected(self) -> list[int]:
        return [200] * self.limit + [429] * (self.requests - self.limit)


SCRIPT = (
    Turn("Free User (5 requests per 2min)", "Free", "freeuser1_key", 7, 5, 7),
    Turn("Premium User 1 (20 requests per 2min)", "Premium1", "premiumuser1_key", 22, 20, 2),
    Turn("Premium User 2 (20 requests per 2min)", "Premium2", "premiumuser2_key", 22, 20, 1),
    Turn("Second Free User (5 requests per 2min)", "Free2", "freeuser2_key", 7, 5, 1),
)


class Subject(NamedTuple):
    """One user of the issuer."""

    name: str
    tier: str
    requests: int
    limit: int


SUBJECTS = (
    Subject("freeuser1", "free", 7, 5),
    Subject("premiumuser1", "premium", 22, 20),
    Subject("enterpriseuser1", "enterprise", 102, 100),
)


def api_key(key: str) -> dict[str, str]:
    """The header that carries it."""
    return {"authorization": f"APIKEY {key}"}


async def tell(page: Page, directory: Path, log: Path, port: int = 0) -> None:
    """Play all acts. Raises StoryError when one goes otherwise, and what `Stack` raises."""
    started = time.monotonic()
    clock, keycloak = MovableClock(), Issuer(KEYCLOAK)
    async with _running(page, directory, port, clock, keycloak) as caller:
        _introduce(page, caller.stack)
        page.act("1. The test script: API keys, two tiers, each user with a count of their own")
        await _script(caller)
        await _kept_out(caller)
        await _second_run(caller, clock)
        await _another_route(caller)
        await _token_budget(caller)
        await _issuer(caller, keycloak)
        page.act("7. Envoy's own counters of us")
        await caller.show_envoy()
    page.line()
    page.line(f"Everything is stopped again. {time.monotonic() - started:.0f} s.")


@asynccontextmanager
async def _running(
    page: Page, directory: Path, port: int, clock: MovableClock, keycloak: Issuer
) -> AsyncIterator[Caller]:
    tokens = jwt_authn_filter(issuer=keycloak.name, jwks=keycloak.jwks, optional=True)
    gateway = {"listen": f"127.0.0.1:{port}", "filters_before": [tokens]}
    config = {**example("maas"), "metrics": METRICS}
    stack = Stack(config, model=MODEL, gateway=gateway, directory=directory, clock=clock)
    async with stack, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield Caller(page, stack, session, host=HOST, path=PATH, question=QUESTION)


def _introduce(page: Page, stack: Stack) -> None:
    introduce(page, stack, "Models as a Service on the real Envoy", filters="jwt_authn ─> ext_proc")
    page.line(
        "  deploy/examples/maas: an AuthPolicy, a RateLimitPolicy, Secrets and HTTPRoutes, as Kuadrant takes them."
    )


async def _script(caller: Caller) -> None:
    """What the test script of Models as a Service prints, with its longer stretches cut as in its documentation."""
    page = caller.page
    page.line()
    page.line(f"Host    : {HOST}")
    page.line(f"Model ID: {QUESTION['model']}")
    for turn in SCRIPT:
        found = await caller.statuses(turn.requests, api_key(turn.key))
        page.line()
        page.line(f"=== {turn.title} ===")
        for number, status in enumerate(found, 1):
            if number <= turn.first or number > turn.requests - 3:
                page.line(f"{turn.name} req #{number:<2} -> {status}")
            elif number == turn.first + 1:
                page.line("...")
        expect(f"statuses of {turn.name}", found, turn.expected)


async def _kept_out(caller: Caller) -> None:
    page = caller.page
    page.act("2. Who is refused otherwise: nothing of it is counted, and the model hears of nothing")
    asked = len(caller.stack.model.requests)
    told = ("www-authenticate", "x-ext-auth-reason")
    unknown = {"www-authenticate": 'APIKEY realm="api-key-users"'}
    for what, headers, status, expected in (
        ("no key", {}, 401, {**unknown, "x-ext-auth-reason": "credential not found"}),
        ("unknown key", api_key("wrong"), 401, {**unknown, "x-ext-auth-reason": "the API Key provided is invalid"}),
        ("no tier", api_key("nogroupuser_key"), 403, {"x-ext-auth-reason": "Unauthorized"}),
    ):
        answer = await caller.ask(headers)
        page.line(f"  {what:13} {answer.status}  {shown(answer.headers, told)}")
        expect(f"the status with {what}", answer.status, status)
        expect(f"the headers with {what}", {name: answer.headers.get(name) for name in expected}, expected)
    expect("requests to the model", len(caller.stack.model.requests), asked)


async def _second_run(caller: Caller, clock: MovableClock) -> None:
    page = caller.page
    page.act("3. More than two minutes later (the limiter's clock is moved on by 121 s): the same again")
    clock.advance(_WINDOW + 1)
    for turn in SCRIPT:
        found = await caller.statuses(turn.requests, api_key(turn.key))
        page.line(f"  {turn.name:9} {_runs(found)}")
        expect(f"statuses of {turn.name}", found, turn.expected)
    page.line()
    await caller.show_metrics(
        {
            f'authorized_calls{{limitador_namespace="{NAMESPACE}"}}': 100,
            f'limited_calls{{limitador_namespace="{NAMESPACE}"}}': 16,
        }
    )


async def _another_route(caller: Caller) -> None:
    page = caller.page
    page.act("4. Every route has limits of its own")
    key = api_key("freeuser1_key")
    here, there = (await caller.ask(key)).status, (await caller.ask(key, host=OTHER_HOST)).status
    page.line(f"  freeuser1 at {HOST}  {here}")
    page.line(f"  freeuser1 at {OTHER_HOST}      {there}")
    expect("the statuses at both hosts", (here, there), (429, 200))


async def _token_budget(caller: Caller) -> None:
    page = caller.page
    page.act("5. Another policy: tokens, not requests (deploy/examples/tokens, reloaded while Envoy runs)")
    await caller.reconfigure({**example("tokens"), "metrics": METRICS})
    before = await caller.metrics()
    for name, key, requests, allowed in (
        ("freeuser1", "freeuser1_key", 5, 4),
        ("premiumuser1", "premiumuser1_key", 18, 17),
    ):
        found = await caller.statuses(requests, api_key(key))
        page.line(f"  {name:12} {_runs(found)}")
        expect(f"statuses of {name}", found, [200] * allowed + [429])
    refusal = await caller.ask(api_key("freeuser1_key"))
    page.line(f"  429  {shown(refusal.headers, ('x-envoy-ratelimited', 'retry-after'))}")
    page.line(f"       {refusal.body}")
    page.line("  An answer is 10 + 20 tokens; 100 a minute are free, 500 premium. The answer that goes over a limit")
    page.line("  is given, the next one is not.")
    page.line()
    user = f'{{user="freeuser1",group="free",namespace="{NAMESPACE}"}}'
    calls, refusals = f"authorized_calls_with_user_and_group{user}", f"limited_calls_with_user_and_group{user}"
    await caller.show_metrics(
        {
            f"token_usage_with_user_and_group{user}": 120,
            calls: before[calls] + 4,
            refusals: before[refusals] + 2,
            "token_usage_total": 120 + 17 * 30,
        }
    )


async def _issuer(caller: Caller, keycloak: Issuer) -> None:
    page = caller.page
    page.act("6. JWTs in place of keys (deploy/examples/maas-oidc, reloaded): signed by a key made just now")
    await caller.reconfigure({**example("maas-oidc"), "metrics": METRICS})
    statuses: list[int] = []
    for subject in SUBJECTS:
        token = keycloak.token(
            sub=f"sub-of-{subject.name}",
            preferred_username=subject.name,
            tier=[subject.tier],
            groups=[subject.tier],
            email=f"{subject.name}@example.com",
            exp=int(time.time()) + 300,
        )
        found = await caller.statuses(subject.requests, bearer(token))
        for number in (1, subject.limit, *range(subject.limit + 1, subject.requests + 1)):
            page.line(f"  {subject.name} req #{number} -> {found[number - 1]}")
        expect(f"statuses of {subject.name}", found, [200] * subject.limit + [429] * (len(found) - subject.limit))
        statuses += found
    page.line(f"  {statuses.count(200)} x 200, {statuses.count(429)} x 429")
    old = await caller.ask(api_key("premiumuser2_key"))
    expired = await caller.ask(bearer(keycloak.token(sub="late", tier="free", exp=int(time.time()) - 3600)))
    page.line(f"  with an API key: {old.status}; with an expired token: {expired.status} {expired.body}")
    expect("refusals", (old.status, expired.status, expired.body), (401, 401, "Jwt is expired"))


def _runs(statuses: Sequence[int]) -> str:
    """`5 x 200, 2 x 429`"""
    return ", ".join(f"{len(list(same))} x {status}" for status, same in groupby(statuses))
