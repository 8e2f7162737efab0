"""Who gets a request, what goes there with it, and what does not: seen where the model stands."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from unittest.mock import Mock

import orjson
import pytest
from support.harness import Gateway, RecordingAuthenticator, RecordingLimiter, configured
from support.messages import (
    json_answer,
    request_body,
    request_headers,
    request_trailers,
    response_body,
    response_headers,
    sse_frames,
)

from extproc.bodies.edits import MAX_STEPS
from extproc.config.masking import masked
from extproc.identity.seam import Verdict
from extproc.limiter.seam import LimiterError
from extproc.wire.external_processor_pb2 import ProcessingRequest, ProcessingResponse
from extproc.wire.processing_mode_pb2 import ProcessingMode

SECRET, OTHER_SECRET = "4b1d-secret-of-openai", "77aa-secret-of-anthropic"
HINT, ROUTE = "x-arch-llm-provider-hint", "x-arch-llm-provider"

GPT_4 = {"name": "open-ai-gpt-4", "model": "gpt-4", "default": True, "credential": {"env": "KEY"}}
GPT_4O = {"name": "open-ai-gpt-4o", "model": "gpt-4o", "models": ["gpt-4o"], "credential": {"env": "KEY"}}
CLAUDE = {
    "name": "anthropic",
    "models": {"sonnet": "claude-sonnet-4", "claude-*": None},
    "credential": {"env": "OTHER_KEY", "header": "x-api-key"},
    "headers": {"anthropic-version": "2023-06-01"},
}
LOCAL = {"name": "local", "credential": "none", "cluster": "ollama"}
KEYLESS = {"name": "keyless"}
ALL = [GPT_4, GPT_4O, CLAUDE, LOCAL, KEYLESS]
ONE = [{"name": "only", "model": "m", "credential": "none"}]
"""The head decides."""
BY_MODEL = [{"name": "only", "model": "m", "models": ["o"], "default": True, "credential": {"env": "KEY"}}]
"""The body decides."""

CHAT = b'{"model":"x","messages":[{"role":"user","content":"hi"}]}'


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", SECRET)
    monkeypatch.setenv("OTHER_KEY", OTHER_SECRET)


@dataclass
class Upstream:
    """A request as its model sees it."""

    headers: dict[str, str]
    body: bytes
    rerouted: bool

    @property
    def provider(self) -> str:
        return self.headers.get(ROUTE, "")

    @property
    def document(self) -> Any:
        return orjson.loads(self.body)


def seen(messages: list[ProcessingRequest], replies: list[ProcessingResponse]) -> Upstream:
    """What Envoy makes of the replies: of every mutation, it removes headers first and sets others then."""
    assert len(replies) == len(messages), replies[-1]
    sent = messages[0].request_headers.headers.headers
    headers = {header.key: header.raw_value.decode("latin-1") for header in sent}
    body, rerouted = b"", False
    for message, reply in zip(messages, replies, strict=True):
        assert reply.WhichOneof("response") == message.WhichOneof("request")
        common = (reply.request_headers if reply.HasField("request_headers") else reply.request_body).response
        for name in common.header_mutation.remove_headers:
            headers.pop(name, None)
        for option in common.header_mutation.set_headers:
            assert not option.append.value, "S2.D11: it would be added to what the client sent"
            headers[option.header.key] = option.header.raw_value.decode()
        rerouted |= common.clear_route_cache
        if message.HasField("request_body"):
            mutation = common.body_mutation
            body += mutation.body if mutation.WhichOneof("mutation") == "body" else message.request_body.body
    assert headers.get("content-length", str(len(body))) == str(len(body)), "G5, S2.7"
    return Upstream(headers, body, rerouted)


async def ask(
    config: Mapping[str, Any] | Gateway,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = CHAT,
    **head: Any,
) -> Upstream:
    """Let a request through."""
    gateway = config if isinstance(config, Gateway) else Gateway(config)
    messages = [request_headers(headers, ends=body is None, **head)]
    if body is not None:
        messages.append(request_body(body))
    return seen(messages, await gateway.exchange(*messages))


async def refused(
    config: Mapping[str, Any] | Gateway,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = CHAT,
    **head: Any,
) -> tuple[int, str]:
    """Status and body of the answer in the model's place."""
    gateway = config if isinstance(config, Gateway) else Gateway(config)
    messages = [request_headers(headers, ends=body is None, **head)]
    if body is not None:
        messages.append(request_body(body))
    reply = (await gateway.exchange(*messages))[-1]
    assert reply.HasField("immediate_response"), reply
    assert gateway.metrics.denied == 1
    return reply.immediate_response.status.code, reply.immediate_response.body.decode()


def of_model(model: Any) -> bytes:
    return orjson.dumps({"model": model, "messages": []})


# ── which provider ────────────────────────────────────────────────────────────────────────────────

RULES = [
    {"when": "'x-team' in request.headers && request.headers['x-team'] == 'red'", "provider": "local"},
    {"when": "request.method == 'PUT'", "provider": "open-ai-gpt-4o"},
]


