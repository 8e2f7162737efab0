"""`extproc envoy-config`: what it prints is Envoy's, in every format, or it says in a sentence why not."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.envoys import refusal, typed

from extproc.gateway import bootstrap, envoy_config_cli

EXAMPLES = sorted((Path(__file__).parents[2] / "deploy").glob("**/extproc.yaml"))
PROVIDERS: list[dict[str, Any]] = [
    {"name": "open ai/GPT-4", "credential": "none", "address": "https://api.openai.com", "default": True},
    {"name": "open-ai-gpt-4", "credential": "none", "address": "https://api.openai.com", "models": {"m": None}},
    {"name": "default-2", "credential": "none", "address": "http://ollama.llm.svc.cluster.local:11434", "model": "q"},
    {"name": "own", "credential": "none", "address": "http://10.0.0.9:8000", "models": {"n": "o"}},
]
GUARD = {"hosts": ["*"], "model": {"host": "dashscope.aliyuncs.com", "credential": "none"}}
UPSTREAM = ("--upstream", "model.example:80")
TLS = {"cert": "server.crt", "key": "server.key"}

Printing = Callable[..., tuple[int, str, str]]


@pytest.fixture
def printing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Printing:
    """Runs the command on a configuration, or a file; gives its status, output and complaints."""

    def run(config: Mapping[str, Any] | Path, *words: str) -> tuple[int, str, str]:
        path = config
        if not isinstance(path, Path):
            path = tmp_path / "extproc.yaml"
            path.write_text(yaml.safe_dump({"actionSets": [], **config}))
        parser = argparse.ArgumentParser()
        envoy_config_cli.add_arguments(parser)
        try:
            status = envoy_config_cli.run(parser.parse_args([str(path), *words]))
        except SystemExit as ended:
            status = int(str(ended.code))
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def documents(printed: tuple[int, str, str]) -> list[Any]:
    status, output, complaints = printed
    assert (status, complaints) == (0, "")
    return list(yaml.safe_load_all(output))


def kinds(found: Sequence[Any]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for document in found:
        names.setdefault(document["kind"], []).append(document["metadata"]["name"])
    return names


def of_kind(found: Sequence[Any], kind: str, name: str = "extproc") -> Any:
    (document,) = [each for each in found if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return document["spec"]


def clusters(config: Any) -> dict[str, Any]:
    return {cluster["name"]: cluster for cluster in config["static_resources"]["clusters"]}


def endpoints(cluster: Any) -> list[Any]:
    return [each["endpoint"]["address"] for each in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]]


def manager(config: Any) -> Any:
    return config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]


class TestEnvoy:
    @pytest.mark.e2e
    @pytest.mark.parametrize(
        ("config", "words"),
        [
            *(pytest.param(path, UPSTREAM, id=path.parent.name) for path in EXAMPLES),
            pytest.param({}, UPSTREAM, id="nothing"),
            pytest.param({"providers": PROVIDERS}, (), id="providers"),
            pytest.param({"providers": PROVIDERS, "guards": {"g": GUARD}}, UPSTREAM, id="guards"),
            pytest.param({"providers": PROVIDERS}, ("--request-buffer", "8MiB"), id="large requests"),
            pytest.param(
                {"guards": {"g": {**GUARD, "answers": {"maxBody": 2**25}}}}, UPSTREAM, id="large answers of guards"
            ),
            pytest.param({"listeners": [{"address": "unix:/run/extproc.sock"}]}, UPSTREAM, id="sockets"),
            pytest.param({"listeners": [{"address": "[::]:50051"}]}, UPSTREAM, id="everywhere, IPv6"),
            pytest.param({}, (*UPSTREAM, "--workers", "4"), id="workers"),
            pytest.param({}, (*UPSTREAM, "--extproc", "a:1", "--extproc", "b:2"), id="replicas"),
            pytest.param({}, ("--upstream", "https://[::1]:8443", "--listen", "[::1]:0"), id="IPv6"),
            pytest.param({"metadataNamespace": "ai.example"}, UPSTREAM, id="namespace"),
        ],
    )
    def test_what_is_printed_is_envoys(
        self, printing: Printing, config: Any, words: Sequence[str], tmp_path: Path
    ) -> None:
        """Every field is one of its messages, and its binary takes it."""
        (printed,) = documents(printing(config, *words))
        typed(printed)
        assert refusal(printed, tmp_path) == ""

    def test_it_is_what_the_tests_run(self, printing: Printing) -> None:
        (printed,) = documents(printing({}, *UPSTREAM))
        assert printed == bootstrap(
            upstream="model.example:80",
            extproc="127.0.0.1:50051",
            listen="0.0.0.0:8080",
            admin="127.0.0.1:9901",
            access_log="stdout",
        )

    def test_credentials_need_not_be_there(self, printing: Printing) -> None:
        """So that CI can print it; nor does any of them get into what is printed."""
        secret = {"file": "/nowhere/secret"}
        keys = {"a": {"authentication": {"k": {"apiKeys": {"files": ["/nowhere/keys.yaml"]}}}}}
        config = {"providers": [{**PROVIDERS[0], "credential": secret}], "authConfigs": keys}
        (printed,) = documents(printing(config))
        assert "secret" not in yaml.safe_dump(printed)

    def test_it_is_the_same_every_time_and_says_why(self, printing: Printing) -> None:
        config = {"providers": PROVIDERS, "guards": {"g": GUARD}}
        first, second = printing(config), printing(config)
        assert first == second
        comment = [line for line in first[1].splitlines() if line.startswith("#")]
        assert comment[0] == (
            "# Fits extproc.yaml: printed by `extproc envoy-config`; print it again when that changes."
        )
        assert (
            "# - message_timeout 11s: guards.g.model.timeout 10s, report.wait 100ms, and 500ms for the rest." in comment
        )
        assert max(map(len, comment)) <= 120

    def test_envoy_finds_every_worker_where_it_listens(self, printing: Printing) -> None:
        listeners = [{"address": "0.0.0.0:50051"}, {"address": "unix:/run/a.sock"}]
        (printed,) = documents(printing({"listeners": listeners}, *UPSTREAM, "--workers", "2"))
        assert endpoints(clusters(printed)["extproc"]) == [
            {"socket_address": {"address": "127.0.0.1", "port_value": 50051}},
            {"socket_address": {"address": "127.0.0.1", "port_value": 50052}},
            {"pipe": {"path": "/run/a.sock"}},
            {"pipe": {"path": "/run/a-1.sock"}},
        ]

    @pytest.mark.parametrize("size", [2**20, 8 * 2**20])
    def test_routes_hold_as_much_of_a_request_as_was_asked(self, printing: Printing, size: int) -> None:
        """Envoy's own limit is 1 MiB; the field that changes it is younger than the rest."""
        (printed,) = documents(printing({"providers": PROVIDERS}, "--request-buffer", str(size)))
        _, *routes = manager(printed)["route_config"]["virtual_hosts"][0]["routes"]
        assert {route.get("request_body_buffer_limit", 2**20) for route in routes} == {size}

    def test_it_can_be_written_to_a_file(self, printing: Printing, tmp_path: Path) -> None:
        target = tmp_path / "envoy.yaml"
        assert printing({}, *UPSTREAM, "-o", str(target)) == (0, "", "")
        assert target.read_text() == printing({}, *UPSTREAM)[1]


