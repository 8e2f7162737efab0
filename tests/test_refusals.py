"""Answers in the model's place: what gateways, people and SDKs find in them."""

from __future__ import annotations

import math
from typing import Any, get_args

import orjson
import pytest

from extproc.limiter.seam import Code, Decision, Quota
from extproc.refusals import Profile, Refusals, Rejection
from extproc.wire.external_processor_pb2 import ProcessingResponse

MINUTE = Quota("per-minute", 150, 0, 12.2, 60)
HOUR = Quota("per-hour", 300, 0, 1800.5, 3600)


def over(*quotas: Quota) -> Decision:
    return Decision(Code.OVER_LIMIT, limit=quotas[0].limit if quotas else "", quotas=quotas)


def read(reply: bytes) -> tuple[int, dict[str, str], bytes]:
    response = ProcessingResponse.FromString(reply).immediate_response
    headers = {option.header.key: option.header.raw_value.decode() for option in response.headers.set_headers}
    return response.status.code, headers, response.body


@pytest.mark.parametrize(("profile", "body"), [("kuadrant", b"Too Many Requests\n"), ("gloo", b"")])
def test_plain_profiles(profile: Profile, body: bytes) -> None:
    """S4.10: kuadrant's line of text, Gloo's empty body; `x-envoy-ratelimited` in both."""
    status, headers, found = read(Refusals(profile).limited(over(MINUTE)))
    assert (status, found, headers["x-envoy-ratelimited"]) == (429, body, "true")
    assert headers["retry-after"] == "13"
    assert headers["x-ratelimit-limit"] == '150, 150;w=60;name="per-minute"'
    assert (headers["x-ratelimit-remaining"], headers["x-ratelimit-reset"]) == ("0", "13")
    assert "content-type" not in headers


def test_openai() -> None:
    """What the OpenAI SDK raises its RateLimitError from."""
    _, headers, body = read(Refusals("openai").limited(over(MINUTE)))
    error = orjson.loads(body)["error"]
    assert headers["content-type"] == "application/json"
    assert error["code"] == "rate_limit_exceeded"
    assert "`per-minute`" in error["message"]
    assert "try again in 13 s" in error["message"]


def test_anthropic() -> None:
    """What the Anthropic SDK raises its RateLimitError from."""
    _, _, body = read(Refusals("anthropic").limited(over(MINUTE)))
    assert orjson.loads(body)["type"] == "error"
    assert orjson.loads(body)["error"]["type"] == "rate_limit_error"


def test_of_several_limits_the_longest_decides_how_long_to_wait() -> None:
    """A client that waits for the minute would be refused by the hour again."""
    _, headers, _ = read(Refusals("openai").limited(over(HOUR, MINUTE)))
    assert headers["retry-after"] == "1801"
    assert headers["x-should-retry"] == "false"  # its SDK would not wait that long, and try again at once


def test_a_limit_of_nothing_says_no_time() -> None:
    """A limit of 0 is never over."""
    _, headers, body = read(Refusals("openai").limited(over(Quota("none", 0, 0, math.inf, 60))))
    assert "retry-after" not in headers
    assert headers["x-should-retry"] == "false"
    assert "try again" not in orjson.loads(body)["error"]["message"]


def test_without_quotas_nothing_is_made_up() -> None:
    """Limitador's CheckRateLimit tells no limit: neither do we."""
    _, headers, _ = read(Refusals().limited(over()))
    assert headers == {"x-envoy-ratelimited": "true"}


def test_limits_may_be_kept_secret() -> None:
    _, headers, _ = read(Refusals(tells_limits=False).limited(over(MINUTE)))
    assert headers == {"x-envoy-ratelimited": "true"}


def test_what_the_operator_writes_wins() -> None:
    """S4.10: status, headers and body of an action set."""
    refusals = Refusals("openai", 503, (("x-why", "busy"),), b"come back")
    status, headers, body = read(refusals.limited(over(MINUTE), (("x-request-id", "7"),)))
    assert (status, body, headers["x-why"], headers["x-request-id"]) == (503, b"come back", "busy", "7")
    assert "x-envoy-ratelimited" not in headers


def test_the_limiters_own_headers_win_over_ours() -> None:
    """Envoy RLS says how much is left of a window that it knows better."""
    decision = Decision(Code.OVER_LIMIT, (("X-RateLimit-Limit", "5"),), "l", (MINUTE,))
    _, headers, _ = read(Refusals().limited(decision))
    assert headers["x-ratelimit-limit"] == "5"


@pytest.mark.parametrize("kind", get_args(Rejection))
@pytest.mark.parametrize("profile", get_args(Profile))
def test_every_rejection_has_an_answer_in_every_profile(kind: Rejection, profile: Profile) -> None:
    status, headers, body = read(Refusals(profile).rejected(kind, 403))
    assert status == 403
    if profile in ("openai", "anthropic"):
        document: dict[str, Any] = orjson.loads(body)
        assert document["error"]["message"]
        assert headers["content-type"] == "application/json"


def test_an_authenticators_own_body_and_headers_pass() -> None:
    """Authorino's, word for word, whatever the profile."""
    _, headers, body = read(Refusals("openai").rejected("unauthenticated", 401, (("www-authenticate", "X"),), b"no"))
    assert (headers, body) == ({"www-authenticate": "X"}, b"no")
