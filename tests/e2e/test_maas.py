"""Models as a Service through the real Envoy, from the documents in deploy/examples (S1)."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml
from support.envoy_client import Client, assert_clean, client_of
from support.waiting import until

from extproc.demo.clock import MovableClock
from extproc.demo.examples import EXAMPLES, example
from extproc.demo.maas import HOST, KEYCLOAK, MODEL, NAMESPACE, OTHER_HOST, SCRIPT, SUBJECTS, api_key
from extproc.demo.stack import Stack
from extproc.demo.tokens import Issuer, bearer
from extproc.gateway import jwt_authn_filter

pytestmark = pytest.mark.e2e

FREE, PREMIUM, NO_GROUP = api_key("freeuser1_key"), api_key("premiumuser1_key"), api_key("nogroupuser_key")
STREAM = {"json": {"model": "m", "stream": True, "stream_options": {"include_usage": True}, "messages": []}}


@pytest.fixture(scope="module")
def keycloak() -> Issuer:
    return Issuer(KEYCLOAK)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the examples, to be edited."""
    return Path(shutil.copytree(EXAMPLES, tmp_path / "examples"))


@asynccontextmanager
async def gateway(config: Mapping[str, Any], issuer: Issuer | None = None, **options: Any) -> AsyncIterator[Gateway]:
    """The stack for an example and a client of its first route, with jwt_authn in front where there is an issuer."""
    filters = () if issuer is None else (jwt_authn_filter(issuer=issuer.name, jwks=issuer.jwks, optional=True),)
    async with Stack(config, model=MODEL, gateway={"filters_before": filters}, **options) as stack:
        async with client_of(stack) as client:
            yield Gateway(stack, client)
        await assert_clean(stack)


class Gateway:
    """A running gateway, and what it has counted."""

    def __init__(self, stack: Stack, client: Client) -> None:
        self.stack = stack
        self.client = client

    async def send(self, headers: Mapping[str, str], *, host: str = HOST, **options: Any) -> Any:
        return await self.client.send(host=host, headers=headers, **options)

    async def statuses(self, count: int, headers: Mapping[str, str], *, host: str = HOST) -> list[int]:
        return await self.client.statuses(count, host=host, headers=headers)

    async def reload(self, config: Mapping[str, Any]) -> None:
        self.stack.configure(config)
        assert await self.stack.server.reload()

    @property
    def calls(self) -> tuple[int, int]:
        """Requests of the first route that limits allowed and refused."""
        tally = self.stack.server.counters.tally
        refused = sum(count for (namespace, _), count in tally.limited_calls.items() if namespace == NAMESPACE)
        return tally.authorized_calls.get(NAMESPACE, 0), refused

    async def metrics(self) -> list[str]:
        async with self.client.session.get(f"http://{self.stack.server.admin_address}/metrics") as page:
            return (await page.text()).splitlines()


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# ── keys, tiers, requests ─────────────────────────────────────────────────────────────────────────────


async def test_the_test_script_twice_gives_the_numbers_of_its_documentation() -> None:
    """S1.6 to S1.12: each user with a count of their own, back after two minutes; who is kept out is not counted."""
    clock = MovableClock()
    async with gateway(example("maas"), clock=clock) as running:
        for runs in (1, 2):
            found = [await running.statuses(turn.requests, api_key(turn.key)) for turn in SCRIPT]
            assert found == [turn.expected for turn in SCRIPT]
            assert await running.statuses(2, {}) + await running.statuses(2, NO_GROUP) == [401, 401, 403, 403]
            assert running.calls == (50 * runs, 8 * runs)
            clock.advance(121)
        page = await running.metrics()
        assert f'authorized_calls{{limitador_namespace="{NAMESPACE}"}} 100' in page
        assert f'limited_calls{{limitador_namespace="{NAMESPACE}"}} 16' in page