@pytest.mark.parametrize(
    ("headers", "model", "provider"),
    [
        # rule > hint > model > default
        ({"x-team": "red", HINT: "open-ai-gpt-4o"}, "sonnet", "ollama"),
        ({"x-team": "red", HINT: "bogus"}, "sonnet", "ollama"),
        ({"x-team": "blue", HINT: "open-ai-gpt-4o"}, "sonnet", "open-ai-gpt-4o"),
        ({}, "sonnet", "anthropic"),
        ({}, "unheard-of", "open-ai-gpt-4"),
        # S2.1, S2.2, S2.3
        ({HINT: "open-ai-gpt-4o"}, "", "open-ai-gpt-4o"),
        ({HINT: "default"}, "sonnet", "open-ai-gpt-4"),
        ({HINT: ""}, "sonnet", "anthropic"),
        # a name differs in case, a pattern stands for any characters, a name that is none is nobody's
        ({}, "SONNET", "anthropic"),
        ({}, "Claude-3-Opus", "anthropic"),
        ({}, "claude", "open-ai-gpt-4"),
        ({}, "", "open-ai-gpt-4"),
        ({}, None, "open-ai-gpt-4"),
        ({}, 7, "open-ai-gpt-4"),
        ({}, ["sonnet"], "open-ai-gpt-4"),
    ],
)
async def test_who_gets_it(headers: dict[str, str], model: Any, provider: str) -> None:
    """S2.1-S2.4: and Envoy chooses its route anew."""
    upstream = await ask({"providers": ALL, "routing": {"rules": RULES}}, headers, of_model(model))
    assert upstream.provider == provider
    assert upstream.rerouted


async def test_the_first_rule_that_holds_counts() -> None:
    config = {"providers": ALL, "routing": {"rules": RULES}}
    assert (await ask(config, {"x-team": "red"}, method="PUT")).provider == "ollama"
    assert (await ask(config, method="PUT")).provider == "open-ai-gpt-4o"


async def test_a_rule_that_cannot_tell_is_no_reason_to_go_on() -> None:
    rules = [{"when": "request.headers['x-team'] == 'red'", "provider": "local"}]
    status, body = await refused({"providers": ALL, "routing": {"rules": rules}})
    assert (status, "x-team" in body) == (500, False)


async def test_the_identity_may_decide() -> None:
    """Rules see what an authenticator has found out, and no header that it does not believe."""
    rules = [{"when": "auth.identity.tier == 'gold' && !('x-tier' in request.headers)", "provider": "local"}]
    verdict = Verdict(auth={"identity": {"tier": "gold"}}, remove_headers=("x-tier",))
    gateway = authenticated(verdict, providers=ALL, routing={"rules": rules})
    assert (await ask(gateway, {"x-tier": "gold"})).provider == "ollama"


@pytest.mark.parametrize("hint", ["bogus", "open-ai-gpt-4,local", "OPEN-AI-GPT-4", "Default", "\u00e9", "keyless "])
async def test_an_unknown_hint_is_refused_and_not_repeated(hint: str) -> None:
    """S2.D22"""
    status, body = await refused({"providers": ALL}, {HINT: hint}, None)
    assert status == 400
    assert HINT in body
    assert hint not in body


@pytest.mark.parametrize(("model", "provider"), [("sonnet", "anthropic"), ("x", "open-ai-gpt-4")])
async def test_or_is_as_if_it_were_not_there(model: str, provider: str) -> None:
    """S2.D22"""
    config = {"providers": ALL, "routing": {"unknownHint": "default"}}
    assert (await ask(config, {HINT: "bogus"}, of_model(model))).provider == provider


@pytest.mark.parametrize("body", [None, b"", CHAT])
async def test_without_a_default_nobody_is_taken_by_chance(body: bytes | None) -> None:
    """S2.D21"""
    status, text = await refused({"providers": [GPT_4O, CLAUDE]}, body=body)
    assert (status, text) == (400, "no LLM Provider is configured for this request")


# ── headers ───────────────────────────────────────────────────────────────────────────────────────

FORGED = {
    ROUTE: "evil",
    "x-arch-ratelimit-selector": "x-tenant",
    "x-arch-anything": "1",
    "authorization": "Bearer of-the-client",
    "x-api-key": "of-the-client",
    "x-goog-api-key": "of-the-client",
}


@pytest.mark.parametrize("headers", [{}, {HINT: "anthropic"}])
@pytest.mark.parametrize("model", ["sonnet", "gpt-4o", "x"])
async def test_what_a_client_sends_for_the_gateway_is_replaced_or_goes(headers: dict[str, str], model: str) -> None:
    """S2.4, S2.5, S2.D11: whether the head decides or the body; and no key of one provider gets to another."""
    upstream = await ask({"providers": ALL}, FORGED | headers, of_model(model))
    anthropic = headers or model == "sonnet"
    expected = (
        {ROUTE: "anthropic"} if anthropic else {ROUTE: "open-ai-gpt-4o" if model == "gpt-4o" else "open-ai-gpt-4"}
    )
    expected |= {"x-api-key": OTHER_SECRET} if anthropic else {"authorization": f"Bearer {SECRET}"}
    expected |= {"anthropic-version": "2023-06-01"} if anthropic else {}
    assert {name: value for name, value in upstream.headers.items() if name in expected} == expected
    assert not {name for name in upstream.headers if name.startswith("x-arch-")} - {ROUTE}
    assert "of-the-client" not in upstream.headers.values()


