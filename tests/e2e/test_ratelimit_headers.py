"""What clients are told of their limits in headers (draft 03), through the real Envoy.

Windows of the embedded limiter go by a clock of the test. Those of `extproc limiter` are of a day, so that none ends.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from support.envoy_client import Client, assert_clean, client_of
from support.hand_model import hand_model
from support.limiters import served
from support.processes import Command, write
from support.sdks import Clock

from extproc.config.model import Limit
from extproc.demo.stack import Stack
from extproc.gateway.ports import free_port
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.limits import LimitSet

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

DAY = 86_400
STREAM = {"json": {"model": "m", "stream": True, "stream_options": {"include_usage": True}, "messages": []}}
KINDS = pytest.mark.parametrize("kind", [{}, STREAM], ids=["json", "sse"])
NAMES = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "retry-after", "x-envoy-ratelimited")
WHO = {"expression": {"key": "user", "value": "request.headers['x-user']"}}
TOKENS = {"expression": {"key": "ratelimit.hits_addend", "value": "usage.total_tokens"}}


def limit(name: str, maximum: int, seconds: int, namespace: str = "requests") -> dict[str, Any]:
    """By user."""
    variables = ["descriptors[0].user"]
    return {"namespace": namespace, "name": name, "max_value": maximum, "seconds": seconds, "variables": variables}


def action(service: str, scope: str, *more: Mapping[str, Any]) -> dict[str, Any]:
    return {"service": service, "scope": scope, "conditionalData": [{"data": [WHO, *more]}]}


REQUESTS = [action("requests", "requests")]
BOTH = [action("check", "tokens"), *REQUESTS, action("report", "tokens", TOKENS)]


def configured(actions: Sequence[Mapping[str, Any]], *limits: Mapping[str, Any], **sections: Any) -> dict[str, Any]:
    """A gateway that counts requests, or requests and tokens, by the header `x-user`."""
    types = {"requests": "ratelimit", "check": "ratelimit-check", "report": "ratelimit-report"}
    return {
        "services": {name: {"type": kind, "endpoint": "limiter", "timeout": "2s"} for name, kind in types.items()},
        "endpoints": {"limiter": "embedded"},
        "actionSets": [{"name": "all", "routeRuleConditions": {"hostnames": ["*"]}, "actions": actions}],
        "limits": list(limits),
        **sections,
    }


class Gateway:
    def __init__(self, stack: Stack, client: Client, clock: Clock) -> None:
        self.stack = stack
        self.client = client
        self.clock = clock

    async def told(self, user: str = "ann", **options: Any) -> tuple[int, dict[str, str]]:
        """Status, and what an answer says of limits: each name once, or this fails."""
        answer = await self.client.send(headers={"x-user": user, **options.pop("headers", {})}, **options)
        found = {name: answer.headers.getall(name) for name in NAMES if name in answer.headers}
        assert all(len(values) == 1 for values in found.values())
        return answer.status, {name: value for name, (value,) in found.items()}


@asynccontextmanager
async def gateway(config: Mapping[str, Any], **options: Any) -> AsyncIterator[Gateway]:
    """G7, S4.15 at its end: Envoy took every header that we set."""
    clock = Clock()
    async with Stack(config, clock=clock, **options) as stack:
        async with client_of(stack) as client:
            yield Gateway(stack, client, clock)
        await assert_clean(stack)


def told(listed: str, remaining: int, reset: int, **more: str) -> dict[str, str]:
    return {
        "x-ratelimit-limit": listed,
        "x-ratelimit-remaining": str(remaining),
        "x-ratelimit-reset": str(reset),
        **{name.replace("_", "-"): value for name, value in more.items()},
    }


# ── the embedded limiter ──────────────────────────────────────────────────────────────────────────────

THREE = '3, 3;w=60;name="a-minute"'


@KINDS
async def test_always(kind: dict[str, Any]) -> None:
    """S0.D15: on every answer, this request counted already; the window's end comes nearer, then all is new."""
    config = configured(REQUESTS, limit("a-minute", 3, 60), rateLimitHeaders="always")
    async with gateway(config) as running:
        assert await running.told(**kind) == (200, told(THREE, 2, 60))
        running.clock.now += 10.5
        assert await running.told(**kind) == (200, told(THREE, 1, 50))
        assert await running.told("bob", **kind) == (200, told(THREE, 2, 60))
        assert await running.told(**kind) == (200, told(THREE, 0, 50))
        refused = told(THREE, 0, 50, retry_after="50", x_envoy_ratelimited="true")
        assert await running.told(**kind) == (429, refused)
        running.clock.now += 49.5
        assert await running.told(**kind) == (200, told(THREE, 2, 60))


