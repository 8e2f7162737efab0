"""Guards before the call of a model: a tenant who wants denied text to get past them, or to hurt the server."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import cache
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.guards import (
    DENIED,
    DENY,
    GuardedGateway,
    chat,
    guarded,
    header,
    no_defects,
    passes,
    refusal,
    until_passed,
)
from support.harness import OVER_LIMIT, RecordingLimiter, configured, kinds
from support.http_peer import HttpPeer, Received, Script, reply
from support.messages import (
    request_body,
    request_headers,
    request_trailers,
    response_body,
    response_headers,
    response_trailers,
)
from support.waiting import until

from extproc.exchange import admission, guarding
from extproc.exchange.admission import Admission
from extproc.exchange.guarding import Guarding
from extproc.guards.guard import Guard
from extproc.plan.guarding import Guards
from extproc.plan.hosts import HostTable
from extproc.wire.external_processor_pb2 import ProcessingRequest, ProcessingResponse
from extproc.wire.processing_mode_pb2 import ProcessingMode

ASM = b"request was denied by asm llm proxy"
BAD = chat(DENIED)
GOOD = chat("hello")
NONE, STREAMED, BUFFERED, PARTIAL, DUPLEX = range(5)
"""Body modes of Envoy."""
ALLOW = b'{"choices":[{"message":{"content":"{\\"result\\":\\"allow\\"}"}}],"usage":{"total_tokens":42}}'


def says(result: str, **more: Any) -> bytes:
    """A guard model's answer."""
    return orjson.dumps({"choices": [{"message": {"content": orjson.dumps({"result": result, **more}).decode()}}]})


async def _hangs(_: Received, writer: Any) -> None:
    await asyncio.Event().wait()


@pytest.fixture
async def open_gateway() -> AsyncIterator[Callable[..., GuardedGateway]]:
    """Gateways that are closed when the test is over."""
    async with AsyncExitStack() as gateways:
        opened: list[GuardedGateway] = []

        def of(config: dict[str, Any], limiter: Any = None) -> GuardedGateway:
            opened.append(GuardedGateway(config, limiter))
            gateways.push_async_exit(opened[-1])
            return opened[-1]

        yield of
        for gateway in opened:
            assert gateway.metrics.exchanges_open == 0


@pytest.fixture
async def peers() -> AsyncIterator[Callable[[Script | bytes], Any]]:
    """Servers on loopback that are gone when the test is over."""
    started: list[HttpPeer] = []

    async def serve(script: Script | bytes) -> HttpPeer:
        started.append(await HttpPeer(script).start())
        return started[-1]

    yield serve
    for peer in started:
        await peer.stop()


Open = Callable[..., GuardedGateway]
Serve = Callable[[Script | bytes], Any]


def model(peer: HttpPeer, **fields: Any) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": peer.port, "scheme": "http", "credential": "none", **fields}


def webhook(peer: HttpPeer, **fields: Any) -> dict[str, Any]:
    return {"url": peer.url, "credential": "none", **fields}


# --- whom a guard guards


@pytest.mark.parametrize(
    ("host", "is_guarded"),
    [
        ("llm.example.com", True),
        ("LLM.Example.COM", True),
        ("llm.example.com.", True),
        ("llm.example.com:443", True),
        ("llm.example.com.:18000", True),
        ("127.0.0.1:18000", True),
        ("127.0.0.1", True),
        ("[::1]:80", True),
        ("a.wild.example.com", True),
        ("wild.example.com", False),
        ("xllm.example.com", False),
        ("llm.example.com.evil.com", False),
        ("", False),
    ],
)
async def test_hosts(open_gateway: Open, host: str, is_guarded: bool) -> None:
    """S3.1, S3.D18: another case, a trailing dot or another port is the same host."""
    hosts = ("llm.example.com", "127.0.0.1", "[::1]", "*.wild.example.com")
    gateway = open_gateway(guarded(hosts=hosts))
    assert passes(await gateway.ask(BAD, host=host)) is not is_guarded


async def test_a_host_with_its_port_in_the_configuration(open_gateway: Open) -> None:
    """S3.1: `127.0.0.1:18000` as the original's configuration has it."""
    gateway = open_gateway(guarded(hosts=("127.0.0.1:18000", "LLM.example.com.")))
    for host in ("127.0.0.1:18000", "llm.example.com"):
        assert refusal(await gateway.ask(BAD, host=host)).body == ASM


async def test_a_host_that_nobody_guards_is_left_alone(open_gateway: Open, caplog: pytest.LogCaptureFixture) -> None:
    """S3.1: one message, no bodies, and the original's words in the log."""
    caplog.set_level(logging.DEBUG, "extproc.exchange")
    gateway = open_gateway(guarded(hosts=("llm.example.com",)))
    (answer,) = await gateway.exchange(request_headers(host="other.example.com"))
    assert answer.WhichOneof("response") == "request_headers"
    assert not answer.request_headers.HasField("response")
    assert answer.mode_override.request_body_mode == ProcessingMode.NONE
    assert "llm proxy plugin disabled" in caplog.text


def _routes(*names: str) -> list[dict[str, Any]]:
    return [
        {
            "name": "chat",
            "routeRuleConditions": {"hostnames": ["llm.example.com"]},
            "actions": [],
            "guards": list(names),
        }
    ]


async def test_an_action_set_names_its_guards(open_gateway: Open) -> None:
    """S3.D18: bound to the route, whatever the Host header says of it."""
    config = {"guards": {"one": {"deny": ["one"]}, "two": {"deny": ["two"]}}, "actionSets": _routes("two")}
    gateway = open_gateway(config)
    assert passes(await gateway.ask(chat("one"), host="llm.example.com"))
    assert not passes(await gateway.ask(chat("two"), host="llm.example.com"))
    assert passes(await gateway.ask(chat("two"), host="other.example.com"))


@pytest.mark.parametrize(
    ("text", "by"), [("named", "named"), ("hosted", "hosted"), ("hosted named", "named"), ("none", "")]
)
async def test_named_guards_come_before_those_of_the_host(
    open_gateway: Open, caplog: pytest.LogCaptureFixture, text: str, by: str
) -> None:
    caplog.set_level(logging.INFO)
    guards = {"hosted": {"hosts": ["*"], "deny": ["hosted"]}, "named": {"deny": ["named"]}}
    gateway = open_gateway({"guards": guards, "actionSets": _routes("named")})
    assert passes(await gateway.ask(chat(text), host="llm.example.com")) is (by == "")
    assert [record.fields["guard"] for record in caplog.records if record.message == "guard"] == ([by] if by else [])


