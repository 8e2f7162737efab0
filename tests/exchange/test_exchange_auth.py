"""Who calls, before anything is counted: what an authenticator says decides, changes the request, and feeds limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from support.harness import OVER_LIMIT, Gateway, RecordingAuthenticator, RecordingLimiter, configured
from support.messages import json_answer, request_body, request_headers, response_body, response_headers

from extproc.identity.seam import AuthError, Verdict
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.limits import LimitSet
from extproc.wire.external_processor_pb2 import ProcessingResponse
from extproc.wire.processing_mode_pb2 import ProcessingMode

TIERS = ("free", "premium")
ALICE = {"identity": {"userid": "alice", "groups": "free"}}


def entry(key: str, value: str) -> dict[str, Any]:
    return {"expression": {"key": key, "value": value}}


def tiers(**sections: Any) -> dict[str, Any]:
    """S1: who calls, a request limit for each tier, tokens checked before and reported after."""
    blocks = [
        {
            "predicates": [f'auth.identity.groups.split(",").exists(g, g == "{tier}")'],
            "data": [entry(f"limit.{tier}", '"1"'), entry("auth.identity.userid", "auth.identity.userid")],
        }
        for tier in TIERS
    ]
    tokens = [entry("ratelimit.hits_addend", 'responseBodyJSON("/usage/total_tokens")')]
    config = {
        "services": {
            "who": {"type": "auth", "endpoint": "authorino"},
            "limits": {"type": "ratelimit", "endpoint": "limitador"},
            "reports": {"type": "ratelimit-report", "endpoint": "limitador"},
        },
        "actionSets": [
            {
                "name": "llm",
                "routeRuleConditions": {"hostnames": ["*.example.com"]},
                "actions": [
                    {"service": "who", "scope": "llm/auth"},
                    {"service": "limits", "scope": "llm/route", "conditionalData": blocks},
                    {
                        "service": "reports",
                        "scope": "llm/route",
                        "conditionalData": [*blocks, {"data": tokens}],
                    },
                ],
            }
        ],
    }
    config = configured(config, **sections)
    config["endpoints"]["authorino"] = "127.0.0.1:1"
    return config


def asking(answer: Callable[[], Any], config: dict[str, Any] | None = None, **limiter: Any) -> Gateway:
    limits = RecordingLimiter(answers={name: (lambda a=a: a) for name, a in limiter.items()})
    return Gateway(config or tiers(), limiter=limits, authenticator=RecordingAuthenticator(answer))


def shown(reply: ProcessingResponse) -> dict[str, str]:
    mutation = reply.immediate_response.headers
    return {option.header.key: option.header.raw_value.decode() for option in mutation.set_headers}


async def later(verdict: Verdict | Exception) -> Verdict:
    await asyncio.sleep(0)
    if isinstance(verdict, Exception):
        raise verdict
    return verdict


@pytest.mark.parametrize("waits", [False, True])
async def test_the_identity_is_what_limits_are_asked_about(waits: bool) -> None:
    """S1.1: whether the authenticator answers at once or not."""
    verdict = Verdict(auth=ALICE)
    gateway = asking(lambda: later(verdict) if waits else verdict)
    await gateway.exchange(request_headers(ends=True), response_headers(), response_body(json_answer(30)))
    asked, reported = gateway.limiter.calls
    assert asked.query == ("llm/route", ((("limit.free", "1"), ("auth.identity.userid", "alice")),), 1)
    assert reported.query == ("llm/route", ((("limit.free", "1"), ("auth.identity.userid", "alice")),), 30)


async def test_users_who_look_alike_keep_their_own_counters() -> None:
    """S1.8, S1.14: what is remembered of one user is never another's."""
    users = iter([("alice", "free"), ("bob", "free"), ("carol", "premium"), ("alice", "premium"), ("bob", "free")])

    def verdict() -> Verdict:
        name, group = next(users)
        return Verdict(auth={"identity": {"userid": name, "groups": group}})

    gateway = asking(verdict)
    for _ in range(5):
        await gateway.exchange(request_headers(ends=True))
    assert [
        tuple(value for _, value in call.query.descriptors[0]) for call in gateway.limiter.of("should_rate_limit")
    ] == [
        ("1", "alice"),
        ("1", "bob"),
        ("1", "carol"),
        ("1", "alice"),
        ("1", "bob"),
    ]
    assert [call.query.descriptors[0][0][0] for call in gateway.limiter.of("should_rate_limit")] == [
        "limit.free",
        "limit.free",
        "limit.premium",
        "limit.premium",
        "limit.free",
    ]


