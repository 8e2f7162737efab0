"""Envoy's filters for tokens and claims, as we configure them, in the real Envoy."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import jwt
import pytest

from extproc.demo.tokens import Issuer, bearer, tampered
from extproc.gateway import EnvoyProcess, bootstrap, jwt_authn_filter, rbac_filter
from extproc.simulator import Simulator

pytestmark = pytest.mark.e2e

ISSUER = "solo.io"
ALICE: dict[str, Any] = {"sub": "alice", "org": "solo.io", "team": "dev", "llms": {"openai": ["gpt-3.5-turbo", "o1"]}}


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer(ISSUER)


@asynccontextmanager
async def gateway(*filters: Mapping[str, Any]) -> AsyncIterator[tuple[EnvoyProcess, Simulator, aiohttp.ClientSession]]:
    """A model behind these filters alone."""
    async with Simulator() as model:
        config = bootstrap(
            upstream=model.address,
            extproc=None,
            filters_before=filters,
            rewrites={"/qwen": "/v1/chat/completions"},
        )
        async with EnvoyProcess(config) as envoy, aiohttp.ClientSession() as http:
            yield envoy, model, http


async def ask(
    envoy: EnvoyProcess, http: aiohttp.ClientSession, headers: Mapping[str, str]
) -> tuple[int, str, Mapping[str, str]]:
    """Status, body and headers of a POST to /qwen."""
    async with http.post(f"http://{envoy.address}/qwen", headers=headers, json={"messages": []}) as answer:
        return answer.status, await answer.text(), answer.headers


async def test_without_a_token_nobody_reaches_the_model(issuer: Issuer) -> None:
    """S4.2: the status, the fourteen bytes and the challenge."""
    async with gateway(jwt_authn_filter(issuer=ISSUER, jwks=issuer.jwks)) as (envoy, model, http):
        status, body, headers = await ask(envoy, http, {"host": "gateway.example:8080"})
        assert (status, body, headers["content-type"]) == (401, "Jwt is missing", "text/plain")
        assert headers["www-authenticate"] == 'Bearer realm="http://gateway.example:8080/qwen"'
        assert not model.requests


async def test_the_model_sees_neither_the_token_nor_the_path_of_the_client(issuer: Issuer) -> None:
    """S4.1, S4.D10."""
    async with gateway(jwt_authn_filter(issuer=ISSUER, jwks=issuer.jwks)) as (envoy, model, http):
        status, *_ = await ask(envoy, http, bearer(issuer.token(**ALICE)))
        assert status == 200
        (seen,) = model.requests
        assert seen.target == "/v1/chat/completions"
        assert "authorization" not in dict(seen.headers)
        assert dict(seen.headers)["x-envoy-original-path"] == "/qwen"


async def test_tokens_that_are_refused(issuer: Issuer) -> None:
    """S1.15, S4.3: each with Envoy's reason."""
    good = issuer.token(**ALICE)
    refused = {
        "Jwt verification fails": [tampered(good, sub="bob"), Issuer(ISSUER).token(**ALICE)],
        "Jwt is not in the form": ["garbage", good.rpartition(".")[0], jwt.encode({"iss": ISSUER}, None, "none")],
        "Jwt issuer is not configured": [issuer.token(iss="another")],
        "Jwt is expired": [issuer.token(**ALICE, exp=int(time.time()) - 3600)],
        "Jwt not yet valid": [issuer.token(**ALICE, nbf=int(time.time()) + 3600)],
    }
    async with gateway(jwt_authn_filter(issuer=ISSUER, jwks=issuer.jwks)) as (envoy, model, http):
        for reason, tokens in refused.items():
            for token in tokens:
                status, body, headers = await ask(envoy, http, bearer(token))
                assert (status, body[: len(reason)]) == (401, reason)
                assert 'error="invalid_token"' in headers["www-authenticate"]
        assert not model.requests


@pytest.mark.parametrize(("required", "status"), [(False, 200), (True, 401)])
async def test_a_token_that_lives_forever(issuer: Issuer, required: bool, status: int) -> None:
    """S4.D9."""
    filters = jwt_authn_filter(issuer=ISSUER, jwks=issuer.jwks, require_expiration=required)
    async with gateway(filters) as (envoy, _, http):
        assert (await ask(envoy, http, bearer(issuer.token(**ALICE))))[0] == status
        lasting = issuer.token(**ALICE, exp=int(time.time()) + 60)
        assert (await ask(envoy, http, bearer(lasting)))[0] == 200


async def test_a_token_for_somebody_else(issuer: Issuer) -> None:
    filters = jwt_authn_filter(issuer=ISSUER, jwks=issuer.jwks, audiences=["models"])
    async with gateway(filters) as (envoy, _, http):
        assert (await ask(envoy, http, bearer(issuer.token(**ALICE, aud="models"))))[0] == 200
        status, body, _ = await ask(envoy, http, bearer(issuer.token(**ALICE, aud="mail")))
        assert (status, body) == (403, "Audiences in Jwt are not allowed")


async def test_tokens_may_be_one_way_of_several(issuer: Issuer) -> None:
    """Who has another credential passes to those who know it; a wrong token does not."""
    async with gateway(jwt_authn_filter(issuer=ISSUER, jwks=issuer.jwks, optional=True)) as (envoy, model, http):
        assert (await ask(envoy, http, {"authorization": "APIKEY freeuser1_key"}))[0] == 200
        assert dict(model.requests[-1].headers)["authorization"] == "APIKEY freeuser1_key"
        assert (await ask(envoy, http, bearer(issuer.token(iss="another"))))[0] == 401


@pytest.mark.parametrize(
    ("claims", "wanted", "status"),
    [
        pytest.param({}, {"org": "solo.io", "team": "dev"}, 200, id="all"),
        pytest.param({"team": "ops"}, {"org": "solo.io", "team": "dev"}, 403, id="another value"),
        pytest.param({"team": None}, {"team": "dev"}, 403, id="none"),
        pytest.param({}, {"llms.openai": "gpt-3.5-turbo"}, 200, id="in a list"),
        pytest.param({}, {"llms.openai": "gpt-4"}, 403, id="not in a list"),
        pytest.param({"llms": {"openai": "gpt-3.5-turbo"}}, {"llms.openai": "gpt-3.5-turbo"}, 200, id="nested"),
        pytest.param({"team": "devops"}, {"team": "dev"}, 403, id="no prefix"),
    ],
)
async def test_claims_let_in(issuer: Issuer, claims: dict[str, Any], wanted: dict[str, str], status: int) -> None:
    """S4.4."""
    filters = (jwt_authn_filter(issuer=ISSUER, jwks=issuer.jwks), rbac_filter(wanted))
    async with gateway(*filters) as (envoy, model, http):
        found, body, _ = await ask(envoy, http, bearer(issuer.token(**{**ALICE, **claims})))
        assert found == status
        assert (body == "RBAC: access denied") is (status == 403)
        assert len(model.requests) == (status == 200)


async def test_a_probe_needs_neither_token_nor_claims(issuer: Issuer) -> None:
    filters = (jwt_authn_filter(issuer=ISSUER, jwks=issuer.jwks), rbac_filter({"team": "dev"}))
    async with gateway(*filters) as (envoy, _, http), http.get(f"http://{envoy.address}/healthz") as answer:
        assert answer.status == 200


def test_claims_that_let_nobody_in_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^claims: "):
        rbac_filter({})