async def test_a_guard_that_is_named_and_bound_to_the_host_looks_once(open_gateway: Open) -> None:
    gateway = open_gateway({**guarded(mode="shadow"), "actionSets": _routes("chat")})
    await gateway.ask(BAD, host="llm.example.com")
    assert verdicts(gateway) == {("chat", "request", "deny", "shadow"): 1}


def verdicts(gateway: GuardedGateway) -> dict[tuple[str, ...], float]:
    """Guard, subject, outcome and mode, to how often."""
    (family,) = (each for each in gateway.metrics.guarding.collect() if each.name == "extproc_guard_verdicts")
    names = ("guard", "subject", "outcome", "mode")
    return {tuple(s.labels[name] for name in names): s.value for s in family.samples if s.name.endswith("_total")}


# --- what patterns see

TURNS = [{"role": "user", "content": DENIED}, {"role": "assistant", "content": "no"}, {"role": "user", "content": "ok"}]
LOOKED_AT: list[tuple[str, Any, dict[str, Any]]] = [
    ("a user's message", {"messages": [{"role": "user", "content": DENIED}]}, {}),
    ("a role in another case", {"messages": [{"role": "USER", "content": DENIED}]}, {}),
    ("a role that nobody knows", {"messages": [{"role": "narrator", "content": DENIED}]}, {}),
    ("no role", {"messages": [{"content": DENIED}]}, {}),
    ("an earlier message", {"messages": TURNS}, {}),
    ("a part of several", {"messages": [{"role": "user", "content": [{"type": "text", "text": DENIED}]}]}, {}),
    ("a word cut by parts", {"messages": [{"content": [{"text": "账"}, {"text": "号"}]}]}, {}),
    ("the legacy prompt", {"prompt": DENIED}, {}),
    ("a list of prompts", {"prompt": ["hi", DENIED]}, {}),
    ("embeddings", {"input": DENIED}, {}),
    ("several embeddings", {"input": ["hi", DENIED]}, {}),
    ("Responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": DENIED}]}]}, {}),
    ("Gemini", {"contents": [{"role": "user", "parts": [{"text": DENIED}]}]}, {}),
    ("a prompt beside messages", {"messages": [{"role": "user", "content": "hi"}], "prompt": DENIED}, {}),
    ("the system, where it is looked at", {"messages": [{"role": "system", "content": DENIED}]}, {"system"}),
    ("a developer", {"messages": [{"role": "developer", "content": DENIED}]}, {"*"}),
    ("a tool's result", {"messages": [{"role": "tool", "content": DENIED}]}, {"user", "tool"}),
    (
        "arguments of a call",
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": f'{{"q":"{DENIED}"}}'}}]}]},
        {"assistant"},
    ),
    ("definitions of tools", {"messages": [], "tools": [{"function": {"description": DENIED}}]}, {"tools"}),
]


@pytest.mark.parametrize(("body", "roles"), [case[1:] for case in LOOKED_AT], ids=[case[0] for case in LOOKED_AT])
async def test_what_is_looked_at(open_gateway: Open, body: Any, roles: set[str]) -> None:
    """S3.3, S3.5, S3.D1, S3.D2, S3.7: exactly the original's answer."""
    gateway = open_gateway(guarded(checkRoles=sorted(roles or {"user"})))
    for spelled in (json.dumps(body), json.dumps(body, ensure_ascii=False)):
        denied = refusal(await gateway.ask(spelled.encode()))
        assert (denied.status.code, denied.body, denied.details) == (403, ASM, "guard")


@pytest.mark.parametrize("role", ["system", "assistant", "tool", "developer", "Function", "model"])
async def test_whose_texts_are_not_looked_at(open_gateway: Open, role: str) -> None:
    """S3.4: by default only what users say."""
    assert passes(await open_gateway(guarded()).ask(chat(DENIED, role=role)))


async def test_the_last_user_message_only(open_gateway: Open) -> None:
    """S3.D13: what was refused once does not stay in the way of the conversation."""
    gateway = open_gateway(guarded(checkLastUserMessageOnly=True))
    assert passes(await gateway.ask(orjson.dumps({"messages": TURNS})))
    assert not passes(await gateway.ask(orjson.dumps({"messages": [*TURNS, *TURNS[:1]]})))
    assert not passes(await gateway.ask(orjson.dumps({"messages": TURNS, "prompt": DENIED})))


@pytest.mark.parametrize(
    ("text", "denied"),
    [
        ("about cats", False),
        ("about dogs", True),
        ("cats and secrets", True),
        ("", True),
        ("a line\nabout cats", False),
    ],
)
async def test_deny_comes_before_allow(
    open_gateway: Open, caplog: pytest.LogCaptureFixture, text: str, denied: bool
) -> None:
    """S3.5, S3.6: the same body for both; the reason is for the log."""
    caplog.set_level(logging.INFO)
    gateway = open_gateway(guarded(allow=["cats"], deny=["secrets"]))
    answer = await gateway.ask(chat(text))
    assert passes(answer) is not denied
    if denied:
        assert refusal(answer).body == ASM
        (line,) = [record for record in caplog.records if record.message == "guard"]
        rule = "deny[0]" if "secrets" in text else "allow"
        reason = "was denied by deny rule" if "secrets" in text else "was denied because no allow rule matched"
        assert (line.fields["rule"], reason in line.fields["reason"]) == (rule, True)


async def test_a_dot_is_no_newline(open_gateway: Open) -> None:
    """S3.5: as Go's MatchString has it."""
    gateway = open_gateway(guarded(deny=["a.b"]))
    assert passes(await gateway.ask(chat("a\nb")))
    assert not passes(await gateway.ask(chat("xx\na-b")))


async def test_patterns_that_backtrack_elsewhere(open_gateway: Open) -> None:
    """S3.D12: `(a+)+$` on 50,000 letters is refused at once."""
    gateway = open_gateway(guarded(deny=["(a+)+$"]))
    began = time.process_time()
    assert not passes(await gateway.ask(chat("a" * 50_000)))
    assert time.process_time() - began < 1


