"""A limiter over gRPC: what is sent, what is understood, and what each fault is called."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

import grpc
import pytest

from extproc.limiter.calls import MAX_METADATA_VALUE, reason_of
from extproc.limiter.messages import decode_decision, encode_query
from extproc.limiter.remote import RemoteLimiter
from extproc.limiter.seam import MAX_HITS, Code, Decision, LimiterError, Query
from extproc.wire.base_pb2 import HeaderValue
from extproc.wire.rls_pb2 import RateLimitRequest, RateLimitResponse

QUERY = Query("domain-a", ((("a", "1"), ("user", "alice")), (("model", "m"),)), 24)
OK = RateLimitResponse(overall_code=RateLimitResponse.OK).SerializeToString()
LONG = 10.0


def recorder(answer: bytes = OK):
    """A handler that answers `answer`, and what it was asked: (path, message, metadata)."""
    seen: list[tuple[str, bytes, dict[str, str]]] = []

    async def handle(path: str, message: bytes, context: grpc.aio.ServicerContext) -> bytes:
        seen.append((path, message, dict(context.invocation_metadata())))
        return answer

    return handle, seen


PATHS = [
    ("check", "/kuadrant.service.ratelimit.v1.RateLimitService/CheckRateLimit"),
    ("report", "/kuadrant.service.ratelimit.v1.RateLimitService/Report"),
    ("should_rate_limit", "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize("hits", [0, 1, 24, MAX_HITS])
async def test_what_is_sent(net, method: str, path: str, hits: int) -> None:
    """S0.11: the exact path; S0.13: the descriptors in order."""
    handle, seen = recorder()
    limiter = RemoteLimiter(net.channel(await net.answer(handle)), LONG)
    query = Query(QUERY.domain, QUERY.descriptors, hits)
    assert await getattr(limiter, method)(query) == Decision(Code.OK)
    [(called, message, _)] = seen
    request = RateLimitRequest.FromString(message)
    assert called == path
    assert (request.domain, request.hits_addend) == ("domain-a", hits)
    assert [[(e.key, e.value) for e in d.entries] for d in request.descriptors] == [
        [("a", "1"), ("user", "alice")],
        [("model", "m")],
    ]


async def test_metadata_of_the_request_travels_with_the_call(net) -> None:
    """S0.19."""
    handle, seen = recorder()
    limiter = RemoteLimiter(net.channel(await net.answer(handle)), LONG)
    metadata = (("x-request-id", "r-1"), ("traceparent", "00-a-b-01"))
    await limiter.check(QUERY, metadata)
    assert dict(metadata).items() <= seen[0][2].items()


@pytest.mark.parametrize("value", ["é", "a\nb", "\x7f", "\udcff", "x" * (MAX_METADATA_VALUE + 1)])
async def test_metadata_that_grpc_refuses_does_not_switch_the_limit_off(net, value: str) -> None:
    """Request ids and baggage come from clients; the call must happen without them."""
    handle, seen = recorder()
    limiter = RemoteLimiter(net.channel(await net.answer(handle)), LONG)
    assert (await limiter.check(QUERY, (("baggage", value), ("x-request-id", "r-1")))).code is Code.OK
    assert "baggage" not in seen[0][2]
    assert seen[0][2]["x-request-id"] == "r-1"


ANSWERS = [
    (b"", Decision(Code.UNKNOWN)),
    (b"\x08\x01", Decision(Code.OK)),
    (b"\x08\x02", Decision(Code.OVER_LIMIT)),
    (b"\x08\x01\xba\x3e\x03new", Decision(Code.OK)),
]


@pytest.mark.parametrize(("message", "decision"), ANSWERS)
async def test_what_is_understood(net, message: bytes, decision: Decision) -> None:
    """A code of 0 stays UNKNOWN: what to make of it is the caller's; fields of later versions are skipped."""
    handle, _ = recorder(message)
    assert await RemoteLimiter(net.channel(await net.answer(handle)), LONG).check(QUERY) == decision


