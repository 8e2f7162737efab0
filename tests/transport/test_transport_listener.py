"""Listening: where, with what certificate, and what is said when that cannot be."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import struct
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from support.grpc_client import Stream, connected, converse
from support.messages import json_answer, request_headers, response_body, response_headers
from support.pki import Pki

from extproc.config.model import Listener, ServerTls
from extproc.transport.listener import GrpcServer, ListenError
from extproc.transport.process import SERVICE

KINDS = ["request_headers", "response_headers", "response_body"]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def tls(pki: Pki, **changes: Any) -> ServerTls:
    return ServerTls(**{"cert": pki / "server.crt", "key": pki / "server.key", **changes})


def trust(pki: Pki, client: Pki | None = None) -> grpc.ChannelCredentials:
    """What a client needs; with `client` it shows that authority's certificate."""
    pair = (None, None) if client is None else (client.read("client.key"), client.read("client.crt"))
    return grpc.ssl_channel_credentials(pki.read("ca.crt"), *pair)


async def refused(address: str, credentials: grpc.ChannelCredentials | None) -> None:
    async with connected(address, credentials) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await converse(channel)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def left(folder: Path) -> dict[str, bytes]:
    """What a folder holds."""
    return {path.name: path.read_bytes() if path.is_file() else b"" for path in folder.iterdir()}


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("precious")
    return path


# --- where


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:0", "[::1]:0"])
async def test_tcp(servers, address: str) -> None:
    if address.startswith("[") and not socket.has_ipv6:
        pytest.skip("no IPv6")
    server = await servers.start(address)
    [bound] = server.addresses
    assert not bound.endswith(":0")
    async with connected(bound) as channel:
        assert await converse(channel) == KINDS
    assert servers.reported == [24]


async def test_unix_socket(servers, socket_path: Path) -> None:
    server = await servers.start(f"unix:{socket_path}")
    assert server.addresses == [f"unix:{socket_path}"]
    async with connected(f"unix:{socket_path}") as channel:
        assert await converse(channel) == KINDS
    await server.stop(0)
    assert not left(socket_path.parent)


async def test_several_listeners_serve_the_same(servers, socket_path: Path) -> None:
    server = servers.listening()
    server.listen([Listener(address=f"unix:{socket_path}"), Listener(address="127.0.0.1:0")])
    await server.start([SERVICE])
    for address in server.addresses:
        async with connected(address) as channel:
            assert await converse(channel) == KINDS
    assert servers.reported == [24] * 3


async def test_a_port_in_use_is_told(servers) -> None:
    """Not shared in silence: SO_REUSEPORT would give the second server half of the traffic."""
    first = await servers.start()
    [address] = first.addresses
    with pytest.raises(ListenError) as caught:
        servers.listening(address)
    assert str(caught.value) == f"listeners[0].address: cannot listen on `{address}`: address already in use"
    async with connected(address) as channel:
        assert await converse(channel) == KINDS


async def test_a_socket_in_use_is_not_taken_over(servers, socket_path: Path) -> None:
    """gRPC alone would unlink it: the first server would go on without ever being called again."""
    await servers.start(f"unix:{socket_path}")
    with pytest.raises(ListenError, match=r"^listeners\[0\]\.address: .*: another process does$"):
        servers.listening(f"unix:{socket_path}")
    async with connected(f"unix:{socket_path}") as channel:
        assert await converse(channel) == KINDS


async def test_a_socket_that_a_killed_process_left_is_replaced(servers, socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(socket_path))
        killed.listen()
    await servers.start(f"unix:{socket_path}")
    async with connected(f"unix:{socket_path}") as channel:
        assert await converse(channel) == KINDS


