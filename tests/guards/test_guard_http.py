"""The pool that guards ask through: what it sends, what it refuses to read, and what it says of trouble."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from support.http_peer import HttpPeer, Received, Script, reply
from support.pki import Pki
from support.waiting import until

from extproc.guards.http import MAX_ANSWER, HttpClient, HttpError, Response, TooLongError, _read, _socket

Serve = Callable[..., Awaitable[HttpPeer]]
SECRET = "Bearer sk-very-secret"


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    started: list[HttpPeer] = []

    async def serve(script: Script | bytes, tls: ssl.SSLContext | None = None) -> HttpPeer:
        started.append(await HttpPeer(script).start(tls))
        return started[-1]

    yield serve
    for peer in started:
        await peer.stop()


@pytest.fixture
async def client() -> AsyncIterator[HttpClient]:
    client = HttpClient()
    yield client
    await client.close()


async def test_what_is_sent(serve: Serve, client: HttpClient) -> None:
    peer = await serve(reply(b"[1]"))
    answer = await client.post(peer.url, b'{"a":1}', {"content-type": "application/json", "authorization": SECRET})
    assert answer == Response(200, b"[1]")
    (received,) = peer.received
    assert (received.method, received.target, received.body) == ("POST", "/ask", b'{"a":1}')
    assert received.headers == {
        "host": f"127.0.0.1:{peer.port}",
        "accept": "application/json",
        "accept-encoding": "identity",
        "user-agent": "extproc",
        "content-type": "application/json",
        "content-length": "7",
        "authorization": SECRET,
    }


async def test_a_connection_is_kept_and_no_cookie(serve: Serve, client: HttpClient) -> None:
    peer = await serve(reply(b"{}", 200, "set-cookie: a=1; path=/"))
    for _ in range(3):
        await client.post(peer.url, b"{}", {})
    assert peer.connections == 1
    assert not any("cookie" in received.headers for received in peer.received)


async def test_the_environment_has_no_say(serve: Serve, client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy for the world outside must not see what is asked."""
    peer = await serve(reply())
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await client.post(peer.url, b"{}", {})).status == 200


async def test_a_connection_that_was_idle_for_too_long_costs_no_request(serve: Serve, client: HttpClient) -> None:
    """The server closes it at the moment it is used again."""

    async def once(received: Received, writer: asyncio.StreamWriter) -> None:
        if len(peer.received) == 2:
            writer.close()
        else:
            writer.write(reply())

    peer = await serve(once)
    assert (await client.post(peer.url, b"1", {})).status == 200
    assert (await client.post(peer.url, b"2", {})).status == 200
    assert [received.body for received in peer.received] == [b"1", b"2", b"2"]


async def test_who_always_hangs_up_is_asked_twice_and_no_more(serve: Serve, client: HttpClient) -> None:
    async def hang_up(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.close()

    peer = await serve(hang_up)
    with pytest.raises(HttpError, match="connection was closed before the answer was complete"):
        await client.post(peer.url, b"{}", {})
    assert len(peer.received) == 2


async def test_a_reset_in_the_middle_of_an_answer(serve: Serve, client: HttpClient) -> None:
    async def reset(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"x" * 100)[:-50])
        await writer.drain()
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    peer = await serve(reset)
    with pytest.raises(HttpError, match="connection was closed before the answer was complete"):
        await client.post(peer.url, b"{}", {})
    assert len(peer.received) == 1, "what has begun to answer is not asked again"


@pytest.mark.parametrize("status", [302, 307, 404, 500, 503])
async def test_other_statuses_are_told_and_not_read(serve: Serve, client: HttpClient, status: int) -> None:
    """A redirect is not followed: the secret is for one host."""
    peer = await serve(reply(b"<html>", status, "location: /elsewhere"))
    assert await client.post(peer.url, b"{}", {}) == Response(status, b"")
    assert len(peer.received) == 1


async def test_a_status_is_told_before_its_body_has_come(serve: Serve, client: HttpClient) -> None:
    peer = await serve(b"HTTP/1.1 503 S\r\ncontent-length: 10\r\n\r\n1")
    assert await client.post(peer.url, b"{}", {}) == Response(503, b"")