async def test_a_routing_header_sent_twice_is_replaced_altogether() -> None:
    """S2.D11: Envoy's own overwriting takes away all of them."""
    message = request_headers({ROUTE: "evil"})
    message.request_headers.headers.headers.add(key=ROUTE, raw_value=b"worse")
    upstream = seen(
        [message, request_body(CHAT)], await Gateway({"providers": ONE}).exchange(message, request_body(CHAT))
    )
    assert upstream.provider == "only"


@pytest.mark.parametrize(
    ("credential", "authorization"),
    [
        ("none", None),
        ("client", "Bearer of-the-client"),
        ({"env": "KEY"}, f"Bearer {SECRET}"),
        ({"env": "KEY", "prefix": "Token"}, f"Token {SECRET}"),
        ({"env": "KEY", "prefix": ""}, SECRET),
        ({"env": "KEY", "header": "api-key"}, None),
    ],
)
async def test_the_credential_of_the_client(credential: Any, authorization: str | None) -> None:
    """S2.5"""
    upstream = await ask({"providers": [{"name": "one", "credential": credential}]}, FORGED)
    assert upstream.headers.get("authorization") == authorization
    assert (upstream.headers.get("x-goog-api-key") is not None) == (credential == "client")


@pytest.mark.parametrize("headers", [{HINT: "keyless"}, {}])
async def test_without_a_key_nothing_is_called(headers: dict[str, str]) -> None:
    """S2.6, also where the model decides; in any dialect of refusals."""
    providers = [GPT_4, {"name": "keyless", "models": ["k"]}]
    gateway = Gateway({"providers": providers})
    told = 'No access key configured for selected LLM Provider "keyless"'
    assert await refused(gateway, headers, of_model("k")) == (400, told)
    status, body = await refused({"providers": providers, "denyWith": "openai"}, headers, of_model("k"))
    assert (status, json.loads(body)["error"]["message"]) == (400, told)
    assert gateway.spending.rejections["no_provider"] == 1


def authenticated(verdict: Verdict, **sections: Any) -> Gateway:
    """With an authenticator before everything else."""
    config: dict[str, Any] = {
        "services": {"who": {"type": "auth", "endpoint": "authorino"}},
        "endpoints": {"authorino": "127.0.0.1:1"},
        "actionSets": [
            {
                "name": "llm",
                "routeRuleConditions": {"hostnames": ["*.example.com"]},
                "actions": [{"service": "who", "scope": "llm/auth"}],
            }
        ],
        **sections,
    }
    return Gateway(config, authenticator=RecordingAuthenticator(lambda: verdict))


@pytest.mark.parametrize("model", ["x", "sonnet"])
async def test_the_clients_key_goes_and_the_providers_comes(model: str) -> None:
    """S1.D3, S2.5: one reply that removes and sets the same header, which Envoy does in this order."""
    verdict = Verdict(auth={"identity": {"userid": "a"}}, remove_headers=("authorization",))
    gateway = authenticated(verdict, providers=ALL)
    upstream = await ask(gateway, {"authorization": "APIKEY of-the-client"}, of_model(model))
    assert "of-the-client" not in str(upstream.headers)
    assert SECRET in str(upstream.headers) or OTHER_SECRET in str(upstream.headers)


async def test_a_caller_who_is_not_let_in_gets_no_provider() -> None:
    gateway = authenticated(Verdict(status=401), providers=ALL)
    assert (await refused(gateway, {HINT: "keyless"}))[0] == 401
    assert "extproc_routed_total{" not in gateway.metrics.render()[0].decode()


@pytest.mark.parametrize("headers", [{ROUTE: "evil"}, {ROUTE: "evil", HINT: "open-ai-gpt-4o"}])
async def test_limits_do_not_go_by_what_is_not_believed(headers: dict[str, str]) -> None:
    """S2.D11: neither where the head decides nor where the body does."""
    config = configured(providers=ALL)
    names = {"x-arch-llm-provider", HINT, "x-arch-other"}
    for action in config["actionSets"][0]["actions"]:
        entries = [
            {"expression": {"key": name, "value": f"'{name}' in request.headers ? request.headers['{name}'] : '-'"}}
            for name in sorted(names)
        ]
        action["conditionalData"][0]["data"][:1] = entries
    gateway = Gateway(config)
    await ask(gateway, {**headers, "x-arch-other": "1"})
    (call,) = gateway.limiter.of("check")
    assert "evil" not in call.entries.values()
    assert (call.entries[HINT], call.entries["x-arch-other"]) == ("-", "-")


