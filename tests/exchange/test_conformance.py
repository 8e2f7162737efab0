"""wasm-shim's behaviour as numbered conformance vectors, one row each.

Rows say what a configuration and a request come to: the RPCs that a limiter gets, and what the client gets.
Where this product differs on purpose, the row says so and names the criterion.

Not here, with the reason:
- 8 (cluster missing): an endpoint that leads nowhere stops the start; tests/config holds that.
- 10, 11, 12 (gRPC statuses): tests/limiter maps statuses to LimiterError; the rows here begin there.
- 35, 36, 37 (auth RPC): `auth` services are refused by this version; the metadata of an ext_authz filter in front is
  row 35b.
- 40 of old versions merges request and response needs into one RPC at the end: row 40.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.harness import OK, OVER_LIMIT, UNKNOWN, Gateway, RecordingLimiter
from support.messages import (
    json_answer,
    request_body,
    request_headers,
    response_body,
    response_headers,
)

from extproc.config.errors import ConfigError
from extproc.limiter.seam import Code, Decision, LimiterError
from extproc.wire.external_processor_pb2 import ProcessingRequest, ProcessingResponse

Json = dict[str, Any]


def static(key: str, value: str) -> Json:
    return {"static": {"key": key, "value": value}}


def cel(key: str, value: str) -> Json:
    return {"expression": {"key": key, "value": value}}


def block(*data: Json, predicates: tuple[str, ...] = ()) -> Json:
    return {"predicates": list(predicates), "data": list(data)}


def action(*blocks: Json, service: str = "rl", predicates: tuple[str, ...] = (), scope: str = "RLS-domain") -> Json:
    return {"service": service, "scope": scope, "predicates": list(predicates), "conditionalData": list(blocks)}


def configuration(
    *actions: Json,
    hostnames: tuple[str, ...] = ("*.toystore.com",),
    predicates: tuple[str, ...] = (),
    failure: str = "deny",
    **sections: Any,
) -> Json:
    kinds = {"rl": "ratelimit", "check": "ratelimit-check", "report": "ratelimit-report"}
    conditions = {"hostnames": list(hostnames), "predicates": list(predicates)}
    return {
        "services": {
            name: {"type": kind, "endpoint": "limitador", "failureMode": failure, "timeout": "5s"}
            for name, kind in kinds.items()
        },
        "actionSets": [{"name": "set", "routeRuleConditions": conditions, "actions": list(actions)}] if actions else [],
        "endpoints": {"limitador": "embedded"},
        **sections,
    }


Rpc = tuple[str, str, list[dict[str, str]], int]
"""Method, domain, descriptors, hits addend."""
TOTAL = 'responseBodyJSON("/usage/total_tokens")'
HITS = cel("ratelimit.hits_addend", TOTAL)


def down() -> Exception:
    return LimiterError("refused", "status 14")


@dataclass
class Vector:
    """`end` is "pass" or the status the client gets in the model's place."""

    name: str
    config: Json
    rpcs: list[Rpc] = field(default_factory=list)
    end: str | int = "pass"
    request: ProcessingRequest = field(default_factory=lambda: request_headers(host="cars.toystore.com", path="/get"))
    body: list[bytes] = field(default_factory=list)
    answer: list[bytes] = field(default_factory=list)
    answer_type: str = "application/json"
    replies: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


def rpc(
    *descriptors: dict[str, str], hits: int = 1, method: str = "should_rate_limit", domain: str = "RLS-domain"
) -> Rpc:
    return method, domain, list(descriptors), hits


def at(path: str = "/get", host: str = "cars.toystore.com", **options: Any) -> ProcessingRequest:
    return request_headers(options.pop("headers", None), host=host, path=path, **options)


def once(*outcomes: Any) -> Callable[[], Any]:
    """Outcomes one after another."""
    remaining = list(outcomes)
    return lambda: remaining.pop(0)


ADMIN = block(static("admin", "1"))
SSE = "text/event-stream"
USAGE = b'data: {"usage":{"total_tokens":42}}\n\n'
DONE = b"data: [DONE]\n\n"
REPORT = action(block(static("a", "1"), HITS), service="report")
REPORTED = rpc({"a": "1"}, hits=42, method="report")