async def test_a_file_that_is_no_socket_is_kept(servers, tmp_path: Path, precious: Path) -> None:
    with pytest.raises(ListenError, match=r"^listeners\[0\]\.address: .*: address already in use$"):
        servers.listening(f"unix:{precious}")
    assert left(tmp_path) == {"file": b"precious"}


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("unix:/nonexistent/s.sock", "cannot listen on `unix:/nonexistent/s.sock`: no such file or directory"),
        ("192.0.2.1:50051", "cannot listen on `192.0.2.1:50051`: cannot assign requested address"),
        ("127.0.0.1", "`127.0.0.1`: the port is missing"),
        ("127.0.0.1:70000", "`127.0.0.1:70000`: the port is not a number from 0 to 65535"),
    ],
)
async def test_addresses_that_cannot_be_listened_on(servers, address: str, message: str) -> None:
    """gRPC would listen on port 443 where none is given, and on 70000 modulo 65536."""
    with pytest.raises(ListenError) as caught:
        servers.listening(address)
    assert str(caught.value).startswith(f"listeners[0].address: {message}")


async def test_the_wrong_one_of_several_listeners_is_named(servers) -> None:
    first = await servers.start()
    server = GrpcServer(1024)
    with pytest.raises(ListenError, match=r"^listeners\[1\]\.address"):
        server.listen([Listener(address="127.0.0.1:0"), Listener(address=first.addresses[0])])


# --- TLS


async def test_tls(servers, pki: Pki) -> None:
    [address] = (await servers.start(tls=tls(pki))).addresses
    async with connected(address, trust(pki)) as channel:
        assert await converse(channel) == KINDS
    await refused(address, None)
    assert servers.reported == [24]


async def test_mutual_tls(servers, pki: Pki, stranger: Pki) -> None:
    """Only clients of our authority get through; the others do not hurt them."""
    [address] = (await servers.start(tls=tls(pki, client_ca=pki / "ca.crt"))).addresses
    await refused(address, trust(pki))
    await refused(address, trust(pki, client=stranger))
    async with connected(address, trust(pki, client=pki)) as channel:
        assert await converse(channel) == KINDS
    assert servers.reported == [24]


WRONG_TLS = {
    "cert missing": ({"cert": "{tmp}/no.crt"}, "tls.cert: cannot read `{tmp}/no.crt`: No such file or directory"),
    "key missing": ({"key": "{tmp}/no.key"}, "tls.key: cannot read `{tmp}/no.key`: No such file or directory"),
    "client CA missing": ({"client_ca": "{tmp}/no.crt"}, "tls.clientCa: cannot read `{tmp}/no.crt`: No such file"),
    "cert is no PEM": ({"cert": "{tmp}/text"}, "tls.cert, tls.key: cannot use `{tmp}/text`, `{pki}/server.key`: "),
    "key is no PEM": (
        {"key": "{tmp}/text"},
        "tls.cert, tls.key: cannot use `{pki}/server.crt`, `{tmp}/text`: not in PEM",
    ),
    "client CA is no PEM": ({"client_ca": "{tmp}/text"}, "tls.clientCa: cannot use `{tmp}/text`: no certificate"),
    "not a pair": (
        {"key": "{pki}/client.key"},
        "tls.cert, tls.key: cannot use `{pki}/server.crt`, `{pki}/client.key`: key values mismatch",
    ),
}


@pytest.mark.parametrize(("changes", "message"), WRONG_TLS.values(), ids=WRONG_TLS)
async def test_wrong_tls_files(servers, pki: Pki, tmp_path: Path, changes: dict[str, str], message: str) -> None:
    """The field is named, and no content of a file is."""
    (tmp_path / "text").write_text("SECRET")
    names = {"tmp": tmp_path, "pki": pki.folder}
    changed = {field: path.format(**names) for field, path in changes.items()}
    with pytest.raises(ListenError) as caught:
        servers.listening(tls=tls(pki, **changed))
    assert str(caught.value).startswith("listeners[0]." + message.format(**names))
    assert "SECRET" not in str(caught.value)