async def test_a_secret_is_shown_to_nobody_but_its_provider(caplog: pytest.LogCaptureFixture) -> None:
    """S2.D17, S4.D12: no line at any level, no metric, page, refusal, answer, descriptor or text of an object."""
    caplog.set_level(logging.DEBUG, "extproc")
    config = configured(
        providers=ALL,
        requestData={"a": "request.headers['authorization']"},
        promptLimits={"limits": [{"model": "gpt-4", "selector": "x-tenant", "tokens": 50}]},
        routing={
            "rules": [{"when": "request.path == '/fails' && request.headers['nothing'] == ''", "provider": "local"}]
        },
    )
    outcomes: list[Any] = [RuntimeError("a defect"), LimiterError("refused", "no")]
    gateway = Gateway(config)
    shown: list[str] = []
    prompt = "my-own-words"
    chat = orjson.dumps({"model": "x", "messages": [{"role": "user", "content": prompt}]})
    for path in ("/v1/chat/completions", "/fails", "/v1/embeddings"):
        for outcome in (None, *outcomes):
            gateway.limiter.answers = {} if outcome is None else {"check": Mock(return_value=outcome)}
            for body in (chat, b'{"my-own-words"', many(MAX_STEPS + 1), b"", gzip.compress(chat, mtime=0)):
                head = request_headers({"authorization": "Bearer 4b1d-secret-of-a-client", "x-tenant": "t"}, path=path)
                exchange = gateway.open()
                replies = await gateway.send(
                    exchange, head, request_body(body), response_headers(status=200), response_body(json_answer())
                )
                shown += [repr(exchange), repr(gateway.active), repr(gateway.active.plan)]
                shown += [str(reply) for reply in replies if not reply.WhichOneof("response").startswith("request_")]
                exchange.close()
    await gateway.reports.flush(5)
    gateway.decisions.flush()
    shown += [logging.Formatter().format(record) + str(record.__dict__) for record in caplog.records]
    shown += [
        gateway.metrics.render()[0].decode(),
        str(masked(gateway.active.config)),
        str(gateway.spending.accounts()),
    ]
    shown += [str(call.query) for call in gateway.limiter.calls if "4b1d-secret-of-a-client" not in str(call.query)]
    assert caplog.records
    told = "\n".join(shown)
    assert SECRET not in told
    assert OTHER_SECRET not in told
    assert prompt not in told


# ── bodies ────────────────────────────────────────────────────────────────────────────────────────


def many(members: int) -> bytes:
    """A chat with so many messages, the last of which has to be edited."""
    return b'{"model":"x","metadata":1,"messages":[' + b"{}," * members + b'{"model":1}]}'


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("providers", [ONE, BY_MODEL])
async def test_model_and_metadata_are_edited_and_no_other_byte(providers: list[Any], length: bool) -> None:
    """S2.7, S2.9, S2.D12, G5"""
    body = (
        b'{ "seed": 12345678901234567890, "model" : "x", "metadata": {"a": 1},\n "n": 1.0e0, "n": 2,'
        b' "messages": [{"model": "x", "role": "nobody", "content": null}, {"content": "\\u00e9"}], "tools": [] }'
    )
    edited = body.replace(b'"x",', b'"m",', 1).replace(b', "metadata": {"a": 1}', b"").replace(b'"model": "x", ', b"")
    headers = {"content-length": str(len(body))} if length else {}
    upstream = await ask({"providers": providers}, headers, body)
    assert upstream.body == edited
    assert ("content-length" in upstream.headers) == length


@pytest.mark.parametrize(
    ("content_length", "mode", "keeps"),
    [
        (None, ProcessingMode.BUFFERED_PARTIAL, False),
        (100, ProcessingMode.BUFFERED, True),
        (16 * 1024, ProcessingMode.BUFFERED, True),
        (16 * 1024 + 1, ProcessingMode.BUFFERED_PARTIAL, False),
    ],
)
async def test_a_length_is_kept_where_all_of_it_surely_fits(content_length: int | None, mode: int, keeps: bool) -> None:
    """G5, S2.7: elsewhere Envoy heeds no other length, so the body goes on in chunks."""
    size = content_length or 100
    body = CHAT[:-1] + b" " * (size - len(CHAT)) + b"}"
    headers = {} if content_length is None else {"content-length": str(size)}
    messages = [request_headers(headers), request_body(body)]
    replies = await Gateway({"providers": ONE}).exchange(*messages)
    assert replies[0].mode_override.request_body_mode == mode
    mutation = replies[1].request_body.response.header_mutation
    assert ("content-length" in mutation.remove_headers) == (not keeps)
    seen(messages, replies)


