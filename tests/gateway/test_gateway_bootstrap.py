"""The configuration that Envoy is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from google.protobuf.json_format import MessageToDict
from support.envoys import refusal, typed

from extproc import replies
from extproc.gateway import EnvoyProcess, bootstrap, ext_proc_filter
from extproc.gateway.bootstrap import access_log_format
from extproc.gateway.buffers import Buffers
from extproc.gateway.clusters import TlsFiles
from extproc.usage.usage import Usage
from extproc.wire.external_processor_pb2 import ProcessingResponse

pytestmark = pytest.mark.e2e

DEAD = "127.0.0.1:1"
PROVIDERS = {"a": "https://a.example", "b": "http://b.example:8080", "c": DEAD}
PROVIDERS_OF_ONE = {"a": DEAD}
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


def routes(config: dict[str, Any]) -> list[Any]:
    (host,) = manager(config)["route_config"]["virtual_hosts"]
    found: list[Any] = host["routes"]
    return found


def our_filter(config: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = manager(config)["http_filters"][-2]["typed_config"]
    return settings


def manager(config: dict[str, Any]) -> dict[str, Any]:
    (listener,) = config["static_resources"]["listeners"]
    found: dict[str, Any] = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return found


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"extproc": None}, id="without us"),
        pytest.param({"extproc": DEAD}, id="one worker"),
        pytest.param({"extproc": "localhost:50051", "upstream": "model.internal:80"}, id="names"),
        pytest.param({"extproc": [DEAD, "127.0.0.1:2"]}, id="several workers"),
        pytest.param({"extproc": ["unix:/run/a.sock", "unix:/run/b.sock"]}, id="sockets"),
        pytest.param({"extproc": "[::1]:50051", "listen": "[::1]:0"}, id="IPv6"),
        pytest.param({"extproc": DEAD, "access_log": Path("/dev/null")}, id="access log"),
        pytest.param(
            {"extproc": DEAD, "access_log": Path("/dev/null"), "namespace": "ai.gloo.solo.io"}, id="namespace"
        ),
        pytest.param({"extproc": DEAD, "filters_before": [RBAC]}, id="another filter"),
        pytest.param({"extproc": DEAD, "processing_mode": {"response_body_mode": "STREAMED"}}, id="modes"),
        pytest.param({"extproc": DEAD, "message_timeout": "0.2s", "failure_mode_allow": True}, id="fail open"),
        pytest.param({"extproc": DEAD, "access_log": "stdout"}, id="access log on standard output"),
        pytest.param({"extproc": DEAD, "upstream": "https://model.example"}, id="TLS to the model"),
        pytest.param({"extproc": DEAD, "upstream": None, "providers": PROVIDERS}, id="providers"),
        pytest.param({"extproc": DEAD, "providers": PROVIDERS, "rewrites": {"/a": "/v1/a"}}, id="providers and more"),
        pytest.param(
            {"extproc": DEAD, "request_body_mode": "BUFFERED", "buffers": Buffers(request=8 * 2**20)}, id="bodies"
        ),
        pytest.param({"extproc": "extproc:50051", "extproc_tls": TlsFiles()}, id="TLS to us"),
        pytest.param({"extproc": ["unix:/run/a.sock"], "extproc_tls": TlsFiles()}, id="TLS to a socket"),
        pytest.param({"extproc": DEAD, "mutation_rules": {"allow_all_routing": True}}, id="mutation rules"),
    ],
)
def test_envoy_accepts_every_variant(options: dict[str, Any], tmp_path: Path) -> None:
    config = bootstrap(**{"upstream": DEAD, **options})
    typed(config)
    assert refusal(config, tmp_path) == ""


def test_a_misspelt_field_does_not_get_through(tmp_path: Path) -> None:
    """Or the test above could not fail."""
    config = bootstrap(upstream=DEAD, extproc=DEAD)
    our_filter(config)["mesage_timeout"] = "1s"
    with pytest.raises(KeyError, match="mesage_timeout"):
        typed(config)
    assert "mesage_timeout" in refusal(config, tmp_path)


def test_each_provider_has_a_route_and_a_cluster() -> None:
    """S2.4: Envoy routes by the header that the server sets, and the provider sees its own name as host."""
    config = bootstrap(upstream=None, extproc=DEAD, providers=PROVIDERS, routing_header="x-to", default_provider="b")
    found = routes(config)[1:]
    assert [
        (route["match"].get("headers"), route["route"]["cluster"], route["route"].get("host_rewrite_literal"))
        for route in found
    ] == [
        ([{"name": "x-to", "string_match": {"exact": "a"}}], "a", "a.example"),
        ([{"name": "x-to", "string_match": {"exact": "b"}}], "b", "b.example:8080"),
        ([{"name": "x-to", "string_match": {"exact": "c"}}], "c", None),
        (None, "b", "b.example:8080"),
    ]
    assert {route["route"]["timeout"] for route in found} == {"0s"}
    assert [cluster["name"] for cluster in config["static_resources"]["clusters"]] == ["a", "b", "c", "extproc"]


def test_what_names_no_provider_goes_to_the_upstream_where_there_is_one() -> None:
    config = bootstrap(upstream=DEAD, extproc=DEAD, providers=PROVIDERS, default_provider="b")
    assert routes(config)[-1]["route"]["cluster"] == "upstream"


def test_a_provider_is_verified_by_its_name() -> None:
    clusters = bootstrap(upstream=None, extproc=DEAD, providers=PROVIDERS)["static_resources"]["clusters"]
    tls = clusters[0]["transport_socket"]["typed_config"]
    assert tls["sni"] == "a.example"
    validation = tls["common_tls_context"]["validation_context"]
    assert validation["match_typed_subject_alt_names"] == [{"san_type": "DNS", "matcher": {"exact": "a.example"}}]
    assert validation["trusted_ca"]["filename"]
    assert "transport_socket" not in clusters[1]


@pytest.mark.parametrize(
    ("buffers", "of_routes", "of_listener"),
    [
        (Buffers(), None, None),
        (Buffers(request=2**23), 2**23, None),
        (Buffers(request=2**20), 2**20, None),
        (Buffers(request=2**17), 2**17, 2**17),
        (Buffers(answer=2**17), None, None),
        (Buffers(answer=2**23), None, 2**23),
        (Buffers(request=2**17, answer=2**18), 2**17, 2**18),
    ],
)
def test_the_limit_of_what_is_held_is_where_it_counts(
    buffers: Buffers, of_routes: int | None, of_listener: int | None
) -> None:
    """A route can only raise it, for requests; the one that matches first decides, before the server has chosen."""
    config = bootstrap(upstream=DEAD, extproc=DEAD, providers=PROVIDERS, buffers=buffers)
    found = [route.get("request_body_buffer_limit") for route in routes(config)]
    assert found == [None, *[of_routes] * 4]
    assert config["static_resources"]["listeners"][0].get("per_connection_buffer_limit_bytes") == of_listener
    assert "http2_protocol_options" not in manager(config)


def test_with_http_2_the_window_of_a_stream_is_the_limit() -> None:
    config = bootstrap(upstream=DEAD, extproc=DEAD, buffers=Buffers(answer=2**25))
    assert manager(config)["http2_protocol_options"] == {"initial_stream_window_size": 2**25}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"providers": {"extproc": DEAD}}, "providers: `extproc` is the name", id="our cluster"),
        pytest.param({"providers": {"upstream": DEAD}}, "providers: `upstream` is the name", id="the model's cluster"),
        pytest.param({"providers": {"a": "ftp://a"}}, "providers: a: the scheme", id="scheme"),
        pytest.param({"upstream": None}, "upstream: ", id="nowhere to go"),
        pytest.param(
            {"upstream": None, "providers": PROVIDERS_OF_ONE, "default_provider": "b"},
            "default_provider: `b`",
            id="default",
        ),
    ],
)
def test_providers_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        bootstrap(**{"upstream": DEAD, "extproc": DEAD, **options})


@pytest.mark.parametrize("option", ["upstream", "extproc", "listen", "admin"])
@pytest.mark.parametrize("address", ["", "model", "model:", ":80", "model:http", "model:65536", "ftp://model:80"])
def test_an_address_that_cannot_be_read_is_refused_by_its_name(option: str, address: str) -> None:
    with pytest.raises(ValueError, match=f"^{option}: "):
        bootstrap(**{"upstream": DEAD, "extproc": None, option: address})


def test_the_filter_asks_for_headers_only() -> None:
    """G8: bodies are switched on request by request."""
    settings = ext_proc_filter()["typed_config"]
    sent = {field: mode for field, mode in settings["processing_mode"].items() if mode not in ("NONE", "SKIP")}
    assert sent == {"request_header_mode": "SEND", "response_header_mode": "SEND"}
    assert settings["allow_mode_override"] is True


def test_the_namespace_is_received_and_logged_wherever_it_is() -> None:
    """S4.13"""
    text = json.dumps(bootstrap(upstream=DEAD, extproc=DEAD, namespace="ai.example", access_log=Path("/dev/null")))
    assert '"receiving_namespaces": {"untyped": ["ai.example"]}' in text
    assert "%DYNAMIC_METADATA(ai.example:total_tokens)%" in text
    assert "DYNAMIC_METADATA(extproc" not in text


@pytest.mark.parametrize("namespace", ["", "a b", "a:b", "a)%", "a\n"])
def test_a_namespace_that_a_log_cannot_name_is_refused(namespace: str) -> None:
    with pytest.raises(ValueError, match=r"^namespace: "):
        ext_proc_filter(namespace=namespace)
    with pytest.raises(ValueError, match=r"^namespace: "):
        access_log_format(namespace)


def writing(reply: bytes, namespace: str) -> dict[str, Any]:
    """A filter that writes the dynamic metadata of `reply`."""
    metadata = MessageToDict(ProcessingResponse.FromString(reply).dynamic_metadata)
    return {
        "name": "envoy.filters.http.set_metadata",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config",
            "metadata": [{"metadata_namespace": namespace, "value": metadata[namespace]}],
        },
    }


async def logged(path: Path, *filters: dict[str, Any], rewrite: str = "/v1", **headers: str) -> dict[str, Any]:
    """The access log's line of a request for a model that is not there, which would see `rewrite` for `/v1`."""
    log = path / "access.log"
    config = bootstrap(upstream=DEAD, extproc=None, namespace="ai.example", access_log=log, filters_before=filters)
    (listener,) = config["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    route = {"match": {"prefix": "/v1"}, "route": {"cluster": "upstream", "prefix_rewrite": rewrite}}
    manager["route_config"]["virtual_hosts"][0]["routes"].insert(0, route)
    async with EnvoyProcess(config) as envoy, aiohttp.ClientSession() as http:
        url = f"http://{envoy.address}/v1/chat/completions?key=secret"
        async with http.post(url, data=b"{}", headers=headers) as answer:
            assert answer.status == 503
    assert "secret" not in log.read_text()
    line: dict[str, Any] = json.loads(log.read_text())
    return line


async def test_the_access_log_shows_what_was_used_field_by_field(tmp_path: Path) -> None:
    """S4.13, S4.14: numbers are numbers."""
    usage = Usage(21, 10, 31, 5, 2, 4, "gpt-4o", "reported", "complete", "openai", 42)
    reply = replies.usage("ai.example", usage, 31, streaming=True)
    line = await logged(tmp_path, writing(reply, "ai.example"), **{"x-request-id": "7b1c"})
    known = {
        "httpMethod": "POST",
        "path": "/v1/chat/completions",
        "responseCode": 503,
        "upstreamName": "upstream",
        "model": "gpt-4o",
        "promptTokens": 21,
        "completionTokens": 10,
        "totalTokens": 31,
        "cachedTokens": 5,
        "cacheWriteTokens": 2,
        "reasoningTokens": 4,
        "hitsAddend": 31,
        "cost": 42,
        "usageSource": "reported",
        "ending": "complete",
        "streaming": True,
        "dialect": "openai",
    }
    assert {field: line[field] for field in known} == known
    assert line.keys() == access_log_format().keys()
    assert line["requestId"]
    assert line["systemTime"]


async def test_what_is_not_known_is_null(tmp_path: Path) -> None:
    reply = replies.usage("ai.example", Usage(), None, streaming=False)
    line = await logged(tmp_path, writing(reply, "ai.example"))
    assert (line["cost"], line["hitsAddend"], line["totalTokens"], line["usageSource"]) == (None, None, 0, "none")


async def test_the_path_is_the_one_that_the_client_asked_for(tmp_path: Path) -> None:
    """S4.14: a route may rewrite it, a client may not."""
    line = await logged(tmp_path, rewrite="/openai", **{"x-envoy-original-path": "/forged"})
    assert line["path"] == "/v1/chat/completions"
    assert line["totalTokens"] is None