async def test_a_member_of_two_groups_has_both_limits() -> None:
    """S1.D2"""
    gateway = asking(lambda: Verdict(auth={"identity": {"userid": "alice", "groups": "free,premium"}}))
    await gateway.exchange(request_headers(ends=True))
    assert [key for key, _ in gateway.limiter.calls[0].query.descriptors[0] if key.startswith("limit.")] == [
        "limit.free",
        "limit.premium",
    ]


async def test_a_refusal_is_passed_on_and_nothing_is_asked() -> None:
    """S1.2, S1.12, vector 36: status, headers and body are the authenticator's; no limiter hears of it."""
    headers = (("www-authenticate", 'APIKEY realm="keys"'), ("x-ext-auth-reason", "credential not found"))
    gateway = asking(lambda: Verdict(status=401, headers=headers, reason="credential not found"))
    (reply,) = await gateway.exchange(request_headers(ends=True))
    assert reply.immediate_response.status.code == 401
    assert shown(reply) == dict(headers)
    assert reply.immediate_response.body == b""
    assert gateway.limiter.calls == []
    assert gateway.metrics.denied == 1


async def test_two_ways_to_authenticate_are_two_headers() -> None:
    """S1.4"""
    headers = (("www-authenticate", 'APIKEY realm="a"'), ("www-authenticate", 'Bearer realm="b"'))
    gateway = asking(lambda: Verdict(status=401, headers=headers))
    (reply,) = await gateway.exchange(request_headers(ends=True))
    options = reply.immediate_response.headers.set_headers
    assert [(option.header.raw_value, option.append.value) for option in options] == [
        (b'APIKEY realm="a"', False),
        (b'Bearer realm="b"', True),
    ]


async def test_the_model_sees_neither_key_nor_forged_identity() -> None:
    """S1.D3, S1.D4: removed before expressions look at them, too."""
    config = tiers()
    config["actionSets"][0]["actions"][1]["conditionalData"] = [
        {
            "predicates": ["request.headers['x-maas-user'] == 'alice'"],
            "data": [entry("user", "request.headers['x-maas-user']")],
        }
    ]
    verdict = Verdict(
        auth=ALICE, set_headers=(("x-maas-user", "alice"),), remove_headers=("authorization", "x-maas-user")
    )
    gateway = asking(lambda: verdict, config)
    sent = {"authorization": "APIKEY secret", "x-maas-user": "root", "accept-encoding": "gzip"}
    (reply,) = await gateway.exchange(request_headers(sent, ends=True))
    mutation = reply.request_headers.response.header_mutation
    assert set(mutation.remove_headers) == {"authorization", "x-maas-user", "accept-encoding"}
    assert [(o.header.key, o.header.raw_value) for o in mutation.set_headers] == [("x-maas-user", b"alice")]
    assert gateway.limiter.calls[0].query.descriptors == ((("user", "alice"),),)


@pytest.mark.parametrize("error", [AuthError("unreachable: x"), RuntimeError("a defect")])
@pytest.mark.parametrize("waits", [False, True])
async def test_without_a_verdict_the_failure_mode_decides(error: Exception, waits: bool) -> None:
    """Deny defaults: a missing identity is no identity."""
    gateway = asking(lambda: later(error) if waits else error)
    (reply,) = await gateway.exchange(request_headers(ends=True))
    assert reply.immediate_response.status.code == 500
    assert gateway.limiter.calls == []


async def test_a_caller_nobody_knows_may_be_let_in() -> None:
    """failureMode: allow; the limits that need an identity fail by their own mode."""
    config = tiers()
    for service in config["services"].values():
        service["failureMode"] = "allow"
    gateway = asking(lambda: AuthError("unreachable"), config)
    (reply,) = await gateway.exchange(request_headers(ends=True))
    assert reply.HasField("request_headers")
    assert gateway.limiter.calls == []