class TestTls:
    """extproc may serve TLS, and demand a certificate of Envoy."""

    @pytest.fixture
    def config(self, tmp_path: Path) -> dict[str, Any]:
        for name in ("server.crt", "server.key", "ca.crt"):
            (tmp_path / name).touch()
        return {"listeners": [{"address": "127.0.0.1:50051", "tls": {**TLS, "clientCa": "ca.crt"}}]}

    def test_envoy_verifies_extproc_and_shows_its_own(self, printing: Printing, config: dict[str, Any]) -> None:
        files = ("--extproc-ca", "/ca.crt", "--extproc-cert", "/envoy.crt", "--extproc-key", "/envoy.key")
        (printed,) = documents(printing(config, *UPSTREAM, *files))
        typed(printed)
        tls = clusters(printed)["extproc"]["transport_socket"]["typed_config"]["common_tls_context"]
        assert tls["validation_context"] == {
            "trusted_ca": {"filename": "/ca.crt"},
            "match_typed_subject_alt_names": [{"san_type": "IP_ADDRESS", "matcher": {"exact": "127.0.0.1"}}],
        }
        (certificate,) = tls["tls_certificates"]
        assert certificate["private_key"] == {"filename": "/envoy.key"}

    def test_what_is_missing_is_named(self, printing: Printing, config: dict[str, Any]) -> None:
        status, output, complaint = printing(config, *UPSTREAM)
        assert (status, output) == (2, "")
        assert complaint.startswith("extproc: listeners[0].tls: say with --extproc-ca")
        status, output, complaint = printing(config, *UPSTREAM, "--extproc-ca", "/ca.crt")
        assert (status, output) == (2, "")
        assert complaint.startswith("extproc: listeners[0].tls.clientCa: ")

    def test_a_listener_without_it_goes_first(self, printing: Printing, config: dict[str, Any]) -> None:
        listeners = [*config["listeners"], {"address": "127.0.0.1:50052"}]
        (printed,) = documents(printing({"listeners": listeners}, *UPSTREAM))
        assert "transport_socket" not in clusters(printed)["extproc"]

    @pytest.mark.parametrize("kind", ["istio", "envoy-gateway"])
    def test_in_kubernetes_somebody_else_configures_it(
        self, printing: Printing, config: dict[str, Any], kind: str
    ) -> None:
        assert "listeners[0].tls: extproc serves TLS" in printing(config, "--format", kind)[1]