# --- bodies that cannot be understood

NESTED = 100_000
UNPARSABLE: list[tuple[str, bytes, dict[str, str]]] = [
    ("not JSON", b"hello", {}),
    ("truncated", BAD[:-2], {}),
    ("trailing text", GOOD + b"x", {}),
    ("two documents", GOOD + b"\n" + GOOD, {}),
    ("a form", b"prompt=hello", {"content-type": "application/x-www-form-urlencoded"}),
    ("UTF-16", GOOD.decode().encode("utf-16"), {}),
    ("UTF-16, announced", GOOD.decode().encode("utf-16"), {"content-type": "application/json; charset=utf-16"}),
    ("UTF-32", GOOD.decode().encode("utf-32-le"), {}),
    ("a byte order mark", b"\xef\xbb\xbf" + GOOD, {}),
    ("not UTF-8", b'{"prompt":"\xff"}', {}),
    ("gzip", gzip.compress(GOOD), {"content-encoding": "gzip"}),
    ("gzip, not announced", gzip.compress(GOOD), {}),
    ("said to be gzip", GOOD, {"content-encoding": "GZIP"}),
    ("two encodings", GOOD, {"content-encoding": "identity, identity"}),
    ("an unknown encoding", GOOD, {"content-encoding": "rot13"}),
    ("UTF-7, announced", b'{"prompt":"+jSZT9w-"}', {"content-type": "application/json;charset=utf-7"}),
    ("UTF-7 after a space", b'{"prompt":"+jSZT9w-"}', {"content-type": "application/json; charset=utf-7"}),
    ("UTF-7 in quotes", b'{"prompt":"+jSZT9w-"}', {"content-type": 'application/json; \tCharset = "UTF-7"'}),
    ("two charsets", GOOD, {"content-type": "application/json; charset=utf-8; charset=utf-7"}),
    ("two content types", GOOD, {"content-type": "application/json, application/json; charset=hz-gb-2312"}),
    ("a name given twice", b'{"prompt":"hi","prompt":"hi"}', {}),
    ("a name given twice, spelled apart", b'{"prompt":"hi","\\u0070rompt":"hi"}', {}),
    ("a name given twice, deep", b'{"messages":[{"role":"user","content":"a","content":"b"}]}', {}),
    ("an array", b"[]", {}),
    ("a list of requests", b"[" + GOOD + b"]", {}),
    ("a string", b'"hello"', {}),
    ("null", b"null", {}),
    ("no field that is known", b'{"question":"hi"}', {}),
    ("nothing", b"{}", {}),
    ("messages that are a string", b'{"messages":"hi"}', {}),
    ("messages that are an object", b'{"messages":{"role":"user","content":"hi"}}', {}),
    ("a message that is a string", b'{"messages":["hi"]}', {}),
    ("a content that is a number", b'{"messages":[{"role":"user","content":1}]}', {}),
    ("parts that nobody knows", b'{"messages":[{"role":"user","content":[{"type":"rune","rune":"x"}]}]}', {}),
    ("token ids", b'{"prompt":[1,2,3]}', {}),
    ("embeddings of a prompt", b'{"prompt_embeds":"AAAA"}', {}),
    ("deep lists", b'{"messages":' + b"[" * NESTED + b"]" * NESTED + b"}", {}),
    ("deep objects", b'{"messages":' + b'{"a":' * NESTED + b"1" + b"}" * NESTED + b"}", {}),
    ("deep and open", b'{"messages":' + b"[" * NESTED, {}),
    ("more messages than are read", b'{"messages":[' + b",".join([b"{}"] * 30_000) + b"]}", {}),
    ("more values than are parsed", b'{"prompt":"hi","x":[' + b",".join([b"1"] * 400_000) + b"]}", {}),
    ("an integer without end", b'{"prompt":"hi","x":' + b"9" * 100_000 + b"}", {}),
    ("NUL", b'{"prompt":"hi"}\0', {}),
    ("control characters", b'{"prompt":"\x07\x01hi"}', {}),
]


@pytest.mark.parametrize("mode", ["enforce", "shadow"])
@pytest.mark.parametrize("on_unparsable", ["deny", "allow"])
@pytest.mark.parametrize(("body", "headers"), [case[1:] for case in UNPARSABLE], ids=[case[0] for case in UNPARSABLE])
async def test_what_cannot_be_understood(
    open_gateway: Open, body: bytes, headers: dict[str, str], on_unparsable: str, mode: str
) -> None:
    """S3.D1: denied unless the configuration says otherwise; never an error of ours, and nothing is changed."""
    gateway = open_gateway({**guarded(onUnparsable=on_unparsable, mode=mode), "bodies": {"jsonBuffer": 1 << 20}})
    answer = await gateway.ask(body, headers)
    if on_unparsable == "allow" or mode == "shadow":
        assert answer.SerializeToString() == b"\x1a\x00"
    elif refusal(answer).status.code != 413:
        assert (refusal(answer).status.code, refusal(answer).body) == (403, ASM)
    assert verdicts(gateway) == {("chat", "request", "unparsable", mode): 1}
    assert gateway.metrics.errors == 0


UNDERSTOOD: list[tuple[str, bytes, dict[str, str]]] = [
    ("NaN", b'{"prompt":"%s","x":NaN}', {}),
    ("a large number", b'{"prompt":"%s","x":1e999}', {}),
    ("a lone surrogate", b'{"prompt":"\\ud800 %s"}', {}),
    ("spaces around", b" \n\t" + b'{"prompt":"%s"}' + b"\r\n", {}),
    ("a charset", b'{"prompt":"%s"}', {"content-type": "application/json; charset=UTF-8"}),
    ("a charset in quotes", b'{"prompt":"%s"}', {"content-type": 'application/json;charset="utf8"'}),
    ("other parameters", b'{"prompt":"%s"}', {"content-type": "application/json; a=b; charset=utf-8"}),
    ("no content type that says so", b'{"prompt":"%s"}', {"content-type": "text/plain"}),
    ("the identity", b'{"prompt":"%s"}', {"content-encoding": "Identity"}),
    ("fields that nobody knows", b'{"rune":[1],"prompt":"%s"}', {}),
]