@KINDS
async def test_tokens(kind: dict[str, Any]) -> None:
    """What is left before this answer, which nobody knows yet; more than was left is still nothing left."""
    listed = '40, 40;w=60;name="tokens"'
    config = configured(BOTH, limit("tokens", 40, 60, "tokens"), rateLimitHeaders="always")
    async with gateway(config) as running:
        assert await running.told(**kind) == (200, told(listed, 40, 60))
        running.clock.now += 1
        assert await running.told(**kind) == (200, told(listed, 16, 59))
        refused = told(listed, 0, 59, retry_after="59", x_envoy_ratelimited="true")
        assert await running.told(**kind) == (429, refused)


async def test_of_several_limits_the_nearest_to_its_end() -> None:
    """All are listed. A refusal tells of those that refuse, and first of the one that lasts longest."""
    limits = (limit("tokens", 40, 60, "tokens"), limit("a-minute", 2, 60), limit("an-hour", 30, 3600))
    async with gateway(configured(BOTH, *limits, rateLimitHeaders="always")) as running:
        status, first = await running.told()
        assert (status, first["x-ratelimit-remaining"]) == (200, "1")
        nearest, *listed = first["x-ratelimit-limit"].split(", ")
        assert nearest == "2"
        assert sorted(listed) == ['2;w=60;name="a-minute"', '30;w=3600;name="an-hour"', '40;w=60;name="tokens"']
        assert (await running.told())[1]["x-ratelimit-remaining"] == "0"
        status, refused = await running.told()
        assert (status, refused["x-ratelimit-limit"]) == (429, '40, 40;w=60;name="tokens"')


ALLOWED_AND_REFUSED = [
    pytest.param({}, {}, told(THREE, 0, 60, retry_after="60", x_envoy_ratelimited="true"), id="default"),
    pytest.param(
        {"rateLimitHeaders": "refused"},
        {},
        told(THREE, 0, 60, retry_after="60", x_envoy_ratelimited="true"),
        id="refused",
    ),
    pytest.param({"rateLimitHeaders": "none"}, {}, {"x-envoy-ratelimited": "true"}, id="none"),
]


@KINDS
@pytest.mark.parametrize(("section", "allowed", "refused"), ALLOWED_AND_REFUSED)
async def test_only_where_wanted(
    kind: dict[str, Any], section: dict[str, str], allowed: dict[str, str], refused: dict[str, str]
) -> None:
    """S0.8: refusals alone unless something else is written."""
    async with gateway(configured(REQUESTS, limit("a-minute", 3, 60), **section)) as running:
        assert [await running.told(**kind) for _ in range(4)] == [(200, allowed)] * 3 + [(429, refused)]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("none", "Rate limit reached."),
        ("refused", "Rate limit `a-minute` reached: 3 in 60 s. Please try again in 60 s."),
    ],
)
async def test_the_message_tells_no_more_than_the_headers(section: str, message: str) -> None:
    """What operators keep to themselves is in no body either."""
    config = configured(REQUESTS, limit("a-minute", 3, 60), rateLimitHeaders=section, denyWith="openai")
    async with gateway(config) as running:
        *_, refused = [await running.client.send(headers={"x-user": "ann"}) for _ in range(4)]
        assert (refused.status, json.loads(refused.body)["error"]["message"]) == (429, message)
        assert b"a-minute" not in refused.body or section == "refused"


async def test_a_body_of_the_operators_is_no_json_of_ours() -> None:
    deny = {"profile": "openai", "body": "later\n"}
    async with gateway(configured(REQUESTS, limit("a-minute", 0, 60), denyWith=deny)) as running:
        refused = await running.client.send(headers={"x-user": "ann"})
        assert (refused.status, refused.body) == (429, b"later\n")
        assert refused.headers["content-type"] == "text/plain"


async def test_nothing_is_told_of_limits_that_do_not_exist() -> None:
    """No limit for this request, no limit at all for this path, no caller to count for."""
    config = configured(REQUESTS, limit("a-minute", 3, 60), rateLimitHeaders="always", onNoLimit="deny")
    config["actionSets"][0]["routeRuleConditions"]["predicates"] = ["request.url_path != '/v1/models'"]
    config["actionSets"][0]["actions"][0]["predicates"] = ["request.headers['x-user'] != 'nobody'"]
    async with gateway(config) as running:
        assert await running.told(path="/v1/models", method="GET") == (200, {})
        assert await running.told("nobody") == (403, {})


@pytest.mark.parametrize("status", [400, 429, 500])
async def test_errors_of_the_model_tell_it_too(status: int) -> None:
    """The request was counted all the same; a model's own 429 is none of ours."""
    config = configured(REQUESTS, limit("a-minute", 3, 60), rateLimitHeaders="always")
    async with gateway(config) as running:
        assert await running.told(headers={"x-sim-status": str(status)}) == (status, told(THREE, 2, 60))