@pytest.mark.parametrize(
    ("headers", "status", "told"),
    [
        pytest.param({}, 401, "credential not found", id="no key"),
        pytest.param(api_key("unknown"), 401, "the API Key provided is invalid", id="unknown key"),
        pytest.param(bearer("freeuser1_key"), 401, "credential not found", id="another scheme"),
        pytest.param({"authorization": "APIKEY"}, 401, "credential not found", id="nothing after the scheme"),
        pytest.param(NO_GROUP, 403, "Unauthorized", id="no tier"),
    ],
)
async def test_who_is_kept_out(headers: dict[str, str], status: int, told: str) -> None:
    """S1.2 to S1.5, S1.12: no call to a limiter, none to the model."""
    async with gateway(example("maas")) as running:
        answer = await running.send(headers)
        assert (answer.status, answer.headers["x-ext-auth-reason"]) == (status, told)
        challenge = 'APIKEY realm="api-key-users"' if status == 401 else None
        assert answer.headers.get("www-authenticate") == challenge
        assert running.calls == (0, 0)
        assert not running.stack.model.requests


async def test_two_sources_challenge_twice_and_each_lets_in(folder: Path) -> None:
    """S1.4: a header for each source, and both reasons as JSON."""
    policy = folder / "maas/policies/auth.yaml"
    document = yaml.safe_load(policy.read_text())
    sources = document["spec"]["rules"]["authentication"]
    source = sources.pop("api-key-users")
    for name, prefix in (("apikey", "APIKEY"), ("bearer", "Bearer")):
        sources[f"api-key-users-{name}"] = {
            **source,
            "credentials": {"authorizationHeader": {"prefix": prefix}},
        }
    policy.write_text(yaml.safe_dump(document))
    async with gateway(example("maas", folder)) as running:
        refused = await running.send({})
        assert refused.status == 401
        assert sorted(refused.headers.getall("www-authenticate")) == [
            'APIKEY realm="api-key-users-apikey"',
            'Bearer realm="api-key-users-bearer"',
        ]
        assert json.loads(refused.headers["x-ext-auth-reason"]) == {
            "api-key-users-apikey": "credential not found",
            "api-key-users-bearer": "credential not found",
        }
        assert [(await running.send(headers)).status for headers in (FREE, bearer("freeuser1_key"))] == [200, 200]


async def test_the_model_learns_neither_the_key_nor_what_clients_claim_to_be() -> None:
    """S1.D3, S1.D4."""
    claims = {"x-maas-user": "premiumuser1", "X-Extproc-Tier": "premium", "x-custom": "kept"}
    async with gateway(example("maas")) as running:
        assert (await running.send({**FREE, **claims})).status == 200
        seen = dict(running.stack.model.requests[-1].headers)
        assert seen["x-custom"] == "kept"
        assert not {"authorization", "x-maas-user", "x-extproc-tier"} & seen.keys()
        assert "freeuser1_key" not in str(seen)
        assert await running.statuses(5, {**FREE, **claims}) == [200] * 4 + [429]


async def test_routes_have_limits_of_their_own() -> None:
    """S1.26."""
    async with gateway(example("maas")) as running:
        assert await running.statuses(6, FREE) == [200] * 5 + [429]
        assert await running.statuses(6, FREE, host=OTHER_HOST) == [200] * 5 + [429]
        assert running.calls == (5, 1)
        assert await running.statuses(1, FREE, host="elsewhere.example") == [404]