class TestIstio:
    CONFIG: Mapping[str, Any] = {"providers": PROVIDERS, "guards": {"g": GUARD}}

    def patches(self, found: Sequence[Any]) -> dict[str, Any]:
        return {each["applyTo"]: each for each in of_kind(found, "EnvoyFilter")["configPatches"]}

    def test_the_listener_has_room_for_what_is_held(self, printing: Printing) -> None:
        config = {**self.CONFIG, "guards": {"g": {**GUARD, "answers": {"maxBody": 2**25}}}}
        patches = self.patches(documents(printing(config, "--format", "istio", "--request-buffer", "8MiB")))
        assert patches["LISTENER"]["patch"]["value"] == {"per_connection_buffer_limit_bytes": 2**25}
        window = patches["NETWORK_FILTER"]["patch"]["value"]["typed_config"]["http2_protocol_options"]
        assert window == {"initial_stream_window_size": 2**25}

    @pytest.mark.e2e
    @pytest.mark.parametrize("config", [{}, CONFIG], ids=["nothing", "everything"])
    def test_the_patched_gateway_is_envoys(self, printing: Printing, config: Any, tmp_path: Path) -> None:
        """The patches are put where istiod would put them, and the clusters they name are there."""
        patches = self.patches(documents(printing(config, "--format", "istio")))
        gateway = bootstrap(upstream="model.example:80", extproc=None)
        (listener,) = gateway["static_resources"]["listeners"]
        inserted = patches["HTTP_FILTER"]["patch"]["value"]
        manager(gateway)["http_filters"].insert(0, inserted)
        manager(gateway).update(patches["NETWORK_FILTER"]["patch"]["value"]["typed_config"])
        manager(gateway)["route_config"]["virtual_hosts"][0]["routes"][0] |= patches["HTTP_ROUTE"]["patch"]["value"]
        listener |= patches["LISTENER"]["patch"]["value"]
        name = inserted["typed_config"]["grpc_service"]["envoy_grpc"]["cluster_name"]
        extproc = clusters(bootstrap(upstream="a:1", extproc="b:2"))["extproc"]
        gateway["static_resources"]["clusters"].append({**extproc, "name": name})
        typed(gateway)
        assert refusal(gateway, tmp_path) == ""

    def test_the_filter_is_the_one_of_the_bootstrap(self, printing: Printing) -> None:
        found = documents(printing(self.CONFIG, "--format", "istio", "--namespace", "ai"))
        inserted = self.patches(found)["HTTP_FILTER"]["patch"]["value"]
        service = inserted["typed_config"]["grpc_service"]["envoy_grpc"]
        assert service == {"cluster_name": "outbound|50051||extproc.ai.svc.cluster.local"}
        service["cluster_name"] = "extproc"
        (whole,) = documents(printing(self.CONFIG))
        assert inserted == manager(whole)["http_filters"][0]

    @pytest.mark.parametrize(
        ("position", "operation", "anchor"),
        [
            ("router", "INSERT_BEFORE", {"name": "envoy.filters.http.router"}),
            ("authn", "INSERT_FIRST", None),
        ],
    )
    def test_it_runs_after_authentication_or_before_everything(
        self, printing: Printing, position: str, operation: str, anchor: Any
    ) -> None:
        """S4.16, S3.15"""
        patch = self.patches(documents(printing({}, "--format", "istio", "--position", position)))["HTTP_FILTER"]
        assert patch["patch"]["operation"] == operation
        assert patch["match"]["listener"]["filterChain"]["filter"].get("subFilter") == anchor

    def test_hosts_outside_become_known_to_the_mesh(self, printing: Printing) -> None:
        """S3.15: those of guards too, whom extproc asks itself; the gateway speaks TLS to providers alone."""
        found = documents(printing(self.CONFIG, "--format", "istio"))
        assert kinds(found)["ServiceEntry"] == [
            "extproc-api-openai-com",
            "extproc-10-0-0-9",
            "extproc-dashscope-aliyuncs-com",
        ]
        assert kinds(found)["DestinationRule"] == ["extproc", "extproc-api-openai-com"]
        guard = of_kind(found, "ServiceEntry", "extproc-dashscope-aliyuncs-com")
        assert guard["ports"] == [{"number": 443, "name": "https-443", "protocol": "HTTPS"}]
        address = of_kind(found, "ServiceEntry", "extproc-10-0-0-9")
        assert (address["resolution"], address["endpoints"]) == ("STATIC", [{"address": "10.0.0.9"}])

    def test_each_provider_has_a_route(self, printing: Printing) -> None:
        found = documents(printing(self.CONFIG, "--format", "istio", "--gateway", "front"))
        assert kinds(found)["HTTPRoute"] == [
            "extproc-open-ai-gpt-4",
            "extproc-open-ai-gpt-4-2",
            "extproc-default-2",
            "extproc-own",
            "extproc-default",
        ]
        route = of_kind(found, "HTTPRoute", "extproc-open-ai-gpt-4")
        assert route["parentRefs"] == [{"name": "front"}]
        (rule,) = route["rules"]
        (header,) = rule["matches"][0]["headers"]
        assert header == {"type": "Exact", "name": "x-arch-llm-provider", "value": "open ai/GPT-4"}
        assert rule["backendRefs"] == [
            {"group": "networking.istio.io", "kind": "Hostname", "name": "api.openai.com", "port": 443}
        ]
        (default,) = of_kind(found, "HTTPRoute", "extproc-default")["rules"]
        assert "headers" not in default["matches"][0]
        assert default["backendRefs"] == rule["backendRefs"]

    def test_every_document_has_a_name_of_its_own(self, printing: Printing) -> None:
        for kind in ("istio", "envoy-gateway"):
            found = documents(printing(self.CONFIG, "--format", kind))
            names = [(each["kind"], each["metadata"]["name"]) for each in found]
            assert len(set(names)) == len(names)

    def test_the_service_can_be_another(self, printing: Printing) -> None:
        found = documents(printing({}, "--format", "istio", "--extproc", "filter.shared:9000"))
        value = self.patches(found)["HTTP_FILTER"]["patch"]["value"]
        name = value["typed_config"]["grpc_service"]["envoy_grpc"]["cluster_name"]
        assert name == "outbound|9000||filter.shared.svc.cluster.local"
        assert of_kind(found, "DestinationRule")["host"] == "filter.shared.svc.cluster.local"


