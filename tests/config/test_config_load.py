"""Loading: what is accepted, and the sentence for everything that is not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.config.errors import ConfigError, Problem
from extproc.config.files import MAX_BYTES, take_snapshot
from extproc.config.load import Loaded, load_config, load_limits, parse_config
from extproc.config.model import Config, Endpoint, Fixed, Limit

Load = Callable[[Any], Loaded]
PREFIX = "failed to parse plugin config: "
LIMIT = {"namespace": "domain-a", "max_value": 100, "seconds": 60}


def put(document: Any, path: str, value: Any) -> Any:
    """`document` with `value` at `path`, steps separated by dots."""
    *parents, last = path.split(".")
    place = document
    for step in parents:
        place = place[int(step) if isinstance(place, list) else step]
    place[int(last) if isinstance(place, list) else last] = value
    return document


def lines(load: Load, data: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(data)
    text = str(caught.value)
    assert text.startswith(PREFIX)
    return text.removeprefix(PREFIX).split("\n")


@pytest.mark.parametrize("suffix", ["json", "yaml"])
@pytest.mark.parametrize("timeout", [None, "5s"])
def test_wasm_shims_example_loads_unchanged(
    plugin: dict[str, Any], tmp_path: Path, suffix: str, timeout: str | None
) -> None:
    """S0: only where the endpoint leads is added."""
    data = plugin | {"endpoints": {"limitador": "embedded"}}
    if timeout:
        for service in data["services"].values():
            service["timeout"] = timeout
    path = tmp_path / f"config.{suffix}"
    path.write_text(json.dumps(data) if suffix == "json" else yaml.safe_dump(data))

    config = load_config(path).config

    assert [service.type for service in config.services.values()] == ["ratelimit-check", "ratelimit-report"]
    assert {service.timeout for service in config.services.values()} == {5.0 if timeout else 0.02}
    assert config.action_sets[0].actions[1].conditional_data[0].data[1].item.key == "ratelimit.hits_addend"
    assert config.endpoints["limitador"].embedded


@pytest.mark.parametrize("path", sorted((Path(__file__).parent / "valid").iterdir()), ids=lambda path: path.name)
def test_valid_files_load(path: Path) -> None:
    loaded = load_config(path)
    assert list(loaded.files) == [path]
    assert loaded.files == take_snapshot(loaded.files)


def test_every_field_arrives() -> None:
    config = load_config(Path(__file__).parent / "valid" / "everything.yaml").config
    assert config.admin is None
    assert config.on_missing_usage == Fixed(fixed=100)
    assert config.endpoints["local"] == Endpoint(address="embedded")
    assert config.action_sets[0].route_rule_conditions.hostnames == ["*", "api.example.com", "[::1]", "10.0.0.1"]
    assert config.report.retry_for == 5400.0
    assert config.observability.default_level == "OFF"
    assert [listener.address for listener in config.listeners] == ["unix:/run/extproc.sock", "0.0.0.0:0", "[::]:50051"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "services.ratelimit-check-service.type",
            "xyz",
            "services.ratelimit-check-service.type: unknown variant `xyz`, "
            "expected one of `auth`, `ratelimit`, `ratelimit-check`, `ratelimit-report`",
        ),
        ("services.x", None, "services.x: expected an object, found null"),
        (
            "services.ratelimit-check-service.timeout",
            "20",
            "services.ratelimit-check-service.timeout: expected a duration such as `20ms`, `1.5s` or `1h30m`",
        ),
        (
            "services.ratelimit-check-service.timeout",
            0.5,
            "services.ratelimit-check-service.timeout: expected a duration such as `20ms`, `1.5s` or `1h30m`, "
            "found 0.5 (number)",
        ),
        (
            "services.ratelimit-check-service.timeout",
            "0ms",
            "services.ratelimit-check-service.timeout: expected a value greater than 0",
        ),
        (
            "services.ratelimit-check-service.failureMode",
            True,
            "services.ratelimit-check-service.failureMode: expected one of `deny`, `allow`, found true (boolean)",
        ),
        (
            "services.ratelimit-check-service.endpoint",
            8081,
            "services.ratelimit-check-service.endpoint: expected a string, found 8081 (integer); put it in quotes",
        ),
        (
            "actionSets.0.actions.1.conditionalData.0.data.0",
            {},
            "actionSets[0].actions[1].conditionalData[0].data[0]: expected exactly one of `static`, `expression`",
        ),
        (
            "actionSets.0.actions.1.conditionalData.0.data.0.static",
            {"key": "a", "value": "b"},
            "actionSets[0].actions[1].conditionalData[0].data[0]: expected exactly one of `static`, `expression`",
        ),
        (
            "actionSets.0.actions.0.conditionalData.0.data.0.expression.valu",
            "1",
            "actionSets[0].actions[0].conditionalData[0].data[0].expression.valu: "
            "unknown field, did you mean `value`? expected one of `key`, `value`",
        ),
        (
            "actionSets.0.routeRuleConditions.hostnames",
            [],
            "actionSets[0].routeRuleConditions.hostnames: expected at least one entry",
        ),
        ("requestData", [], "requestData: expected an object, found a list"),
        (
            "requestData",
            {"metrics.labels.user": 1},
            'requestData["metrics.labels.user"]: expected a string, found 1 (integer); put it in quotes',
        ),
        ("limits", 5, "limits: expected a string or a list, found 5 (integer)"),
        ("limits.0.max_value", "100", 'limits[0].max_value: expected an integer, found "100" (string)'),
        ("limits.0.max_value", 1.0, "limits[0].max_value: expected an integer, found 1.0 (number)"),
        ("limits.0.max_value", -1, "limits[0].max_value: expected an integer of at least 0, found -1 (integer)"),
        (
            "limits.0.maxValue",
            1,
            "limits[0].maxValue: unknown field, did you mean `max_value`? expected one of "
            "`namespace`, `max_value`, `seconds`, `calendar`, `time_zone`, `id`, `name`, `algorithm`, `conditions`, "
            "`variables`",
        ),
        ("endpoints.limitador", 5, "endpoints.limitador: expected a string or an object, found 5 (integer)"),
        ("endpoints.limitador", {"tls": None}, "endpoints.limitador.address: missing"),
        ("listeners", "0.0.0.0:1", 'listeners: expected a list, found "0.0.0.0:1" (string)'),
        (
            "onMissingUsage",
            "maybe",
            "onMissingUsage: unknown variant `maybe`, expected one of `estimate`, `skip` or an object",
        ),
        ("onMissingUsage", 5, "onMissingUsage: expected one of `estimate`, `skip` or an object, found 5 (integer)"),
        ("onMissingUsage", {"fixed": "x"}, 'onMissingUsage.fixed: expected an integer, found "x" (string)'),
        ("onMissingUsage", {}, "onMissingUsage.fixed: missing"),
        ("denyWith", {"status": 200}, "denyWith.status: expected an integer of at least 400, found 200 (integer)"),
        ("chargeErrors", "yes", 'chargeErrors: expected `true` or `false`, found "yes" (string)'),
        (
            "observability",
            {"tracing": {"servise": "x"}},
            "observability.tracing.service: missing\nobservability.tracing.servise: "
            "unknown field, did you mean `service`? expected one of `service`",
        ),
        (
            "report",
            {"retry_for": "1s"},
            "report.retry_for: unknown field, did you mean `retryFor`? expected one of `wait`, `queue`, `retryFor`",
        ),
        (
            "log",
            {"level": "x" * 100},
            f"log.level: unknown variant `{'x' * 59}…`, expected one of `debug`, `info`, `warning`, `error`",
        ),
    ],
)
def test_one_fault_is_one_sentence(load: Load, document: Any, path: str, value: Any, message: str) -> None:
    """S0.D19, S1.22"""
    assert "\n".join(lines(load, put(document, path, value))) == message


def test_unknown_fields_are_compared_with_the_known_ones(load: Load, document: Any) -> None:
    (line,) = lines(load, document | {"reprot": {}})
    assert line.startswith("reprot: unknown field, did you mean `report`? expected one of `services`, `actionSets`, ")


def test_missing_fields(load: Load, document: Any) -> None:
    del document["actionSets"][0]["name"]
    del document["actionSets"][0]["actions"]
    assert lines(load, document) == ["actionSets[0].name: missing", "actionSets[0].actions: missing"]


@pytest.mark.parametrize("rest", [{}, {"services": {}}, {"log": {"level": "debug"}}])
def test_a_configuration_does_something(load: Load, rest: Any) -> None:
    (line,) = lines(load, rest)
    assert line.endswith("expected one of `actionSets`, `providers`, `guards`, `policies`: nothing would be done")


@pytest.mark.parametrize("kind", ["grpc", "deny", "headers", "store", "fail"])
def test_typed_actions_are_refused_by_name(load: Load, document: Any, kind: str) -> None:
    typed = {"type": kind, "predicate": "true", "terminal": False}
    (line,) = lines(load, put(document, "actionSets.0.actions.1", typed))
    assert line.startswith(f"actionSets[0].actions[1]: typed actions (`type: {kind}`) are a newer dialect")
    assert "`conditionalData`" in line


@pytest.mark.parametrize("kind", ["dynamic", "tracing"])
def test_typed_services_are_refused_by_name(load: Load, document: Any, kind: str) -> None:
    service = {"type": kind, "endpoint": "limitador", "failureMode": "deny", "grpcService": "a.B", "grpcMethod": "C"}
    (line,) = lines(load, put(document, "services.typed", service))
    assert line.startswith(f"services.typed: services of type `{kind}` are not supported: ")


def test_every_problem_is_listed_up_to_a_hundred(load: Load, document: Any) -> None:
    found = lines(load, document | {"limits": [5] * 1000})
    assert found[0] == "limits[0]: expected an object, found 5 (integer)"
    assert len(found) == 101
    assert found[-1] == "more problems follow these 100"


def test_line_breaks_in_names_do_not_forge_lines(load: Load, document: Any) -> None:
    (line,) = lines(load, document | {"a\nforged: line": 1})
    assert line.startswith('["a\\nforged: line"]: unknown field')


@pytest.mark.parametrize(
    "name", ["authorization", "Set-Cookie", "x-api-key", "clientSecret", "access_token", "password"]
)
def test_values_below_secret_names_are_not_shown(load: Load, document: Any, name: str) -> None:
    found = lines(load, document | {"denyWith": {"headers": {name: 424242}}, name: {"deep": "hunter2"}})
    assert "expected a string, found a secret value (integer)" in found[0]
    assert not any("424242" in line or "hunter2" in line for line in found)


@pytest.mark.parametrize("text", ["[]", "5", "null", '"text"'])
@pytest.mark.parametrize("name", ["config.json", "config.yaml"])
def test_a_document_is_an_object(tmp_path: Path, text: str, name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"^{PREFIX}{name}: expected an object with `actionSets`, `providers` or `guards`, found"
    ):
        parse_config(text, name=name, base=tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"services: \xff", "not UTF-8: byte 0xff in line 1"),
        ("services: {}".encode("utf-16"), "not UTF-8: byte 0xff in line 1"),
        (b"a" * (MAX_BYTES + 1), "larger than 10 MB"),
        (b"services: {}\nservices: {}", "line 2, column 1: key `services` is given twice"),
    ],
)
def test_unusable_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{PREFIX}{path}: {message}"
    assert caught.value.files == take_snapshot([path]), "an edit of the file is noticed"


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbfservices: {}\nactionSets: []")
    assert load_config(path).config.services == {}


def test_a_file_that_is_missing_or_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, message in [
        ("absent", "no such file or directory"),
        (".", "is a directory"),
        ("fifo", "not a regular file"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_config(tmp_path / name)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    (path := tmp_path / "config.yaml").write_text("services: {}")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{PREFIX}{path}: cannot be read: permission denied"


class TestLimitsFile:
    @pytest.fixture(autouse=True)
    def _limits(self, document: Any, tmp_path: Path) -> None:
        document["limits"] = "limits.yaml"
        self.limits = tmp_path / "limits.yaml"
        self.config = tmp_path / "config.json"
        self.config.write_text(json.dumps(document))

    @pytest.mark.parametrize("text", [json.dumps([LIMIT]), yaml.safe_dump([LIMIT])])
    def test_is_read_relative_to_the_configuration(
        self, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.limits.write_text(text)
        monkeypatch.chdir("/")
        loaded = load_config(self.config)
        assert loaded.config.embedded_limits == [Limit(namespace="domain-a", max_value=100, seconds=60)]
        assert set(loaded.files) == {self.config, self.limits}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                yaml.safe_dump([LIMIT | {"max_value": "100"}]),
                '[0].max_value: expected an integer, found "100" (string)',
            ),
            ("limits: []", "expected a list, found an object"),
            ("- a\n-\tb: [", "line 2, column "),
            ("", "the file is empty"),
        ],
    )
    def test_errors_name_the_limits_file(self, text: str, message: str) -> None:
        self.limits.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_config(self.config)
        assert str(caught.value).startswith(PREFIX)
        assert f"limits.yaml: {message}" in str(caught.value)
        assert caught.value.files == take_snapshot([self.config, self.limits]), "an edit of either is noticed"

    def test_that_is_missing_is_an_error_beside_the_others(self, document: Any) -> None:
        document["endpoints"]["broken"] = "nowhere"
        self.config.write_text(json.dumps(document))
        with pytest.raises(ConfigError) as caught:
            load_config(self.config)
        assert [str(problem) for problem in caught.value.problems] == [
            "limits: limits.yaml: cannot be read: no such file or directory",
            "endpoints.broken.address: `nowhere`: the port is missing: write `host:port` or `unix:/path`",
        ]
        assert caught.value.files[self.limits] == "", "that it appears is noticed"

    def test_is_read_alone(self) -> None:
        self.limits.write_text(yaml.safe_dump([LIMIT]))
        assert load_limits(self.limits) == [Limit(namespace="domain-a", max_value=100, seconds=60)]

    def test_alone_its_errors_do_not_speak_of_a_plugin(self) -> None:
        self.limits.write_text("- {}")
        with pytest.raises(ConfigError) as caught:
            load_limits(self.limits)
        assert str(caught.value).startswith(f"failed to parse limits file: {self.limits}: [0].namespace: missing\n")

    def test_that_has_not_been_read_is_not_mistaken_for_limits(self, document: Any) -> None:
        with pytest.raises(ValueError, match="has not been read"):
            _ = Config.model_validate(document).embedded_limits


def test_others_can_report_problems_the_same_way() -> None:
    problem = Problem.at(("actionSets", 0, "actions", 1, "predicates", 0), "unknown variable `reqest`")
    assert str(ConfigError([problem])) == f"{PREFIX}actionSets[0].actions[1].predicates[0]: unknown variable `reqest`"