@pytest.mark.parametrize("providers", [ONE, BY_MODEL])
@pytest.mark.parametrize("body", [b"", b" \r\n\t"])
async def test_an_empty_body_passes_untouched(providers: list[Any], body: bytes) -> None:
    """S2.11: and still goes where it belongs."""
    upstream = await ask({"providers": providers}, {ROUTE: "evil"}, body)
    assert (upstream.body, upstream.provider) == (body, "only")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"messages":[{"role":"system",}]}', "line 1 column 31 (char 30)"),
        (b'{"model":"private"', "delimiter: line 1 column 19 (char 18)"),
        (b'{"model":"private"}{}', "Extra data"),
        (b'["private"]', "expected an object"),
        (b'"private"', "expected an object"),
        (b"null", "expected an object"),
        (b"0", "expected an object"),
        (b"private", "Expecting value"),
        (b"\xffprivate", "not UTF-8: byte 0"),
        ('{"model":"private"}'.encode("utf-16"), "not UTF-8"),
        (b"\xef\xbb\xbf", "Expecting value"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"private":' * 100_000, "nested too deeply"),
        (b'{"private":' + b"9" * 5000 + b"}", "digits"),
        (b'{"private":[' + b"0," * 300_001 + b"0]}", "values"),
        (many(MAX_STEPS + 1), "members"),
    ],
    ids=lambda value: value[:24] if isinstance(value, bytes) else "",
)
@pytest.mark.parametrize("profile", ["kuadrant", "openai"])
@pytest.mark.parametrize("providers", [ONE, BY_MODEL])
async def test_what_cannot_be_edited_is_refused_with_the_parsers_words(
    body: bytes, words: str, profile: str, providers: list[Any]
) -> None:
    """S2.10, S2.D15: upstream is not called, and nothing of the body is repeated."""
    status, told = await refused({"providers": providers, "denyWith": profile}, {ROUTE: "evil"}, body)
    assert status in ((400, 413) if words in ("values", "members") else (400,))
    if status == 400:
        told = json.loads(told)["error"]["message"] if profile == "openai" else told
        assert words in told
    assert "private" not in told


@pytest.mark.parametrize("encoding", ["gzip", "br", "dcb", "gzip, gzip"])
@pytest.mark.parametrize("providers", [ONE, BY_MODEL])
async def test_a_compressed_body_is_no_way_around(encoding: str, providers: list[Any]) -> None:
    body = gzip.compress(CHAT, mtime=0)
    assert (await refused({"providers": providers}, {"content-encoding": encoding}, body))[0] == 415


async def test_identity_is_no_encoding() -> None:
    assert (await ask({"providers": ONE}, {"content-encoding": "identity"})).document["model"] == "m"


@pytest.mark.parametrize("providers", [ONE, BY_MODEL])
@pytest.mark.parametrize("complete", [True, False])
async def test_nothing_is_decided_on_a_part(providers: list[Any], complete: bool) -> None:
    """G14: what did not fit into Envoy's buffer may say something else, though what is there is a document."""
    gateway = Gateway({"providers": providers})
    part = request_body(CHAT if complete else CHAT[:-1], ends=False)
    reply = (await gateway.exchange(request_headers({ROUTE: "evil"}), part))[-1]
    assert reply.immediate_response.status.code == 413


@pytest.mark.parametrize("providers", [ONE, BY_MODEL])
async def test_a_body_that_never_came_is_not_answered(providers: list[Any]) -> None:
    """A gateway that takes no orders has sent it on unedited."""
    gateway = Gateway({"providers": providers})
    reply = (await gateway.exchange(request_headers({ROUTE: "evil"}), response_headers()))[-1]
    assert reply.immediate_response.status.code == 500


@pytest.mark.parametrize("mode", [ProcessingMode.STREAMED, ProcessingMode.FULL_DUPLEX_STREAMED])
@pytest.mark.parametrize(("path", "status"), [("/v1/chat/completions", 500), ("/v1/embeddings", 0)])
@pytest.mark.parametrize("providers", [ONE, BY_MODEL])
async def test_a_gateway_that_streams_lets_nothing_by(providers: list[Any], path: str, status: int, mode: int) -> None:
    """The model may have the beginning of a body before it is edited; what is not edited goes on."""
    head = request_headers({ROUTE: "evil"}, path=path, modes=(mode, mode))
    (reply,) = await Gateway({"providers": providers}).exchange(head)
    assert reply.immediate_response.status.code == status
    if not status:
        assert reply.mode_override.request_body_mode == ProcessingMode.NONE
        assert seen([head], [reply]).provider == "only"


async def test_trailers_follow_a_body_that_was_edited() -> None:
    body = {"content-length": str(len(CHAT))}
    messages = [request_headers(body), request_body(CHAT, ends=False)]
    replies = await Gateway({"providers": ONE}).exchange(*messages, request_trailers())
    assert replies[-1].HasField("request_trailers")
    assert seen(messages, replies[:2]).document["model"] == "m"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/chat/completions?x=1",
        "/v1/chat/completions?",
        "/v1/chat/completions/",
        "//v1//chat/completions",
        "/v1/chat%2Fcompletions",
        "/v1/chat/%63ompletions",
        "/v1/x/../chat/completions",
        "/v1/./chat/completions",
        "\\v1\\chat\\completions",
        "/V1/Chat/Completions",
    ],
)
@pytest.mark.parametrize("providers", [ONE, BY_MODEL])
async def test_other_spellings_of_the_path_are_edited_too(providers: list[Any], path: str) -> None:
    """S2.22, S2.D16"""
    assert (await ask({"providers": providers}, path=path)).document["model"] == "m"


@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [
        ("/v1/embeddings", "application/json", b'{"model":"x","metadata":1,"input":"a"}'),
        ("/v1/audio/transcriptions", "multipart/form-data; boundary=b", b"--b\r\n\r\n\xff\r\n--b--"),
        ("/v1/completions", "application/json", b"{no json"),
        ("/v1/chat/completions/1", "application/json", b'{"model":"x"}'),
        ("/v1/chat", "application/json", gzip.compress(CHAT, mtime=0)),
    ],
)
async def test_other_paths_are_routed_and_not_touched(path: str, content_type: str, body: bytes) -> None:
    """S2.D14: their bodies are not even asked for."""
    head = request_headers({"content-type": content_type, HINT: "open-ai-gpt-4o"}, path=path)
    replies = await Gateway({"providers": ALL}).exchange(head, request_body(body))
    assert replies[0].mode_override.request_body_mode == ProcessingMode.NONE
    assert not replies[1].request_body.HasField("response")
    assert seen([head], replies[:1]).provider == "open-ai-gpt-4o"


