"""Channels to limiters: how they connect, and how soon they find a limiter again."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import grpc
import pytest

from extproc.config.fields import ClientTls
from extproc.config.model import Endpoint
from extproc.limiter.channel import open_channel, warm
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.limits import LimitSet
from extproc.limiter.remote import RemoteLimiter
from extproc.limiter.seam import Code, Decision, LimiterError, Query
from extproc.limiter.server import add_limiter_service

QUERY = Query("domain-a", ((("a", "1"),),))
IDLE, READY = grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.READY
LONG = 10.0


def services(server: grpc.aio.Server) -> None:
    add_limiter_service(server, EmbeddedLimiter(LimitSet()))


async def until_ready(channel: grpc.aio.Channel) -> None:
    async with asyncio.timeout(LONG):
        while (state := channel.get_state()) is not READY:
            await channel.wait_for_state_change(state)


async def until_answered(channel: grpc.aio.Channel, limiter: RemoteLimiter) -> Decision:
    """The first answer; a call is made whenever the channel has moved on."""
    while True:
        state = channel.get_state()
        try:
            return await limiter.check(QUERY)
        except LimiterError:
            if state not in (IDLE, READY):
                await channel.wait_for_state_change(state)


async def test_a_warmed_channel_connects_before_its_first_call(net) -> None:
    """S0.D17: a cold connect takes longer than the 20 ms a check has."""
    channel = net.channel(await net.serve(services))
    assert channel.get_state() is IDLE
    warm(channel)
    await until_ready(channel)


async def test_a_restarted_limiter_is_found_again(net) -> None:
    address = await net.serve(services)
    channel = net.channel(address)
    limiter = RemoteLimiter(channel, LONG)
    assert (await limiter.check(QUERY)).code is Code.OK
    await net.servers[0].stop(None)
    with pytest.raises(LimiterError, match=r"^unreachable"):
        await limiter.check(QUERY)
    assert await net.serve(services, address) == address
    async with asyncio.timeout(3):
        assert (await until_answered(channel, limiter)).code is Code.OK


@pytest.mark.parametrize("address", ["embedded", "limitador", ""])
async def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ValueError, match=r"^address: expected `host:port` or `unix:/path`"):
        open_channel(Endpoint(address=address))


# --- TLS


class Pki:
    """A root, a server certificate for `limiter.test` and a client certificate, as PEM files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._certificate("ca", "/CN=root", [])
        signed = ["-CA", str(self / "ca.crt"), "-CAkey", str(self / "ca.key")]
        self._certificate("server", "/CN=s", [*signed, "-addext", "subjectAltName=DNS:limiter.test"])
        self._certificate("client", "/CN=c", signed)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def _certificate(self, name: str, subject: str, extra: list[str]) -> None:
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        files = ["-keyout", str(self / f"{name}.key"), "-out", str(self / f"{name}.crt")]
        command = ["openssl", "req", "-x509", "-days", "2", *curve, "-subj", subject, *files, *extra]
        subprocess.run(command, check=True, capture_output=True)

    def server(self, mutual: bool) -> grpc.ServerCredentials:
        pair = ((self / "server.key").read_bytes(), (self / "server.crt").read_bytes())
        roots = (self / "ca.crt").read_bytes() if mutual else None
        return grpc.ssl_server_credentials([pair], roots, mutual)

    def client(self, **fields: str) -> ClientTls:
        named = {key: str(self / value) for key, value in fields.items() if key != "server_name"}
        return ClientTls(**(fields | named))


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make certificates")
    return Pki(tmp_path_factory.mktemp("pki"))


CA = {"ca": "ca.crt", "server_name": "limiter.test"}
CLIENT = {"cert": "client.crt", "key": "client.key"}


@pytest.mark.parametrize(
    ("mutual", "fields", "reached"),
    [
        (False, CA, True),
        (True, CA | CLIENT, True),
        (True, CA, False),
        (False, {"ca": "client.crt", "server_name": "limiter.test"}, False),
        (False, {"ca": "ca.crt", "server_name": "other.test"}, False),
    ],
)
async def test_tls(net, pki: Pki, mutual: bool, fields: dict[str, str], reached: bool) -> None:
    address = await net.serve(services, credentials=pki.server(mutual))
    limiter = RemoteLimiter(net.channel(address, tls=pki.client(**fields)), LONG)
    if reached:
        assert (await limiter.check(QUERY)).code is Code.OK
    else:
        with pytest.raises(LimiterError, match=r"^unreachable"):
            await limiter.check(QUERY)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ca": "missing.crt"}, r"^tls\.ca: cannot load `.*missing\.crt`: No such file"),
        ({"ca": "ca.key"}, r"^tls\.ca: cannot load `.*ca\.key`: "),
        ({"cert": "client.crt"}, r"^tls\.cert and tls\.key: expected both or neither"),
        ({"cert": "client.crt", "key": "server.key"}, r"^tls\.cert, tls\.key: cannot load .*"),
        ({"cert": "client.crt", "key": "missing.key"}, r"^tls\.cert, tls\.key: cannot load .*No such file"),
    ],
)
async def test_tls_files_that_cannot_work_are_named(pki: Pki, fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_channel(Endpoint(address="127.0.0.1:1", tls=pki.client(**fields)))
