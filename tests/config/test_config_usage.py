"""The fields about usage: what is accepted, and the sentence with the path for what is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.harness import RecordingLimiter

from extproc.active import Active, activate
from extproc.config.errors import ConfigError
from extproc.config.load import Loaded, parse_config
from extproc.config.model import Config, Price

Load = Callable[[Any], Loaded]

ALL = {
    "prices": {
        "gpt-4o": {"input": 2.5, "output": 10, "cached": 1.25, "cacheWrite": 0},
        "*": {"input": 0, "output": 1e9},
    },
    "estimates": {"vocabulary": "vocab", "encoding": "cl100k_base", "prompt": "text", "held": 1},
    "includeUsage": {
        "enabled": True,
        "paths": ["/generate"],
        "exceptHosts": ["*.Mistral.ai."],
        "exceptModels": ["o1*"],
        "strip": False,
    },
    "dialect": "anthropic",
    "metadataNamespace": "llm",
    "bodies": {"text": 1, "buffer": 2},
    "onMissingUsage": {"fixed": 0},
}


def problems(load: Load, data: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(data)
    return [str(problem) for problem in caught.value.problems]


def compiled(load: Load, document: Any) -> Active:
    return activate(load(document), lambda _, service: RecordingLimiter())


def complaints(load: Load, document: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        compiled(load, document)
    return str(caught.value)


def warnings(load: Load, document: Any) -> list[str]:
    """Those that have to do with usage; the example's own is about its paths."""
    found = map(str, compiled(load, document).warnings)
    return [warning for warning in found if "can be bypassed" not in warning]


def with_value(document: Any, action: int, key: str, expression: str) -> Any:
    """`document` with one more entry in the data of an action."""
    changed = copy.deepcopy(document)
    block = changed["actionSets"][0]["actions"][action]["conditionalData"][0]
    block["data"] = [data for data in block["data"] if data.get("expression", {}).get("key") != key]
    block["data"].append({"expression": {"key": key, "value": expression}})
    return changed


def test_every_field_arrives(load: Load, document: Any, tmp_path: Path) -> None:
    document["actionSets"][0]["dialect"] = "gemini"
    config = load(document | ALL).config
    assert config.prices["gpt-4o"] == Price(input=2.5, output=10.0, cached=1.25, cache_write=0.0)
    assert (config.prices["*"].cached, config.prices["*"].cache_write) == (None, None)
    assert config.estimates.vocabulary == str(tmp_path / "vocab")
    assert (config.estimates.encoding, config.estimates.prompt, config.estimates.held) == ("cl100k_base", "text", 1)
    asked = config.include_usage
    assert (asked.enabled, asked.paths, asked.strip) == (True, ["/generate"], False)
    assert (asked.except_hosts, asked.except_models) == (["*.mistral.ai"], ["o1*"])
    assert (config.dialect, config.action_sets[0].dialect) == ("anthropic", "gemini")
    assert (config.metadata_namespace, config.bodies.text, config.bodies.buffer) == ("llm", 1, 2)


def test_nothing_has_to_be_written(load: Load, document: Any) -> None:
    """Nothing is edited, priced or read that nobody asked for; what is missing is estimated."""
    config = load(document).config
    assert (config.prices, config.dialect, config.metadata_namespace) == ({}, "auto", "extproc")
    assert (config.include_usage.enabled, config.estimates.prompt, config.estimates.vocabulary) == (False, "size", None)
    assert config.on_missing_usage == "estimate"
    assert config.bodies.text == 256 * 1024


@pytest.mark.parametrize("price", [0, 1, 0.15, 1e-9, 1e9, 10**9])
@pytest.mark.parametrize("field", ["input", "output", "cached", "cacheWrite"])
def test_prices_are_numbers_with_or_without_a_fraction(load: Load, document: Any, field: str, price: float) -> None:
    active = compiled(load, document | {"prices": {"m": {"input": 1, "output": 1, field: price}}})
    assert active.config.prices["m"].model_dump(by_alias=True)[field] == price