async def test_a_request_without_a_body_is_routed_at_once() -> None:
    upstream = await ask({"providers": ALL}, body=None, method="GET")
    assert (upstream.provider, upstream.rerouted) == ("open-ai-gpt-4", True)


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("sonnet", "claude-sonnet-4"),
        ("Sonnet", "claude-sonnet-4"),
        ("claude-3-opus", "claude-3-opus"),
        ("claude-" + "x" * 400, "claude-" + "x" * 400),
        ("x", "gpt-4"),
    ],
)
async def test_aliases(asked: str, sent: str) -> None:
    """What clients ask for -> what the provider calls it; a pattern leaves the name alone."""
    assert (await ask({"providers": ALL}, body=of_model(asked))).document == {"model": sent, "messages": []}


async def test_a_model_is_put_where_the_client_named_none() -> None:
    """S4.1"""
    assert (await ask({"providers": ONE}, body=b'{"messages":[]}')).body == b'{"messages":[],"model":"m"}'


async def test_without_a_model_of_its_own_the_clients_stays() -> None:
    assert (await ask({"providers": [LOCAL]})).body == CHAT


async def test_content_that_the_original_refuses_is_passed_on() -> None:
    """S2.D6, S2.D13"""
    messages = [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "data:"}}, {"type": "text", "text": ""}],
        },
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": '{"model":1}'}}]},
        {"role": "developer", "content": "\U000e0001"},
        {"role": None},
        7,
    ]
    upstream = await ask({"providers": ONE}, body=orjson.dumps({"messages": messages}))
    assert upstream.document == {"messages": messages, "model": "m"}


async def test_usage_is_asked_for_in_the_body_that_is_edited() -> None:
    """S0.D6 and S2.9 in one reply; by the model that the provider gets; and the frame is taken out again."""
    config = {
        "providers": ONE,
        "includeUsage": {"enabled": True, "exceptModels": ["x"]},
    }
    body = b'{"model":"x","stream":true,"metadata":{}}'
    messages = [request_headers({"content-length": str(len(body))}), request_body(body)]
    frames = sse_frames()
    answer = [response_headers({"content-type": "text/event-stream"}), *map(request_frame, frames)]
    answer[-1].response_body.end_of_stream = True
    replies = await Gateway(config).exchange(*messages, *answer)
    upstream = seen(messages, replies[:2])
    assert upstream.body == b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}'
    changed = [reply.response_body.response.body_mutation.WhichOneof("mutation") for reply in replies[3:]]
    assert changed == [None, None, None, None, "clear_body", None]


def request_frame(frame: bytes) -> ProcessingRequest:
    return response_body(frame, ends=False)


async def test_a_model_that_refuses_the_option_is_known_by_the_name_that_it_gets() -> None:
    config = {"providers": ONE, "includeUsage": {"enabled": True, "exceptModels": ["m"]}}
    assert (await ask(config, body=b'{"model":"x","stream":true}')).body == b'{"model":"m","stream":true}'


@pytest.mark.parametrize(
    "value",
    [
        "requestBodyJSON('/model') + ' ' + requestBodyJSON('/metadata/team')",
        "request.body.contains('sonnet') && request.body.contains('red') ? 'sonnet red' : request.body",
    ],
)
async def test_expressions_see_the_body_as_the_client_wrote_it(value: str) -> None:
    config = configured(providers=ALL)
    for action in config["actionSets"][0]["actions"]:
        action["conditionalData"][0]["data"][0] = {"expression": {"key": "asked", "value": value}}
    gateway = Gateway(config)
    upstream = await ask(gateway, body=b'{"model":"sonnet","metadata":{"team":"red"}}')
    assert upstream.body == b'{"model":"claude-sonnet-4"}'
    assert [call.entries["asked"] for call in gateway.limiter.calls] == ["sonnet red"]


async def test_limits_are_asked_before_a_provider_is_called() -> None:
    """A refusal carries nothing that was meant for the provider."""
    gateway = Gateway(
        configured(providers=BY_MODEL), RecordingLimiter({"check": lambda: LimiterError("refused", "no")})
    )
    (reply,) = await gateway.exchange(request_headers(), request_body(CHAT))
    assert reply.immediate_response.status.code == 500
    assert SECRET.encode() not in reply.SerializeToString()