async def test_headers_of_the_answer(net) -> None:
    """S0.16: raw_value where it is set, else value."""
    headers = [
        HeaderValue(key="x-ratelimit-limit", value="100"),
        HeaderValue(key="x-raw", raw_value=b"caf\xc3\xa9"),
        HeaderValue(key="x-bad", raw_value=b"\xff"),
    ]
    answer = RateLimitResponse(overall_code=RateLimitResponse.OVER_LIMIT, response_headers_to_add=headers)
    handle, _ = recorder(answer.SerializeToString())
    decision = await RemoteLimiter(net.channel(await net.answer(handle)), LONG).should_rate_limit(QUERY)
    assert decision == Decision(Code.OVER_LIMIT, (("x-ratelimit-limit", "100"), ("x-raw", "café"), ("x-bad", "\ufffd")))


async def reason(channel: grpc.aio.Channel, deadline: float = LONG) -> str:
    with pytest.raises(LimiterError) as caught:
        await RemoteLimiter(channel, deadline).report(QUERY)
    return caught.value.reason


# --- nothing listens, nobody answers


@pytest.fixture
def refused_port():
    """A port that nothing can listen on while the test runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


async def test_dead_port(net, refused_port: str) -> None:
    assert await reason(net.channel(refused_port)) == "unreachable"


async def test_dead_unix_socket(net, tmp_path) -> None:
    assert await reason(net.channel(f"unix:{tmp_path}/none.sock")) == "unreachable"


async def test_name_that_does_not_resolve(net) -> None:
    assert await reason(net.channel("no-such-host.invalid:8081")) == "unreachable"


async def test_a_unix_socket_is_asked_like_any_other(net, tmp_path) -> None:
    handle, _ = recorder()
    address = await net.answer(handle, f"unix:{tmp_path}/limiter.sock")
    assert (await RemoteLimiter(net.channel(address), LONG).check(QUERY)).code is Code.OK


# --- a peer that speaks HTTP/2 by hand, to fail at an exact moment

SETTINGS = bytes.fromhex("000000040000000000")
Act = Callable[[asyncio.Transport], None]


def frame(kind: int, stream: int, *words: int) -> bytes:
    payload = b"".join(struct.pack(">I", word) for word in words)
    return struct.pack(">I", len(payload))[1:] + bytes([kind, 0]) + struct.pack(">I", stream) + payload


def rst_stream(code: int) -> Act:
    return lambda transport: transport.write(frame(3, 1, code))


def goaway(last: int, code: int = 0, close: bool = False) -> Act:
    def act(transport: asyncio.Transport) -> None:
        transport.write(frame(7, 0, last, code))
        if close:
            transport.close()

    return act


def reset(transport: asyncio.Transport) -> None:
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class Peer(asyncio.Protocol):
    """Sends `hello` when connected and acts once the request has arrived completely."""

    def __init__(self, hello: bytes, act: Act) -> None:
        self._hello, self._act = hello, act
        self._read = b""
        self._ended = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._hello)

    def data_received(self, data: bytes) -> None:
        self._read += data
        if b"domain-a" in self._read:
            self._read = b""
            self._act(self._transport)

    async def close(self) -> None:
        self._transport.abort()
        await self._ended.wait()


async def peer(net, hello: bytes, act: Act) -> grpc.aio.Channel:
    def connected() -> Peer:
        found = Peer(hello, act)
        net.stack.push_async_callback(found.close)
        return found

    server = await asyncio.get_running_loop().create_server(connected, "127.0.0.1", 0)
    net.stack.callback(server.close)
    return net.channel(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")


def nothing(transport: asyncio.Transport) -> None:
    pass


FAULTS = [
    pytest.param(SETTINGS, lambda t: t.close(), "refused", id="closed after the request"),
    pytest.param(SETTINGS, reset, "refused", id="reset after the request"),
    pytest.param(SETTINGS, rst_stream(2), "refused", id="stream reset INTERNAL_ERROR"),
    pytest.param(SETTINGS, rst_stream(8), "refused", id="stream reset CANCEL"),
    pytest.param(SETTINGS, rst_stream(7), "unreachable", id="stream reset REFUSED_STREAM"),
    pytest.param(SETTINGS, goaway(0), "unreachable", id="goaway before our stream"),
    pytest.param(SETTINGS, goaway(0, code=2), "unreachable", id="goaway with an error before our stream"),
    pytest.param(SETTINGS, goaway(1, close=True), "refused", id="goaway after our stream, then closed"),
    pytest.param(SETTINGS, goaway(1, code=2, close=True), "refused", id="goaway with an error after our stream"),
    pytest.param(SETTINGS, goaway(2**31 - 1, code=11, close=True), "refused", id="goaway too many pings"),
    pytest.param(b"HTTP/1.1 400 Bad\r\n\r\n", nothing, "unreachable", id="HTTP/1 server"),
]


@pytest.mark.parametrize(("hello", "act", "expected"), FAULTS)
async def test_lost_during_the_call_is_not_safe_to_retry(net, hello: bytes, act: Act, expected: str) -> None:
    """S0.D16: only what was certainly not processed is `unreachable` (RFC 9113, sections 6.8 and 8.7)."""
    assert await reason(await peer(net, hello, act)) == expected


async def test_deadline_after_the_request_was_sent_may_have_counted(net) -> None:
    assert await reason(await peer(net, SETTINGS, nothing), 0.05) == "deadline"


async def test_deadline_while_still_connecting_has_not_counted(net) -> None:
    """The peer accepts and never says a word, like a host that vanished."""
    assert await reason(await peer(net, b"", nothing), 0.05) == "unreachable"


# --- real servers that answer something else

Status = tuple[grpc.StatusCode, str]
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
REFUSALS = [
    (UNAVAILABLE, "storage is down", "refused"),
    (UNAVAILABLE, "", "refused"),
    # A limiter that is a gRPC client itself and hands on what it was told.
    (UNAVAILABLE, "failed to connect to all addresses; last error: Connection refused", "refused"),
    (UNAVAILABLE, "errors resolving redis:6379", "refused"),
    # Envoy between us and the limiter, texts as Envoy 1.40 sends them.
    (UNAVAILABLE, "no healthy upstream", "unreachable"),
    (
        UNAVAILABLE,
        "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
        "unreachable",
    ),
    (
        UNAVAILABLE,
        "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
        "refused",
    ),
    (
        UNAVAILABLE,
        "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: "
        "remote connection failure",
        "refused",
    ),
    (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", "deadline"),
    (grpc.StatusCode.INTERNAL, "failed to connect to all addresses", "refused"),
    (grpc.StatusCode.UNIMPLEMENTED, "no such method", "refused"),
    (grpc.StatusCode.CANCELLED, "", "refused"),
]


@pytest.mark.parametrize(("code", "details", "expected"), REFUSALS)
async def test_a_server_that_answers_with_an_error(net, code: grpc.StatusCode, details: str, expected: str) -> None:
    async def handle(path: str, message: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await context.abort(code, details)
        raise AssertionError

    assert await reason(net.channel(await net.answer(handle))) == expected


@pytest.mark.parametrize("answer", [b"\xff\xff\xff", b"\x08\x07", b"\x0a\x05abc"])
async def test_an_answer_that_makes_no_sense(net, answer: bytes, caplog) -> None:
    """Bytes that are no message, or a code that does not exist; nothing is logged on the way."""
    handle, _ = recorder(answer)
    assert await reason(net.channel(await net.answer(handle))) == "nonsense"
    assert caplog.records == []


async def test_error_texts_are_bounded(net) -> None:
    async def handle(path: str, message: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await context.abort(UNAVAILABLE, "x" * 4000)
        raise AssertionError

    with pytest.raises(LimiterError) as caught:
        await RemoteLimiter(net.channel(await net.answer(handle)), LONG).check(QUERY)
    assert len(str(caught.value)) < 400


# --- calls that end while they are under way


@pytest.fixture
async def hanging(net):
    """A server that never answers, and the event of a call that reached it."""
    arrived = asyncio.Event()

    async def handle(path: str, message: bytes, context: grpc.aio.ServicerContext) -> bytes:
        arrived.set()
        await asyncio.Event().wait()
        raise AssertionError

    return await net.answer(handle), arrived


Ending = Callable[[grpc.aio.Channel, grpc.aio.Server], Awaitable[None]]


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda channel, server: server.stop(None), id="server stops"),
        pytest.param(lambda channel, server: channel.close(), id="channel closes"),
    ],
)
async def test_an_end_during_the_call_is_an_error_and_not_retried(net, hanging, end: Ending) -> None:
    address, arrived = hanging
    channel = net.channel(address)
    call = asyncio.create_task(RemoteLimiter(channel, LONG).report(QUERY))
    await arrived.wait()
    await end(channel, net.servers[0])
    with pytest.raises(LimiterError, match=r"^refused"):
        await call


@pytest.mark.parametrize("after", [1, 20, 100])
async def test_no_report_that_is_safe_to_retry_was_counted(net, after: int) -> None:
    """S0.D16: a limiter stops in the middle of many reports, its last answers still on the way."""
    counted: set[str] = set()
    enough = asyncio.Event()

    async def count(path: str, message: bytes, context: grpc.aio.ServicerContext) -> bytes:
        counted.add(RateLimitRequest.FromString(message).descriptors[0].entries[0].value)
        if len(counted) >= after:
            enough.set()
        return OK

    limiter = RemoteLimiter(net.channel(await net.answer(count)), LONG)

    async def report(user: str) -> str:
        try:
            await limiter.report(Query("domain-a", ((("user", user),),)))
        except LimiterError as error:
            return error.reason
        return "ok"

    users = [f"user-{number}" for number in range(200)]
    calls = asyncio.gather(*map(report, users))
    await enough.wait()
    await net.servers[0].stop(None)
    outcomes = dict(zip(users, await calls, strict=True))
    assert not {user for user, outcome in outcomes.items() if outcome == "unreachable"} & counted
    assert {user for user, outcome in outcomes.items() if outcome == "ok"} <= counted


async def test_a_cancelled_caller_stays_cancelled(net, hanging) -> None:
    address, arrived = hanging
    call = asyncio.create_task(RemoteLimiter(net.channel(address), LONG).report(QUERY))
    await arrived.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_closed_channel_reaches_nobody(net, refused_port: str) -> None:
    channel = net.channel(refused_port)
    await channel.close()
    assert await reason(channel) == "unreachable"


async def test_a_call_is_made_once(net) -> None:
    """S0.D16: gRPC itself repeats nothing, not even what it could."""
    calls = 0

    def refuse(transport: asyncio.Transport) -> None:
        nonlocal calls
        calls += 1
        transport.write(frame(3, 2 * calls - 1, 7))

    assert await reason(await peer(net, SETTINGS, refuse)) == "unreachable"
    assert calls == 1


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.TRANSIENT_FAILURE, "unreachable"),
        # The limiter came back between the call's failure and our look at the channel.
        (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.READY, "unreachable"),
        # A limiter that cannot reach its own storage may hand such a text on, and may have counted.
        (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.READY, "refused"),
        (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.READY, "refused"),
    ],
)
def test_a_text_of_no_connection_is_believed_when_there_was_none(
    before: grpc.ChannelConnectivity, after: grpc.ChannelConnectivity, expected: str
) -> None:
    """S0.D16: told again only where it cannot have been counted."""
    text = "failed to connect to all addresses; last error: UNKNOWN"
    empty = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, empty, empty, details=text)
    assert reason_of(error, before, after) == expected


BROKEN = [
    ("x-ok", "1"),
    ("x-bad", "a\r\nset-cookie: b"),
    ("", "empty"),
    ("a b", "space"),
    (":status", "599"),
    ("Content-Length", "1"),
    ("x-nul", "\x00"),
    ("x-long", "x" * 5000),
    *((f"x-{number}", "1") for number in range(100)),
]


def test_a_limiter_s_headers_never_break_an_answer() -> None:
    """Envoy refuses an answer as a whole for one header that HTTP cannot carry: the client would get a 500, unpaid."""
    answer = RateLimitResponse(overall_code=RateLimitResponse.OK)
    for key, value in BROKEN:
        answer.response_headers_to_add.add(key=key, value=value)
    headers = dict(decode_decision(answer.SerializeToString()).headers)
    assert headers.pop("x-ok") == "1"
    assert all(key.startswith("x-") and key[2:].isdigit() for key in headers)
    assert len(headers) < 32


def test_a_query_of_no_hits_only_asks() -> None:
    """Envoy's reference service takes a 0 of the request for a 1, but not that of a descriptor."""
    request = RateLimitRequest.FromString(encode_query(Query("d", ((("a", "1"),), (("b", "2"),)), 0)))
    assert [each.HasField("hits_addend") for each in request.descriptors] == [True, True]
    assert not any(each.hits_addend.value for each in request.descriptors)
    request = RateLimitRequest.FromString(encode_query(Query("d", ((("a", "1"),),), 1)))
    assert not request.descriptors[0].HasField("hits_addend")