VECTORS = [
    Vector("1 no services, no action sets: miss", {"services": {}, "actionSets": []}),
    Vector("2 static data", configuration(action(ADMIN)), [rpc({"admin": "1"})]),
    Vector(
        "3 requestData is a second descriptor",
        configuration(action(ADMIN), requestData={"bar": "string(3 + 2)"}),
        [rpc({"admin": "1"}, {"bar": "5"})],
    ),
    Vector(
        "3b requestData keys lose `metrics.labels`, others keep their domain, sorted (S0.13)",
        configuration(action(ADMIN), requestData={"x.y": "'3'", "metrics.labels.user": "'alice'", "b": "'1'"}),
        [rpc({"admin": "1"}, {"b": "1", "user": "alice", "x.y": "3"})],
    ),
    Vector(
        "4 response headers of an OK answer reach the client (S0.16)",
        configuration(action(ADMIN)),
        [rpc({"admin": "1"})],
        answer=[b"{}"],
        replies={"should_rate_limit": lambda: Decision(Code.OK, (("test", "a"), ("other", "b")))},
        headers={"test": "a", "other": "b"},
    ),
    Vector("5 `*.com` matches", configuration(action(ADMIN), hostnames=("*.com",)), [rpc({"admin": "1"})]),
    Vector(
        "6 the only block's predicate is false: no RPC",
        configuration(action(block(static("a", "1"), predicates=("false",)))),
    ),
    Vector("7 an expression's string", configuration(action(block(cel("a", '"1"')))), [rpc({"a": "1"})]),
    Vector(
        "9 the second action fails",
        configuration(action(ADMIN), action(ADMIN)),
        [rpc({"admin": "1"}), rpc({"admin": "1"})],
        500,
        replies={"should_rate_limit": once(OK, LimiterError("unreachable", "no route"))},
    ),
    Vector(
        "10 limiter answers 14, deny",
        configuration(action(ADMIN)),
        [rpc({"admin": "1"})],
        500,
        replies={"should_rate_limit": down},
    ),
    Vector(
        "11 limiter answers 14, allow: the next action runs",
        configuration(action(ADMIN), action(ADMIN), failure="allow"),
        [rpc({"admin": "1"}), rpc({"admin": "1"})],
        replies={"should_rate_limit": once(LimiterError("refused", "14"), OK)},
    ),
    Vector(
        "12 second action's status 14, deny",
        configuration(action(ADMIN), action(ADMIN)),
        [rpc({"admin": "1"}), rpc({"admin": "1"})],
        500,
        replies={"should_rate_limit": once(OK, LimiterError("refused", "14"))},
    ),
    Vector(
        "13 source.remote_address is the address without its port",
        configuration(
            action(block(cel("source.remote_address", "source.remote_address"))),
            predicates=("source.remote_address != '50.0.0.1'",),
        ),
        [rpc({"source.remote_address": "127.0.0.1"})],
        request=at(attributes={"source.address": "127.0.0.1:45000"}),
    ),
    Vector(
        "13b IPv6 too",
        configuration(action(block(cel("ip", "source.remote_address")))),
        [rpc({"ip": "2001:db8::1"})],
        request=at(attributes={"source.address": "[2001:db8::1]:45000"}),
    ),
    Vector(
        "14 check at the headers, report at the end with an entry from the answer",
        configuration(
            action(block(static("a", "1")), service="check", scope="RLS-domain-A"),
            action(
                block(cel("model", 'responseBodyJSON("/usage/total_tokens")')), service="report", scope="RLS-domain-B"
            ),
        ),
        [
            rpc({"a": "1"}, method="check", domain="RLS-domain-A"),
            rpc({"model": "11"}, method="report", domain="RLS-domain-B"),
        ],
        answer=[b'{"usage":{"total_tokens":11}}'],
    ),
    Vector(
        "15 request attributes are still there at the end",
        configuration(
            action(
                block(cel("method", "request.method")),
                service="report",
                predicates=(f"{TOTAL} == 11 && request.url_path.startsWith('/get')",),
            )
        ),
        [rpc({"method": "POST"}, method="report")],
        answer=[b'{"usage":{"total_tokens":11}}'],
    ),
    Vector(
        "16 an answer that is no JSON: onMissingUsage decides (S0.D5), here skip",
        configuration(REPORT, onMissingUsage="skip"),
        answer=[b"some crap"],
    ),
    Vector("17 SSE usage, then [DONE]", configuration(REPORT), [REPORTED], answer=[USAGE, DONE], answer_type=SSE),
    Vector(
        "18 SSE chunks one by one, the end without bytes",
        configuration(REPORT),
        [REPORTED],
        answer=[b'data: {"usage":null}\n\n', b": ping\n\n", USAGE, DONE, b""],
        answer_type=SSE,
    ),
    Vector("19 SSE only [DONE]", configuration(REPORT, onMissingUsage="skip"), answer=[DONE], answer_type=SSE),
    Vector(
        "20 no JSON before [DONE]",
        configuration(REPORT, onMissingUsage="skip"),
        answer=[b"data: total_tokens\n\n", DONE],
        answer_type=SSE,
    ),
    Vector(
        "20b usage before an event that is no JSON counts all the same (S0.D1)",
        configuration(REPORT),
        [REPORTED],
        answer=[USAGE, b"data: bye\n\n", DONE],
        answer_type=SSE,
    ),
    Vector(
        "21 an event split inside a line",
        configuration(REPORT),
        [REPORTED],
        answer=[b"da", b'ta: {"usage":{"total_', b'tokens":42}}\n', b"\ndata: [DONE]\n\n"],
        answer_type=SSE,
    ),
    Vector(
        "22 usage over two data lines",
        configuration(REPORT),
        [REPORTED],
        answer=[b'data: {"usage":\ndata: {"total_tokens":42}}\n\n', DONE],
        answer_type=SSE,
    ),
    Vector(
        "23 CRLF, comments, no space",
        configuration(REPORT),
        [REPORTED],
        answer=[b': hi\r\ndata:{"usage":{"total_tokens":42}}\r\n\r\ndata:  x\r\n\r\n'],
        answer_type=SSE,
    ),
    Vector(
        "24 a string stays a string, a number is a number",
        configuration(
            action(
                block(
                    cel("model", 'responseBodyJSON("/model")'), cel("ratelimit.hits_addend", 'responseBodyJSON("/n")')
                ),
                service="report",
            )
        ),
        [rpc({"model": "42"}, hits=42, method="report")],
        answer=[b'{"model":"42","n":42}'],
    ),
    Vector(
        "25 of two blocks the one that holds",
        configuration(
            action(block(static("a", "1"), predicates=("false",)), block(static("b", "2"), predicates=("true",)))
        ),
        [rpc({"b": "2"})],
    ),
    Vector(
        "26 two blocks that hold: one descriptor, in order; numbers as text",
        configuration(action(block(cel("x", "42")), block(cel("a", "420")))),
        [rpc({"x": "42", "a": "420"})],
    ),
    Vector(
        "27 known attributes are used, and are no entries (S0.12)",
        configuration(
            action(block(cel("ratelimit.domain", "'test'"), cel("ratelimit.hits_addend", "3"), static("a", "1")))
        ),
        [rpc({"a": "1"}, hits=3, domain="test")],
    ),
    Vector("28a empty domain", configuration(action(block(cel("ratelimit.domain", "''"), static("a", "1")))), end=500),
    *(
        Vector(
            f"28b hits {bad}",
            configuration(action(block(cel("ratelimit.hits_addend", bad), static("a", "1")))),
            end=500,
        )
        for bad in ("-1", "4294967296", "'x'", "null", "1.5", "true")
    ),
    Vector("29 a list is no descriptor value (S0.20)", configuration(action(block(cel("a", "[1, 2]")))), end=500),
    Vector(
        "30a a bool is `true`",
        configuration(action(block(cel("a", "1 == 1"), cel("b", "1 == 2")))),
        [rpc({"a": "true", "b": "false"})],
    ),
    Vector("30b null is an action failure (S0.20)", configuration(action(block(cel("a", "request.referer")))), end=500),
    Vector(
        "30c ... which passes where failures are allowed",
        configuration(action(block(cel("a", "request.referer"))), failure="allow"),
    ),
    Vector(
        "31 data of a block that does not hold is not evaluated",
        configuration(action(block(cel("a", "1 / 0"), predicates=("false",)), block(static("b", "2")))),
        [rpc({"b": "2"})],
    ),
    Vector(
        "32 action and block predicates: both",
        configuration(action(block(static("a", "1"), predicates=("true",)), predicates=("false",))),
    ),
    Vector(
        "33 over the limit, with headers",
        configuration(action(ADMIN)),
        [rpc({"admin": "1"})],
        429,
        replies={"should_rate_limit": lambda: Decision(Code.OVER_LIMIT, (("retry-after", "7"),))},
        headers={"retry-after": "7", "x-envoy-ratelimited": "true"},
    ),
    Vector(
        "34 UNKNOWN",
        configuration(action(ADMIN)),
        [rpc({"admin": "1"})],
        500,
        replies={"should_rate_limit": lambda: UNKNOWN},
    ),
    Vector(
        "34b UNKNOWN where failures are allowed (S0.14)",
        configuration(action(ADMIN), failure="allow"),
        [rpc({"admin": "1"})],
        replies={"should_rate_limit": lambda: UNKNOWN},
    ),
    Vector(
        "35b identity from ext_authz metadata",
        configuration(action(block(static("a", "1"), predicates=("auth.identity.userid == 'alice'",)))),
        [rpc({"a": "1"})],
        request=at(metadata={"envoy.filters.http.ext_authz": {"identity": {"userid": "alice"}}}),
    ),
    Vector(
        "35c no identity, and the action needs one",
        configuration(action(block(cel("a", "auth.identity.userid")))),
        end=500,
    ),
    Vector(
        "38 two blocks on the address",
        configuration(
            action(
                block(static("a", "1"), predicates=("source.address == '1.2.3.4:80'",)),
                block(static("b", "2"), predicates=("source.address != '1.2.3.4:80'",)),
            )
        ),
        [rpc({"a": "1"})],
        request=at(attributes={"source.address": "1.2.3.4:80"}),
    ),
    Vector(
        "39 an entry from the request body, in two chunks",
        configuration(action(block(cel("model", "requestBodyJSON('/model')")))),
        [rpc({"model": "gpt-4"})],
        request=at(modes=(1, 0)),
        body=[b'{"mod', b'el":"gpt-4"}'],
    ),
    Vector(
        "39b a request without a body has no model: the action fails",
        configuration(action(block(cel("model", "requestBodyJSON('/model')")))),
        end=500,
        request=at(ends=True),
    ),
    Vector(
        "40 entry from the request body, hits from the answer: one RPC at the end",
        configuration(action(block(cel("model", "requestBodyJSON('/model')"), HITS), service="report")),
        [rpc({"model": "gpt-4"}, hits=24, method="report")],
        body=[b'{"model":"gpt-4"}'],
        answer=[json_answer(24)],
    ),
    Vector(
        "42 queryMap",
        configuration(
            action(
                block(
                    cel("a", "queryMap(request.query)['a']"),
                    cel("b", "queryMap(request.query)['b']"),
                    cel("n", "size(queryMap(request.query, true)['a'])"),
                )
            )
        ),
        [rpc({"a": "x y", "b": "", "n": "2"})],
        request=at("/get?a=x%20y&b=&a=2"),
    ),
    Vector(
        "43a hosts fold case and lose their port",
        configuration(action(ADMIN), hostnames=("api.example.com",)),
        [rpc({"admin": "1"})],
        request=at(host="API.Example.COM:8080"),
    ),
    Vector(
        "43b a wildcard is any depth",
        configuration(action(ADMIN), hostnames=("*.example.com",)),
        [rpc({"admin": "1"})],
        request=at(host="a.b.example.com"),
    ),
    Vector(
        "43c ... but not the domain itself",
        configuration(action(ADMIN), hostnames=("*.example.com",)),
        request=at(host="example.com"),
    ),
    Vector(
        "43d `*` matches all",
        configuration(action(ADMIN), hostnames=("*",)),
        [rpc({"admin": "1"})],
        request=at(host="localhost"),
    ),
    Vector(
        "44a a route predicate that is null", configuration(action(ADMIN), predicates=("request.referer",)), end=500
    ),
    Vector(
        "44b a route predicate that is a string", configuration(action(ADMIN), predicates=("request.method",)), end=500
    ),
    Vector(
        "45 a missing attribute equals nothing",
        configuration(action(ADMIN), predicates=("request.protocol == 'HTTP/2'",)),
    ),
]