@pytest.mark.parametrize(
    "defect",
    [
        "extproc.providers.rewrite.Rewrite.apply",
        "extproc.providers.choice.Choice.by_head",
        "extproc.providers.choice.Choice.by_model",
        "extproc.providers.choice.Choice.stripped",
        "extproc.replies.request_body",
        "extproc.replies.body_changes",
        "extproc.exchange.admission.with_include_usage",
    ],
)
@pytest.mark.parametrize("sections", [{}, {"onNoMatch": "allow", "actionSets": []}])
async def test_a_defect_of_ours_is_no_way_around(
    defect: str, sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deny defaults: half a decision is none, with actions or without."""
    gateway = Gateway(configured(providers=BY_MODEL, includeUsage={"enabled": True}, **sections))
    monkeypatch.setattr(defect, Mock(side_effect=RuntimeError("a defect")))
    replies = await gateway.exchange(request_headers({ROUTE: "evil"}), request_body(CHAT))
    assert replies[-1].immediate_response.status.code == 500
    assert gateway.metrics.errors == 1


# ── who may ask for which model ───────────────────────────────────────────────────────────────────


def claiming(models: list[str], **sections: Any) -> Gateway:
    rules = {"authentication": {"tokens": {"jwt": {}}}, "models": str(models).replace('"', "'"), "user": "sub"}
    config = configured(
        {
            "services": {"who": {"type": "auth", "endpoint": "limitador"}},
            "actionSets": [
                {
                    "name": "llm",
                    "routeRuleConditions": {"hostnames": ["*.example.com"]},
                    "actions": [{"service": "who", "scope": "llm/auth"}],
                }
            ],
        },
        authConfigs={"llm/auth": rules},
        **sections,
    )
    return Gateway(config)


CLAIMS = {"envoy.filters.http.jwt_authn": {"principal": {"sub": "alice"}}}


@pytest.mark.parametrize(("asked", "sent"), [("sonnet", "claude-sonnet-4"), ("gpt-4o", "gpt-4o")])
async def test_a_claim_is_about_what_clients_ask_for(asked: str, sent: str) -> None:
    """S4.5 with aliases."""
    gateway = claiming(["sonnet", "gpt-4o"], providers=ALL)
    assert (await ask(gateway, body=of_model(asked), metadata=CLAIMS)).document["model"] == sent


@pytest.mark.parametrize(
    "body", [of_model("claude-sonnet-4"), b'{"messages":[]}', b'{"model":"sonnet","model":"gpt-4o"}']
)
async def test_a_model_that_is_not_in_the_claim(body: bytes) -> None:
    """S4.5: also by the provider's own name for it."""
    assert (await refused(claiming(["sonnet"], providers=ALL), body=body, metadata=CLAIMS))[0] == 403


@pytest.mark.parametrize(
    ("headers", "routing"),
    [
        ({HINT: "open-ai-gpt-4o"}, {}),
        ({}, {"rules": [{"when": "true", "provider": "open-ai-gpt-4o"}]}),
    ],
)
async def test_no_way_to_a_model_that_is_not_in_the_claim(headers: dict[str, str], routing: dict[str, Any]) -> None:
    """S4.5: where a provider's model takes the place of the one that was asked for, it has to be allowed as well."""
    gateway = claiming(["sonnet"], providers=ALL, routing=routing)
    assert (await refused(gateway, headers, of_model("sonnet"), metadata=CLAIMS))[0] == 403


# ── which requests ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("host", "routed"),
    [("api.example.com", True), ("API.example.com.:443", True), ("example.com", False), ("other.org", False)],
)
async def test_only_requests_to_some_hosts_are_routed(host: str, routed: bool) -> None:
    config = {"providers": ONE, "routing": {"hosts": ["*.example.com"]}}
    messages = [request_headers(host=host), request_body(CHAT)]
    replies = await Gateway(config).exchange(*messages)
    assert (seen(messages[:1], replies[:1]).provider == "only") == routed


async def test_an_action_set_may_be_left_out() -> None:
    config = configured(providers=BY_MODEL, promptLimits={"limits": [{"model": "m", "tokens": 1}]})
    config["actionSets"][0]["routed"] = False
    gateway = Gateway(config)
    upstream = await ask(gateway, {"authorization": "Bearer of-the-client"})
    assert (upstream.body, upstream.headers["authorization"]) == (CHAT, "Bearer of-the-client")
    assert [call.method for call in gateway.limiter.calls] == ["check"]


@pytest.mark.parametrize(
    ("sections", "status"),
    [
        ({}, 0),
        ({"onNoMatch": "deny"}, 404),
        ({"onNoMatch": "deny", "guards": {"g": {"deny": ["x"], "hosts": ["*"]}}}, 404),
    ],
)
@pytest.mark.parametrize("providers", [ONE, BY_MODEL])
async def test_what_nobody_thought_of_is_routed_only_if_that_is_wanted(
    providers: list[Any], sections: dict[str, Any], status: int
) -> None:
    """`onNoMatch: deny`: no way around keys and limits by another host, and on to a provider with its credential."""
    gateway = Gateway(configured(providers=providers, **sections))
    replies = await gateway.exchange(request_headers(host="nobody.thought.of"), request_body(CHAT))
    assert replies[0].immediate_response.status.code == status
    assert gateway.limiter.calls == []
    if not status:
        assert seen([request_headers(), request_body(CHAT)], replies).provider == "only"


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", ["sonnet", "x"])
async def test_metrics_name_the_provider_that_was_chosen(model: str) -> None:
    """S4.12: not what the answer looks like."""
    gateway = Gateway({"providers": ALL})
    body = request_body(of_model(model))
    await gateway.exchange(request_headers(), body, response_headers(), response_body(json_answer()))
    page = gateway.metrics.render()[0].decode()
    chosen = "anthropic" if model == "sonnet" else "open-ai-gpt-4"
    assert f'extproc_routed_total{{provider="{chosen}"}} 1.0' in page
    assert f'gen_ai_provider_name="{chosen}"' in page
    assert 'gen_ai_provider_name="openai"' not in page