async def served_certificate(address: str) -> bytes:
    """What a new connection is shown, in DER."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(True)
    writer.close()
    assert isinstance(shown, bytes)
    return shown


async def test_a_renewed_certificate_is_served_to_new_connections(servers, tmp_path: Path, caplog) -> None:
    """Certificates are renewed under a running server; half a renewal, or nonsense, changes nothing."""
    caplog.set_level(logging.INFO, "extproc.transport")
    own = Pki(tmp_path / "own")
    own.sign("server")
    old = ssl.PEM_cert_to_DER_cert(own.read("server.crt").decode())
    [address] = (await servers.start(tls=tls(own))).addresses
    assert await served_certificate(address) == old
    async with connected(address, trust(own)) as channel, Stream(channel) as stream:
        await stream.send(request_headers())

        own.spoil("server.crt")
        assert await served_certificate(address) == old
        assert await served_certificate(address) == old
        own.sign("server")
        new = ssl.PEM_cert_to_DER_cert(own.read("server.crt").decode())
        assert await served_certificate(address) == new != old

        await stream.send(response_headers())
        assert await stream.send(response_body(json_answer())) is not None
    async with connected(address, trust(own)) as channel:
        assert await converse(channel) == KINDS
    events = [record.getMessage() for record in caplog.records]
    assert events.count("renewed certificate refused, the old one stays") == 1
    assert events.count("certificate renewed") == 1


# --- health and reflection


async def health(channel: grpc.aio.Channel, service: str) -> int:
    answer = await HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
    return int(answer.status)


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_health(servers, service: str) -> None:
    """S0.D17: NOT_SERVING until told otherwise, and again while draining, for the service and for the server."""
    server = servers.listening()
    await server.start([SERVICE])
    async with connected(server.addresses[0]) as channel:
        assert await health(channel, service) == NOT_SERVING
        watching = HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service), timeout=10)
        seen = [(await watching.read()).status]
        for ready in (True, False):
            await server.set_ready(ready=ready)
            assert await health(channel, service) == (SERVING if ready else NOT_SERVING)
            seen.append((await watching.read()).status)
        assert seen == [NOT_SERVING, SERVING, NOT_SERVING]
        watching.cancel()


async def test_health_of_a_service_that_is_not_there(servers) -> None:
    async with connected((await servers.start()).addresses[0]) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health(channel, "no.such.Service")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_service(servers) -> None:
    async with connected((await servers.start()).addresses[0]) as channel:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        call = ServerReflectionStub(channel).ServerReflectionInfo(iter([request]), timeout=10)
        listed = {service.name for service in (await call.read()).list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= listed


# --- HTTP/2

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PING, GOAWAY, ACK = 6, 7, 1


def frame(kind: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """An HTTP/2 frame of the connection (RFC 9113, section 4.1)."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, 0) + payload


@pytest.mark.parametrize("ours", [True, False], ids=["our options", "gRPC's own"])
async def test_pings_do_not_end_the_connection(servers, ours: bool) -> None:
    """Envoy's keepalive: with gRPC's own options the third ping of an idle connection is its last."""
    if ours:
        [address] = (await servers.start()).addresses
    else:
        plain = grpc.aio.server()
        address = f"127.0.0.1:{plain.add_insecure_port('127.0.0.1:0')}"
        await plain.start()
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(PREFACE + frame(4))
    received: list[int] = []
    async with asyncio.timeout(10):
        for number in range(20):
            writer.write(frame(PING, number.to_bytes(8, "big")))
            while not received or received[-1] not in (PING, GOAWAY):
                head = await reader.readexactly(9)
                await reader.readexactly(int.from_bytes(head[:3], "big"))
                received.append(head[3])
            if received[-1] == GOAWAY:
                break
            received.append(-1)
    writer.close()
    assert (received.count(PING) == 20) is ours
    assert (GOAWAY in received) is not ours
    if not ours:
        await plain.stop(None)
