"""The SDKs of OpenAI and Anthropic behind the real Envoy: they raise their own errors, and wait as they are told.

Windows go by a clock of the test, and what an SDK would sleep between two attempts is only noted down.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.envoy_client import assert_clean
from support.sdks import MODEL, SDKS, Clock, Naps, Sdk, Used

from extproc.demo.stack import Stack

pytestmark = pytest.mark.e2e

WINDOW = 30
ANSWER = Used(12, 12)
"""What the simulated model says of each."""
EVERY_SDK = pytest.mark.parametrize("sdk", SDKS, ids=str)
MIXED = pytest.mark.parametrize("sdk", [sdk for sdk in SDKS if sdk.streams is (sdk.waiting == "async")], ids=str)
ONE_OF_EACH = pytest.mark.parametrize("sdk", [Sdk("openai", "sync", False), Sdk("anthropic", "async", True)], ids=str)


def tokens(maximum: int, seconds: int, name: str = "short") -> dict[str, Any]:
    """A limit of tokens by user."""
    variables = ["descriptors[0].user"]
    return {"namespace": "llm", "name": name, "max_value": maximum, "seconds": seconds, "variables": variables}


def configured(profile: str, *limits: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """Callers with API keys, as either SDK sends them, and what each may spend: two answers in half a minute."""
    user = {"expression": {"key": "user", "value": "auth.identity.userid"}}
    hits = {"expression": {"key": "ratelimit.hits_addend", "value": "usage.total_tokens"}}
    actions = [
        {"service": "who", "scope": "callers"},
        {"service": "check", "scope": "llm", "conditionalData": [{"data": [user]}]},
        {"service": "report", "scope": "llm", "conditionalData": [{"data": [user, hits]}]},
    ]
    keys = {"apiKeys": {"files": ["keys.yaml"]}}
    callers = {
        "authentication": {
            "openai": {**keys, "credentials": {"prefix": "Bearer"}},
            "anthropic": {**keys, "credentials": {"header": "x-api-key"}},
        },
        "authorization": ["auth.identity.tier != 'none'"],
        "models": "auth.identity.models",
    }
    return {
        "services": {
            "who": {"type": "auth", "endpoint": "here"},
            "check": {"type": "ratelimit-check", "endpoint": "here"},
            "report": {"type": "ratelimit-report", "endpoint": "here"},
        },
        "endpoints": {"here": "embedded"},
        "authConfigs": {"callers": callers},
        "actionSets": [{"name": "llm", "routeRuleConditions": {"hostnames": ["*"]}, "actions": actions}],
        "limits": list(limits or [tokens(48, WINDOW)]),
        "denyWith": profile,
        **sections,
    }


class Gateway:
    """A running one, and what SDKs wait for at it."""

    def __init__(self, stack: Stack, clock: Clock, naps: Naps) -> None:
        self.stack = stack
        self.clock = clock
        self.naps = naps

    async def ask(self, sdk: Sdk, **options: Any) -> Used:
        return await sdk.ask(self.stack.url, **options)

    async def refused(self, sdk: Sdk, **options: Any) -> Any:
        """The error that the SDK raises for what it was answered."""
        with pytest.raises(sdk.errors.APIStatusError) as raised:
            await self.ask(sdk, **options)
        return raised.value

    async def exhaust(self, sdk: Sdk) -> None:
        """Spend what there is."""
        for _ in range(2):
            assert await self.ask(sdk) == ANSWER

    def used(self) -> dict[tuple[str, ...], int]:
        """Tokens that were charged, by user."""
        return {counter.values: counter.used for counter in self.stack.server.limiter.snapshot()}

    async def attempts(self) -> int:
        """Requests that Envoy has seen."""
        return (await self.stack.envoy.stats("http.gateway.downstream_rq_total"))["http.gateway.downstream_rq_total"]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    (tmp_path / "keys.yaml").write_text(
        f"keys:\n"
        f"  - {{key: key, userid: ann, tier: free, models: [{MODEL}]}}\n"
        f"  - {{key: key-without-tier, userid: bob, tier: none, models: [{MODEL}]}}\n"
    )
    return tmp_path


@pytest.fixture
def gateway(keys: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs one for a configuration; S4.15 at its end."""

    @asynccontextmanager
    async def run(config: dict[str, Any]) -> AsyncIterator[Gateway]:
        clock = Clock()
        async with Stack(config, directory=keys, clock=clock) as stack:
            yield Gateway(stack, clock, Naps(clock, monkeypatch))
            await assert_clean(stack)

    return run


