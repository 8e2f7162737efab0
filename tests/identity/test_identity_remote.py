"""An ext_authz server: what it is asked, what its answers mean, and what each fault is called."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from extproc.facts import plain
from extproc.identity.messages import MAX_BODY, MAX_HEADERS, Unreadable, decode_verdict, encode_request
from extproc.identity.remote import RemoteAuthenticator
from extproc.identity.seam import AuthError, Verdict
from extproc.wire.base_pb2 import HeaderValueOption
from extproc.wire.external_auth_pb2 import CheckRequest, CheckResponse

LONG = 10.0
NOW = 1_700_000_000.25
IDENTITY = {"identity": {"userid": "alice", "groups": ["free"], "age": 7}}


def response(**fields: Any) -> CheckResponse:
    return ParseDict(fields, CheckResponse())


def header(key: str, value: str, **fields: Any) -> dict[str, Any]:
    return {"header": {"key": key, "value": value}, **fields}


def recorder(answer: CheckResponse | bytes) -> tuple[Callable[..., Any], list[tuple[CheckRequest, dict[str, Any]]]]:
    """A handler that answers `answer`, and what it was asked: (request, metadata)."""
    seen: list[tuple[CheckRequest, dict[str, Any]]] = []

    async def check(message: bytes, context: Any) -> bytes:
        seen.append((CheckRequest.FromString(message), dict(context.invocation_metadata())))
        return answer if isinstance(answer, bytes) else answer.SerializeToString()

    return check, seen


# --- what is asked


async def test_what_is_asked(net, make) -> None:
    """As wasm-shim asks it: Authorino finds its AuthConfig by the scope."""
    check, seen = recorder(response())
    authenticator = RemoteAuthenticator(net.channel(await net.serve(check)), LONG, clock=lambda: NOW)
    facts = make.facts(
        {"authorization": "APIKEY k", "content-length": "12", "x-raw": b"\xff"},
        path="/v1/models?x=1",
        attributes={
            "source.address": "[2001:db8::7]:4711",
            "destination.address": "10.0.0.1:80",
            "request.protocol": "HTTP/2",
        },
        metadata={"envoy.filters.http.jwt_authn": {"principal": {"sub": "alice"}}},
    )
    await authenticator.authenticate(facts, "llm/route", (("x-request-id", "rid-1"), ("baggage", "bad\nvalue")))
    [(request, metadata)] = seen
    attributes = request.attributes
    http = attributes.request.http
    assert (http.method, http.path, http.host, http.scheme) == ("POST", "/v1/models?x=1", "trlp.example.com", "http")
    assert (http.id, http.protocol, http.size) == ("rid-1", "HTTP/2", 12)
    assert dict(http.headers) == {name: value.decode("utf-8", "replace") for name, value in facts.headers.items()}
    assert http.headers[":authority"] == "trlp.example.com"
    assert attributes.request.time.ToMilliseconds() == NOW * 1000
    assert dict(attributes.context_extensions) == {"host": "llm/route"}
    source, destination = attributes.source.address.socket_address, attributes.destination.address.socket_address
    assert (source.address, source.port_value) == ("2001:db8::7", 4711)
    assert (destination.address, destination.port_value) == ("10.0.0.1", 80)
    namespaces = attributes.metadata_context.filter_metadata
    assert plain(namespaces["envoy.filters.http.jwt_authn"].fields["principal"]) == {"sub": "alice"}
    assert metadata["x-request-id"] == "rid-1"
    assert "baggage" not in metadata


LENGTHS = [({}, -1), ({"content-length": "0"}, 0), ({"content-length": "-3"}, -1), ({"content-length": "9" * 30}, -1)]


@pytest.mark.parametrize(("headers", "size"), LENGTHS)
def test_what_envoy_does_not_send(make, headers: dict[str, str], size: int) -> None:
    """Servers look into the peers and the metadata without asking whether they are there."""
    attributes = CheckRequest.FromString(encode_request(make.facts(headers, host=None), "s", NOW)).attributes
    assert attributes.source.address.HasField("socket_address")
    assert attributes.destination.address.HasField("socket_address")
    assert attributes.HasField("metadata_context")
    assert (attributes.request.http.host, attributes.request.http.protocol) == ("", "HTTP/1.1")
    assert attributes.request.http.size == size


@given(
    value=st.binary(max_size=30), address=st.text(max_size=12), scope=st.text(st.characters(exclude_categories=["Cs"]))
)
def test_any_request_can_be_asked_about(make, value: bytes, address: str, scope: str) -> None:
    facts = make.facts({"x-any": value, "content-length": value}, attributes={"source.address": address})
    assert CheckRequest.FromString(encode_request(facts, scope, NOW)).attributes.context_extensions["host"] == scope


# --- allowed

ALLOWED = [
    (response(), Verdict()),
    (response(status={"code": 0}, okResponse={}), Verdict()),
    (response(dynamicMetadata=IDENTITY, okResponse={}), Verdict(auth=IDENTITY)),
    (response(dynamicMetadata=IDENTITY), Verdict(auth=IDENTITY)),
    (response(dynamicMetadata={"a": 1}, okResponse={"dynamicMetadata": IDENTITY}), Verdict(auth=IDENTITY)),
    (response(dynamicMetadata={"identity": None}), Verdict(auth={"identity": None})),
    (response(dynamicMetadata={"identity": [[1], "x"]}), Verdict(auth={"identity": [[1], "x"]})),
    (
        response(okResponse={"headers": [header("X-User", "alice"), header("x-new", "1")]}),
        Verdict(set_headers=(("x-user", "alice"), ("x-new", "1"))),
    ),
    (
        response(okResponse={"headers": [{"header": {"key": "x-raw", "rawValue": "Y2Fmw6k="}}]}),
        Verdict(set_headers=(("x-raw", "café"),)),
    ),
    (
        response(okResponse={"headers": [header("x-user", "b", append=True), header("x-new", "c", append=True)]}),
        Verdict(set_headers=(("x-user", "forged,b"), ("x-new", "c"))),
    ),
    (
        response(
            okResponse={
                "headers": [
                    header("x-user", "b", appendAction="ADD_IF_ABSENT"),
                    header("x-new", "c", appendAction="ADD_IF_ABSENT"),
                    header("x-tier", "d", appendAction="OVERWRITE_IF_EXISTS"),
                    header("x-org", "e", appendAction="OVERWRITE_IF_EXISTS_OR_ADD"),
                ]
            }
        ),
        Verdict(set_headers=(("x-new", "c"), ("x-org", "e"))),
    ),
    (
        response(okResponse={"headersToRemove": ["Authorization", "x-none", ":path", "host"]}),
        Verdict(remove_headers=("authorization",)),
    ),
    (
        response(okResponse={"headers": [header("x-user", "a")], "headersToRemove": ["x-user"]}),
        Verdict(remove_headers=("x-user",)),
    ),
]


@pytest.mark.parametrize(("answer", "verdict"), ALLOWED)
def test_an_allowance(make, answer: CheckResponse, verdict: Verdict) -> None:
    """S1.1 by way of Authorino: `auth.identity` is its dynamic metadata; headers change, which wasm-shim refuses."""
    facts = make.facts({"authorization": "APIKEY k", "x-user": "forged"})
    assert decode_verdict(answer.SerializeToString(), facts) == verdict


IMPOSSIBLE = [
    (b"\xff\xff", "not a CheckResponse"),
    (response(errorResponse={"status": {"code": 500}}), "failed to decide"),
    (response(okResponse={"responseHeadersToAdd": [header("set-cookie", "a=1")]}), "response to the client"),
    (response(okResponse={"queryParametersToSet": [{"key": "a", "value": "1"}]}), "query"),
    (response(okResponse={"queryParametersToRemove": ["a"]}), "query"),
    (response(okResponse={"headers": [header(":path", "/admin")]}), "cannot be set"),
    (response(okResponse={"headers": [header("Host", "internal")]}), "cannot be set"),
    (response(okResponse={"headers": [header("x-a", "1\r\nx-b: 2")]}), "cannot be set"),
    (response(okResponse={"headers": [header("x a", "1")]}), "cannot be set"),
    (response(okResponse={"headers": [header("", "1")]}), "cannot be set"),
    (response(okResponse={"headers": [header("x-a", "1" * MAX_HEADERS)]}), "too large"),
]


@pytest.mark.parametrize(("answer", "message"), IMPOSSIBLE)
def test_an_allowance_that_asks_for_what_cannot_be_done_is_no_verdict(make, answer: Any, message: str) -> None:
    data = answer if isinstance(answer, bytes) else answer.SerializeToString()
    with pytest.raises(Unreadable, match=message):
        decode_verdict(data, make.facts())


# --- denied

CHALLENGES = [header("WWW-Authenticate", f'{scheme} realm="users"') for scheme in ("APIKEY", "Bearer")]
SENT = tuple(("www-authenticate", f'{scheme} realm="users"') for scheme in ("APIKEY", "Bearer"))
UNSENDABLE = [header("content-length", "3"), header(":status", "200"), header("x-a", "1\n2"), header("x b", "1")]
DENIED = [
    (
        response(status={"code": 16}, deniedResponse={"status": {"code": 401}, "headers": CHALLENGES, "body": "who?"}),
        (401, SENT, b"who?"),
    ),
    (
        response(deniedResponse={"status": {"code": 302}, "headers": [header("location", "/login")]}),
        (302, (("location", "/login"),), b""),
    ),
    (response(status={"code": 7}), (403, (), b"")),
    (response(status={"code": 7}, deniedResponse={}), (403, (), b"")),
    (response(status={"code": 7}, okResponse={"headers": [header("x-user", "a")]}), (403, (), b"")),
    (response(status={"code": -1}), (403, (), b"")),
    (response(deniedResponse={"status": {"code": 0}}), (403, (), b"")),
    (response(deniedResponse={"status": {"code": 100}}), (403, (), b"")),
    (response(deniedResponse={"status": {"code": 600}}), (403, (), b"")),
    (response(deniedResponse={"status": {"code": 429}, "body": "é"}), (429, (), "é".encode())),
    (response(deniedResponse={"body": "x" * MAX_BODY}), (403, (), b"x" * MAX_BODY)),
    (response(deniedResponse={"body": "x" * (MAX_BODY + 1)}), (403, (), None)),
    (response(deniedResponse={"headers": [*UNSENDABLE, header("x-ok", "1")]}), (403, (("x-ok", "1"),), b"")),
    (
        response(deniedResponse={"headers": [header("x-1", "1"), header("x-2", "2" * MAX_HEADERS)]}),
        (403, (("x-1", "1"),), b""),
    ),
]


@pytest.mark.parametrize(("answer", "denial"), DENIED)
def test_a_denial_is_passed_on_and_stands_whatever_else_is_wrong_with_it(
    make, answer: CheckResponse, denial: Any
) -> None:
    """S1.2 by way of Authorino, and bounded: never an allowance because something in it was too large."""
    verdict = decode_verdict(answer.SerializeToString(), make.facts())
    assert (verdict.status, verdict.headers, verdict.body) == denial
    assert not verdict.auth


def test_the_reason_shows_nothing_of_the_denial(make) -> None:
    """It is for the log; the server's words may hold anything."""
    denied = {"headers": [header("x-ext-auth-reason", "sk-secret")], "body": "sk-secret"}
    answer = response(status={"code": 16, "message": "sk-secret"}, deniedResponse=denied)
    assert decode_verdict(answer.SerializeToString(), make.facts()).reason == "the auth server refused it, code 16"