class TestEnvoyGateway:
    CONFIG = TestIstio.CONFIG

    def test_it_says_what_the_filter_says(self, printing: Printing) -> None:
        found = documents(printing(self.CONFIG, "--format", "envoy-gateway"))
        (processor,) = of_kind(found, "EnvoyExtensionPolicy")["extProc"]
        (whole,) = documents(printing(self.CONFIG))
        ours = manager(whole)["http_filters"][0]["typed_config"]
        assert processor["messageTimeout"] == ours["message_timeout"]
        assert processor["failOpen"] is ours["failure_mode_allow"]
        assert processor["processingMode"] == {
            "allowModeOverride": True,
            "request": {"attributes": ours["request_attributes"]},
            "response": {"attributes": ours["response_attributes"]},
        }
        assert processor["metadata"] == {
            "accessibleNamespaces": ours["metadata_options"]["forwarding_namespaces"]["untyped"],
            "writableNamespaces": ours["metadata_options"]["receiving_namespaces"]["untyped"],
        }

    def test_headers_are_sent_where_no_body_is(self, printing: Printing) -> None:
        """Without `request` and `response` the policy would skip them."""
        (processor,) = of_kind(documents(printing({}, "--format", "envoy-gateway")), "EnvoyExtensionPolicy")["extProc"]
        assert processor["processingMode"].keys() == {"allowModeOverride", "request", "response"}

    @pytest.mark.parametrize(
        ("config", "words", "limit", "window"),
        [
            ({}, (), "1Mi", "1Mi"),
            ({}, ("--request-buffer", "8MiB"), "8Mi", "8Mi"),
            ({}, ("--request-buffer", "640KiB"), "640Ki", "640Ki"),
            ({}, ("--request-buffer", "1500000"), "1500000", "1500000"),
            ({}, ("--request-buffer", "20KiB"), "20Ki", "64Ki"),
            ({"guards": {"g": {**GUARD, "answers": {"maxBody": 2**22}}}}, (), "4Mi", "4Mi"),
        ],
    )
    def test_bodies_larger_than_32_kib_are_held_too(
        self, printing: Printing, config: Any, words: Sequence[str], limit: str, window: str
    ) -> None:
        """With HTTP/2 it is the window of a stream that counts."""
        spec = of_kind(documents(printing(config, "--format", "envoy-gateway", *words)), "ClientTrafficPolicy")
        assert (spec["connection"], spec["http2"]) == ({"bufferLimit": limit}, {"initialStreamWindowSize": window})

    def test_each_provider_has_a_backend_that_is_verified(self, printing: Printing) -> None:
        found = documents(printing(self.CONFIG, "--format", "envoy-gateway"))
        assert of_kind(found, "Backend", "extproc-own") == {
            "endpoints": [{"ip": {"address": "10.0.0.9", "port": 8000}}]
        }
        assert kinds(found)["BackendTLSPolicy"] == ["extproc-open-ai-gpt-4", "extproc-open-ai-gpt-4-2"]
        assert of_kind(found, "BackendTLSPolicy", "extproc-open-ai-gpt-4")["validation"] == {
            "wellKnownCACertificates": "System",
            "hostname": "api.openai.com",
        }
        (rule,) = of_kind(found, "HTTPRoute", "extproc-own")["rules"]
        assert rule["backendRefs"] == [
            {"group": "gateway.envoyproxy.io", "kind": "Backend", "name": "extproc-own"},
        ]

    def test_a_service_of_another_namespace_is_named_with_it(self, printing: Printing) -> None:
        found = documents(printing({}, "--format", "envoy-gateway", "--extproc", "filter.shared:9000"))
        (processor,) = of_kind(found, "EnvoyExtensionPolicy")["extProc"]
        assert processor["backendRefs"] == [{"name": "filter", "port": 9000, "namespace": "shared"}]