# ── over the limit ────────────────────────────────────────────────────────────────────────────────────


@EVERY_SDK
async def test_a_limit_is_the_sdks_own_error(gateway: Any, sdk: Sdk, caplog: pytest.LogCaptureFixture) -> None:
    """S0.1, S0.2, S0.7, S0.8, S1.D3: what the SDK reads is charged, the model sees no key; then a RateLimitError.

    It has the status, says which limit and until when, and has the id that the log has.
    """
    caplog.set_level("INFO", "extproc.exchange")
    async with gateway(configured(sdk.profile)) as running:
        await running.exhaust(sdk)
        assert running.used() == {("ann",): 2 * sum(ANSWER)}
        assert not any(
            {"authorization", "x-api-key"} & set(dict(seen.headers)) for seen in running.stack.model.requests
        )
        running.stack.model.forget()
        error = await running.refused(sdk)
        assert type(error) is sdk.errors.RateLimitError
        assert (error.status_code, error.response.headers["retry-after"]) == (429, str(WINDOW))
        told = error.body if sdk.profile == "openai" else error.body["error"]
        assert told["message"] == "Rate limit `short` reached: 48 in 30 s. Please try again in 30 s."
        assert told["type"] == error.type == "rate_limit_error"
        if sdk.profile == "openai":
            assert error.code == "rate_limit_exceeded"
        assert "`short`" in str(error)
        running.stack.server.decisions.flush()
        assert error.request_id == caplog.records[-1].fields["request_id"]
        assert not running.stack.model.requests


@EVERY_SDK
async def test_an_sdk_waits_as_told_and_succeeds(gateway: Any, sdk: Sdk) -> None:
    """Its second attempt comes to a new window, no sooner; 17.5 s are 18 in `retry-after`."""
    async with gateway(configured(sdk.profile)) as running:
        await running.exhaust(sdk)
        assert await running.ask(sdk, retries=2) == ANSWER
        assert running.naps.taken == [WINDOW]
        assert await running.attempts() == 4
        assert await running.ask(sdk) == ANSWER
        running.clock.now += 12.5
        assert await running.ask(sdk, retries=2) == ANSWER
        assert running.naps.taken == [WINDOW, 18]
        assert await running.attempts() == 7


@ONE_OF_EACH
async def test_an_sdk_that_comes_too_early_is_told_the_rest(gateway: Any, sdk: Sdk) -> None:
    """What it did not get is not charged; after the last attempt it may have, it raises."""
    async with gateway(configured(sdk.profile)) as running:
        await running.exhaust(sdk)
        running.naps.wake_early_by = 1.0
        error = await running.refused(sdk, retries=1)
        assert (type(error), error.response.headers["retry-after"]) == (sdk.errors.RateLimitError, "1")
        assert running.used() == {("ann",): 48}
        assert await running.ask(sdk, retries=1) == ANSWER
        assert running.naps.taken == [WINDOW, 1]
        assert await running.attempts() == 6


@ONE_OF_EACH
@pytest.mark.parametrize("profile", ["its own", "kuadrant"])
async def test_nobody_is_left_waiting_for_an_hour(gateway: Any, sdk: Sdk, profile: str) -> None:
    """A minute is waited for. When a longer limit refuses as well, or alone, an SDK is told not to try again."""
    limits = [tokens(24, 60, "minute"), tokens(48, 3600, "hour")]
    async with gateway(configured(sdk.profile if profile == "its own" else profile, *limits)) as running:
        assert await running.ask(sdk) == ANSWER
        assert await running.ask(sdk, retries=2) == ANSWER
        assert running.naps.taken == [60]
        assert await running.attempts() == 3
        for passed, left in ((0, 3540), (100, 3440)):
            running.clock.now += passed
            error = await running.refused(sdk, retries=2)
            headers = error.response.headers
            assert (headers["retry-after"], headers["x-should-retry"]) == (str(left), "false")
        assert running.naps.taken == [60]
        assert await running.attempts() == 5