@pytest.mark.parametrize("text", ["prices: {m: {input: 0.15, output: 1}}", "prices: {m: {input: 15e-2, output: 1.0}}"])
def test_prices_in_yaml(text: str, tmp_path: Path) -> None:
    found = parse_config(f"services: {{}}\nactionSets: []\n{text}\n", name="c.yaml", base=tmp_path).config
    assert found.prices["m"].input == 0.15


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("prices", [], "prices: expected an object, found a list"),
        ("prices", {"m": 1}, "prices.m: expected an object, found 1 (integer)"),
        ("prices", {"m": {"input": 1}}, "prices.m.output: missing"),
        ("prices", {"m": {"input": "1", "output": 1}}, 'prices.m.input: expected a number, found "1" (string)'),
        ("prices", {"m": {"input": True, "output": 1}}, "prices.m.input: expected a number, found true (boolean)"),
        ("prices", {"m": {"input": None, "output": 1}}, "prices.m.input: expected a number, found null"),
        ("prices", {"m": {"input": -0.5, "output": 1}}, "prices.m.input: "),
        ("prices", {"m": {"input": 1, "output": 1e10}}, "prices.m.output: "),
        ("prices", {"m": {"input": 1, "output": 1, "cached": -1}}, "prices.m.cached: "),
        (
            "prices",
            {"m": {"input": 1, "output": 1, "cache_write": 1}},
            "prices.m.cache_write: unknown field, did you mean",
        ),
        ("prices", {"gpt-4*": {"input": 1}}, 'prices["gpt-4*"].output: missing'),
        ("estimates", {"prompt": "bytes"}, "estimates.prompt: unknown variant `bytes`, expected one of `size`, `text`"),
        ("estimates", {"held": 0}, "estimates.held: expected"),
        ("estimates", {"vocabulary": 1}, "estimates.vocabulary: expected a string, found 1 (integer)"),
        ("estimates", {"encodings": "x"}, "estimates.encodings: unknown field, did you mean `encoding`?"),
        ("includeUsage", True, "includeUsage: expected an object, found true (boolean)"),
        ("includeUsage", {"enabled": "yes"}, "includeUsage.enabled: expected `true` or `false`"),
        ("bodies", {"buffer": 0}, "bodies.buffer: expected"),
        ("bodies", {"buffer": 1.5}, "bodies.buffer: expected an integer"),
        ("includeUsage", {"exceptHosts": "api"}, "includeUsage.exceptHosts: expected a list"),
        ("includeUsage", {"exceptModels": [1]}, "includeUsage.exceptModels[0]: expected a string"),
        ("includeUsage", {"exceptHost": []}, "includeUsage.exceptHost: unknown field, did you mean `exceptHosts`?"),
        ("dialect", "openapi", "dialect: unknown variant `openapi`, expected one of `auto`, `openai`"),
        ("dialect", None, "dialect: expected one of"),
        ("metadataNamespace", "", "metadataNamespace: "),
        ("metadataNamespace", 1, "metadataNamespace: expected a string, found 1 (integer)"),
        ("bodies", {"text": 0}, "bodies.text: expected"),
        ("bodies", {"text": "1MB"}, "bodies.text: expected an integer"),
        ("onMissingUsage", {"fixed": -1}, "onMissingUsage.fixed: expected"),
        ("onMissingUsage", {"fixed": 2**32}, "onMissingUsage.fixed: expected"),
        ("onMissingUsage", {"fixed": 1, "estimate": True}, "onMissingUsage.estimate: unknown field"),
    ],
)
def test_one_fault_is_one_sentence(load: Load, document: Any, section: str, value: Any, message: str) -> None:
    """S0.D19."""
    (line,) = problems(load, document | {section: value})
    assert line.startswith(message)