def as_rpc(call: Any) -> Rpc:
    return (
        call.method,
        call.query.domain,
        [dict(descriptor) for descriptor in call.query.descriptors],
        call.query.hits_addend,
    )


def header_values(reply: ProcessingResponse) -> dict[str, str]:
    immediate = reply.HasField("immediate_response")
    mutation = reply.immediate_response.headers if immediate else reply.response_headers.response.header_mutation
    return {option.header.key: option.header.raw_value.decode() for option in mutation.set_headers}


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
async def test_conformance(vector: Vector) -> None:
    limiter = RecordingLimiter(answers=dict(vector.replies))
    gateway = Gateway(vector.config, limiter)
    messages = [vector.request]
    for index, chunk in enumerate(vector.body):
        messages.append(request_body(chunk, ends=index == len(vector.body) - 1))
    if vector.answer:
        messages.append(response_headers({"content-type": vector.answer_type}))
    for index, chunk in enumerate(vector.answer):
        messages.append(response_body(chunk, ends=index == len(vector.answer) - 1))
    replies = await gateway.exchange(*messages)

    assert [as_rpc(call) for call in limiter.calls] == vector.rpcs
    last = replies[-1]
    if vector.end == "pass":
        assert not any(reply.HasField("immediate_response") for reply in replies)
        assert len(replies) == len(messages)
    else:
        assert last.immediate_response.status.code == vector.end
        body = b"Too Many Requests\n" if vector.end == 429 else b"Internal Server Error.\n"
        assert last.immediate_response.body == body
    if vector.headers:
        found: dict[str, str] = {}
        for reply in replies:
            found |= header_values(reply)
        assert vector.headers.items() <= found.items()


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("requestBodyJSON(request.path)", "takes a string literal"),
        ("responseBodyJSON('usage')", "starts with `/`"),
        ("1 +", "invalid CEL expression"),
        ("reqest.path", "unknown variable `reqest`"),
        ("foo(request.path)", "unknown function `foo`"),
    ],
)
def test_expressions_that_cannot_work_are_refused_with_their_field(value: str, complaint: str) -> None:
    """Vector 41, S0.D19, S0.D21."""
    with pytest.raises(
        ConfigError, match=re.escape("actionSets[0].actions[0].conditionalData[0].data[0].expression.value")
    ) as caught:
        Gateway(configuration(action(block(cel("a", value)))))
    assert complaint in str(caught.value)
    with pytest.raises(ConfigError, match="requestData"):
        Gateway(configuration(action(ADMIN), requestData={"metrics.labels.user": value}))


async def test_over_limit_stops_the_actions_behind_it() -> None:
    """S1.29: first denial wins, later RPCs are not sent."""
    limiter = RecordingLimiter(answers={"check": lambda: OVER_LIMIT})
    gateway = Gateway(configuration(action(ADMIN, service="check"), action(ADMIN)), limiter)
    replies = await gateway.exchange(at())
    assert replies[0].immediate_response.status.code == 429
    assert [call.method for call in limiter.calls] == ["check"]
    assert (gateway.metrics.hits, gateway.metrics.denied, gateway.metrics.allowed) == (1, 1, 0)