@ONE_OF_EACH
async def test_what_never_ends_is_not_tried_again(gateway: Any, sdk: Sdk) -> None:
    """A limit of 0."""
    async with gateway(configured(sdk.profile, tokens(0, WINDOW))) as running:
        error = await running.refused(sdk, retries=2)
        assert type(error) is sdk.errors.RateLimitError
        assert (error.response.headers["x-should-retry"], "retry-after" in error.response.headers) == ("false", False)
        assert running.naps.taken == []
        assert await running.attempts() == 1


@ONE_OF_EACH
@pytest.mark.parametrize(("profile", "body"), [("kuadrant", "Too Many Requests\n"), ("gloo", "")])
async def test_other_profiles_are_limits_to_an_sdk_too(gateway: Any, sdk: Sdk, profile: str, body: str) -> None:
    """S4.10: by the status; and `retry-after` is heeded."""
    async with gateway(configured(profile)) as running:
        await running.exhaust(sdk)
        error = await running.refused(sdk)
        assert type(error) is sdk.errors.RateLimitError
        assert (error.response.text, error.response.headers["x-envoy-ratelimited"]) == (body, "true")
        assert await running.ask(sdk, retries=1) == ANSWER
        assert running.naps.taken == [WINDOW]


async def test_many_at_once_are_each_answered_or_told(gateway: Any) -> None:
    """Both SDKs at one gateway: none is left without an answer, and none is charged for a refusal."""
    async with gateway(configured("openai")) as running:

        async def outcome(sdk: Sdk) -> str:
            try:
                return str(await running.ask(sdk))
            except sdk.errors.RateLimitError:
                return "limited"

        outcomes = await asyncio.gather(*(outcome(sdk) for sdk in SDKS * 2))
        answered = outcomes.count(str(ANSWER))
        assert answered >= 2
        assert outcomes.count("limited") == len(outcomes) - answered
        assert running.used() == {("ann",): answered * sum(ANSWER)}


# ── not let in ────────────────────────────────────────────────────────────────────────────────────────


class Stranger(NamedTuple):
    """How a request is wrong, what is raised, and how either API calls that."""

    wrong: dict[str, str]
    error: str
    code: str
    kind: str


STRANGERS = [
    Stranger({"key": "of-nobody"}, "AuthenticationError", "invalid_api_key", "authentication_error"),
    Stranger({"key": "key-without-tier"}, "PermissionDeniedError", "permission_denied", "permission_error"),
    Stranger({"model": "gpt-4"}, "PermissionDeniedError", "model_not_found", "permission_error"),
]


@MIXED
async def test_who_is_not_let_in_learns_why(gateway: Any, sdk: Sdk) -> None:
    """S1.3, S1.5, S4.5: the SDK's own error, at once, in the API's own words; nothing is charged."""
    async with gateway(configured(sdk.profile)) as running:
        for number, (wrong, name, code, kind) in enumerate(STRANGERS, start=1):
            error = await running.refused(sdk, retries=2, **wrong)
            assert type(error) is getattr(sdk.errors, name)
            if sdk.profile == "openai":
                assert (error.code, error.param) == (code, "model" if "model" in wrong else None)
            else:
                assert error.type == kind
            assert error.request_id
            assert not any(secret in f"{error}{error.response.headers}" for secret in wrong.values())
            assert await running.attempts() == number
        assert running.naps.taken == []
        assert not running.stack.model.requests
        assert running.used() == {}


@ONE_OF_EACH
async def test_without_a_quota_nobody_tries_again(gateway: Any, sdk: Sdk) -> None:
    """S1.D1: `onNoLimit: deny`, for a user whom no limit is for."""
    config = configured(sdk.profile, onNoLimit="deny")
    config["actionSets"][0]["actions"][1]["predicates"] = ["auth.identity.tier == 'premium'"]
    async with gateway(config) as running:
        error = await running.refused(sdk, retries=2)
        assert type(error) is sdk.errors.PermissionDeniedError
        assert "No quota" in str(error)
        assert await running.attempts() == 1
