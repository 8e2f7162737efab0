"""The admin server: what probes, Prometheus and an operator's curl rely on."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from extproc.admin.server import AdminError, AdminServer
from extproc.telemetry.metrics import Metrics

SECRET = "s3cr3t"


class Process:
    """What the server asks about."""

    def __init__(self) -> None:
        self.reason: str | None = "starting"
        self.metrics = Metrics()
        self.running: Any = {"services": {"limitador": {"endpoint": "embedded"}}}

    def config(self) -> Any:
        if isinstance(self.running, Exception):
            raise self.running
        return self.running


def server(process: Process, address: str = "127.0.0.1:0") -> AdminServer:
    return AdminServer(address, readiness=lambda: process.reason, metrics=process.metrics.render, config=process.config)


@pytest.fixture
def process() -> Process:
    return Process()


@pytest.fixture
async def admin(process: Process) -> AsyncIterator[AdminServer]:
    admin = server(process)
    await admin.start()
    yield admin
    await admin.stop()


@pytest.fixture
async def client(admin: AdminServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"http://{admin.address}") as session:
        yield session


async def get(client: aiohttp.ClientSession, path: str, **more: Any) -> tuple[int, str]:
    async with client.get(path, **more) as response:
        return response.status, await response.text()


async def raw(admin: AdminServer, request: bytes) -> bytes:
    host, port = admin.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await writer.wait_closed()
    return answer


async def test_alive_from_the_start(client: aiohttp.ClientSession) -> None:
    """S0.D17: liveness does not depend on readiness."""
    assert await get(client, "/healthz") == (200, "ok\n")


async def test_ready_says_why_not(client: aiohttp.ClientSession, process: Process) -> None:
    """S0.D17: not ready until the configuration is loaded, and again while draining."""
    assert await get(client, "/readyz") == (503, "starting\n")
    process.reason = None
    assert await get(client, "/readyz") == (200, "ready\n")
    process.reason = "draining"
    assert await get(client, "/readyz") == (503, "draining\n")


async def test_metrics_as_prometheus_reads_them(client: aiohttp.ClientSession, process: Process) -> None:
    """S0.18"""
    process.metrics.denied += 2
    async with client.get("/metrics", headers={"Accept": "text/plain;version=0.0.4"}) as response:
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        text = await response.text()
    assert "\nkuadrant_denied 2.0\n" in text
    families = {family.name for family in text_string_to_metric_families(text)}
    assert {"kuadrant_denied", "extproc_exchanges", "process_open_fds"} <= families
    async with client.get("/metrics", headers={"Accept": "application/openmetrics-text"}) as response:
        assert response.headers["Content-Type"].startswith("application/openmetrics-text")
        assert (await response.text()).endswith("# EOF\n")


async def test_config_is_the_running_one(client: aiohttp.ClientSession, process: Process) -> None:
    async with client.get("/config") as response:
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["Cache-Control"] == "no-store"
        assert await response.json() == process.running
    process.running = {"services": {}}
    assert await get(client, "/config") == (200, '{\n  "services": {}\n}\n')


async def test_every_link_of_the_index_works(client: aiohttp.ClientSession, process: Process) -> None:
    process.reason = None
    status, page = await get(client, "/")
    links = [part.split('"')[0] for part in page.split('href="')[1:]]
    assert status == 200
    assert links == ["/healthz", "/readyz", "/metrics", "/config"]
    assert [(await get(client, link))[0] for link in links] == [200] * 4


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics", "/config"])
async def test_only_reading(client: aiohttp.ClientSession, path: str) -> None:
    async with client.head(path) as response:
        assert response.status in {200, 503}
        assert await response.read() == b""
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        async with client.request(method, path, data=b"x") as response:
            assert response.status == 405
            assert response.headers["Allow"] == "GET,HEAD"
            assert await response.text() == "Method Not Allowed\n"


async def test_unknown_page(client: aiohttp.ClientSession) -> None:
    assert await get(client, "/nothing?<script>") == (404, "Not Found\n")


async def test_failure_inside_is_for_the_log_not_the_client(
    client: aiohttp.ClientSession, process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    asyncio.get_running_loop().set_debug(True)
    process.running = RuntimeError(f"password={SECRET}")
    assert await get(client, "/config", headers={"Accept": "text/html"}) == (500, "Internal Server Error\n")
    process.running = {"unserialisable": object()}
    assert await get(client, "/config") == (500, "Internal Server Error\n")
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == [
        "admin request failed"
    ] * 2
    assert await get(client, "/healthz") == (200, "ok\n")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 10_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not HTTP\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ],
    ids=["long line", "long header", "not HTTP", "unknown version"],
)
async def test_malformed_and_oversized_requests_get_a_400_and_no_log_line(
    admin: AdminServer, client: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture, request_bytes: bytes
) -> None:
    answer = await raw(admin, request_bytes)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))
    assert b"Traceback" not in answer
    assert len(answer) < 8192
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert await get(client, "/healthz") == (200, "ok\n")


async def test_no_line_per_request(client: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture) -> None:
    """Probes come every few seconds."""
    caplog.set_level(logging.INFO)
    await get(client, "/healthz")
    assert caplog.records == []


async def test_server_header_names_no_versions(client: aiohttp.ClientSession) -> None:
    async with client.get("/healthz") as response:
        assert response.headers["Server"] == "extproc"


async def test_port_in_use_names_the_field(admin: AdminServer, process: Process) -> None:
    second = server(process, admin.address)
    with pytest.raises(AdminError) as caught:
        await second.start()
    assert str(caught.value) == f"admin.address: cannot listen on {admin.address}: Address already in use"
    assert second.address == ""
    await second.stop()


async def test_address_of_another_machine_names_the_field(process: Process) -> None:
    with pytest.raises(AdminError, match=r"admin\.address: cannot listen on 192\.0\.2\.1:0: Cannot assign"):
        await server(process, "192.0.2.1:0").start()


@pytest.mark.parametrize(
    "address",
    ["", "9090", ":9090", "host", "host:", "host:port", "host:65536", "host:-1", "unix:", "::1:9090",
     "http://host:1", "a b:1", "host:1/x", "[::1]"],
)  # fmt: skip
def test_unreadable_address_names_the_field(process: Process, address: str) -> None:
    with pytest.raises(AdminError, match=r"^admin\.address: expected `host:port` or `unix:/path`"):
        server(process, address)


async def test_address_is_where_it_listens(process: Process) -> None:
    admin = server(process)
    assert admin.address == ""
    await admin.start()
    host, port = admin.address.split(":")
    assert host == "127.0.0.1"
    assert int(port) > 0
    await admin.stop()
    assert admin.address == ""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))
    await admin.stop()


async def test_ipv6(process: Process) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    admin = server(process, "[::1]:0")
    try:
        await admin.start()
    except AdminError:
        pytest.skip("no IPv6 here")
    async with aiohttp.ClientSession(f"http://{admin.address}") as session:
        assert await get(session, "/healthz") == (200, "ok\n")
    await admin.stop()


async def test_start_again_after_stop(process: Process) -> None:
    admin = server(process)
    for _ in range(2):
        await admin.start()
        async with aiohttp.ClientSession(f"http://{admin.address}") as session:
            assert await get(session, "/healthz") == (200, "ok\n")
        await admin.stop()


async def over_unix(path: Path) -> tuple[int, str]:
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
        return await get(session, "http://admin/healthz")


async def test_unix_socket(process: Process, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    admin = server(process, f"unix:{path}")
    await admin.start()
    assert admin.address == f"unix:{path}"
    assert await over_unix(path) == (200, "ok\n")
    await admin.stop()
    assert not path.exists()


async def test_socket_left_behind_is_replaced(process: Process, tmp_path: Path) -> None:
    """After a crash the process must start again."""
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    admin = server(process, f"unix:{path}")
    await admin.start()
    assert await over_unix(path) == (200, "ok\n")
    await admin.stop()


async def test_live_socket_is_not_taken_away(process: Process, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    first, second = (server(process, f"unix:{path}") for _ in range(2))
    await first.start()
    with pytest.raises(AdminError, match=r"admin\.address: cannot listen on unix:.*another process listens"):
        await second.start()
    assert await over_unix(path) == (200, "ok\n")
    await first.stop()


async def test_other_file_is_not_taken_away(process: Process, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("keep")
    with pytest.raises(AdminError, match=r"admin\.address: .*not a socket"):
        await server(process, f"unix:{path}").start()
    assert path.read_text() == "keep"


async def test_directory_that_does_not_exist(process: Process, tmp_path: Path) -> None:
    with pytest.raises(AdminError, match=r"admin\.address: .*No such file"):
        await server(process, f"unix:{tmp_path}/none/admin.sock").start()


async def test_stop_does_not_wait_for_idle_connections(process: Process) -> None:
    admin = server(process)
    await admin.start()
    host, port = admin.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\n")
    await asyncio.wait_for(admin.stop(), 10)
    await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await writer.wait_closed()
