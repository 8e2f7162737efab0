"""What is shipped to be run: every file is valid, and none says something different from the others."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.config.load import load_config, load_limits
from extproc.config.model import Config
from extproc.gateway import EnvoyProcess, bootstrap, ext_proc_filter, find_envoy
from extproc.gateway.bootstrap import access_log_format

DEPLOY = Path(__file__).parents[2] / "deploy"
ISTIO_CLUSTER = re.compile(r"outbound\|(\d+)\|\|([a-z-]+)\.([a-z-]+)\.svc\.cluster\.local")


def documents(name: str) -> dict[str, Any]:
    """The documents of a file by their kind."""
    return {document["kind"]: document for document in yaml.safe_load_all((DEPLOY / name).read_text())}


@pytest.fixture(scope="module")
def envoy() -> Any:
    return yaml.safe_load((DEPLOY / "envoy.yaml").read_text())


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(DEPLOY / "extproc.yaml").config


@pytest.fixture(scope="module")
def services() -> Any:
    return yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text())["services"]


@pytest.fixture(scope="module")
def service() -> Any:
    return documents("kubernetes.yaml")["Service"]


def ports(service: Any) -> dict[str, int]:
    """Container port -> published port, of a service of the compose file."""
    return {port.split(":")[-1]: int(port.split(":")[-2]) for port in service.get("ports", ())}


def patches() -> dict[str, Any]:
    """The patches of the EnvoyFilter by what they apply to."""
    found = documents("istio-envoyfilter.yaml")["EnvoyFilter"]["spec"]["configPatches"]
    return {patch["applyTo"]: patch for patch in found}


def manager(envoy: Any) -> Any:
    return envoy["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]


async def exit_status(command: Sequence[str]) -> int:
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    return await asyncio.wait_for(process.wait(), 5)


class TestEnvoy:
    @pytest.mark.e2e
    def test_envoy_accepts_the_configuration(self) -> None:
        command = [find_envoy(), "--mode", "validate", "--log-level", "error", "--config-path", DEPLOY / "envoy.yaml"]
        checked = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert checked.returncode == 0, checked.stderr

    def test_it_is_what_the_demo_and_the_tests_run(self, envoy: Any) -> None:
        """The annotated file and the generated configuration differ in where the access log goes, nowhere else."""
        generated = bootstrap(
            listen="0.0.0.0:80",
            admin="0.0.0.0:8001",
            upstream="upstream:80",
            extproc="extproc:50051",
            access_log=Path("/access.log"),
        )
        (log,) = manager(generated).pop("access_log")
        written = json.loads(json.dumps(envoy))
        (stdout,) = manager(written).pop("access_log")
        assert written == generated
        assert stdout["typed_config"]["log_format"] == log["typed_config"]["log_format"]
        assert stdout["typed_config"]["log_format"]["json_format"] == access_log_format()

    def test_the_usage_that_we_write_is_taken(self, config: Config) -> None:
        """S4.13: Envoy drops what we write elsewhere."""
        taken = ext_proc_filter()["typed_config"]["metadata_options"]["receiving_namespaces"]["untyped"]
        assert taken == [config.metadata_namespace]

    def test_its_deadline_is_the_last_one(self, config: Config) -> None:
        """G2: a service's timeout and the held reply end before Envoy gives up."""
        allowed = float(ext_proc_filter()["typed_config"]["message_timeout"].removesuffix("s"))
        assert all(service.timeout + config.report.wait < allowed for service in config.services.values())


class TestConfiguration:
    def test_it_is_the_example_of_wasm_shim(self) -> None:
        """S0, with `request.url_path` for `request.path` (S0.D9) and timeouts that outlast a connect (S0.D17)."""
        written = yaml.safe_load((DEPLOY / "extproc.yaml").read_text())
        path = ['request.url_path == "/v1/chat/completions"']
        a = {"expression": {"key": "a", "value": "1"}}
        hits = {"expression": {"key": "ratelimit.hits_addend", "value": 'responseBodyJSON("/usage/total_tokens")'}}
        common = {"endpoint": "limitador", "failureMode": "deny", "timeout": "100ms"}
        assert written["services"] == {
            "ratelimit-check-service": {"type": "ratelimit-check", **common},
            "ratelimit-report-service": {"type": "ratelimit-report", **common},
        }
        assert written["actionSets"] == [
            {
                "name": "basic",
                "routeRuleConditions": {"hostnames": ["*.example.com"]},
                "actions": [
                    {"service": service, "scope": "domain-a", "conditionalData": [{"predicates": path, "data": data}]}
                    for service, data in (("ratelimit-check-service", [a]), ("ratelimit-report-service", [a, hits]))
                ],
            }
        ]

    def test_one_word_makes_it_embedded(self, tmp_path: Path) -> None:
        text = (DEPLOY / "extproc.yaml").read_text()
        assert text.count("limitador: limitador:8081\n") == 1
        (tmp_path / "extproc.yaml").write_text(text.replace("limitador: limitador:8081", "limitador: embedded"))
        (tmp_path / "limits.yaml").write_text((DEPLOY / "limits.yaml").read_text())
        loaded = load_config(tmp_path / "extproc.yaml")
        assert loaded.config.endpoints["limitador"].embedded
        assert loaded.warnings == ()

    def test_the_limit_is_100_tokens_a_minute(self) -> None:
        """S0.7"""
        (limit,) = load_limits(DEPLOY / "limits.yaml")
        assert (limit.namespace, limit.name, limit.max_value, limit.seconds) == ("domain-a", "name_a", 100, 60)
        assert limit.conditions == ["descriptors[0]['a'] == '1'"]


