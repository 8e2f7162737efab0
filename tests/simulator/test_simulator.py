"""The simulated model does what it is told, byte by byte: other tests rely on it as their upstream."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import brotli
import pytest
import zstandard

from extproc.simulator import Options, Simulator
from extproc.simulator.connection import MAX_HEAD
from extproc.simulator.service import KEPT_BODY

CHAT = "/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
STREAM = ASK | {"stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture
async def model() -> AsyncIterator[Simulator]:
    async with Simulator() as simulator:
        yield simulator


@pytest.fixture
async def client(model: Simulator) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"http://{model.address}", auto_decompress=False) as session:
        yield session


async def ask(
    client: aiohttp.ClientSession, body: dict[str, Any], path: str = CHAT, **options: str
) -> tuple[aiohttp.ClientResponse, bytes]:
    headers = {f"x-sim-{name.replace('_', '-')}": value for name, value in options.items()}
    async with client.post(path, json=body, headers=headers) as response:
        return response, await response.read()


def raw_request(body: bytes = json.dumps(ASK).encode(), *headers: str, path: str = CHAT, method: str = "POST") -> bytes:
    fields = [f"{method} {path} HTTP/1.1", "host: model", f"content-length: {len(body)}", *headers]
    return "\r\n".join((*fields, "", "")).encode() + body


async def raw(model: Simulator, sent: bytes) -> bytes:
    """Everything the server sends until it closes."""
    reader, writer = await asyncio.open_connection(*model.address.split(":"))
    writer.write(sent)
    received = await reader.read(-1)
    writer.close()
    await writer.wait_closed()
    return received


def events(body: bytes) -> list[Any]:
    found = [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event]
    return [event.decode() if event == b"[DONE]" else json.loads(event) for event in found]


async def test_f1_json(client: aiohttp.ClientSession) -> None:
    response, body = await ask(client, ASK)
    document = json.loads(body)
    assert (response.status, response.content_type) == (200, "application/json")
    assert int(response.headers["content-length"]) == len(body)
    assert document["model"] == "m"
    assert document["usage"] == {"prompt_tokens": 12, "completion_tokens": 12, "total_tokens": 24}
    assert document["choices"][0]["message"] == {"role": "assistant", "content": " token" * 12}


async def test_f3_stream_ends_with_usage_and_done(client: aiohttp.ClientSession) -> None:
    response, body = await ask(client, STREAM)
    *frames, stop, usage, done = events(body)
    assert response.content_type == "text/event-stream"
    assert response.headers["transfer-encoding"] == "chunked"
    assert [frame["choices"][0]["delta"]["content"] for frame in frames] == [" token"] * 12
    assert {json.dumps(frame["usage"]) for frame in (*frames, stop)} == {"null"}
    assert stop["choices"][0]["finish_reason"] == "stop"
    assert (usage["choices"], usage["usage"]["total_tokens"], done) == ([], 24, "[DONE]")


USAGES = {
    # usage option -> (usage of the first frame or "absent", totals in the stream) without include_usage
    "auto": ("absent", []),
    "last": (None, [24]),
    "every": ({"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 13}, [*range(13, 25), 24, 24]),
    "none": ("absent", []),
    "null": (None, []),
}


@pytest.mark.parametrize("usage", USAGES)
async def test_usage_in_streams(client: aiohttp.ClientSession, usage: str) -> None:
    _, body = await ask(client, ASK | {"stream": True}, usage=usage)
    frames = [event for event in events(body) if event != "[DONE]"]
    first, totals = USAGES[usage]
    assert frames[0].get("usage", "absent") == first
    assert [frame["usage"]["total_tokens"] for frame in frames if frame.get("usage")] == totals


@pytest.mark.parametrize(("usage", "expected"), [("none", "absent"), ("null", None)])
async def test_usage_missing_in_json(client: aiohttp.ClientSession, usage: str, expected: object) -> None:
    _, body = await ask(client, ASK, usage=usage)
    assert json.loads(body).get("usage", "absent") == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"prompt_tokens": "10", "completion_tokens": "20"}, (10, 20, 30)),
        ({"total_tokens": "85"}, (12, 12, 85)),
        ({"prompt_tokens": "0", "completion_tokens": "0"}, (0, 0, 0)),
    ],
    ids=["F5", "total", "zero"],
)
async def test_tokens(client: aiohttp.ClientSession, options: dict[str, str], expected: tuple[int, ...]) -> None:
    for body in (ASK, STREAM):
        _, answer = await ask(client, body, **options)
        usage = events(answer)[-2]["usage"] if body is STREAM else json.loads(answer)["usage"]
        assert tuple(usage.values()) == expected


async def test_embeddings_and_completions(client: aiohttp.ClientSession) -> None:
    _, body = await ask(client, {"model": "e", "input": "x"}, "/v1/embeddings")
    assert json.loads(body)["usage"] == {"prompt_tokens": 12, "total_tokens": 12}
    _, body = await ask(client, {"model": "c", "prompt": "x"}, "/v1/completions", frames="2", text="ab")
    assert json.loads(body)["choices"][0]["text"] == "abab"
    _, body = await ask(client, {"model": "c", "stream": True}, "/v1/completions", frames="1", text='"\\')
    assert events(body)[0]["choices"][0]["text"] == '"\\'


async def test_query_parameters_choose_and_headers_win(client: aiohttp.ClientSession) -> None:
    _, body = await ask(client, ASK, CHAT + "?prompt_tokens=1&completion-tokens=2&api-version=7", prompt_tokens="5")
    assert json.loads(body)["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("framse", "2", "x-sim-framse: no such option"),
        ("frames", "two", "x-sim-frames: expected a whole number"),
        ("frames", "9" * 30, "x-sim-frames: expected a whole number"),
        ("status", "99", "x-sim-status"),
        ("usage", "maybe", "expected one of auto, last, every, none, null"),
        ("first_byte_ms", "nan", "x-sim-first-byte-ms: expected milliseconds"),
        ("trailers", "novalue", "x-sim-trailers: expected NAME:VALUE"),
        ("text", "x" * 4000, "text: more than"),
        ("stamp", "yes", "expected true or false"),
    ],
)
async def test_a_wrong_option_is_named(client: aiohttp.ClientSession, option: str, value: str, says: str) -> None:
    response, body = await ask(client, ASK, **{"frames": "9999"} | {option: value})
    assert response.status == 400
    assert says in json.loads(body)["error"]["message"]


DECODERS = {
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
    "br": brotli.decompress,
    "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
}


@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
@pytest.mark.parametrize("encoding", DECODERS)
async def test_d11_encodings(client: aiohttp.ClientSession, encoding: str, stream: bool) -> None:
    """S0.D11: every coding that models use, for JSON and streams."""
    _, plain = await ask(client, STREAM if stream else ASK, encoding="identity")
    response, coded = await ask(client, STREAM if stream else ASK, encoding=encoding, force_encoding="true")
    assert response.headers["content-encoding"] == encoding
    assert coded != plain
    assert DECODERS[encoding](coded) == plain


async def test_d11_a_frame_can_be_decoded_when_it_arrives(model: Simulator) -> None:
    """S0.D11: a compressed stream still streams, so each write ends where a decoder can show its frame."""
    request = raw_request(
        json.dumps(STREAM).encode(), "x-sim-encoding: gzip", "x-sim-force-encoding: true", "x-sim-hold: one"
    )
    reader, writer = await asyncio.open_connection(*model.address.split(":"))
    writer.write(request)
    await reader.readuntil(b"\r\n\r\n")
    size = int(await reader.readline(), 16)
    first = zlib.decompressobj(31).decompress(await reader.readexactly(size))
    assert events(first)[0]["choices"][0]["delta"] == {"content": " token"}
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("accepts", "coded"),
    [
        ("gzip", True),
        ("br, gzip;q=0.5", True),
        ("*", True),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000, *", False),
        ("", False),
    ],
)
async def test_an_encoding_is_negotiated(client: aiohttp.ClientSession, accepts: str, coded: bool) -> None:
    headers = {"accept-encoding": accepts, "x-sim-encoding": "gzip"}
    async with client.post(CHAT, json=ASK, headers=headers) as response:
        assert ("content-encoding" in response.headers) == coded


@pytest.mark.parametrize("size", [1000, 65_536, 1_000_000])
@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
async def test_size_is_exact(client: aiohttp.ClientSession, size: int, stream: bool) -> None:
    _, body = await ask(client, STREAM if stream else ASK, size=str(size), frames="3")
    assert len(body) == size
    assert events(body)[-2]["usage"] if stream else json.loads(body)["usage"]


@pytest.mark.parametrize(
    ("status", "kind"), [(400, "invalid_request_error"), (429, "rate_limit_error"), (500, "server_error")]
)
async def test_errors_have_openais_shape(client: aiohttp.ClientSession, status: int, kind: str) -> None:
    response, body = await ask(client, STREAM, status=str(status))
    assert (response.status, response.content_type) == (status, "application/json")
    assert json.loads(body)["error"]["type"] == kind


async def test_no_content(model: Simulator) -> None:
    received = await raw(model, raw_request(b"{}", "x-sim-status: 204", "connection: close"))
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 204 No Content")
    assert b"content-length" not in head
    assert body == b""


async def test_head_has_the_length_and_no_body(model: Simulator) -> None:
    for path in (CHAT, "/v1/models", "/health"):
        received = await raw(model, raw_request(b"", "connection: close", path=path, method="HEAD"))
        assert received.startswith(b"HTTP/1.1 200 OK")
        assert b"content-length: " in received
        assert received.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
async def test_invalid_json(client: aiohttp.ClientSession, stream: bool) -> None:
    _, body = await ask(client, STREAM if stream else ASK, invalid="true")
    for document in body.split(b"\n\n")[:-2] if stream else [body]:
        with pytest.raises(json.JSONDecodeError):
            json.loads(document.removeprefix(b"data: "))


async def test_any_fixture_comes_back_through_echo(model: Simulator) -> None:
    """F2a, F4, F10: what the simulator cannot compose is sent as the request and answered as it is."""
    body = b"event: message_start\r\ndata: {\xff}\n\n"
    request = raw_request(
        body, "x-sim-echo: true", "x-sim-content-type: text/event-stream", "x-sim-framing: close", "x-sim-chunk: 1"
    )
    head, _, answer = (await raw(model, request)).partition(b"\r\n\r\n")
    assert b"content-type: text/event-stream" in head
    assert answer == body


FRAMINGS = {
    # framing -> (field in the head, end of the answer)
    "length": (b"content-length: ", b"data: [DONE]\n\n"),
    "chunked": (b"transfer-encoding: chunked", b"0\r\n\r\n"),
    "close": (b"connection: close", b"data: [DONE]\n\n"),
}


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_framing(model: Simulator, framing: str) -> None:
    received = await raw(
        model, raw_request(json.dumps(STREAM).encode(), f"x-sim-framing: {framing}", "connection: close")
    )
    field, end = FRAMINGS[framing]
    assert field in received.partition(b"\r\n\r\n")[0]
    assert received.endswith(end)


async def test_http_10_gets_no_chunks(model: Simulator) -> None:
    request = raw_request(json.dumps(STREAM).encode()).replace(b"HTTP/1.1", b"HTTP/1.0")
    received = await raw(model, request)
    assert b"transfer-encoding" not in received
    assert received.endswith(b"data: [DONE]\n\n")


async def test_trailers(model: Simulator) -> None:
    """G11: the body's end is not the answer's end when trailers follow."""
    received = await raw(model, raw_request(b"{}", "x-sim-trailers: x-a:1, x-b:two", "connection: close"))
    assert b"trailer: x-a\r\ntrailer: x-b" in received
    assert received.endswith(b"\r\n0\r\nx-a: 1\r\nx-b: two\r\n\r\n")


async def test_s0_6_chunks_of_one_byte(model: Simulator) -> None:
    """S0.6: chunking is a choice, down to single bytes."""
    received = await raw(model, raw_request(b"{}", "x-sim-chunk: 1", "x-sim-framing: chunked", "connection: close"))
    body = received.partition(b"\r\n\r\n")[2]
    assert body.startswith(b"1\r\n{\r\n1\r\n")
    assert json.loads(b"".join(body.split(b"\r\n")[1::2]))["usage"]["total_tokens"] == 24


async def test_cut_after_frames_ends_without_the_last_chunk(model: Simulator) -> None:
    received = await raw(model, raw_request(json.dumps(STREAM).encode(), "x-sim-cut-frames: 2"))
    assert received.count(b"data: ") == 2
    assert not received.endswith(b"0\r\n\r\n")


async def test_cut_after_bytes_breaks_the_promised_length(model: Simulator) -> None:
    head, _, body = (await raw(model, raw_request(b"{}", "x-sim-cut-bytes: 7"))).partition(b"\r\n\r\n")
    assert len(body) == 7
    assert b"content-length: 7\r\n" not in head


async def test_s0_5_hold_proves_that_a_stream_streams(model: Simulator, client: aiohttp.ClientSession) -> None:
    """S0.5: the first frame is there while the second does not exist; no clock involved."""
    async with client.post(CHAT, json=STREAM, headers={"x-sim-hold": "a"}) as response:
        first = await response.content.readuntil(b"\n\n")
        assert events(first)[0]["choices"][0]["delta"] == {"content": " token"}
        async with client.post("/sim/release?id=a") as released:
            assert await released.json() == {"released": 1}
        assert events(await response.read())[-1] == "[DONE]"
    assert model.release("a") == 0


async def test_hold_splits_json(model: Simulator, client: aiohttp.ClientSession) -> None:
    async with client.post(CHAT, json=ASK, headers={"x-sim-hold": "b"}) as response:
        start = await response.content.readany()
        assert model.release("b") == 1
        assert json.loads(start + await response.read())["usage"]["total_tokens"] == 24


async def test_releasing_nothing_is_told(client: aiohttp.ClientSession) -> None:
    async with client.post("/sim/release?id=nobody") as response:
        assert (response.status, await response.json()) == (404, {"released": 0})


async def test_delays_hold_back_the_first_byte_and_the_frames(client: aiohttp.ClientSession) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await ask(client, STREAM, first_byte_ms="30", frame_ms="2", frames="10")
    assert loop.time() - begun >= 0.05


async def test_stamps_grow(client: aiohttp.ClientSession) -> None:
    _, body = await ask(client, STREAM, stamp="true", frames="5")
    stamps = [int(event["choices"][0]["delta"]["content"]) for event in events(body)[:5]]
    assert stamps == sorted(stamps)


async def test_f5_a_request_without_length_is_refused(model: Simulator) -> None:
    """F5, S1.27: some models cannot live without Content-Length."""
    chunked = (
        f"POST {CHAT} HTTP/1.1\r\nhost: m\r\ntransfer-encoding: chunked\r\nconnection: close\r\n"
        "x-sim-require-length: true\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    )
    assert (await raw(model, chunked.encode())).startswith(b"HTTP/1.1 411 Length Required")
    accepted = raw_request(b"{}", "x-sim-require-length: true", "connection: close")
    assert (await raw(model, accepted)).startswith(b"HTTP/1.1 200 OK")


async def test_what_reached_the_model_can_be_seen(model: Simulator, client: aiohttp.ClientSession) -> None:
    long = ASK | {"padding": "x" * 10_000}
    await ask(client, long, CHAT + "?a=b")
    async with client.get("/sim/requests") as response:
        (seen,) = await response.json()
    assert (seen["method"], seen["target"]) == ("POST", CHAT + "?a=b")
    assert ["content-type", "application/json"] in seen["headers"]
    assert seen["body_length"] == len(json.dumps(long))
    assert seen["body"] == json.dumps(long)[:KEPT_BODY]
    assert [record.target for record in model.requests] == [CHAT + "?a=b"]
    async with client.delete("/sim/requests") as response:
        assert response.status == 200
    assert model.requests == []


async def test_only_the_last_requests_are_kept() -> None:
    async with Simulator(kept_requests=2) as model:
        requests = b"".join(raw_request(b"{}", path=f"{CHAT}?n={n}") for n in range(3))
        await raw(model, requests + raw_request(b"{}", "connection: close", path="/health", method="GET"))
        assert [record.target[-1] for record in model.requests] == ["1", "2"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/nowhere", 404),
        ("POST", "/nowhere", 404),
        ("GET", CHAT, 405),
        ("PUT", CHAT, 405),
    ],
)
async def test_endpoints(client: aiohttp.ClientSession, method: str, path: str, status: int) -> None:
    async with client.request(method, path) as response:
        assert response.status == status
        assert await response.json()


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'"text"'])
async def test_a_body_that_is_no_object_is_refused(client: aiohttp.ClientSession, body: bytes) -> None:
    async with client.post(CHAT, data=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["message"] == "the body is not a JSON object"


async def test_a_model_name_cannot_break_the_answer(client: aiohttp.ClientSession) -> None:
    for name in ('"\x00"', "\x00" * 400, "\U0001f600"):
        for stream in (False, True):
            _, body = await ask(client, {"model": name, "stream": stream})
            document = events(body)[0] if stream else json.loads(body)
            assert document["model"] == name[:256]


async def test_pipelined_requests_are_answered_in_order(model: Simulator) -> None:
    """A slow stream in front does not let later answers overtake it."""
    sent = b"".join(
        (
            raw_request(json.dumps({"model": "first", "stream": True}).encode(), "x-sim-frame-ms: 1"),
            *(raw_request(json.dumps({"model": f"n{n}"}).encode()) for n in range(50)),
            raw_request(json.dumps({"model": "last"}).encode(), "connection: close"),
        )
    )
    received = await raw(model, sent)
    names = ["first", *(f"n{n}" for n in range(50)), "last"]
    positions = [received.index(b'"model":"%b"' % name.encode()) for name in names]
    assert positions == sorted(positions)
    assert received.count(b"HTTP/1.1 200 OK") == 52


async def test_a_request_may_arrive_byte_by_byte(model: Simulator) -> None:
    reader, writer = await asyncio.open_connection(*model.address.split(":"))
    for byte in raw_request(b'{"model":"slow"}', "connection: close"):
        writer.write(bytes((byte,)))
        await writer.drain()
    assert b'"model":"slow"' in await reader.read(-1)
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nhost: m\r\nx: " + b"y" * (MAX_HEAD + 300_000), b"431"),
    ],
    ids=["not-http", "huge-head"],
)
async def test_what_cannot_be_read_is_refused_and_closed(model: Simulator, sent: bytes, status: bytes) -> None:
    try:
        received = await raw(model, sent)
    except ConnectionResetError:
        assert status == b"431"
    else:
        assert received.startswith(b"HTTP/1.1 " + status)


async def test_expect_continue(model: Simulator) -> None:
    received = await raw(model, raw_request(b"{}", "expect: 100-continue", "connection: close"))
    assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


async def test_stopping_closes_open_streams() -> None:
    async with Simulator() as model:
        reader, writer = await asyncio.open_connection(*model.address.split(":"))
        writer.write(raw_request(b'{"stream":true}', "x-sim-hold: forever"))
        await reader.readuntil(b"\n\n")
    assert b"[DONE]" not in await reader.read(-1)
    writer.close()
    await writer.wait_closed()


# ── a model that guards others ────────────────────────────────────────────────────────────────────────


def said(*texts: str, role: str = "user") -> dict[str, Any]:
    return {
        "model": "m",
        "messages": [{"role": "system", "content": "Find a qq."}, *({"role": role, "content": text} for text in texts)],
    }


ALLOW, DENY = '{"result":"allow"}', '{"result":"deny","reason":"it has `qq` in it"}'


@pytest.mark.parametrize(
    ("body", "dressed", "content"),
    [
        (said("Hello"), "plain", ALLOW),
        (said("my qq"), "plain", DENY),
        (said("my qq", "Hello"), "plain", DENY),
        (said("q", "q"), "plain", ALLOW),
        (said("qq", role="assistant"), "plain", ALLOW),
        (said("my 账号"), "plain", DENY.replace("qq", "账号")),
        (said("Hello"), "fenced", f"```json\n{ALLOW}\n```"),
        (said("a", "b"), "quoting", f"You said: a\nb\n{ALLOW}"),
        ({"messages": 7}, "plain", ALLOW),
        ({"messages": [7, {"role": "user"}, {"role": "user", "content": []}]}, "plain", ALLOW),
    ],
)
async def test_verdicts(client: aiohttp.ClientSession, body: dict[str, Any], dressed: str, content: str) -> None:
    """Of what users say, nobody else; usage and model as ever. Words come in queries, too."""
    path = f"{CHAT}?judge=qq,%E8%B4%A6%E5%8F%B7&judge-as={dressed}"
    _, answer = await ask(client, body, path)
    document = json.loads(answer)
    assert document["choices"][0]["message"]["content"] == content
    assert document["usage"]["total_tokens"] == 24
    _, stream = await ask(client, {**body, "stream": True}, path)
    assert events(stream)[0]["choices"][0]["delta"]["content"] == content


async def test_a_judge_by_default() -> None:
    """Each answer depends on what was said, though all questions look alike."""
    async with (
        Simulator(options=Options(judge=("qq",), name="judge")) as model,
        aiohttp.ClientSession(f"http://{model.address}", auto_decompress=False) as client,
    ):
        for text, content in (("Hello", ALLOW), ("qq", DENY), ("Hello", ALLOW)):
            response, answer = await ask(client, said(text), "/compatible-mode/v1/chat/completions")
            assert json.loads(answer)["choices"][0]["message"]["content"] == content
            assert response.headers["x-sim-name"] == "judge"


async def test_a_body_whatever_was_asked(client: aiohttp.ClientSession) -> None:
    """HTML with 200, for those who expect JSON."""
    response, body = await ask(client, ASK, f"{CHAT}?body=%3Cp%3E%C3%A9%3C/p%3E", content_type="text/html", name="page")
    assert (response.status, response.headers["content-type"], body) == (200, "text/html", "<p>é</p>".encode())
    assert (response.headers["content-length"], response.headers["x-sim-name"]) == (str(len(body)), "page")
    response, _ = await ask(client, ASK)
    assert "x-sim-name" not in response.headers
