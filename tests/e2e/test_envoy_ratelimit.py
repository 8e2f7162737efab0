"""Services of type `ratelimit` against two rate limit services as real processes: Envoy's reference and ours (S0.11).

Both get the same limits, each in its own words, and windows of a day, so that none ends during a test. A test has
users of its own, because the services live as long as the module.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import yaml
from support.envoy_client import Client, assert_clean, client_of
from support.envoy_ratelimit import EnvoyRatelimit, ExtprocLimiter, RateLimitService

from extproc.demo.stack import Stack
from extproc.limiter.messages import SHOULD_RATE_LIMIT
from extproc.limiter.remote import RemoteLimiter
from extproc.limiter.seam import LimiterError, Query
from extproc.wire.rls_pb2 import RateLimitRequest, RateLimitResponse

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "envoy-ratelimit"
ENVOY = "envoyproxy/ratelimit"
OURS = "extproc limiter"
DAY = 86_400

ENVOY_LIMITS = {
    "domain": "llm",
    "descriptors": [
        {
            "key": "tier",
            "value": tier,
            "descriptors": [{"key": "user", "rate_limit": {"unit": "day", "requests_per_unit": requests}}],
        }
        for tier, requests in (("free", 2), ("premium", 4))
    ]
    + [
        {"key": "weighed", "rate_limit": {"unit": "day", "requests_per_unit": 5}},
        {"key": "tokens", "rate_limit": {"unit": "day", "requests_per_unit": 90}},
    ],
}
OUR_LIMITS = [
    {"namespace": "llm", "max_value": maximum, "seconds": DAY, "conditions": conditions, "variables": [variable]}
    for maximum, conditions, variable in (
        (2, ["descriptors[0].tier == 'free'"], "descriptors[0].user"),
        (4, ["descriptors[0].tier == 'premium'"], "descriptors[0].user"),
        (5, [], "descriptors[0].weighed"),
        (90, [], "descriptors[0].tokens"),
    )
]
HEADER_NAMES = {f"LIMIT_{name.upper()}_HEADER": f"X-RateLimit-{name}" for name in ("Limit", "Remaining", "Reset")}

USER = {"expression": {"key": "user", "value": "request.headers['x-user']"}}
TIER = {"expression": {"key": "tier", "value": "request.headers['x-tier']"}}
WEIGHED = {"expression": {"key": "weighed", "value": "request.headers['x-user']"}}
WEIGHT = {"expression": {"key": "ratelimit.hits_addend", "value": "int(request.headers['x-weight'])"}}
TOKENS = {"expression": {"key": "tokens", "value": "request.headers['x-user']"}}
USED = {"expression": {"key": "ratelimit.hits_addend", "value": "usage.total_tokens"}}
BY_TIER = ([TIER, USER],)
BY_WEIGHT = ([WEIGHED, WEIGHT],)
BY_TOKENS = ([TOKENS], [TOKENS, USED])


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[OURS, ENVOY])
async def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RateLimitService]:
    folder = tmp_path_factory.mktemp("service")
    limits = folder / "limits.yaml"
    limits.write_text(yaml.safe_dump(OUR_LIMITS if request.param == OURS else ENVOY_LIMITS))
    starting = ExtprocLimiter(limits) if request.param == OURS else EnvoyRatelimit(limits, folder, **HEADER_NAMES)
    async with starting as running:
        yield running


envoys_alone = pytest.mark.parametrize("service", [ENVOY], indirect=True)


@pytest.fixture
def kind(service: RateLimitService) -> str:
    """Which of the two it is."""
    return OURS if service.storage is None else ENVOY


@asynccontextmanager
async def limited(
    address: str, actions: Sequence[Sequence[Mapping[str, Any]]], failure_mode: str = "deny"
) -> AsyncIterator[tuple[Stack, Client]]:
    """A gateway whose requests cause one call for each of `actions`, which are the entries of a descriptor."""
    config = {
        "services": {
            "limiter": {"type": "ratelimit", "endpoint": "rls", "failureMode": failure_mode, "timeout": "500ms"}
        },
        "endpoints": {"rls": address},
        # A second descriptor, which no limit of Envoy's knows.
        "requestData": {"metrics.labels.path": "request.url_path"},
        "actionSets": [
            {
                "name": "all",
                "routeRuleConditions": {"hostnames": ["*.example.com"]},
                "actions": [
                    {"service": "limiter", "scope": "llm", "conditionalData": [{"data": data}]} for data in actions
                ],
            }
        ],
        "report": {"wait": "400ms"},
    }
    async with Stack(config, gateway={"message_timeout": "3s"}) as stack, client_of(stack) as client:
        yield stack, client


@dataclass(frozen=True)
class Case:
    """Requests one after another, as `USER TIER`, `USER WEIGHT` or `USER`, and what they are answered."""

    name: str
    actions: Sequence[Sequence[Mapping[str, Any]]]
    requests: Sequence[str]
    statuses: Sequence[int] | Mapping[str, Sequence[int]]

    def headers(self, prefix: str) -> Iterator[dict[str, str]]:
        for request in self.requests:
            user, _, rest = request.partition(" ")
            yield {"x-user": f"{prefix}-{user}", "x-tier": rest, "x-weight": rest}

    def expected(self, kind: str) -> list[int]:
        return list(self.statuses[kind] if isinstance(self.statuses, Mapping) else self.statuses)


CASES = [
    Case("a-limit", BY_TIER, ["ann free"] * 4, [200, 200, 429, 429]),
    Case("users-apart", BY_TIER, ["ann free"] * 3 + ["bob free"] * 3, [200, 200, 429] * 2),
    Case("tiers-apart", BY_TIER, ["ann free"] * 3 + ["ann premium"] * 5, [200, 200, 429] + [200] * 4 + [429]),
    Case("no-limit", BY_TIER, ["ann gold"] * 6, [200] * 6),
    Case("weights", BY_WEIGHT, ["ann 3", "ann 2", "ann 1"], [200, 200, 429]),
    # Envoy's counts what it refuses.
    Case(
        "weights-refused",
        BY_WEIGHT,
        ["ann 3", "ann 3", "ann 2"],
        {ENVOY: [200, 429, 429], OURS: [200, 429, 200]},
    ),
    # One hit before and 24 after, in 90: ours, as Limitador, adds no hits that do not fit.
    Case("tokens", BY_TOKENS, ["ann"] * 6, {ENVOY: [200] * 4 + [429] * 2, OURS: [200] * 6}),
    Case("tokens-of-users", BY_TOKENS, ["ann", "bob"] * 3, [200] * 6),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_requests_are_limited(service: RateLimitService, kind: str, case: Case) -> None:
    """S0.11, S1.6 to S1.9 in small."""
    async with limited(service.address, case.actions) as (stack, client):
        answers = [(await client.send(headers=headers)).status for headers in case.headers(case.name)]
        assert answers == case.expected(kind)
        assert stack.server.metrics.errors == 0
        await assert_clean(stack)


async def test_a_refusal_says_when_to_come_back_and_spares_the_model(service: RateLimitService) -> None:
    """G7, S0.8."""
    headers = {"x-user": "eve", "x-tier": "free"}
    async with limited(service.address, BY_TIER) as (stack, client):
        await client.statuses(2, headers=headers)
        stack.model.forget()
        refused = await client.send(headers=headers)
        assert refused.status == 429
        assert refused.body == b"Too Many Requests\n"
        assert refused.headers["x-envoy-ratelimited"] == "true"
        assert 0 < int(refused.headers["retry-after"]) <= DAY
        assert not stack.model.requests
        await assert_clean(stack)


@envoys_alone
async def test_headers_of_the_service_reach_the_client(service: RateLimitService) -> None:
    """S0.D15: on answers and on refusals, as the service was told to name them."""
    headers = {"x-user": "fay", "x-tier": "free"}
    async with limited(service.address, BY_TIER) as (stack, client):
        answers = [await client.send(headers=headers) for _ in range(3)]
        await assert_clean(stack)
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert [answer.headers.getall("x-ratelimit-limit") for answer in answers] == [["2"]] * 3
    assert [answer.headers.getall("x-ratelimit-remaining") for answer in answers] == [["1"], ["0"], ["0"]]
    assert all(0 < int(answer.headers["x-ratelimit-reset"]) <= DAY for answer in answers)


async def test_a_service_that_dies_and_comes_back(service: RateLimitService, kind: str) -> None:
    """S0.14, S1.25: no decision is a 500; nothing needs to be restarted, and what Redis holds still counts."""
    headers = {"x-user": "gus", "x-tier": "free"}
    async with limited(service.address, BY_TIER) as (_, client):
        assert await client.statuses(2, headers=headers) == [200, 200]
        await service.kill()
        try:
            assert await client.statuses(2, headers=headers) == [500, 500]
        finally:
            await service.start()
        assert await first_decision(client, headers) == (429 if kind == ENVOY else 200)


async def test_a_service_that_dies_stops_nobody_where_failures_are_allowed(service: RateLimitService) -> None:
    """S0.14"""
    headers = {"x-user": "hal", "x-tier": "free"}
    async with limited(service.address, BY_TIER, "allow") as (stack, client):
        await service.kill()
        try:
            assert await client.statuses(4, headers=headers) == [200] * 4
        finally:
            await service.start()
        assert stack.server.metrics.errors == 4
        await assert_clean(stack)


@envoys_alone
async def test_a_redis_that_dies_behind_the_service(service: RateLimitService) -> None:
    """The service answers with an error of gRPC then."""
    assert service.storage is not None
    headers = {"x-user": "ivy", "x-tier": "free"}
    async with limited(service.address, BY_TIER) as (_, client):
        assert (await client.send(headers=headers)).status == 200
        await service.storage.stop()
        try:
            assert (await client.send(headers=headers)).status == 500
        finally:
            await service.storage.start()
        assert await first_decision(client, headers) == 200


async def first_decision(client: Client, headers: Mapping[str, str]) -> int:
    """The status of the first request that is no 500."""
    async with asyncio.timeout(10):
        while (status := (await client.send(headers=headers)).status) == 500:
            pass
    return status


@envoys_alone
async def test_it_has_no_check_and_no_report(service: RateLimitService) -> None:
    """Services of the types `ratelimit-check` and `ratelimit-report` need another limiter."""
    async with grpc.aio.insecure_channel(service.address) as channel:
        limiter = RemoteLimiter(channel, timeout=2)
        for ask in (limiter.check, limiter.report):
            with pytest.raises(LimiterError, match="refused: UNIMPLEMENTED"):
                await ask(Query("llm", ((("tokens", "joe"),),)))


@envoys_alone
async def test_what_no_hits_mean_to_it(service: RateLimitService) -> None:
    """0 is 1, but for a descriptor's own 0, which only asks; then a counter at its maximum is not yet over it."""
    async with grpc.aio.insecure_channel(service.address) as channel:
        call = channel.unary_unary(SHOULD_RATE_LIMIT)

        async def ask(hits: int, own: int | None = None) -> tuple[int, int]:
            """Its code, and what remains."""
            request = RateLimitRequest(domain="llm", hits_addend=hits)
            descriptor = request.descriptors.add()
            descriptor.entries.add(key="tokens", value="kim")
            if own is not None:
                descriptor.hits_addend.value = own
            answer = RateLimitResponse.FromString(await call(request.SerializeToString(), timeout=2))
            return answer.overall_code, answer.statuses[0].limit_remaining

        assert await ask(0) == (RateLimitResponse.OK, 89)
        assert await ask(0, own=0) == (RateLimitResponse.OK, 89)
        assert await ask(89) == (RateLimitResponse.OK, 0)
        assert await ask(0, own=0) == (RateLimitResponse.OK, 0)
        assert await ask(1) == (RateLimitResponse.OVER_LIMIT, 0)
        assert await ask(0, own=0) == (RateLimitResponse.OVER_LIMIT, 0)


async def test_the_example_runs_as_shipped(tmp_path: Path) -> None:
    """Tiers by user; a token before and 24 after, in 100, so that four answers are what a free user gets in an hour."""
    config = yaml.safe_load((EXAMPLE / "extproc.yaml").read_text())
    for own in ("listeners", "admin"):
        del config[own]
    shutil.copy(EXAMPLE / "keys.yaml", tmp_path)
    async with EnvoyRatelimit(EXAMPLE / "config" / "config.yaml", tmp_path, **HEADER_NAMES) as service:
        config["endpoints"]["ratelimit"] = service.address
        async with Stack(config, directory=tmp_path) as stack, client_of(stack) as client:
            ann, bob = ({"authorization": f"Bearer change-me-{user}"} for user in ("ann", "bob"))
            assert (await client.send()).status == 401
            assert await client.statuses(5, headers=ann) == [200] * 4 + [429]
            assert await client.statuses(5, headers=bob) == [200] * 5
            await assert_clean(stack)