@pytest.mark.parametrize(
    ("section", "expected"),
    [("always", told(THREE, 2, 60)), ("refused", {"x-ratelimit-limit": "999", "retry-after": "7"})],
)
async def test_what_the_model_says_of_its_own_limits(section: str, expected: dict[str, str]) -> None:
    """Passes, unless the gateway has something to say: a client can heed only one."""
    async with hand_model() as model:
        model.content_type = "application/json\r\nx-ratelimit-limit: 999\r\nretry-after: 7"
        model.length = 2
        config = configured(REQUESTS, limit("a-minute", 3, 60), rateLimitHeaders=section)
        async with gateway(config, gateway={"upstream": model.address}) as running:
            asking = asyncio.create_task(running.told())
            answer = await model.answer()
            await answer.send(b"{}")
            answer.close()
            status, found = await asking
            assert status == 200
            assert found == (expected | {"retry-after": "7"})


# ── a limiter elsewhere ───────────────────────────────────────────────────────────────────────────────

ELSEWHERE = '3, 3;w=86400;name="a-day"'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def limiters(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, str]]:
    """`extproc limiter` with each `--rate-limit-headers`: the addresses."""
    limits = write(
        tmp_path_factory.mktemp("limits") / "limits.json", [limit("a-day", 3, DAY), limit("odd", 0, 50, "odd")]
    )
    async with AsyncExitStack() as parts:
        found, processes = {}, []
        for setting in ("NONE", "DRAFT_VERSION_03"):
            address = found[setting] = f"127.0.0.1:{free_port()}"
            options = ("--listen", address, "--log-format", "json", "--rate-limit-headers", setting)
            processes.append(await parts.enter_async_context(Command("limiter", limits, *options)))
        for process in processes:
            await process.until("ready")
        yield found


LIMITED = {"x-envoy-ratelimited"}
QUOTA = {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"}
REMOTE = [
    # its setting, ours; headers of allowed answers, of refusals
    ("DRAFT_VERSION_03", "always", QUOTA, QUOTA | {"retry-after"}),
    ("DRAFT_VERSION_03", "refused", QUOTA, QUOTA | {"retry-after"}),
    ("DRAFT_VERSION_03", "none", QUOTA, QUOTA),
    ("NONE", "always", set(), QUOTA | {"retry-after"}),
    ("NONE", "refused", set(), QUOTA | {"retry-after"}),
    ("NONE", "none", set(), set()),
]


@pytest.mark.parametrize(("theirs", "ours", "allowed", "refused"), REMOTE)
async def test_a_limiter_over_grpc(
    limiters: dict[str, str], theirs: str, ours: str, allowed: set[str], refused: set[str]
) -> None:
    """S0.D15, S0.11: what it says itself passes, whatever is written here; of a refusal it tells us enough."""
    config = configured(REQUESTS, rateLimitHeaders=ours, endpoints={"limiter": limiters[theirs]})
    user = f"{theirs}-{ours}"
    async with gateway(config) as running:
        for number, kind in enumerate(({}, STREAM, {})):
            status, found = await running.told(user, **kind)
            assert (status, set(found)) == (200, allowed)
            assert found.get("x-ratelimit-limit", ELSEWHERE) == ELSEWHERE
            assert found.get("x-ratelimit-remaining", str(2 - number)) == str(2 - number)
            assert DAY - 60 < int(found.get("x-ratelimit-reset", DAY)) <= DAY
        for kind in ({}, STREAM):
            status, found = await running.told(user, **kind)
            assert (status, set(found)) == (429, refused | LIMITED)
            assert (found.get("x-ratelimit-limit", ELSEWHERE), found.get("x-ratelimit-remaining", "0")) == (
                ELSEWHERE,
                "0",
            )
            assert DAY - 60 < int(found.get("retry-after", DAY)) <= DAY


@pytest.mark.parametrize(("section", "allowed"), [("always", QUOTA), ("refused", set()), ("none", set())])
async def test_a_limiter_that_tells_us_and_not_the_client(section: str, allowed: set[str]) -> None:
    """As Envoy's service answers: statuses, of which `rateLimitHeaders` makes headers, or not."""
    limiter = EmbeddedLimiter(LimitSet([Limit(namespace="requests", name="a-day", max_value=3, seconds=DAY)]))
    limiter.tells_quotas = True
    async with served(limiter) as address:
        config = configured(REQUESTS, rateLimitHeaders=section, endpoints={"limiter": address})
        async with gateway(config) as running:
            for remaining in ("2", "1"):
                status, found = await running.told()
                assert (status, set(found)) == (200, allowed)
                assert found.get("x-ratelimit-remaining", remaining) == remaining


async def test_a_window_that_has_no_name_over_grpc(limiters: dict[str, str]) -> None:
    """Statuses know minutes, hours and days only: of any other window its length is not made up."""
    config = configured([action("requests", "odd")], denyWith="openai", endpoints={"limiter": limiters["NONE"]})
    async with gateway(config) as running:
        refused = await running.client.send(headers={"x-user": "ann"})
        assert json.loads(refused.body)["error"]["message"] == "Rate limit `odd` reached: 0."
        assert refused.headers["x-ratelimit-limit"] == '0, 0;name="odd"'
        assert refused.headers["x-should-retry"] == "false"