@pytest.mark.parametrize(("mode", "status"), [("deny", 403), ("allow", None)])
async def test_a_caller_without_a_limit(mode: str, status: int | None) -> None:
    """S1.D1: a tier that no limit is made for."""
    gateway = asking(lambda: Verdict(auth={"identity": {"userid": "eve", "groups": "gold"}}), tiers(onNoLimit=mode))
    (reply,) = await gateway.exchange(request_headers(ends=True))
    assert (reply.immediate_response.status.code or None) == status
    assert gateway.limiter.calls == []


async def test_a_user_without_a_name_shares_no_bucket() -> None:
    """S4.D2: no `userid`, no counter; the check's failure mode decides."""
    gateway = asking(lambda: Verdict(auth={"identity": {"groups": "free"}}))
    (reply,) = await gateway.exchange(request_headers(ends=True))
    assert reply.immediate_response.status.code == 500
    assert gateway.limiter.calls == []


@pytest.mark.parametrize(
    ("model", "status"), [("gpt-3.5-turbo", None), ("mistral-large-latest", 403), (None, 403), ("", 403)]
)
async def test_a_claim_may_name_the_models(model: str | None, status: int | None) -> None:
    """S4.5: the request waits for its body, and a model that is not in the claim is refused."""
    config = tiers()
    config["endpoints"]["authorino"] = "embedded"
    rules = {"authentication": {"tokens": {"jwt": {}}}, "models": "auth.identity.llms.openai", "user": "sub"}
    config["authConfigs"] = {"llm/auth": rules}
    config["denyWith"] = {"profile": "gloo"}
    config["actionSets"][0]["actions"] = config["actionSets"][0]["actions"][:1]
    gateway = Gateway(config)
    claims = {"principal": {"sub": "alice", "llms": {"openai": ["gpt-3.5-turbo"]}}}
    metadata = {"envoy.filters.http.jwt_authn": claims}
    body = b"{}" if model is None else b'{"model":"%s"}' % model.encode()
    headers, answer = await gateway.exchange(request_headers(metadata=metadata), request_body(body))
    assert headers.mode_override.request_body_mode == ProcessingMode.BUFFERED_PARTIAL
    assert (answer.immediate_response.status.code or None) == status
    if status:
        assert answer.immediate_response.body == b"RBAC: access denied"


async def test_a_model_in_the_path_is_checked_without_a_body_that_names_one() -> None:
    """S4.5 for the APIs that name the model in the URL."""
    verdict = Verdict(auth=ALICE, models=frozenset({"gemini-2.5-flash"}))
    for path, status in (("gemini-2.5-flash", 0), ("gemini-2.5-pro", 403)):
        gateway = asking(lambda: verdict)
        (reply,) = await gateway.exchange(request_headers(path=f"/v1beta/models/{path}:generateContent", ends=True))
        assert reply.immediate_response.status.code == status


async def test_log_lines_name_user_and_group(caplog: pytest.LogCaptureFixture) -> None:
    """S1.23: decision lines have request_id, user, group and, where it is known, the model."""
    caplog.set_level("INFO")
    gateway = asking(lambda: Verdict(auth=ALICE))
    await gateway.exchange(request_headers(ends=True), response_headers(), response_body(json_answer(30)))
    (line,) = [record for record in caplog.records if record.getMessage() == "consumed"]
    fields = line.fields  # type: ignore[attr-defined]
    assert (fields["user"], fields["group"], fields["hits_addend"]) == ("alice", "free", 30)
    assert fields["model"] == "meta-llama/Llama-3.1-8B-Instruct"


async def test_numbers_are_kept_by_user() -> None:
    """S1.20: 30 tokens of one allowed request; a refusal by a limit counts as one."""
    gateway = asking(lambda: Verdict(auth=ALICE))
    await gateway.exchange(request_headers(ends=True), response_headers(), response_body(json_answer(30)))
    refusing = asking(lambda: Verdict(auth=ALICE), should_rate_limit=OVER_LIMIT)
    await refusing.exchange(request_headers(ends=True))
    (account,) = gateway.spending.accounts()
    assert (account.who, account.tokens) == (("alice", "free"), 30)
    assert account.requests["llm/route"].allowed == 1
    (account,) = refusing.spending.accounts()
    assert sum(account.requests["llm/route"].refused.values()) == 1