def test_a_dialect_of_an_action_set(load: Load, document: Any) -> None:
    document["actionSets"][0]["dialect"] = "grok"
    (line,) = problems(load, document)
    assert line.startswith("actionSets[0].dialect: unknown variant `grok`, expected one of `auto`")


@pytest.mark.parametrize("expression", ["usage.tokens", "usage['tokens']", "usage.totalTokens + 1", "has(usage.total)"])
def test_an_unknown_field_of_usage_is_told_with_those_that_exist(load: Load, document: Any, expression: str) -> None:
    """A misspelt one would be an action that fails for every answer."""
    text = complaints(load, with_value(document, 1, "ratelimit.hits_addend", expression))
    assert "actionSets[0].actions[1].conditionalData[0].data[1].expression.value: unknown field `usage.to" in text
    for field in ("total_tokens", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "model"):
        assert field in text
    for field in ("cache_write_tokens", "source", "ending", "dialect", "cost"):
        assert field in text


@pytest.mark.parametrize(
    "expression",
    [
        "usage.total_tokens",
        "usage['total_tokens']",
        "[1, 2].map(usage, usage * 2)[0]",
        "{'usage': 1}.usage",
    ],
)
def test_what_only_looks_like_a_mistake_is_none(load: Load, document: Any, expression: str) -> None:
    assert warnings(load, with_value(document, 1, "ratelimit.hits_addend", expression)) == []


@pytest.mark.parametrize("predicate", ["usage.total_tokens > 1", "usage.model == 'm' || request.method == 'GET'"])
def test_a_route_cannot_wait_for_usage(load: Load, document: Any, predicate: str) -> None:
    document["actionSets"][0]["routeRuleConditions"]["predicates"] = [predicate]
    text = complaints(load, document)
    assert "actionSets[0].routeRuleConditions.predicates: a route is chosen before any body is known" in text


@pytest.mark.parametrize("place", ["data", "block", "action", "hits", "domain"])
def test_a_check_that_needs_usage_is_told_that_it_denies_nothing(load: Load, document: Any, place: str) -> None:
    """It counts when the answer is over."""
    action = document["actionSets"][0]["actions"][0]
    if place == "block":
        action["conditionalData"][0]["predicates"] = ["usage.total_tokens > 1"]
    elif place == "action":
        action["predicates"] = ["usage.total_tokens > 1"]
    else:
        key = {"data": "model", "hits": "ratelimit.hits_addend", "domain": "ratelimit.domain"}[place]
        document = with_value(document, 0, key, "usage.model")
    (warning,) = warnings(load, document)
    assert warning.startswith("actionSets[0].actions[0]: `ratelimit-check-service` needs the answer of the model")
    assert "can deny nothing" in warning


def test_a_report_that_needs_usage_is_nothing_to_warn_about(load: Load, document: Any) -> None:
    document["requestData"] = {"metrics.labels.model": "usage.model"}
    document["prices"] = {"*": {"input": 1, "output": 2}}
    assert warnings(load, with_value(document, 1, "ratelimit.hits_addend", "usage.cost")) == []


@pytest.mark.parametrize("prices", [{}, {"gpt-*": {"input": 1, "output": 2}}])
def test_a_cost_that_some_answers_lack_is_warned_about(load: Load, document: Any, prices: Any) -> None:
    """The action fails for the models without a price."""
    (warning,) = warnings(load, with_value(document | {"prices": prices}, 1, "ratelimit.hits_addend", "usage.cost"))
    assert warning.startswith(
        "actionSets[0].actions[1].conditionalData[0].data[1].expression.value: `usage.cost` is null"
    )


def test_the_fields_that_can_be_named_are_those_of_the_documentation() -> None:
    """Prices, estimates and the rest are sections of the configuration, camel case and all."""
    written = {field.alias for field in Config.model_fields.values()}
    assert {"prices", "estimates", "includeUsage", "dialect", "metadataNamespace", "onMissingUsage"} <= written