class TestCompose:
    """S0.22"""

    def test_it_waits_for_every_service(self, services: Any) -> None:
        """Without a health check `up --wait` returns too early; extproc's is in its image."""
        assert {name for name, service in services.items() if "healthcheck" not in service} == {"extproc"}
        assert "HEALTHCHECK" in (DEPLOY / "Dockerfile").read_text()

    def test_what_depends_on_what_exists_and_is_healthy_first(self, services: Any) -> None:
        needs = {name: service.get("depends_on", {}) for name, service in services.items()}
        assert {need for each in needs.values() for need in each} <= set(services)
        assert {need["condition"] for each in needs.values() for need in each.values()} == {"service_healthy"}

    def test_files_that_are_mounted_exist(self, services: Any) -> None:
        mounts = [mount.split(":") for service in services.values() for mount in service.get("volumes", ())]
        assert all((DEPLOY / source).exists() for source, _, _ in mounts)
        assert {mode for _, _, mode in mounts} == {"ro"}

    def test_the_image_is_built_from_files_that_exist(self, services: Any) -> None:
        build = services["extproc"]["build"]
        context = (DEPLOY / build["context"]).resolve()
        assert (context / build["dockerfile"]).is_file()
        copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
        assert all((context / name).exists() for line in copied for name in line.split())
        sent = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        assert {f"!{name}" for line in copied for name in line.split()} <= set(sent)

    def test_the_image_starts_with_the_shipped_configuration(self, services: Any) -> None:
        command = json.loads((DEPLOY / "Dockerfile").read_text().rpartition("CMD ")[2])
        (mount,) = services["extproc"]["volumes"]
        source, target, _ = mount.split(":")
        assert command[0] == "serve"
        assert (DEPLOY / source / Path(command[1]).relative_to(target)) == DEPLOY / "extproc.yaml"

    def test_envoy_finds_everybody_by_name_and_port(self, envoy: Any, services: Any, config: Config) -> None:
        sockets = {
            cluster["name"]: endpoint["endpoint"]["address"]["socket_address"]
            for cluster in envoy["static_resources"]["clusters"]
            for endpoint in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        }
        found = {name: f"{socket['address']}:{socket['port_value']}" for name, socket in sockets.items()}
        assert found == {"upstream": "upstream:80", "extproc": "extproc:50051"}
        assert {"upstream", "extproc"} <= set(services)
        assert config.listeners[0].address == "0.0.0.0:50051"
        assert "TCP-LISTEN:80," in services["upstream"]["command"]

    def test_the_model_and_the_limiter_are_where_they_are_looked_for(self, services: Any, config: Config) -> None:
        host, _, port = services["upstream"]["command"].rpartition("TCP:")[2].partition(":")
        assert f"0.0.0.0:{port}" in services[host]["command"]
        limiter = services["limitador"]
        assert config.endpoints["limitador"].address == "limitador:8081"
        assert limiter["command"][limiter["command"].index("--rls-port") + 1] == "8081"

    def test_ports_are_those_of_the_example(self, services: Any, envoy: Any) -> None:
        assert ports(services["envoy"]) == {"80": 18000, "8001": 18001}
        assert ports(services["limitador"]) == {"8080": 18080, "8081": 18081}
        listener = envoy["static_resources"]["listeners"][0]
        addresses = [each["address"]["socket_address"]["port_value"] for each in (listener, envoy["admin"])]
        assert addresses == [80, 8001]

    def test_only_the_gateway_is_reachable_from_outside(self, services: Any) -> None:
        published = [port for service in services.values() for port in service.get("ports", ())]
        assert [port for port in published if not port.startswith("127.0.0.1:")] == ["18000:80"]

    def test_stopping_waits_for_the_reports(self, services: Any, config: Config) -> None:
        grace = int(services["extproc"]["stop_grace_period"].removesuffix("s"))
        assert grace > config.shutdown.delay + config.shutdown.deadline

    @pytest.mark.e2e
    async def test_envoys_health_check_tells_up_from_down(self, services: Any) -> None:
        kind, *command = services["envoy"]["healthcheck"]["test"]
        assert kind == "CMD"
        async with EnvoyProcess(bootstrap(upstream="127.0.0.1:1", extproc="127.0.0.1:2")) as running:
            port = running.admin.partition(":")[2]
            check = [part.replace("127.0.0.1/8001", f"127.0.0.1/{port}") for part in command]
            assert await exit_status(check) == 0
        assert await exit_status(check) != 0


