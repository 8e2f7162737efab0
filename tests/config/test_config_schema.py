"""The JSON Schema agrees with what is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from extproc.config.document import parse_document
from extproc.config.load import load_config
from extproc.config.masking import masked
from extproc.config.schema import json_schema

VALID = sorted((Path(__file__).parent / "valid").iterdir())


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(json.dumps(json_schema())))


def test_is_a_schema_of_its_draft() -> None:
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == "urn:extproc:config"
    assert schema["title"]


def test_belongs_to_the_caller() -> None:
    json_schema()["properties"].clear()
    assert json_schema()["properties"]


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.name)
def test_accepts_what_loads(validator: Draft202012Validator, path: Path) -> None:
    data = parse_document(path.read_text(), path.name)
    assert [error.message for error in validator.iter_errors(data)] == []
    shown = masked(load_config(path).config)
    assert [error.message for error in validator.iter_errors(shown)] == []


def test_accepts_the_plugin_configuration(validator: Draft202012Validator, plugin: Any) -> None:
    assert validator.is_valid(plugin)


@pytest.mark.parametrize(
    "change",
    [
        "services: {a: {type: xyz, endpoint: e}}",
        "services: {a: {type: dynamic, endpoint: e}}",
        "services: {a: {type: ratelimit}}",
        "services: {a: {type: ratelimit, endpoint: e, timeout: 5}}",
        "services: {a: {type: ratelimit, endpoint: e, timeout: 5 s}}",
        "services: {a: {type: ratelimit, endpoint: e, failure_mode: deny}}",
        "actionSets: [{name: a, routeRuleConditions: {hostnames: []}, actions: []}]",
        "actionSets: [{name: a, routeRuleConditions: {hostnames: ['*']}, actions: [{type: grpc}]}]",
        "actionSets: [{routeRuleConditions: {hostnames: ['*']}, actions: []}]",
        "actionSets: [{name: a, routeRuleConditions: {hostnames: ['*']}, actions: "
        "[{service: s, scope: d, conditionalData: [{data: [{}]}]}]}]",
        "actionSets: [{name: a, routeRuleConditions: {hostnames: ['*']}, actions: "
        "[{service: s, scope: d, conditionalData: [{data: [{static: null}]}]}]}]",
        "endpoints: {a: 5}",
        "endpoints: {a: {}}",
        "listeners: []",
        "limits: {}",
        "limits: [{namespace: a, max_value: '1', seconds: 1}]",
        "limits: [{namespace: a, maxValue: 1, seconds: 1}]",
        "onMissingUsage: maybe",
        "onMissingUsage: {}",
        "denyWith: {status: 200}",
        "reprot: {}",
    ],
)
def test_refuses_what_does_not_load(validator: Draft202012Validator, change: str, plugin: Any) -> None:
    assert not validator.is_valid(plugin | yaml.safe_load(change))


def test_defaults_are_written_as_an_operator_would(validator: Draft202012Validator) -> None:
    schema = json_schema()
    assert schema["$defs"]["Service"]["properties"]["timeout"]["default"] == "20ms"
    assert schema["properties"]["report"]["default"] == {"wait": "100ms", "queue": 10_000, "retryFor": "30s"}
    for field in schema["properties"].values():
        if "default" in field:
            validator.evolve(schema=field | {"$defs": schema["$defs"]}).validate(field["default"])
