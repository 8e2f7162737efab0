"""Requests through the real Envoy to a model, past an external processor; the latter two are in this process."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from aiohttp import web
from support.pki import Pki

from extproc.gateway import EnvoyProcess, bootstrap, free_port
from extproc.gateway.buffers import Buffers
from extproc.wire.external_processor_pb2 import HttpBody, ProcessingRequest, ProcessingResponse
from extproc.wire.processing_mode_pb2 import ProcessingMode

pytestmark = pytest.mark.e2e

DEAD = "127.0.0.1:1"
KIB = 1024
RBAC: dict[str, Any] = {
    "name": "rbac",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
        "rules": {
            "action": "DENY",
            "policies": {"all": {"permissions": [{"any": True}], "principals": [{"any": True}]}},
        },
    },
}


Reply = Callable[[ProcessingRequest], ProcessingResponse]


def acknowledge(request: ProcessingRequest) -> ProcessingResponse:
    """The same kind of message with nothing in it: carry on."""
    kind = request.WhichOneof("request")
    reply = ProcessingResponse()
    getattr(reply, kind).SetInParent()
    return reply


class Processor:
    """An ext_proc server that remembers what it was asked; `reply` decides what it answers, `gate` when."""

    def __init__(self) -> None:
        self.requests: list[ProcessingRequest] = []
        self.reply: Reply = acknowledge
        self.gate = asyncio.Event()
        self.gate.set()
        self.address = ""

    async def process(self, stream: AsyncIterator[ProcessingRequest], _: object) -> AsyncIterator[ProcessingResponse]:
        async for request in stream:
            self.requests.append(request)
            await self.gate.wait()
            yield self.reply(request)

    @property
    def kinds(self) -> list[str | None]:
        return [request.WhichOneof("request") for request in self.requests]

    @property
    def attributes(self) -> dict[str, str]:
        fields = self.requests[0].attributes["envoy.filters.http.ext_proc"].fields
        return {name: value.string_value for name, value in fields.items()}

    def header(self, name: str) -> str | None:
        headers = self.requests[0].request_headers.headers.headers
        return next((header.raw_value.decode() for header in headers if header.key == name), None)


@asynccontextmanager
async def serving(processor: Processor, address: str) -> AsyncIterator[None]:
    handler = grpc.stream_stream_rpc_method_handler(
        processor.process,
        request_deserializer=ProcessingRequest.FromString,
        response_serializer=ProcessingResponse.SerializeToString,
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("envoy.service.ext_proc.v3.ExternalProcessor", {"Process": handler})]
    )
    port = server.add_insecure_port(address)
    processor.address = address if address.startswith("unix:") else f"127.0.0.1:{port}"
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


@pytest.fixture
async def processor() -> AsyncIterator[Processor]:
    processor = Processor()
    async with serving(processor, "127.0.0.1:0"):
        yield processor


@pytest.fixture
async def model() -> AsyncIterator[str]:
    """`host:port` of a server that answers every request with its path."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=request.path)

    runner = web.AppRunner(web.Application())
    runner.app.router.add_route("*", "/{path:.*}", answer)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    yield f"{host}:{port}"
    await runner.cleanup()


class Hosts:
    """Servers that answer with their name and the host that they were asked for."""

    def __init__(self) -> None:
        self.runners: list[web.AppRunner] = []

    async def serve(self, name: str, tls: ssl.SSLContext | None = None) -> str:
        """`host:port` of one more."""

        async def answer(request: web.Request) -> web.Response:
            return web.Response(text=f"{name} {request.host}")

        runner = web.AppRunner(web.Application())
        self.runners.append(runner)
        runner.app.router.add_route("*", "/{path:.*}", answer)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1" if tls is None else "0.0.0.0", 0, ssl_context=tls).start()
        return f"127.0.0.1:{runner.addresses[0][1]}"