class TestKubernetes:
    def test_the_service_finds_the_pods(self, service: Any, config: Config) -> None:
        pod = documents("kubernetes.yaml")["Deployment"]["spec"]["template"]
        container = pod["spec"]["containers"][0]
        named = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
        assert [named[port["targetPort"]] for port in service["spec"]["ports"]] == [50051]
        assert container["readinessProbe"]["grpc"]["port"] == 50051
        assert {address.rpartition(":")[2] for address in (config.listeners[0].address, config.admin.address)} == {  # type: ignore[union-attr]
            str(port) for port in named.values()
        }

    def test_stopping_waits_for_the_reports(self, config: Config) -> None:
        spec = documents("kubernetes.yaml")["Deployment"]["spec"]["template"]["spec"]
        assert spec["terminationGracePeriodSeconds"] > config.shutdown.delay + config.shutdown.deadline

    def test_istio_gets_the_same_filter(self, service: Any) -> None:
        value = patches()["HTTP_FILTER"]["patch"]["value"]
        cluster = value["typed_config"]["grpc_service"]["envoy_grpc"]
        port, name, namespace = ISTIO_CLUSTER.fullmatch(cluster.pop("cluster_name")).groups()  # type: ignore[union-attr]
        assert (name, namespace) == (service["metadata"]["name"], service["metadata"]["namespace"])
        assert int(port) == service["spec"]["ports"][0]["port"]
        ours = ext_proc_filter()
        ours["typed_config"]["grpc_service"]["envoy_grpc"].pop("cluster_name")
        assert value == ours

    def test_istio_runs_it_after_authentication(self) -> None:
        """S4.16"""
        patch = patches()["HTTP_FILTER"]
        anchor = patch["match"]["listener"]["filterChain"]["filter"]["subFilter"]["name"]
        assert (patch["patch"]["operation"], anchor) == ("INSERT_BEFORE", "envoy.filters.http.router")

    def test_istio_reads_paths_as_envoy_does(self, envoy: Any) -> None:
        """S0.D9"""
        settings = patches()["NETWORK_FILTER"]["patch"]["value"]["typed_config"]
        assert settings.items() <= manager(envoy).items()
        assert {"normalize_path", "merge_slashes", "path_with_escaped_slashes_action"} <= settings.keys()

    def test_istio_lifts_the_limit_of_requests_in_flight(self, service: Any) -> None:
        rule = documents("istio-envoyfilter.yaml")["DestinationRule"]["spec"]
        assert rule["host"].split(".")[:2] == [service["metadata"]["name"], service["metadata"]["namespace"]]
        assert rule["trafficPolicy"]["connectionPool"]["http"]["http2MaxRequests"] == 100_000

    def test_envoy_gateway_gets_the_same_settings(self, service: Any) -> None:
        policy = documents("envoy-gateway-policy.yaml")["EnvoyExtensionPolicy"]
        (processor,) = policy["spec"]["extProc"]
        ours = ext_proc_filter()["typed_config"]
        namespaces = ours["metadata_options"]
        (backend,) = processor["backendRefs"]
        assert (backend["name"], backend["port"]) == (
            service["metadata"]["name"],
            service["spec"]["ports"][0]["port"],
        )
        assert policy["metadata"]["namespace"] == service["metadata"]["namespace"]
        assert processor["messageTimeout"] == ours["message_timeout"]
        assert processor["failOpen"] is ours["failure_mode_allow"]
        assert processor["processingMode"] == {
            "allowModeOverride": ours["allow_mode_override"],
            "request": {"attributes": ours["request_attributes"]},
            "response": {"attributes": ours["response_attributes"]},
        }
        assert processor["metadata"] == {
            "accessibleNamespaces": namespaces["forwarding_namespaces"]["untyped"],
            "writableNamespaces": namespaces["receiving_namespaces"]["untyped"],
        }


class TestReadme:
    def test_it_lists_every_file(self) -> None:
        text = (DEPLOY / "README.md").read_text()
        files = {path.name for path in DEPLOY.iterdir()} - {"README.md", "Dockerfile.dockerignore"}
        assert {name for name in files if f"`{name}`" not in text} == set()

    def test_the_ports_in_its_commands_are_published(self, services: Any) -> None:
        text = (DEPLOY / "README.md").read_text()
        published = {port for service in services.values() for port in ports(service).values()}
        assert {int(port) for port in re.findall(r"(?:localhost|example\.com):(\d+)", text)} <= published

    def test_the_logs_it_points_to_are_of_services(self, services: Any) -> None:
        text = (DEPLOY / "README.md").read_text() + (DEPLOY / "Makefile").read_text()
        named = re.findall(r"docker compose logs (?:--follow )?([a-z -]+?)(?: {2,}#|\n)", text)
        assert named
        assert {name for line in named for name in line.split()} <= set(services)