async def test_an_answer_may_be_as_long_as_the_limit(serve: Serve, client: HttpClient) -> None:
    peer = await serve(reply(b"x" * MAX_ANSWER))
    assert len((await client.post(peer.url, b"{}", {})).body) == MAX_ANSWER


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"content-length: 1000000000\r\n\r\n", b"x" * 0x10000),
        (b"transfer-encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 0x10000 + b"\r\n"),
        (b"connection: close\r\n\r\n", b"x" * 0x10000),
    ],
    ids=["length", "chunks", "until closed"],
)
async def test_a_longer_answer_is_cut_off(serve: Serve, client: HttpClient, head: bytes, piece: bytes) -> None:
    """One that streams forever, too: the server notices that nobody listens any more."""

    async def endless(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 S\r\n" + head)
        while True:
            writer.write(piece)
            await writer.drain()

    peer = await serve(endless)
    with pytest.raises(TooLongError, match=f"answer is longer than {MAX_ANSWER} bytes"):
        await client.post(peer.url, b"{}", {})
    await asyncio.wait_for(peer.left.wait(), 5)


async def test_of_a_flood_hardly_more_is_taken_than_is_read(serve: Serve, client: HttpClient) -> None:
    """Neither by us nor by the kernel for us."""
    sent = 0

    async def flood(received: Received, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        sending: socket.socket = writer.get_extra_info("socket")
        sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        writer.transport.set_write_buffer_limits(0)
        writer.write(b"HTTP/1.1 200 S\r\n\r\n")
        while True:
            writer.write(b"x" * 4096)
            await writer.drain()
            sent += 4096

    peer = await serve(flood)
    with pytest.raises(TooLongError):
        await client.post(peer.url, b"{}", {})
    await asyncio.wait_for(peer.left.wait(), 5)
    assert MAX_ANSWER // 2 < sent < 3 * MAX_ANSWER


async def test_the_connection_of_a_flood_is_gone_at_once(
    serve: Serve, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And little comes in at a time: what is parsed at a stretch, while everybody else waits."""
    made: list[tuple[socket.socket, int]] = []

    def remembered(address: aiohttp.AddrInfoType) -> socket.socket:
        ours = _socket(address)
        made.append((ours, ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)))
        return ours

    monkeypatch.setattr("extproc.guards.http._socket", remembered)
    peer = await serve(b"HTTP/1.1 200 S\r\n\r\n" + b"x" * 8 * MAX_ANSWER)
    with pytest.raises(TooLongError):
        await client.post(peer.url, b"x" * 3_000_000, {})
    ((ours, received),) = made
    await until(lambda: ours.fileno() == -1)
    assert received <= 64 * 1024


async def test_others_get_their_turn_while_an_answer_is_read() -> None:
    """Also when all of it is there already."""
    turns: list[str] = []

    async def other() -> None:
        turns.append("other")

    class Body:
        async def iter_any(self) -> AsyncIterator[bytes]:
            for piece in (b"a", b"b"):
                turns.append(piece.decode())
                yield piece

    task = asyncio.create_task(other())
    assert await _read(SimpleNamespace(content=Body()), 2) == b"ab"
    assert turns == ["a", "other", "b"]
    await task


async def test_a_bomb_is_not_unpacked(serve: Serve, client: HttpClient) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    peer = await serve(reply(bomb, 200, "content-encoding: gzip"))
    assert (await client.post(peer.url, b"{}", {})).body == bomb


async def test_an_answer_that_drips_forever_ends_with_the_callers_deadline(serve: Serve, client: HttpClient) -> None:
    async def drip(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 S\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.005)

    peer = await serve(drip)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await client.post(peer.url, b"{}", {})
    await asyncio.wait_for(peer.left.wait(), 5)


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 S\r\n" + b"x" * 20_000 + b"\r\n\r\n", b"\x00" * 100]
)
async def test_no_http(serve: Serve, client: HttpClient, answer: bytes) -> None:
    peer = await serve(answer)
    with pytest.raises(HttpError, match="answer is no HTTP"):
        await client.post(peer.url, b"{}", {})


async def test_nobody_there(client: HttpClient) -> None:
    """S3.11, and the text tells no address."""
    with pytest.raises(HttpError) as caught:
        await client.post("http://127.0.0.1:1/x", b"{}", {"authorization": SECRET})
    assert str(caught.value) == "cannot connect: Connection refused"


async def test_a_name_that_nobody_has(client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(HttpError) as caught:
        await client.post("http://guard.example.com/x", b"{}", {"authorization": SECRET})
    assert str(caught.value) == "cannot connect: its name cannot be looked up"


# --- TLS


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    pki = Pki(tmp_path / "pki")
    pki.sign("server")
    return pki


def presenting(pki: Pki) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / "server.crt", pki / "server.key")
    return context


async def test_an_authority_of_its_own(serve: Serve, client: HttpClient, pki: Pki) -> None:
    peer = await serve(reply(), presenting(pki))
    trust = client.trust(pki / "ca.crt")
    for _ in range(2):
        assert (await client.post(peer.url.replace("http", "https"), b"{}", {}, trust)).status == 200
    assert peer.connections == 1


async def test_a_certificate_of_somebody_else(serve: Serve, client: HttpClient, pki: Pki, tmp_path: Path) -> None:
    peer = await serve(reply(), presenting(pki))
    other = Pki(tmp_path / "other")
    for trust in (None, client.trust(other / "ca.crt")):
        with pytest.raises(HttpError, match=r"cannot connect: its certificate is not trusted: [\w ]+$"):
            await client.post(peer.url.replace("http", "https"), b"{}", {}, trust)
    assert not peer.received


async def test_no_tls_where_it_is_expected(client: HttpClient) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(HttpError, match="cannot connect: no agreement on TLS"):
        await client.post(f"https://127.0.0.1:{port}/", b"{}", {})
    server.close()
    await server.wait_closed()


def test_roots_that_cannot_be_used_name_the_field(pki: Pki) -> None:
    pki.spoil("ca.crt")
    for file in ("ca.crt", "nowhere.crt"):
        with pytest.raises(ValueError, match=r"^ca: cannot load `.*"):
            HttpClient().trust(pki / file)


def test_the_same_roots_are_the_same_object_and_changed_ones_are_not(pki: Pki) -> None:
    """A reload keeps connections; a rotated authority does not go unnoticed."""
    client = HttpClient()
    before = client.trust(pki / "ca.crt")
    assert client.trust(pki / "ca.crt") is before
    (pki.folder / "ca.crt").write_bytes(pki.read("server.crt"))
    assert client.trust(pki / "ca.crt") is not before
    assert client.trust(None) is None


async def test_closing_twice_and_posting_again(serve: Serve) -> None:
    peer = await serve(reply())
    client = HttpClient()
    await client.close()
    assert (await client.post(peer.url, b"{}", {})).status == 200
    await client.close()
    await client.close()
    assert (await client.post(peer.url, b"{}", {})).status == 200
    await client.close()
    assert peer.connections == 2


async def test_a_large_question(serve: Serve, client: HttpClient) -> None:
    peer = await serve(reply())
    body = b"x" * 3_000_000
    assert (await client.post(peer.url, body, {})).status == 200
    assert peer.received[0].body == body