@pytest.mark.parametrize("host", ["example.org", "a.example.com:80:80", "a%2eexample.com"])
async def test_what_nobody_thought_of_may_be_refused(host: str) -> None:
    """`onNoMatch: deny`: no way around keys and limits by another host."""
    gateway = asking(lambda: Verdict(auth=ALICE), tiers(onNoMatch="deny", denyWith="openai"))
    (reply,) = await gateway.exchange(request_headers(host=host, ends=True))
    assert reply.immediate_response.status.code == 404
    assert b'"not_found"' in reply.immediate_response.body
    assert gateway.spending.rejections["no_match"] == 1


@pytest.mark.parametrize("first", [{"tier": None}, {}])
async def test_null_and_nothing_are_not_the_same(first: dict[str, Any]) -> None:
    """What is remembered of a token with a null claim is not what one without the claim gets."""
    config = tiers()
    config["actionSets"][0]["actions"][1]["conditionalData"] = [
        {"predicates": ["has(auth.identity.tier)"], "data": [entry("tier", '"there"')]},
        {"predicates": ["!has(auth.identity.tier)"], "data": [entry("tier", '"not there"')]},
    ]
    second = {} if first else {"tier": None}
    identities = iter([first, second])
    gateway = asking(lambda: Verdict(auth={"identity": {"userid": "a", "groups": "free", **next(identities)}}), config)
    for _ in range(2):
        await gateway.exchange(request_headers(ends=True))
    found = [call.query.descriptors[0][0][1] for call in gateway.limiter.of("should_rate_limit")]
    assert found == (["there", "not there"] if first else ["not there", "there"])


async def test_an_embedded_limiter_without_a_limit_for_the_caller_is_no_limit() -> None:
    """S1.D1: descriptors that no limit's conditions fit are as unlimited as none."""
    config = tiers(onNoLimit="deny")
    config["actionSets"][0]["actions"][1]["conditionalData"] = [
        {"data": [entry("tier", "auth.identity.groups"), entry("user", "auth.identity.userid")]}
    ]
    config["limits"] = [
        {"namespace": "llm/route", "max_value": 1, "seconds": 60, "conditions": ["descriptors[0].tier == 'free'"]}
    ]
    limiter = EmbeddedLimiter(LimitSet())
    groups = iter(["free", "gold", "free"])
    authenticator = RecordingAuthenticator(lambda: Verdict(auth={"identity": {"userid": "a", "groups": next(groups)}}))
    gateway = Gateway(config, limiter=limiter, authenticator=authenticator)
    limiter.replace_limits(gateway.active.limits)
    statuses = [
        (await gateway.exchange(request_headers(ends=True)))[0].immediate_response.status.code for _ in range(3)
    ]
    assert statuses == [0, 403, 429]


async def test_a_second_authenticator_is_asked_by_what_the_first_has_found_out() -> None:
    """Neither by an identity that was not known yet, nor by a header that is not believed any more."""
    config = tiers()
    config["services"]["who"]["failureMode"] = "allow"
    first, second = {"service": "who", "scope": "one"}, {"service": "who", "scope": "two"}
    first["predicates"] = ["request.method.startsWith('P')"]
    second["predicates"] = ["auth.identity.groups.contains('free') && !has(request.headers.trusted)"]
    config["actionSets"][0]["actions"][:1] = [first, second]
    verdicts = iter([Verdict(auth=ALICE, remove_headers=("trusted",)), Verdict(status=403)])
    gateway = asking(lambda: next(verdicts), config)
    (reply,) = await gateway.exchange(request_headers({"trusted": "yes"}, ends=True))
    assert reply.immediate_response.status.code == 403


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({}, b'{"model":"limited","x":}', 400),
        ({"content-encoding": "dcb"}, b"x", 415),
        ({}, b'{"model":"limited","x":NaN}', 429),
        ({"content-type": "multipart/form-data"}, b"--b", 0),
    ],
)
async def test_no_limit_is_escaped_by_a_body_that_others_can_read(
    headers: dict[str, str], body: bytes, status: int
) -> None:
    """What decides is read as leniently as models do, or the request is refused."""
    config = tiers()
    config["actionSets"][0]["actions"] = config["actionSets"][0]["actions"][1:2]
    config["actionSets"][0]["actions"][0]["conditionalData"] = [
        {"predicates": ["requestBodyJSON('/model') == 'limited'"], "data": [entry("a", '"1"')]}
    ]
    gateway = asking(Verdict, config, should_rate_limit=OVER_LIMIT)
    replies = await gateway.exchange(request_headers(headers), request_body(body))
    assert replies[-1].immediate_response.status.code == status