@pytest.mark.parametrize(("body", "headers"), [case[1:] for case in UNDERSTOOD], ids=[case[0] for case in UNDERSTOOD])
async def test_what_is_understood_all_the_same(open_gateway: Open, body: bytes, headers: dict[str, str]) -> None:
    """What some servers take is read, and neither refused nor waved through."""
    gateway = open_gateway(guarded())
    assert passes(await gateway.ask(body % b"hi", headers))
    assert not passes(await gateway.ask(body % DENIED.encode(), headers))


@pytest.mark.parametrize("repeated", ["; ", ";\t", "; a", ";  charset", ";charset=utf-8", ' ; "'])
async def test_a_content_type_that_takes_long_to_read(open_gateway: Open, repeated: str) -> None:
    """One header must not hold up everybody: Envoy lets 60 KiB of them through."""
    gateway = open_gateway(guarded())
    began = time.process_time()
    await gateway.ask(GOOD, {"content-type": "a/b" + repeated * 8000 + ";charset=x"})
    assert time.process_time() - began < 0.5


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5) | st.just(DENIED),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["messages", "content", "role", "text", "type", "prompt", "input", "tools", "x"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_decided_about(document: Any) -> None:
    """G1, S3.D1: one reply of its kind, no defect; and what the guard could not place does not pass."""

    async def ask() -> None:
        async with _compiled("everybody").anew() as gateway:
            answer = await gateway.ask(orjson.dumps(document))
            assert gateway.metrics.errors == 0
            if isinstance(document, dict) and isinstance(document.get("prompt"), str) and DENIED in document["prompt"]:
                assert not passes(answer)

    asyncio.run(ask())


# --- bodies that are not there as a whole


def _cannot_see_the_end(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "bodies": {"buffer": 65536}}


PARTS: list[tuple[str, dict[str, str], bytes]] = [
    ("a part", {}, BAD[:-10]),
    ("a whole document, and who knows what", {}, GOOD),
    ("spaces", {}, b" " * 32768),
    ("spaces of a body that should fit", {"content-length": "50000"}, b" " * 32768),
    ("a document of a body that should fit", {"content-length": "50000"}, GOOD),
    ("nothing of a body that should fit", {"content-length": "50000"}, b""),
]


@pytest.mark.parametrize("on_unparsable", ["deny", "allow"])
@pytest.mark.parametrize(("headers", "part"), [case[1:] for case in PARTS], ids=[case[0] for case in PARTS])
async def test_nothing_is_decided_on_a_part(
    open_gateway: Open, headers: dict[str, str], part: bytes, on_unparsable: str
) -> None:
    """G14, S3.D16: the rest, which Envoy sends on without asking, may say anything: 413."""
    gateway = open_gateway(_cannot_see_the_end(guarded(onUnparsable=on_unparsable)))
    first, second = await gateway.exchange(request_headers(headers), request_body(part, ends=False))
    assert first.WhichOneof("response") == "request_headers"
    if on_unparsable == "deny":
        assert (refusal(second).status.code, refusal(second).body) == (413, b"Payload Too Large\n")
    else:
        assert passes(second)
        assert verdicts(gateway) == {("chat", "request", "unparsable", "enforce"): 1}


async def test_shadow_does_not_refuse_a_part(open_gateway: Open) -> None:
    gateway = open_gateway(guarded(mode="shadow"))
    answers = await gateway.exchange(request_headers(), request_body(BAD[:-9], ends=False))
    assert answers[-1].SerializeToString() == b"\x1a\x00"
    assert verdicts(gateway) == {("chat", "request", "unparsable", "shadow"): 1}


async def test_a_large_body_that_is_held_whole(open_gateway: Open) -> None:
    """50 MB: refused or looked at, in a time that everybody can wait."""
    gateway = open_gateway(guarded())
    answer = await gateway.ask(b'{"prompt":"' + b"x" * 50_000_000 + DENIED.encode() + b'"}')
    assert refusal(answer).status.code in (403, 413)


@pytest.mark.parametrize("messages", [(request_body(b""),), (request_body(b" \n"),)])
async def test_an_empty_body_says_nothing(open_gateway: Open, messages: tuple[ProcessingRequest, ...]) -> None:
    gateway = open_gateway(guarded(allow=["nothing matches this"]))
    assert all(map(passes, await gateway.exchange(request_headers(), *messages)))


async def test_a_request_without_a_body_is_not_looked_at(open_gateway: Open) -> None:
    gateway = open_gateway(guarded())
    (answer,) = await gateway.exchange(request_headers(ends=True, method="GET"))
    assert answer.mode_override.request_body_mode == ProcessingMode.NONE
    assert passes(answer)


async def test_a_body_is_looked_at_whatever_the_method(open_gateway: Open) -> None:
    gateway = open_gateway(guarded())
    for method in ("GET", "PUT", "DELETE", "get", "X"):
        assert not passes(await gateway.ask(BAD, method=method))


# --- gateways that do as they like


@pytest.mark.parametrize("mode", [STREAMED, DUPLEX])
async def test_a_gateway_that_streams_bodies_is_refused_at_the_head(open_gateway: Open, mode: int) -> None:
    """A body of which the model may have the beginning already cannot be refused."""
    (answer,) = await open_gateway(guarded()).exchange(request_headers(modes=(mode, NONE)))
    assert (refusal(answer).status.code, refusal(answer).body) == (500, b"Internal Server Error.\n")


@pytest.mark.parametrize("status", [200, 204])
async def test_a_gateway_that_never_sends_the_body_shows_no_answer(open_gateway: Open, status: int) -> None:
    gateway = open_gateway(guarded())
    answers = await gateway.exchange(
        request_headers({"content-length": str(len(BAD))}, modes=(NONE, NONE)), response_headers(status=status)
    )
    assert refusal(answers[-1]).status.code == 500


async def test_trailers_in_the_place_of_a_body_are_no_empty_body(open_gateway: Open) -> None:
    """A gateway that ignores what it is told sends no body; a client of HTTP/2 may send trailers."""
    gateway = open_gateway(guarded())
    answers = await gateway.exchange(
        request_headers({"content-length": str(len(BAD))}, modes=(NONE, NONE)), request_trailers(), response_headers()
    )
    assert any(not passes(answer) for answer in answers)


async def test_shadow_in_a_gateway_that_streams_is_no_reason_to_refuse(open_gateway: Open) -> None:
    gateway = open_gateway(guarded(mode="shadow"))
    for mode in (STREAMED, DUPLEX):
        answers = await gateway.exchange(request_headers(modes=(mode, NONE)), request_body(BAD))
        assert all(map(passes, answers))


# --- shadow


@pytest.mark.parametrize("body", [GOOD, BAD, b"", b"{", b"\xff" * 100])
async def test_shadow_only_looks(open_gateway: Open, caplog: pytest.LogCaptureFixture, body: bytes) -> None:
    """Nothing is refused or changed; all is counted and logged as if it were."""
    caplog.set_level(logging.INFO)
    gateway = open_gateway(guarded(mode="shadow", denyWith={"status": 451}))
    answer = await gateway.ask(body)
    assert answer.SerializeToString() == b"\x1a\x00"
    ((_, _, outcome, mode),) = verdicts(gateway)
    assert mode == "shadow"
    lines = [record for record in caplog.records if record.message == "guard"]
    assert [line.fields["enforced"] for line in lines] == [False] * (outcome != "allow")
    assert gateway.metrics.denied == 0


async def test_shadow_does_not_replace_texts(open_gateway: Open, peers: Serve) -> None:
    peer = await peers(reply(b'{"decision":"replace","texts":[{"index":0,"text":"***"}]}'))
    gateway = open_gateway(guarded(deny=[], mode="shadow", webhook=webhook(peer)))
    assert (await gateway.ask(GOOD)).SerializeToString() == b"\x1a\x00"
    assert len(peer.received) == 1


# --- what a client is told


@pytest.mark.parametrize("profile", ["openai", "anthropic"])
async def test_json_says_nothing_of_the_text(open_gateway: Open, peers: Serve, profile: str) -> None:
    """What a guard model says may quote the text; JSON errors say that a guard refused and no more."""
    peer = await peers(reply(says("deny", reason=f"it says {DENIED}")))
    gateway = open_gateway(guarded(denyWith={"profile": profile}, model=model(peer)))
    for body in (BAD, chat("qq 1234123"), b"{"):
        denied = refusal(await gateway.ask(body))
        told = orjson.loads(denied.body)
        assert denied.status.code == 403
        assert told["error"]["message"] == "The request was refused because of its content."
        assert told["error"]["type"] == "invalid_request_error"
        assert "1234123" not in denied.body.decode()
        assert "账号" not in denied.body.decode()
        assert header(denied, "content-type") == ["application/json"]
        assert header(denied, "x-request-id" if profile == "openai" else "request-id") == ["rid-1"]


async def test_the_profile_of_the_action_set(open_gateway: Open) -> None:
    """`denyWith` of the action set is the guard's, where it is JSON."""
    action_sets = _routes("chat")
    action_sets[0]["denyWith"] = {"profile": "openai"}
    gateway = open_gateway({"guards": {"chat": {"deny": DENY}}, "actionSets": action_sets})
    denied = refusal(await gateway.ask(BAD, host="llm.example.com"))
    assert orjson.loads(denied.body)["error"]["code"] == "content_filter"


async def test_an_answer_of_ones_own(open_gateway: Open) -> None:
    own = {"status": 451, "headers": {"X-Why": "guard", "content-type": "text/html"}, "body": "<p>No.</p>"}
    denied = refusal(await open_gateway(guarded(denyWith=own)).ask(BAD))
    assert (denied.status.code, denied.body) == (451, b"<p>No.</p>")
    assert (header(denied, "x-why"), header(denied, "content-type")) == (["guard"], ["text/html"])


# --- a model that takes a second look


@pytest.mark.parametrize(
    ("answer", "allowed", "told"),
    [
        (reply(says("allow")), True, ""),
        (reply(says(" ALLOW ")), True, ""),
        (reply(says("deny", reason="number")), False, 'external service returned deny: {"result":"deny",'),
        (reply(b"", 500), False, "external service returned non-200 status : 500"),
        (reply(b"", 404), False, "external service returned non-200 status : 404"),
        (reply(b"<html>"), False, "failed to unmarshal external response: "),
        (reply(b"{}"), False, "failed to unmarshal external response: "),
        (reply(b'{"choices":[]}'), False, "failed to unmarshal external response: "),
        (
            reply(b'{"choices":[{"message":{"content":"allow"}}]}'),
            False,
            "failed to unmarshal CustomIntelligentGuardResponse: ",
        ),
        (reply(says("maybe")), False, "external service returned deny: "),
        (b"HTTP/1.1 200 OK\r\n\r\n", False, "failed to unmarshal external response: "),
        (b"nonsense", False, "external service: "),
    ],
)
async def test_a_model_takes_a_second_look(
    open_gateway: Open, peers: Serve, answer: bytes, allowed: bool, told: str
) -> None:
    """S3.7-S3.10, S3.D3, S3.D4: only an explicit allow allows; the bodies are the original's."""
    peer = await peers(_once(answer))
    gateway = open_gateway(guarded(model=model(peer)))
    decided = await gateway.ask(chat("我的qq是1234123"))
    assert passes(decided) is allowed
    if not allowed:
        denied = refusal(decided)
        assert denied.status.code == 403
        assert denied.body.decode().startswith(told)
    assert peer.received[0].target == "/compatible-mode/v1/chat/completions"


def _once(answer: bytes) -> Script:
    async def play(_: Received, writer: Any) -> None:
        writer.write(answer)
        await writer.drain()
        writer.close()

    return play


async def test_what_patterns_refuse_no_model_gets_to_see(open_gateway: Open, peers: Serve) -> None:
    """S3.3: patterns come first, and cost nothing."""
    peer = await peers(reply(ALLOW))
    gateway = open_gateway(guarded(model=model(peer), webhook=webhook(peer)))
    assert not passes(await gateway.ask(BAD))
    assert peer.received == []


@pytest.mark.parametrize("field", ["model", "webhook"])
@pytest.mark.parametrize(("on_timeout", "on_failure"), [("deny", "allow"), ("allow", "deny")])
async def test_a_guard_that_hangs(
    open_gateway: Open, peers: Serve, field: str, on_timeout: str, on_failure: str
) -> None:
    """S3.7: a deadline, and then what the configuration says."""
    peer = await peers(_hangs)
    outside = (model if field == "model" else webhook)(peer, timeout="50ms", onTimeout=on_timeout, onFailure=on_failure)
    gateway = open_gateway(guarded(**{field: outside}))
    answer = await gateway.ask(GOOD)
    assert passes(answer) is (on_timeout == "allow")
    if not passes(answer):
        assert refusal(answer).body == b"external service did not answer in time"
    assert verdicts(gateway) == {("chat", "request", "timeout", "enforce"): 1}


@pytest.mark.parametrize("field", ["model", "webhook"])
@pytest.mark.parametrize("on_failure", ["deny", "allow"])
async def test_a_guard_that_cannot_be_reached(open_gateway: Open, peers: Serve, field: str, on_failure: str) -> None:
    """S3.11: with the error's text, which has no address in it."""
    peer = await peers(b"")
    await peer.stop()
    outside = (model if field == "model" else webhook)(peer, onFailure=on_failure, onTimeout="deny")
    answer = await open_gateway(guarded(**{field: outside})).ask(GOOD)
    assert passes(answer) is (on_failure == "allow")
    if not passes(answer):
        assert b"cannot connect" in refusal(answer).body
        assert str(peer.port).encode() not in refusal(answer).body
    await peer.start()


async def test_tokens_of_a_guard_are_metered_on_a_descriptor_of_their_own(open_gateway: Open, peers: Serve) -> None:
    """S3.D15: also for what it refuses; a remembered verdict took none."""
    peer = await peers(reply(ALLOW))
    report = {"service": "report", "scope": "guards", "labels": {"who": "request.headers['x-user']"}}
    config = {
        "endpoints": {"limitador": "embedded"},
        "services": {"report": {"type": "ratelimit-report", "endpoint": "limitador"}},
        **guarded(model=model(peer, report=report)),
    }
    gateway = open_gateway(config)
    for _ in range(2):
        assert passes(await gateway.ask(GOOD, {"x-user": "alice"}))
    (call,) = gateway.limiter.of("report")
    assert (call.query.domain, call.entries, call.query.hits_addend) == (
        "guards",
        {"guard": "chat", "who": "alice"},
        42,
    )


# --- a webhook

PADDED = (
    b'{ "model" : "gpt-4", "x":1e0, "messages" : [ {"role":"user","content":"my \\u8d26\\u53f7 is 1"} ,'
    b'{"role":"user", "content":[{"type":"text","text":"b"}]}], "x2": [ ] }'
)


@pytest.mark.parametrize("length", [True, False])
async def test_replaced_texts_are_the_smallest_edit(open_gateway: Open, peers: Serve, length: bool) -> None:
    """G5: every other byte is as it came, and the length is right or gone."""
    peer = await peers(reply(b'{"decision":"replace","texts":[{"index":0,"text":"my \\"***\\" \xe2\x98\x83"}]}'))
    gateway = open_gateway(_cannot_see_the_end(guarded(deny=[], webhook=webhook(peer))))
    answer = await gateway.ask(PADDED, {"content-length": str(len(PADDED))} if length else {})
    common = answer.request_body.response
    assert common.body_mutation.body == PADDED.replace(b'"my \\u8d26\\u53f7 is 1"', '"my \\"***\\" ☃"'.encode())
    if length:
        (option,) = common.header_mutation.set_headers
        assert option.header.key == "content-length"
        assert option.header.raw_value == str(len(common.body_mutation.body)).encode()
    else:
        assert list(common.header_mutation.remove_headers) == ["content-length"]


@pytest.mark.parametrize(
    ("answer", "allowed"),
    [
        (b'{"decision":"allow"}', True),
        (b'{"decision":"deny","message":"not that"}', False),
        (b'{"decision":"replace","texts":[]}', False),
        (b'{"decision":"replace","texts":[{"index":7,"text":"x"}]}', False),
        (b'{"decision":"allow","decision":"deny"}', False),
        (b"[]", False),
    ],
)
async def test_what_a_webhook_decides(open_gateway: Open, peers: Serve, answer: bytes, allowed: bool) -> None:
    peer = await peers(reply(answer))
    gateway = open_gateway(guarded(webhook=webhook(peer)))
    decided = await gateway.ask(GOOD, {"x-request-id": "r-7"})
    assert passes(decided) is allowed
    if b"not that" in answer:
        assert refusal(decided).body == b"not that"
    asked = peer.received[0].json
    assert (asked["guard"], asked["model"], asked["host"], asked["request_id"]) == (
        "chat",
        "gpt-4",
        "trlp.example.com",
        "r-7",
    )
    assert [text["text"] for text in asked["texts"]] == ["hello"]


async def test_what_a_webhook_may_not_replace_is_refused(open_gateway: Open, peers: Serve) -> None:
    """A name of a member is a text, but no string that could be exchanged: nothing passes unreplaced."""
    peer = await peers(reply(b'{"decision":"replace","texts":[{"index":0,"text":"***"}]}'))
    gateway = open_gateway(guarded(deny=[], checkRoles=["assistant"], onUnparsable="allow", webhook=webhook(peer)))
    called = {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": {"secret": 1}}}]}]}
    assert not passes(await gateway.ask(orjson.dumps(called)))


# --- several guards


async def test_a_later_guard_sees_what_an_earlier_one_replaced(open_gateway: Open, peers: Serve) -> None:
    first = await peers(reply(b'{"decision":"replace","texts":[{"index":0,"text":"clean"}]}'))
    second = await peers(reply(b'{"decision":"replace","texts":[{"index":1,"text":"also"}]}'))
    guards = {
        "one": {"hosts": ["*"], "webhook": webhook(first)},
        "two": {"hosts": ["*"], "deny": ["secret"], "webhook": webhook(second)},
    }
    gateway = open_gateway({"guards": guards})
    answer = await gateway.ask(chat("secret", "b"))
    assert [text["text"] for text in second.received[0].json["texts"]] == ["clean", "b"]
    assert orjson.loads(answer.request_body.response.body_mutation.body)["messages"] == [
        {"role": "user", "content": "clean"},
        {"role": "user", "content": "also"},
    ]


async def test_an_earlier_guard_does_not_see_what_a_later_one_puts_in(open_gateway: Open, peers: Serve) -> None:
    peer = await peers(reply(b'{"decision":"replace","texts":[{"index":0,"text":"' + DENIED.encode() + b'"}]}'))
    guards = {"one": {"hosts": ["*"], "webhook": webhook(peer)}, "two": {"hosts": ["*"], "deny": DENY}}
    assert not passes(await open_gateway({"guards": guards}).ask(GOOD))
    assert passes(await open_gateway({"guards": dict(reversed(guards.items()))}).ask(GOOD))


async def test_the_first_guard_that_refuses_decides(open_gateway: Open, peers: Serve) -> None:
    peer = await peers(reply(ALLOW))
    guards = {
        "shadow": {"hosts": ["*"], "deny": DENY, "mode": "shadow"},
        "first": {"hosts": ["*"], "deny": DENY, "denyWith": {"status": 451}},
        "second": {"hosts": ["*"], "model": model(peer)},
    }
    gateway = open_gateway({"guards": guards})
    assert refusal(await gateway.ask(BAD)).status.code == 451
    assert peer.received == []
    assert verdicts(gateway) == {
        ("shadow", "request", "deny", "shadow"): 1,
        ("first", "request", "deny", "enforce"): 1,
    }


# --- with everything else that looks at a request


def _everything(**guard: Any) -> dict[str, Any]:
    """Limits before and with the body, providers, a prompt limit, usage asked for, and a guard."""
    config = configured(
        providers=[{"name": "own", "model": "gpt-4o", "default": True, "credential": "none"}],
        promptLimits={"limits": [{"model": "gpt-4o", "tokens": 100}], "service": "prompts"},
        **guarded(**guard),
    )
    config["services"]["prompts"] = {"type": "ratelimit", "endpoint": "limitador"}
    config["bodies"] = {"buffer": 65536}
    config["includeUsage"] = {"enabled": True}
    data = config["actionSets"][0]["actions"][0]["conditionalData"][0]["data"]
    data.append({"expression": {"key": "model", "value": "requestBodyJSON('/model')"}})
    return config


async def test_what_guards_refuse_is_not_asked_of_limits_that_read_the_body(open_gateway: Open) -> None:
    gateway = open_gateway(_everything())
    assert not passes(await gateway.ask(BAD))
    assert gateway.limiter.calls == []


async def test_limits_that_the_head_suffices_for_come_first(open_gateway: Open) -> None:
    limiter = RecordingLimiter({"check": lambda: OVER_LIMIT})
    gateway = open_gateway(configured(**guarded()), limiter)
    assert refusal((await gateway.exchange(request_headers(), request_body(BAD)))[0]).status.code == 429


async def test_what_a_provider_gets_is_what_the_guard_made_of_it(open_gateway: Open, peers: Serve) -> None:
    """The replaced text, the provider's model and the request for usage, in one body with its length."""
    peer = await peers(reply(b'{"decision":"replace","texts":[{"index":0,"text":"***"}]}'))
    gateway = open_gateway(_everything(deny=[], webhook=webhook(peer)))
    body = chat("my secret", stream=True, metadata={"a": 1})
    answer = await gateway.ask(body, {"content-length": str(len(body))})
    common = answer.request_body.response
    assert b"secret" not in common.body_mutation.body
    assert orjson.loads(common.body_mutation.body) == {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "***"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    lengths = [o.header.raw_value for o in common.header_mutation.set_headers if o.header.key == "content-length"]
    assert lengths == [str(len(common.body_mutation.body)).encode()]
    assert [call.method for call in gateway.limiter.calls] == ["check", "should_rate_limit"]


async def test_a_prompt_limit_counts_the_replaced_prompt(open_gateway: Open, peers: Serve) -> None:
    long = b"word " * 2000
    peer = await peers(reply(b'{"decision":"replace","texts":[{"index":0,"text":"' + long + b'"}]}'))
    gateway = open_gateway(_everything(deny=[], webhook=webhook(peer)))
    await gateway.ask(GOOD)
    (asked,) = gateway.limiter.of("should_rate_limit")
    assert asked.query.hits_addend > 1000


# --- defects, and clients that leave

CRASHES: list[tuple[Any, str]] = [
    (Guard, "judge"),
    (guarding, "read_texts"),
    (guarding, "has_repeated_names"),
    (guarding.denials, "guarded"),
    (Guarding, "__init__"),
    (Guarding, "ask"),
    (Guarding, "_note"),
    (Admission, "_needed"),
    (Admission, "_decide"),
    (Admission, "_forward"),
    (Admission, "_edited"),
    (admission.RequestBody, "add"),
    (admission.RequestBody, "read"),
    (Guards, "of"),
    (HostTable, "find"),
]


@pytest.mark.parametrize(("owner", "name"), CRASHES, ids=[f"{owner.__name__}.{name}" for owner, name in CRASHES])
async def test_a_defect_lets_nothing_pass(
    open_gateway: Open, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    """G3: whatever breaks on the way of a request."""

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken")

    gateway = open_gateway(guarded())
    monkeypatch.setattr(owner, name, broken)
    body = GOOD if owner is Admission else BAD
    answers = await gateway.exchange(request_headers(), request_body(body))
    assert refusal(answers[-1]).status.code == 500
    assert gateway.metrics.errors >= 1


async def test_a_defect_after_texts_were_replaced_does_not_send_them_on_as_they_were(
    open_gateway: Open, peers: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken")

    peer = await peers(reply(b'{"decision":"replace","texts":[{"index":0,"text":"***"}]}'))
    gateway = open_gateway(_everything(deny=[], webhook=webhook(peer)))
    for name in ("_rewrite", "_ask_for_usage", "_edited", "_forward"):
        with monkeypatch.context() as patched:
            patched.setattr(Admission, name, broken)
            assert refusal(await gateway.ask(chat("my secret", stream=True))).status.code == 500


@pytest.mark.parametrize("field", ["model", "webhook"])
async def test_a_client_that_leaves_while_a_guard_is_asked(open_gateway: Open, peers: Serve, field: str) -> None:
    """The question is given up with it, and the connection that it was put on."""
    peer = await peers(_hangs)
    gateway = open_gateway(guarded(**{field: (model if field == "model" else webhook)(peer)}))
    before = asyncio.all_tasks()
    exchange, _ = await until_passed(gateway, request_headers())
    waiting = asyncio.create_task(gateway.send(exchange, request_body(GOOD)))
    await until(lambda: peer.received)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    exchange.close()
    assert gateway.metrics.exchanges_open == 0
    await asyncio.wait_for(peer.left.wait(), 5)
    await until(lambda: not [t for t in asyncio.all_tasks() - before if t.get_coro().__qualname__ != "HttpPeer._serve"])


async def test_a_client_that_leaves_does_not_take_the_verdict_of_another(open_gateway: Open, peers: Serve) -> None:
    """The same question is put once; who stays gets the answer."""
    go = asyncio.Event()

    async def later(_: Received, writer: Any) -> None:
        await go.wait()
        writer.write(reply(says("deny")))

    peer = await peers(later)
    gateway = open_gateway(guarded(model=model(peer)))
    leaving, _ = await until_passed(gateway, request_headers())
    gone = asyncio.create_task(gateway.send(leaving, request_body(GOOD)))
    staying = asyncio.create_task(gateway.ask(GOOD))
    await until(lambda: peer.received)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    leaving.close()
    go.set()
    assert not passes(await staying)
    assert len(peer.received) == 1


async def test_many_at_a_time_are_told_apart(open_gateway: Open, peers: Serve) -> None:
    """Verdicts go to those who asked for them."""

    async def judge(received: Received, writer: Any) -> None:
        bad = "bad" in received.json["texts"][0]["text"]
        writer.write(reply(b'{"decision":"deny"}' if bad else b'{"decision":"allow"}'))

    peer = await peers(judge)
    gateway = open_gateway(guarded(webhook=webhook(peer)))
    texts = [f"{'bad' if number % 3 == 0 else 'good'} {number // 2}" for number in range(60)]
    answers = await asyncio.gather(*(gateway.ask(chat(text)) for text in texts))
    assert [passes(answer) for answer in answers] == ["good" in text for text in texts]


# --- what leaks


@pytest.mark.parametrize(
    "body", [BAD, b'{"prompt":"%s"' % DENIED.encode(), chat(DENIED * 5000), b'{"messages":"%s"}' % DENIED.encode()]
)
async def test_no_log_line_shows_what_was_asked(
    open_gateway: Open, peers: Serve, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    """S3.D8: at any level, in any field; neither do metrics, nor secrets."""
    caplog.set_level(1)
    for answer in (reply(says("deny", reason=f"it says {DENIED}")), reply(DENIED.encode()), reply(b"", 500)):
        peer = await peers(_once(answer))
        guards = {
            "patterns": {"hosts": ["*"], "deny": DENY, "mode": "shadow"},
            "model": {"hosts": ["*"], "model": model(peer), "onUnparsable": "allow"},
        }
        gateway = open_gateway({"guards": guards})
        await gateway.ask(body, {"authorization": "Bearer sk-tenant-0123456789"})
        assert "账号" not in gateway.metrics.render()[0].decode()
    logged = "".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "guard" in logged
    for leak in ("账号", "\\u8d26", "sk-tenant", "my secret"):
        assert leak not in logged


# --- any order of messages

bodies = st.sampled_from([b"", b" ", b"{", GOOD, BAD, GOOD[:9], gzip.compress(BAD), b"\xff"])
messages = st.one_of(
    st.builds(
        request_headers,
        st.sampled_from([{}, {"content-length": "90"}, {"content-encoding": "gzip"}, {"content-type": "x; charset=y"}]),
        host=st.sampled_from(["trlp.example.com", "example.org", None]),
        ends=st.booleans(),
        modes=st.sampled_from([None, (0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]),
    ),
    st.builds(request_body, bodies, ends=st.booleans()),
    st.builds(request_trailers),
    st.builds(
        response_headers,
        st.sampled_from([{}, {"content-type": "text/event-stream"}, {"content-type": "audio/mpeg"}]),
        status=st.sampled_from([200, 404]),
        ends=st.booleans(),
    ),
    st.builds(response_body, bodies, ends=st.booleans()),
    st.builds(response_trailers),
)
CONFIGS: dict[str, dict[str, Any]] = {
    "enforce": guarded(answers={}),
    "shadow": guarded(mode="shadow", answers={}),
    "another host": guarded(hosts=("example.org",), onUnparsable="allow", answers={"onUnparsable": "deny"}),
    "everything": _everything(answers={}),
}


@cache
def _compiled(name: str) -> GuardedGateway:
    return GuardedGateway({**CONFIGS, "everybody": guarded(checkRoles=["*"])}[name])


def _streams(sequence: list[ProcessingRequest]) -> bool:
    """Whether the gateway said that it streams answers, before anything else."""
    modes = (ProcessingMode.STREAMED, ProcessingMode.FULL_DUPLEX_STREAMED)
    return bool(sequence) and sequence[0].protocol_config.response_body_mode in modes


def _begins_a_response(message: ProcessingRequest) -> bool:
    return str(message.WhichOneof("request")) == "response_headers"


@settings(max_examples=200, deadline=None)
@given(st.lists(messages, max_size=8), st.sampled_from(list(CONFIGS)))
def test_every_message_gets_one_reply_of_its_kind(sequence: list[ProcessingRequest], config: str) -> None:
    """G1, G6: nothing after an immediate response; in a gateway that streams none once the response has begun."""

    async def drive() -> list[ProcessingResponse]:
        async with _compiled(config).anew() as gateway:
            exchange = gateway.open()
            answers = await gateway.send(exchange, *sequence)
            exchange.close()
            assert gateway.metrics.exchanges_open == 0
            assert gateway.metrics.ended == 1
        return answers

    with no_defects():
        answers = asyncio.run(drive())
    for message, answer, kind in zip(sequence, answers, kinds(answers), strict=False):
        if kind == "immediate_response":
            assert answer is answers[-1]
            if not str(message.WhichOneof("request")).startswith("request_") and _streams(sequence):
                assert _begins_a_response(message)
        else:
            assert kind == message.WhichOneof("request")
    if "immediate_response" not in kinds(answers):
        assert len(answers) == len(sequence)