OPTIONS = st.builds(
    lambda key, value, raw, append, action: HeaderValueOption(
        header={"key": key, "value": value, "raw_value": raw}, append={"value": append}, append_action=action
    ),
    st.text(max_size=5) | st.sampled_from(["x-a", "host", ":path"]),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.booleans(),
    st.integers(0, 5),
)


@given(data=st.binary(max_size=60))
def test_any_bytes_are_a_verdict_or_unreadable(make, data: bytes) -> None:
    try:
        verdict = decode_verdict(data, make.facts())
    except Unreadable:
        return
    assert verdict.status in (0, *range(200, 600))


@given(options=st.lists(OPTIONS, max_size=4), code=st.integers(-1, 17), denies=st.booleans())
def test_any_headers_can_be_sent_or_are_not(make, options: list[HeaderValueOption], code: int, denies: bool) -> None:
    answer = CheckResponse()
    answer.status.code = code
    (answer.denied_response if denies else answer.ok_response).headers.extend(options)
    try:
        verdict = decode_verdict(answer.SerializeToString(), make.facts())
    except Unreadable:
        assert not denies
        return
    for name, value in (*verdict.headers, *verdict.set_headers):
        assert name.islower() or not any(letter.isalpha() for letter in name)
        assert not {"\r", "\n", "\0"} & set(name + value)
        assert name not in ("", "host", ":path")