async def test_a_refusal_is_one_that_clients_understand() -> None:
    """G7, S4.10: Envoy's own header, how long to wait, and OpenAI's error object, through the real Envoy."""
    async with gateway(example("maas")) as running:
        await running.statuses(5, FREE)
        answer = await running.send(FREE)
        assert answer.status == 429
        assert answer.headers["x-envoy-ratelimited"] == "true"
        assert 100 < int(answer.headers["retry-after"]) <= 120
        assert answer.headers["content-type"] == "application/json"
        error = json.loads(answer.body)["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert "`free-user-requests`" in error["message"]


# ── files that change ─────────────────────────────────────────────────────────────────────────────────


async def test_an_edited_limit_counts_from_the_next_request_on(folder: Path) -> None:
    """S1.24: 5 become 7, noticed by the server itself."""
    async with gateway(example("maas", folder)) as running:
        watching = asyncio.create_task(running.stack.server.watch())
        assert await running.statuses(6, FREE) == [200] * 5 + [429]
        loaded = running.stack.server.metrics.configs
        edited(folder / "maas/policies/rate-limits.yaml", "limit: 5", "limit: 7")
        await until(lambda: running.stack.server.metrics.configs > loaded)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        assert await running.statuses(3, FREE) == [200, 200, 429]
        assert await running.statuses(8, api_key("freeuser2_key")) == [200] * 7 + [429]


async def test_a_revoked_key_is_refused_from_the_next_request_on(folder: Path) -> None:
    """S1.18."""
    config = example("maas", folder)
    async with gateway(config) as running:
        assert await running.statuses(1, PREMIUM) == [200]
        edited(folder / "maas/policies/api-keys.yaml", "api_key: premiumuser1_key", "api_key: another_key")
        await running.reload(config)
        assert await running.statuses(1, PREMIUM) == [401]
        assert await running.statuses(1, api_key("another_key")) == [200]


async def test_a_policy_that_cannot_be_understood_changes_nothing(folder: Path) -> None:
    config = example("maas", folder)
    async with gateway(config) as running:
        edited(folder / "maas/policies/rate-limits.yaml", "limit: 5", "limt: 7")
        assert not await running.stack.server.reload()
        assert await running.statuses(6, FREE) == [200] * 5 + [429]


async def test_another_way_to_authenticate_without_a_restart(keycloak: Issuer) -> None:
    """S1.17: keys go, tokens come, and a stream that began with a key ends well."""
    async with gateway(example("maas"), keycloak) as running:
        token = bearer(keycloak.token(sub="u1", tier="free"))
        assert await running.statuses(1, FREE) == [200]
        loaded = running.stack.server.metrics.configs
        async with running.client.open(host=HOST, headers={**FREE, "x-sim-hold": "swap"}, **STREAM) as response:
            await response.content.readuntil(b"\n\n")
            await running.reload(example("maas-oidc"))
            assert running.stack.server.metrics.configs == loaded + 1
            assert await running.statuses(1, FREE) == [401]
            assert await running.statuses(1, token) == [200]
            assert running.stack.model.release("swap") == 1
            assert (await response.content.read()).rstrip().endswith(b"data: [DONE]")


# ── tokens of an issuer ───────────────────────────────────────────────────────────────────────────────


async def test_tiers_come_from_claims(keycloak: Issuer) -> None:
    """S1.13, S1.16: 7, 22 and 102 requests with a tier as a text, or in a list."""
    async with gateway(example("maas-oidc"), keycloak) as running:
        statuses: list[int] = []
        for index, subject in enumerate(SUBJECTS):
            tier = subject.tier if index % 2 else [subject.tier]
            token = keycloak.token(sub=subject.name, tier=tier, exp=int(time.time()) + 60)
            found = await running.statuses(subject.requests, bearer(token))
            assert found == [200] * subject.limit + [429] * (subject.requests - subject.limit)
            statuses += found
        assert (statuses.count(200), statuses.count(429)) == (125, 6)


async def test_a_user_is_the_subject_whatever_the_token(keycloak: Issuer) -> None:
    """S1.14."""
    async with gateway(example("maas-oidc"), keycloak) as running:
        first, second = (keycloak.token(sub="u1", tier="free", jti=number) for number in ("1", "2"))
        assert await running.statuses(3, bearer(first)) == [200] * 3
        assert await running.statuses(3, bearer(second)) == [200, 200, 429]
        assert await running.statuses(1, bearer(keycloak.token(sub="u2", tier="free", jti="1"))) == [200]


async def test_tokens_that_nobody_believes(keycloak: Issuer) -> None:
    """S1.15, S1.12: Envoy's own 401, but for a missing one, which it leaves to us; nothing is counted."""
    good = keycloak.token(sub="u1", tier="free")
    refused = {
        "expired": (keycloak.token(sub="u1", tier="free", exp=int(time.time()) - 3600), b"Jwt is expired"),
        "garbled": (good[:-4] + "AAAA", b"Jwt verification fails"),
        "foreign issuer": (keycloak.token(iss="http://elsewhere", sub="u1"), b"Jwt issuer is not configured"),
        "foreign key": (Issuer(KEYCLOAK).token(sub="u1", tier="free"), b"Jwt verification fails"),
        "alg none": (jwt.encode({"iss": KEYCLOAK, "sub": "u1", "tier": "free"}, None, "none") + "AA", b"Jwt "),
    }
    async with gateway(example("maas-oidc"), keycloak) as running:
        for what, (token, body) in refused.items():
            answer = await running.send(bearer(token))
            assert (answer.status, answer.body[: len(body)]) == (401, body), what
        assert running.stack.server.metrics.hits == 0
        missing = await running.send({})
        assert (missing.status, missing.headers["www-authenticate"]) == (401, 'Bearer realm="keycloak-jwt"')
        assert running.calls == (0, 0)
        assert not running.stack.model.requests


@pytest.mark.parametrize(("on_no_limit", "status"), [("deny", 403), ("allow", 200)])
async def test_a_tier_that_no_limit_knows(keycloak: Issuer, on_no_limit: str, status: int) -> None:
    """S1.D1: refused as shipped; also one that is of another type, or not there."""
    config = example("maas-oidc")
    assert config["onNoLimit"] == "deny"
    async with gateway({**config, "onNoLimit": on_no_limit}, keycloak) as running:
        for claims in ({"tier": "platinum"}, {"tier": ["platinum"]}, {"tier": []}, {"tier": {}}, {"tier": 7}, {}):
            token = keycloak.token(sub="u1", **claims)
            assert await running.statuses(6, bearer(token)) == [status] * 6, claims


# ── token budgets ─────────────────────────────────────────────────────────────────────────────────────


async def test_token_budgets_by_tier() -> None:
    """S1.19, S1.20: 30 tokens an answer of 100, or 500, a minute; and who used them."""
    config = {**example("tokens"), "metrics": {"families": ["maas"]}}
    async with gateway(config) as running:
        assert await running.statuses(6, FREE) == [200] * 4 + [429] * 2
        assert await running.statuses(18, PREMIUM) == [200] * 17 + [429]
        user = f'{{user="freeuser1",group="free",namespace="{NAMESPACE}"}}'
        page = await running.metrics()
        for line in (
            f"token_usage_with_user_and_group{user} 120",
            f"authorized_calls_with_user_and_group{user} 4",
            f"limited_calls_with_user_and_group{user} 2",
            f"token_usage_total {21 * 30}",
            f'authorized_hits{{limitador_namespace="{NAMESPACE}"}} {21 * 30}',
        ):
            assert line in page


async def test_requests_and_tokens_on_one_route() -> None:
    """S1.29: the first denial wins, and who has no tokens left loses no request."""
    config = example("maas")
    config["policies"].append(str(EXAMPLES / "tokens/policies/token-limits.yaml"))
    clock = MovableClock()
    async with gateway(config, clock=clock) as running:
        assert await running.statuses(7, FREE) == [200] * 4 + [429] * 3
        refused = running.stack.server.counters.tally.limited_calls
        assert refused == {(NAMESPACE, "free-user-tokens"): 3}
        clock.advance(61)
        assert await running.statuses(2, FREE) == [200, 429]
        assert refused == {(NAMESPACE, "free-user-tokens"): 3, (NAMESPACE, "free-user-requests"): 1}


# ── bodies, and models that are away ──────────────────────────────────────────────────────────────────


async def test_the_length_of_a_request_arrives() -> None:
    """S1.27, G5: as it was where the body is, and corrected where it was changed."""
    picky = {**FREE, "x-sim-require-length": "true", "content-type": "application/json"}
    question: dict[str, Any] = {"model": "simulator-model", "messages": [], "é": "x" * 3000}
    async with gateway(example("tokens")) as running:
        plain = json.dumps(question).encode()
        assert (await running.send(picky, data=plain)).status == 200
        seen = running.stack.model.requests[-1]
        assert (dict(seen.headers)["content-length"], seen.body_length) == (str(len(plain)), len(plain))
        streamed = json.dumps({**question, "stream": True}).encode()
        assert (await running.send(picky, data=streamed)).status == 200
        seen = running.stack.model.requests[-1]
        assert "include_usage" in seen.body
        assert int(dict(seen.headers)["content-length"]) == seen.body_length > len(streamed)


async def test_a_model_that_is_away_costs_nothing() -> None:
    """S1.28: Envoy's 503 as it is; the request was allowed, and nothing is reported."""
    async with gateway(example("tokens")) as running:
        await running.stack.model.stop()
        answer = await running.send(FREE)
        assert answer.status == 503
        assert b"upstream connect error" in answer.body
        assert running.calls == (1, 0)
        assert running.stack.server.metrics.tokens_reported == 0
        assert not list(running.stack.server.limiter.snapshot())