@pytest.mark.parametrize(
    ("dialect", "source"), [(None, "reported"), ("openai", "reported"), ("anthropic", "estimated")]
)
async def test_answers_are_read_in_the_providers_dialect(
    dialect: str | None, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "extproc")
    provider = {**ONE[0], **({} if dialect is None else {"dialect": dialect})}
    gateway = Gateway({"providers": [provider]})
    await gateway.exchange(request_headers(), request_body(CHAT), response_headers(), response_body(json_answer()))
    assert [fields["usage"] for fields in consumed(caplog)] == [source]


def consumed(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.fields for record in caplog.records if record.getMessage() == "consumed"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_usage_is_logged_where_no_limiter_is_told(streamed: bool, caplog: pytest.LogCaptureFixture) -> None:
    """S2.23, S2.24, S2.26, S2.D5"""
    caplog.set_level("INFO", "extproc")
    pieces = (
        [response_body(frame, ends=False) for frame in sse_frames()] if streamed else [response_body(json_answer())]
    )
    pieces[-1].response_body.end_of_stream = True
    kind = "text/event-stream" if streamed else "application/json"
    await Gateway({"providers": ONE}).exchange(
        request_headers(), request_body(CHAT), response_headers({"content-type": kind}), *pieces
    )
    (line,) = consumed(caplog)
    assert (line["total_tokens"], line["end_stream"], line["request_id"], line["status"]) == (24, True, "rid-1", 200)


async def test_it_is_told_once_where_one_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "extproc")
    gateway = Gateway(configured(providers=ONE))
    await gateway.exchange(request_headers(), request_body(CHAT), response_headers(), response_body(json_answer()))
    assert [fields["hits_addend"] for fields in consumed(caplog)] == [24]


# ── with others who change headers, and who look at them ──────────────────────────────────────────


@pytest.mark.parametrize("headers", [{HINT: "anthropic"}, {}], ids=["by its head", "by its model"])
async def test_what_an_authenticator_sets_for_the_model_is_not_for_a_provider(headers: dict[str, str]) -> None:
    """Another credential does not get to a provider with one of its own, however it was chosen (S2.5)."""
    internal = (("authorization", "Bearer INTERNAL"), ("x-tenant", "a"))
    authenticator = RecordingAuthenticator(lambda: Verdict(set_headers=internal))
    config = configured(providers=ALL, services={"who": {"type": "auth", "endpoint": "authorino"}})
    config["endpoints"]["authorino"] = "127.0.0.1:1"
    action_set = config["actionSets"][0]
    config["actionSets"] = [action_set | {"actions": [{"service": "who", "scope": "any"}]}]
    gateway = Gateway(config, authenticator=authenticator)
    upstream = await ask(gateway, {**headers, "authorization": "Bearer client"}, of_model("sonnet"))
    assert upstream.provider == "anthropic"
    assert "authorization" not in upstream.headers
    assert (upstream.headers["x-api-key"], upstream.headers["x-tenant"]) == (OTHER_SECRET, "a")


@pytest.mark.parametrize("headers", [{HINT: "anthropic"}, {}], ids=["by its head", "by its model"])
async def test_limits_see_where_a_request_goes(headers: dict[str, str]) -> None:
    """And neither what a client wrote there, nor the credential."""
    config = configured(providers=ALL)
    data = [{"expression": {"key": "provider", "value": f"request.headers['{ROUTE}']"}}]
    for action in config["actionSets"][0]["actions"]:
        action["conditionalData"] = [{"data": data}]
        action["service"] = next(name for name, each in config["services"].items() if each["type"] == "ratelimit-check")
        action["predicates"] = ["requestBodyJSON('/model') != ''"]
    gateway = Gateway(config)
    await ask(gateway, {**headers, ROUTE: "evil"}, of_model("sonnet"))
    assert [call.entries["provider"] for call in gateway.limiter.of("check")] == ["anthropic"] * 2


async def test_a_body_that_is_sent_in_pieces_is_not_kept_beyond_what_is_read() -> None:
    """A gateway that streams, and somebody who only watches: one upload must not fill the memory."""
    config = {"guards": {"g": {"hosts": ["*"], "deny": ["x"], "mode": "shadow"}}, "bodies": {"message": 1000}}
    gateway = Gateway(config)
    exchange = gateway.open()
    await gateway.send(exchange, request_headers(modes=(ProcessingMode.STREAMED, 0)))
    body = exchange._admission._body
    assert body is not None
    for _ in range(50):
        await gateway.send(exchange, request_body(b"y" * 100, ends=False))
    assert len(body.data) <= 1000
    await gateway.send(exchange, request_body(b"", ends=True))
    exchange.close()