# --- faults


async def fault(authenticator: RemoteAuthenticator, make: Any) -> str:
    with pytest.raises(AuthError) as caught:
        await authenticator.authenticate(make.facts({"authorization": "APIKEY sk-secret"}), "s")
    assert "sk-secret" not in str(caught.value)
    return str(caught.value)


async def test_a_verdict_over_the_wire(net, make) -> None:
    check, _ = recorder(response(dynamicMetadata=IDENTITY))
    authenticator = RemoteAuthenticator(net.channel(await net.serve(check)), LONG)
    assert await authenticator.authenticate(make.facts(), "s") == Verdict(auth=IDENTITY)


@pytest.fixture
def refused_port() -> Iterator[str]:
    """A port that nothing can listen on while the test runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


async def test_nobody_listens(net, make, refused_port: str) -> None:
    assert (await fault(RemoteAuthenticator(net.channel(refused_port), LONG), make)).startswith("unreachable: ")


async def test_no_answer_in_time(net, make) -> None:
    async def check(_: bytes, __: Any) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    channel = net.channel(await net.serve(check))
    await channel.channel_ready()
    assert (await fault(RemoteAuthenticator(channel, 0.05), make)).startswith("deadline: ")


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL])
async def test_a_server_that_refuses(net, make, code: grpc.StatusCode) -> None:
    async def check(_: bytes, context: Any) -> bytes:
        return await context.abort(code, "no")

    assert await fault(RemoteAuthenticator(net.channel(await net.serve(check)), LONG), make) == (
        f"refused: {code.name}: no"
    )


@pytest.mark.parametrize("answer", [b"\xff\xff", response(okResponse={"headers": [header(":path", "/")]})])
async def test_an_answer_that_is_none(net, make, answer: CheckResponse | bytes) -> None:
    check, _ = recorder(answer)
    found = await fault(RemoteAuthenticator(net.channel(await net.serve(check)), LONG), make)
    assert found.startswith("nonsense: ")


async def test_an_answer_that_is_too_large(net, make) -> None:
    huge = Struct()
    huge["identity"] = "x" * 5_000_000
    check, _ = recorder(CheckResponse(dynamic_metadata=huge))
    found = await fault(RemoteAuthenticator(net.channel(await net.serve(check)), LONG), make)
    assert found.startswith("refused: RESOURCE_EXHAUSTED")


async def test_a_channel_that_is_closed(net, make) -> None:
    asked = asyncio.Event()

    async def check(_: bytes, __: Any) -> bytes:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    channel = net.channel(await net.serve(check))
    authenticator = RemoteAuthenticator(channel, LONG)
    waiting = asyncio.create_task(fault(authenticator, make))
    await asked.wait()
    await channel.close()
    assert (await waiting).startswith("refused: ")
    assert (await fault(authenticator, make)).startswith("unreachable: ")


async def test_whoever_waits_may_be_cancelled(net, make) -> None:
    """A client that hangs up is no fault of the server."""
    asked = asyncio.Event()

    async def check(_: bytes, __: Any) -> bytes:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    authenticator = RemoteAuthenticator(net.channel(await net.serve(check)), LONG)
    waiting = asyncio.create_task(authenticator.authenticate(make.facts(), "s"))
    await asked.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
