"""JWTs, claims and tiered token budgets through the real Envoy, as deploy/examples/gloo has them (S4)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from support.envoy_client import Client, assert_clean, client_of, ext_proc_counters
from support.hand_model import hand_model

from extproc.demo.clock import MovableClock
from extproc.demo.examples import example
from extproc.demo.gloo import ALICE, BOB, DEVELOPERS, ISSUER, MODEL, MODEL_PATH, PATH, QUESTION
from extproc.demo.stack import Stack
from extproc.demo.tokens import Issuer, bearer, tampered
from extproc.gateway import jwt_authn_filter, rbac_filter

pytestmark = pytest.mark.e2e

ANSWER = (
    b'{"id": "chatcmpl-808", "object": "chat.completion", "created": 1730758807, "model": "qwen:0.5b", '
    b'"system_fingerprint": "fp_ollama", "choices": [{"index": 0, "message": {"role": "assistant", "content": '
    b'"Use service mesh to orchestrate networking between multiple applications.\\u63d0\\u9ad8\\u4e86 application '
    b'security and availability. Sign up and start with service mesh."}, "finish_reason": "stop"}], "usage": '
    b'{"prompt_tokens": 59, "completion_tokens": 26, "total_tokens": 85}}'
)
"""Of the model in the original, byte by byte."""


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer(ISSUER)


def gloo(*, models: bool = False, **viewer: Any) -> dict[str, Any]:
    """The example, with or without its rule about models, and other fields of its authConfig."""
    config = deepcopy(example("gloo"))
    rules = config["authConfigs"]["viewer"]
    if not models:
        rules.pop("models")
    rules.update(viewer)
    return config


class Gateway:
    """A running gateway, and a client that asks one question."""

    def __init__(self, stack: Stack, client: Client) -> None:
        self.stack = stack
        self.client = client

    async def send(self, token: str | None = None, **options: Any) -> Any:
        options = {"host": "gateway.example:8080", "path": PATH, "json": QUESTION, **options}
        return await self.client.send(headers={} if token is None else bearer(token), **options)

    async def statuses(self, count: int, token: str) -> list[int]:
        return [(await self.send(token)).status for _ in range(count)]

    def used(self) -> dict[tuple[str, str], int]:
        """Tokens by limit and user."""
        counters = self.stack.server.limiter.snapshot()
        return {(counter.limit.label, counter.values[0]): counter.used for counter in counters}

    async def metrics(self) -> list[str]:
        async with self.client.session.get(f"http://{self.stack.server.admin_address}/metrics") as page:
            return (await page.text()).splitlines()


@asynccontextmanager
async def gateway(
    issuer: Issuer, config: Mapping[str, Any] | None = None, *filters: Mapping[str, Any], **options: Any
) -> AsyncIterator[Gateway]:
    """jwt_authn, then `filters`, then ours; S4.15 at the end of each."""
    extra = options.pop("gateway", {})
    front = {
        "filters_before": [jwt_authn_filter(issuer=ISSUER, jwks=issuer.jwks), *filters],
        "rewrites": {PATH: MODEL_PATH},
        **extra,
    }
    async with Stack(gloo() if config is None else config, model=MODEL, gateway=front, **options) as stack:
        async with client_of(stack) as client:
            yield Gateway(stack, client)
        await assert_clean(stack)


# ── who gets in ───────────────────────────────────────────────────────────────────────────────────────


async def test_what_envoy_refuses_costs_nothing(issuer: Issuer) -> None:
    """S4.2, S4.3, S4.16: no action set is looked for, no limiter is asked, no model called."""
    alice = issuer.token(**ALICE)
    refused = {
        b"Jwt is missing": None,
        b"Jwt verification fails": tampered(alice, sub="bob"),
        b"Jwt is not in the form": "two.parts",
        b"Jwt issuer is not configured": issuer.token(**{**ALICE, "iss": "elsewhere"}),
        b"Jwt is expired": issuer.token(**ALICE, exp=int(time.time()) - 3600),
    }
    async with gateway(issuer) as running:
        for body, token in refused.items():
            answer = await running.send(token)
            assert (answer.status, answer.body[: len(body)]) == (401, body)
        assert answer.headers["www-authenticate"].startswith('Bearer realm="http://gateway.example:8080/qwen"')
        metrics = running.stack.server.metrics
        assert (metrics.hits, metrics.misses) == (0, 0)
        assert not running.stack.server.counters.tally.authorized_calls
        assert not running.stack.model.requests


async def test_tokens_let_in_and_stay_outside(issuer: Issuer) -> None:
    """S4.1, S4.3, S4.D10: both users pass; the model sees its own path and no token."""
    async with gateway(issuer) as running:
        for claims in (ALICE, BOB):
            answer = await running.send(issuer.token(**claims))
            document = json.loads(answer.body)
            assert (answer.status, document["model"], document["usage"]["total_tokens"]) == (200, "qwen:0.5b", 85)
            seen = running.stack.model.requests[-1]
            assert seen.target == MODEL_PATH
            assert "authorization" not in dict(seen.headers)


async def test_a_model_is_put_in_where_the_client_names_none(issuer: Issuer) -> None:
    """S4.1: as the upstream of a Gloo AI Gateway has it; every other byte stays, and the length is right (G5)."""
    config = gloo() | {
        "providers": [{"name": "ollama", "model": "qwen:0.5b", "credential": "none"}],
        "routing": {"paths": [PATH]},
    }
    body = json.dumps({key: value for key, value in QUESTION.items() if key != "model"}, indent=1).encode()
    async with gateway(issuer, config) as running:
        path = f"{PATH}?echo=true&require-length=true"
        answer = await running.send(issuer.token(**ALICE), json=None, data=body, path=path)
        assert answer.status == 200
        assert answer.body == body[:-2] + b',"model":"qwen:0.5b"\n}'
        assert running.stack.model.requests[-1].target == path.replace(PATH, MODEL_PATH)


async def test_with_precharge_the_request_that_would_cross_a_limit_is_refused(issuer: Issuer) -> None:
    """S4.11: the prompt is charged before the call, and after it what is left of the 85 tokens that it took."""
    config = gloo() | {"precharge": "prompt"}
    async with gateway(issuer, config) as running:
        token = issuer.token(**ALICE)
        assert (await running.send(token)).status == 200
        assert set(running.used().values()) == {85}
        long = {**QUESTION, "messages": [{"role": "user", "content": "mesh " * 200}]}
        assert (await running.send(token, json=long)).status == 429
        assert set(running.used().values()) == {85}
        assert (await running.send(token)).status == 200
        assert set(running.used().values()) == {170}


async def test_claims_decide_before_we_are_asked(issuer: Issuer) -> None:
    """S4.4, S4.16: jwt_authn, rbac, ext_proc, in this order."""
    async with gateway(issuer, None, rbac_filter(DEVELOPERS)) as running:
        assert (await running.send(issuer.token(**ALICE))).status == 200
        denied = await running.send(issuer.token(**BOB))
        assert (denied.status, denied.body) == (403, b"RBAC: access denied")
        assert running.stack.server.metrics.hits == 1
        assert len(running.stack.model.requests) == 1


async def test_models_are_allowed_by_a_claim(issuer: Issuer) -> None:
    """S4.5: also for who has no such claim; the model is in the body, which arrives untouched.

    A model that is not allowed is refused as such to users who have no tokens left, too.
    """
    async with gateway(issuer, gloo(models=True)) as running:
        for claims, model, status in (
            (ALICE, "gpt-4", 403),
            (BOB, "gpt-3.5-turbo", 403),
            (ALICE, "gpt-3.5-turbo", 200),
            (ALICE, "gpt-3.5-turbo", 200),
            (ALICE, "gpt-4", 403),
        ):
            answer = await running.send(issuer.token(**claims), json={**QUESTION, "model": model})
            assert answer.status == status
            assert (answer.body == b"RBAC: access denied") is (status == 403)
        assert len(running.stack.model.requests) == 2
        for seen in running.stack.model.requests:
            assert json.loads(seen.body) == {**QUESTION, "model": "gpt-3.5-turbo"}
        assert {user for _, user in running.used()} == {"alice"}
        # A request that names no model asks for one that nobody allowed.
        nameless = {key: value for key, value in QUESTION.items() if key != "model"}
        assert (await running.send(issuer.token(**ALICE), json=nameless)).status == 403


@pytest.mark.parametrize(
    ("policy", "status", "user"),
    [
        pytest.param("deny", 403, None, id="refused"),
        pytest.param("address", 200, "address:127.0.0.1", id="by address"),
        pytest.param("shared", 200, "anonymous", id="together"),
    ],
)
async def test_strangers_share_no_budget_unless_they_are_told_to(
    issuer: Issuer, policy: str, status: int, user: str | None
) -> None:
    """S4.D2: a token without `sub`."""
    async with gateway(issuer, gloo(onMissingUser=policy)) as running:
        stranger = issuer.token(org="solo.io", team="dev")
        answer = await running.send(stranger)
        assert answer.status == status
        assert {found for _, found in running.used()} == ({user} if user else set())
        assert (await running.send(issuer.token(**ALICE))).status == 200


async def test_tokens_that_live_forever_can_be_refused(issuer: Issuer) -> None:
    """S4.D9: by us, for those whose gateway does not ask for it."""
    source = {"selfminted": {"jwt": {"issuer": ISSUER, "requireExpiration": True}}}
    async with gateway(issuer, gloo(authentication=source)) as running:
        assert (await running.send(issuer.token(**ALICE))).status == 401
        assert (await running.send(issuer.token(**ALICE, exp=int(time.time()) + 60))).status == 200


# ── budgets ───────────────────────────────────────────────────────────────────────────────────────────


async def test_a_minute_of_tokens_for_each_user(issuer: Issuer) -> None:
    """S4.6, S4.7, S4.D3, S4.D13, G7: 85 and 170 pass, then an empty 429; one report counts in all three windows."""
    async with gateway(issuer) as running:
        alice, bob = issuer.token(**ALICE), issuer.token(**BOB)
        assert await running.statuses(2, alice) == [200, 200]
        refused = await running.send(alice)
        assert (refused.status, refused.body) == (429, b"")
        assert refused.headers["x-envoy-ratelimited"] == "true"
        assert refused.headers["content-length"] == "0"
        assert await running.statuses(1, bob) == [200]
        assert running.used() == {
            (f"per-user-counter-{window}", user): used
            for window in ("minute", "hour", "day")
            for user, used in (("alice", 170), ("bob", 85))
        }
        assert await running.statuses(2, bob) == [200, 429]
        assert len(running.stack.model.requests) == 4


async def test_which_limit_refused_is_visible(issuer: Issuer) -> None:
    """S4.9."""
    clock = MovableClock()
    async with gateway(issuer, clock=clock) as running:
        alice = issuer.token(**ALICE)
        assert await running.statuses(3, alice) == [200, 200, 429]
        clock.advance(61)
        assert await running.statuses(3, alice) == [200, 200, 429]
        clock.advance(61)
        assert await running.statuses(1, alice) == [429]
        page = await running.metrics()
        for window, count in (("minute", 1), ("hour", 2)):
            limit = f'namespace="models",limit="per-user-counter-{window}"'
            assert f"extproc_limit_refusals_total{{{limit}}} {count}" in page


async def test_refusals_by_profile(issuer: Issuer) -> None:
    """S4.10: each action set has its own."""
    config = gloo()
    (models,) = config["actionSets"]
    hosts = {
        "gloo.example": ("gloo", b""),
        "kuadrant.example": ("kuadrant", b"Too Many Requests\n"),
        "own.example": ({"status": 503, "headers": {"x-why": "budget"}, "body": "later\n"}, b"later\n"),
    }
    config["actionSets"] = [
        {**models, "name": host, "routeRuleConditions": {"hostnames": [host]}, "denyWith": profile}
        for host, (profile, _) in hosts.items()
    ]
    async with gateway(issuer, config) as running:
        token = issuer.token(**ALICE)
        assert [(await running.send(token, host="gloo.example")).status for _ in range(2)] == [200, 200]
        for host, (_, body) in hosts.items():
            refused = await running.send(token, host=host)
            assert (refused.status, refused.body) == (503 if host == "own.example" else 429, body)
            assert refused.headers["content-length"] == str(len(body))
        assert refused.headers["x-why"] == "budget"


# ── what is told of it ────────────────────────────────────────────────────────────────────────────────


async def test_the_answer_is_the_model_s_byte_by_byte_and_counted_under_gloo_s_names(issuer: Issuer) -> None:
    """S4.D6, S4.12: escapes and spaces stay; 59 and 26 for Alice."""
    async with hand_model() as model:
        model.content_type, model.length = "application/json", len(ANSWER)
        async with gateway(issuer, gateway={"upstream": model.address}) as running:
            sending = asyncio.create_task(running.send(issuer.token(**ALICE)))
            answering = await model.answer()
            await answering.send(ANSWER[:100])
            await answering.send(ANSWER[100:])
            answer = await sending
            answering.close()
            assert (answer.body, answer.headers["content-length"]) == (ANSWER, str(len(ANSWER)))
            labels = '{llm="openai",model="qwen:0.5b",team="dev",org="solo.io",id="alice"}'
            page = await running.metrics()
            assert f"ai_prompt_tokens_total{labels} 59" in page
            assert f"ai_completion_tokens_total{labels} 26" in page


async def test_the_access_log_tells_who_asked_for_what(issuer: Issuer, tmp_path: Path) -> None:
    """S4.13, S4.14, G10: dynamic metadata in a namespace of choice, and the path that the client asked for."""
    log, namespace = tmp_path / "access.log", "ai.gloo.solo.io"
    config = {**gloo(), "metadataNamespace": namespace}
    async with gateway(issuer, config, gateway={"access_log": log, "namespace": namespace}) as running:
        assert await running.statuses(3, issuer.token(**ALICE)) == [200, 200, 429]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    told = [(line["path"], line["responseCode"], line["model"], line["promptTokens"]) for line in lines]
    assert told == [(PATH, 200, "qwen:0.5b", 59), (PATH, 200, "qwen:0.5b", 59), (PATH, 429, None, None)]
    assert (lines[0]["totalTokens"], lines[0]["completionTokens"], lines[0]["streaming"]) == (85, 26, False)


async def test_envoy_counts_no_fault_of_ours(issuer: Issuer) -> None:
    """S4.15: after answers, refusals of every kind and a rejected model; one stream for each request."""
    async with gateway(issuer, gloo(models=True)) as running:
        question = {**QUESTION, "model": "gpt-3.5-turbo"}
        alice = issuer.token(**ALICE)
        found = [(await running.send(alice, json=question)).status for _ in range(3)]
        found += [(await running.send(token)).status for token in (issuer.token(**BOB), None)]
        assert found == [200, 200, 429, 403, 401]
        assert (await ext_proc_counters(running.stack))["streams_started"] == 5