def tls_of(pki: Pki) -> ssl.SSLContext:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(pki / "server.crt", pki / "server.key")
    return tls


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    hosts = Hosts()
    yield hosts
    for runner in hosts.runners:
        await runner.cleanup()


async def get(envoy: EnvoyProcess, path: str, **headers: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as http, http.get(f"http://{envoy.address}{path}", headers=headers) as answer:
        return answer.status, await answer.text()


async def test_requests_pass_through_us_to_the_model(processor: Processor, model: str) -> None:
    async with EnvoyProcess(bootstrap(upstream=model, extproc=processor.address)) as envoy:
        assert await get(envoy, "/v1/models") == (200, "/v1/models")
    assert processor.kinds == ["request_headers", "response_headers"]


async def test_without_us_requests_still_reach_the_model(model: str) -> None:
    async with EnvoyProcess(bootstrap(upstream=model, extproc=None)) as envoy:
        assert await get(envoy, "/v1/models") == (200, "/v1/models")


async def test_a_socket_is_as_good_as_a_port(model: str, tmp_path: Path) -> None:
    processor = Processor()
    config = bootstrap(upstream=model, extproc=f"unix:{tmp_path}/extproc.sock")
    async with serving(processor, f"unix:{tmp_path}/extproc.sock"), EnvoyProcess(config) as envoy:
        assert await get(envoy, "/v1/models") == (200, "/v1/models")
    assert processor.kinds[0] == "request_headers"


async def test_the_health_route_does_without_us_and_the_model() -> None:
    """G15: Envoy's own answer, so that a probe says something about Envoy alone."""
    async with EnvoyProcess(bootstrap(upstream=DEAD, extproc=DEAD)) as envoy:
        assert await get(envoy, "/healthz") == (200, "ok\n")
        assert (await envoy.stats("http.gateway.ext_proc."))["http.gateway.ext_proc.streams_started"] == 0


@pytest.mark.parametrize(
    ("options", "status"), [({}, 500), ({"failure_mode_allow": True}, 200)], ids=["closed", "open"]
)
async def test_nobody_there_is_found_out_at_once(options: dict[str, Any], status: int, model: str) -> None:
    """G3: retries must not eat `message_timeout`, or the answer would be a 504 after a second."""
    async with EnvoyProcess(bootstrap(upstream=model, extproc=DEAD, **options)) as envoy:
        assert (await get(envoy, "/v1/models"))[0] == status
        stats = await envoy.stats("http.gateway.ext_proc.")
    assert stats["http.gateway.ext_proc.message_timeouts"] == 0


async def test_one_dead_worker_is_not_noticed(processor: Processor, model: str) -> None:
    config = bootstrap(upstream=model, extproc=[DEAD, processor.address])
    async with EnvoyProcess(config) as envoy:
        answers = await asyncio.gather(*(get(envoy, "/v1/models") for _ in range(30)))
    assert {status for status, _ in answers} == {200}


async def test_a_message_may_be_answered_late_but_not_forever(processor: Processor, model: str) -> None:
    """G2: Envoy's deadline is the last resort; a limiter's own is shorter."""
    processor.gate.clear()
    config = bootstrap(upstream=model, extproc=processor.address, message_timeout="0.05s")
    async with EnvoyProcess(config) as envoy:
        status, _ = await get(envoy, "/v1/models")
        stats = await envoy.stats("http.gateway.ext_proc.")
    assert (status, stats["http.gateway.ext_proc.message_timeouts"]) == (504, 1)


@pytest.mark.parametrize(
    "path",
    ["/v1//chat/completions", "/v1/x/../chat/completions", "/v1/./chat/completions", "/v1/%63hat/completions"],
)
async def test_a_path_cannot_be_disguised(path: str, processor: Processor, model: str) -> None:
    """S0.D9: predicates see the path that the model will see."""
    async with EnvoyProcess(bootstrap(upstream=model, extproc=processor.address)) as envoy:
        host, port = envoy.address.split(":")
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        await writer.wait_closed()
    assert processor.header(":path") == "/v1/chat/completions"


async def test_the_address_of_the_client_cannot_be_claimed(processor: Processor, model: str) -> None:
    async with EnvoyProcess(bootstrap(upstream=model, extproc=processor.address)) as envoy:
        await get(envoy, "/", **{"x-forwarded-for": "203.0.113.7"})
        listener = envoy.address
    assert processor.attributes["source.address"].startswith("127.0.0.1:")
    assert processor.attributes["destination.address"] == listener
    assert processor.attributes["request.protocol"] == "HTTP/1.1"


async def test_a_filter_before_us_decides_first(processor: Processor, model: str) -> None:
    """S4.16: what jwt_authn or rbac refuse never costs a check; we see only the refusal go out."""
    config = bootstrap(upstream=model, extproc=processor.address, filters_before=[RBAC])
    async with EnvoyProcess(config) as envoy:
        assert await get(envoy, "/v1/models") == (403, "RBAC: access denied")
    assert processor.kinds == ["response_headers"]


async def test_a_refusal_carries_the_rate_limit_header(processor: Processor, model: str) -> None:
    """G7: Envoy drops x-envoy-* of an immediate response unless `mutation_rules` allow them."""

    def refuse(_: ProcessingRequest) -> ProcessingResponse:
        reply = ProcessingResponse()
        reply.immediate_response.status.code = 429  # type: ignore[assignment]
        header = reply.immediate_response.headers.set_headers.add().header
        header.key, header.raw_value = "x-envoy-ratelimited", b"true"
        return reply

    processor.reply = refuse
    config = bootstrap(upstream=model, extproc=processor.address)
    async with EnvoyProcess(config) as envoy, aiohttp.request("GET", f"http://{envoy.address}/") as answer:
        assert (answer.status, answer.headers["x-envoy-ratelimited"]) == (429, "true")


async def test_the_access_log_shows_what_we_wrote(processor: Processor, model: str, tmp_path: Path) -> None:
    """G10: dynamic metadata in our namespace, and the time that we cost, but no query string."""

    def count(request: ProcessingRequest) -> ProcessingResponse:
        reply = acknowledge(request)
        reply.dynamic_metadata["extproc"] = {"total_tokens": 24}
        return reply

    processor.reply = count
    log = tmp_path / "access.log"
    async with EnvoyProcess(bootstrap(upstream=model, extproc=processor.address, access_log=log)) as envoy:
        await get(envoy, "/v1/models?key=secret", host="trlp.example.com")
    line = json.loads(log.read_text())
    assert (line["host"], line["path"], line["responseCode"]) == ("trlp.example.com", "/v1/models", 200)
    assert line["totalTokens"] == 24
    assert "rh:" in line["extprocTimes"]
    assert "secret" not in log.read_text()


async def test_the_gateway_listens_where_it_is_told(model: str) -> None:
    port, admin = free_port(), free_port()
    config = bootstrap(upstream=model, extproc=None, listen=f"127.0.0.1:{port}", admin=f"127.0.0.1:{admin}")
    async with EnvoyProcess(config) as envoy:
        assert (envoy.address, envoy.admin) == (f"127.0.0.1:{port}", f"127.0.0.1:{admin}")


class TestProviders:
    """S2.4: by the header that the server sets, a request gets to its provider."""

    async def test_the_header_decides_and_the_host_becomes_the_providers(self, hosts: Hosts) -> None:
        first, second = await hosts.serve("first"), await hosts.serve("second")
        config = bootstrap(upstream=None, extproc=None, providers={"a": f"http://{first}", "b": second})
        async with EnvoyProcess(config) as envoy:
            assert await get(envoy, "/", **{"x-arch-llm-provider": "a"}) == (200, f"first {first}")
            assert await get(envoy, "/", **{"x-arch-llm-provider": "b"}) == (200, f"second {envoy.address}")
            assert await get(envoy, "/") == (200, f"first {first}")

    @pytest.mark.parametrize(("trusted", "status"), [("ca", 200), ("other", 503)])
    async def test_a_provider_with_tls_has_to_prove_itself(
        self, hosts: Hosts, tmp_path: Path, trusted: str, status: int
    ) -> None:
        pki, other = Pki(tmp_path / "pki"), Pki(tmp_path / "other")
        pki.sign("server")
        address = (await hosts.serve("model", tls_of(pki))).replace("127.0.0.1", "localhost")
        ca = (pki if trusted == "ca" else other) / "ca.crt"
        config = bootstrap(upstream=None, extproc=None, providers={"a": f"https://{address}"}, ca=ca)
        async with EnvoyProcess(config) as envoy:
            found, text = await get(envoy, "/", **{"x-arch-llm-provider": "a"})
        assert (found, text.startswith(f"model {address}")) == (status, status == 200)

    async def test_a_certificate_for_another_name_is_not_enough(self, hosts: Hosts, tmp_path: Path) -> None:
        """127.0.0.2 is this machine too, but not in the certificate."""
        pki = Pki(tmp_path / "pki")
        pki.sign("server")
        address = (await hosts.serve("model", tls_of(pki))).replace("127.0.0.1", "127.0.0.2")
        config = bootstrap(upstream=f"https://{address}", extproc=None, ca=pki / "ca.crt")
        async with EnvoyProcess(config) as envoy:
            assert (await get(envoy, "/"))[0] == 503


class TestBuffers:
    """What is held when the server asks for it, as `extproc envoy-config` makes room."""

    @pytest.fixture
    async def echo(self) -> AsyncIterator[str]:
        """`host:port` of a server that answers with what it was sent."""

        async def answer(request: web.Request) -> web.Response:
            return web.Response(body=await request.read())

        runner = web.AppRunner(web.Application(client_max_size=2**24))
        runner.app.router.add_route("*", "/{path:.*}", answer)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"127.0.0.1:{runner.addresses[0][1]}"
        await runner.cleanup()

    async def first_body(self, processor: Processor, model: str, buffers: Buffers, kind: str, size: int) -> HttpBody:
        """The first piece of the request's or the answer's body, of `size` bytes, that the server asked to be held."""

        def hold(request: ProcessingRequest) -> ProcessingResponse:
            reply = acknowledge(request)
            if request.WhichOneof("request") == f"{kind}_headers":
                setattr(reply.mode_override, f"{kind}_body_mode", ProcessingMode.BUFFERED_PARTIAL)
            return reply

        processor.reply = hold
        config = bootstrap(upstream=model, extproc=processor.address, buffers=buffers)
        async with (
            EnvoyProcess(config) as envoy,
            aiohttp.request("POST", f"http://{envoy.address}/v1", data=BytesIO(bytes(size))) as answer,
        ):
            assert (answer.status, len(await answer.read())) == (200, size)
        bodies = (
            getattr(request, f"{kind}_body") for request in processor.requests if request.HasField(f"{kind}_body")
        )
        return next(bodies)

    @pytest.mark.parametrize(
        ("buffers", "kind", "limit"),
        [
            pytest.param(Buffers(request=128 * KIB), "request", 128 * KIB, id="smaller requests"),
            pytest.param(Buffers(request=2048 * KIB), "request", 2048 * KIB, id="larger requests"),
            pytest.param(Buffers(answer=2048 * KIB), "response", 2048 * KIB, id="larger answers"),
        ],
    )
    async def test_what_fits_is_sent_whole_and_of_more_a_part(
        self, processor: Processor, echo: str, buffers: Buffers, kind: str, limit: int
    ) -> None:
        fitting = limit // 4 * 3
        body = await self.first_body(processor, echo, buffers, kind, fitting)
        assert (len(body.body), body.end_of_stream) == (fitting, True)
        processor.requests.clear()
        body = await self.first_body(processor, echo, buffers, kind, limit * 2)
        assert not body.end_of_stream