class TestRefusals:
    @pytest.mark.parametrize(
        ("config", "words", "complaint"),
        [
            pytest.param({}, (), "extproc: --upstream: missing", id="no model"),
            pytest.param(
                {"providers": [{"name": "a", "credential": "none"}]},
                (),
                "extproc: providers[0].address: missing: its requests have no cluster; or say with --upstream",
                id="no address",
            ),
            pytest.param({"listners": []}, UPSTREAM, "extproc: failed to parse plugin config: listners", id="field"),
            pytest.param(
                {"listeners": [{"address": "127.0.0.1:0"}]}, UPSTREAM, "extproc: listeners[0].address: ", id="any port"
            ),
            pytest.param(
                {"listeners": [{"address": "127.0.0.1:65535"}]},
                (*UPSTREAM, "--workers", "2"),
                "extproc: listeners[0].address: ",
                id="no port for a worker",
            ),
            pytest.param({}, (*UPSTREAM, "--gateway", "a"), "extproc: --gateway: has no meaning with", id="gateway"),
            pytest.param(
                {}, ("--format", "istio", *UPSTREAM), "extproc: --upstream: has no meaning with", id="upstream"
            ),
            pytest.param(
                {}, ("--format", "envoy-gateway", "--position", "authn"), "extproc: --position: has no", id="position"
            ),
            pytest.param(
                {"listeners": [{"address": "unix:/run/a.sock"}]},
                ("--format", "istio"),
                "extproc: listeners[0].address: has no port",
                id="a socket in Kubernetes",
            ),
            pytest.param(
                {},
                ("--format", "istio", "--extproc", "a:1", "--extproc", "b:1"),
                "extproc: --extproc: one",
                id="services",
            ),
            pytest.param(
                {"providers": [{**PROVIDERS[0], "address": "unix:/run/a.sock"}]},
                ("--format", "istio"),
                "extproc: providers[0].address: a socket",
                id="a provider's socket in Kubernetes",
            ),
            pytest.param(
                {"providers": [{**PROVIDERS[0], "address": "https://10.0.0.1"}]},
                ("--format", "envoy-gateway"),
                "extproc: providers[0].address: a BackendTLSPolicy verifies names",
                id="an address with TLS",
            ),
            pytest.param(
                {"requestData": {"a": "xds.cluster_name"}},
                ("--format", "envoy-gateway"),
                "extproc: an expression names `xds.cluster_name`",
                id="an attribute that cannot be sent",
            ),
            pytest.param({"bodies": {"buffer": 2**21}}, UPSTREAM, "extproc: bodies.buffer: ", id="buffers"),
            pytest.param(
                {"providers": [{**PROVIDERS[0], "address": "https://u:s3cret@a.example"}]},
                (),
                "extproc: failed to parse plugin config: providers[0].address: `https://***@a.example`: ",
                id="an address that is none",
            ),
        ],
    )
    def test_what_does_not_fit_is_told_in_a_sentence(
        self, printing: Printing, config: Any, words: Sequence[str], complaint: str
    ) -> None:
        status, output, found = printing(config, *words)
        assert (status, output) == (2, "")
        assert found.startswith(complaint)
        assert found.count("\n") == 1

    @pytest.mark.parametrize(
        "words",
        [
            ("--request-buffer", "8MB"),
            ("--request-buffer", "0"),
            ("--request-buffer", "2000MiB"),
            ("--upstream", "model"),
            ("--upstream", "https://user:s3cret@model"),
            ("--extproc", "http://a"),
            ("--listen", "unix:/run/a.sock"),
            ("--admin", "9901"),
            ("--workers", "0"),
            ("--format", "nginx"),
        ],
    )
    def test_words_that_cannot_be_read_are_usage_errors(self, printing: Printing, words: Sequence[str]) -> None:
        status, output, complaint = printing({}, *words)
        assert (status, output) == (2, "")
        assert f"argument {words[0]}" in complaint
        assert "s3cret" not in complaint

    def test_a_configuration_that_is_not_there(self, printing: Printing, tmp_path: Path) -> None:
        status, output, complaint = printing(tmp_path / "none.yaml", *UPSTREAM)
        assert (status, output) == (2, "")
        assert "none.yaml" in complaint

    def test_a_file_that_cannot_be_written(self, printing: Printing, tmp_path: Path) -> None:
        target = tmp_path / "none" / "envoy.yaml"
        status, output, complaint = printing({}, *UPSTREAM, "-o", str(target))
        assert (status, output) == (1, "")
        assert complaint == f"extproc: {target}: No such file or directory\n"
