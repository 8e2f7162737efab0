"""Tokens, money and times by model, as a dashboard made for OpenTelemetry's GenAI conventions expects them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from support.exposition import told

from extproc.telemetry import genai
from extproc.telemetry.histogram import Histogram
from extproc.telemetry.metrics import Metrics
from extproc.telemetry.names import OTHER, printable
from extproc.usage.usage import Ending, Source, Usage

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
FIRST = "gen_ai_server_time_to_first_token_seconds"
EACH = "gen_ai_server_time_per_output_token_seconds"
WHOLE = "gen_ai_server_request_duration_seconds"
TOKENS = "gen_ai_client_token_usage"


def usage(model: str = "gpt-4o", **fields: Any) -> Usage:
    return Usage(model=model, **{"source": "reported", "dialect": "openai", **fields})


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        (TOKENS, [1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864]),
        (FIRST, [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]),
        (EACH, [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5]),
        (WHOLE, [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]),
    ],
)
def test_buckets_are_those_of_the_conventions(name: str, bounds: list[float]) -> None:
    """https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/"""
    metrics = Metrics()
    metrics.used(usage(prompt_tokens=5, completion_tokens=5), "openai", 3.0, 1.0)
    body, _ = metrics.render(OPENMETRICS)
    (family,) = [each for each in parse_openmetrics(body.decode()) if each.name == name]
    found = {float(sample.labels["le"]) for sample in family.samples if sample.name.endswith("_bucket")}
    assert sorted(found) == [*bounds, float("inf")]
    assert family.unit == ("seconds" if name.endswith("_seconds") else "")


def test_a_value_on_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram((1.0, 4.0))
    for value in (0, 1, 1.5, 4, 5):
        histogram.observe(value)
    assert histogram.cumulative() == [("1.0", 2), ("4.0", 4), ("+Inf", 5)]
    assert histogram.total == 11.5


def test_tokens_are_counted_by_model_direction_and_source() -> None:
    metrics = Metrics()
    used = usage(prompt_tokens=100, completion_tokens=50, total_tokens=150, cached_tokens=20, reasoning_tokens=30)
    metrics.used(used, "openai", 1.0, None)
    metrics.used(used, "openai", 1.0, None)
    metrics.used(used, "azure.ai.openai", 1.0, None)
    metrics.used(used._replace(source="estimated", prompt_tokens=7), "openai", 1.0, None)
    found = told(metrics, "extproc_tokens_total")
    assert {key[0]: value for key, value in found.items() if key[2] == "reported"} == {
        "input": 300,
        "output": 150,
        "cached": 60,
        "cache_write": 0,
        "reasoning": 90,
    }
    assert found[("input", "gpt-4o", "estimated")] == 7


def test_token_usage_is_a_histogram_by_type() -> None:
    metrics = Metrics()
    metrics.used(usage(prompt_tokens=100, completion_tokens=5), "openai", 1.0, None)
    assert told(metrics, f"{TOKENS}_sum") == {("openai", "gpt-4o", "input"): 100, ("openai", "gpt-4o", "output"): 5}
    buckets = told(metrics, f"{TOKENS}_bucket")
    assert buckets[("openai", "gpt-4o", "input", "64.0")] == 0
    assert buckets[("openai", "gpt-4o", "input", "256.0")] == 1


@pytest.mark.parametrize("source", ["none", "fixed"])
def test_tokens_that_nobody_counted_are_no_tokens(source: Source) -> None:
    metrics = Metrics()
    metrics.used(usage(source=source, total_tokens=500), "openai", 1.0, None)
    assert told(metrics, f"{TOKENS}_count") == told(metrics, "extproc_tokens_total") == {}


def test_cost_adds_up_and_is_absent_without_prices() -> None:
    metrics = Metrics()
    metrics.used(usage("free"), "", 1.0, None)
    for provider in ("openai", "azure.ai.openai"):
        metrics.used(usage(cost=12), provider, 1.0, None)
    metrics.used(usage(cost=None), "openai", 1.0, None)
    metrics.used(usage("gift", cost=0), "openai", 1.0, None)
    assert told(metrics, "extproc_cost_total") == {("gpt-4o",): 24, ("gift",): 0}


@pytest.mark.parametrize(
    ("ending", "first_token", "output", "firsts", "per_token"),
    [
        ("complete", 0.5, 11, 0.5, 0.25),
        ("complete", 0.5, 2, 0.5, 2.5),
        ("complete", 0.5, 1, 0.5, None),
        ("complete", 0.5, 0, 0.5, None),
        ("complete", None, 11, None, None),
        ("client_gone", 0.5, 11, 0.5, None),
        ("upstream_cut", 0.5, 11, 0.5, None),
        ("error", 0.5, 11, None, None),
        ("complete", 4.0, 11, 4.0, 0.0),
    ],
)
def test_times_of_tokens_are_those_of_streams_that_went_well(
    ending: Ending, first_token: float | None, output: int, firsts: float | None, per_token: float | None
) -> None:
    """The rest of the duration after the first token, by the number of the other tokens."""
    metrics = Metrics()
    metrics.used(usage(completion_tokens=output, ending=ending), "openai", 3.0, first_token)
    key = ("openai", "gpt-4o")
    assert told(metrics, f"{FIRST}_sum").get(key) == firsts
    assert told(metrics, f"{EACH}_sum").get(key) == per_token
    assert told(metrics, f"{WHOLE}_sum") == {("" if ending == "complete" else ending, *key): 3.0}


class TestNames:
    """S4.D8: anybody can make up a model."""

    def test_a_hundred_models_are_told_apart(self) -> None:
        metrics = Metrics()
        for number in range(genai.MAX_MODELS + 50):
            for provider in ("openai", ""):
                metrics.used(usage(f"model-{number}", prompt_tokens=1, cost=1), provider, 1.0, None)
        metrics.used(usage("model-0", prompt_tokens=1, cost=1), "openai", 1.0, None)
        cost = told(metrics, "extproc_cost_total")
        assert len(cost) == genai.MAX_MODELS + 1
        assert {model for _, model, _ in told(metrics, "extproc_tokens_total")} == {model for (model,) in cost}
        assert (cost[(OTHER,)], cost[("model-0",)], cost[("model-99",)]) == (100, 3, 2)
        assert len(told(metrics, f"{TOKENS}_count")) == 2 * (genai.MAX_MODELS + 1)

    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("gpt-4o", "gpt-4o"),
            ("", ""),
            ('"quoted"\\', '"quoted"\\'),
            ("a\nb\x00\x1b[31m", "a?b??[31m"),
            ("\ud800", "?"),
            ("m" * 1_000_000, "m" * 128),
        ],
    )
    def test_a_name_can_be_shown(self, name: str, shown: str) -> None:
        metrics = Metrics()
        metrics.used(usage(name, prompt_tokens=1, cost=3), "openai", 1.0, None)
        metrics.used(usage(name, prompt_tokens=1, cost=3), "openai", 1.0, None)
        assert told(metrics, "extproc_cost_total") == {(shown,): 6}
        assert list(parse_openmetrics(metrics.render(OPENMETRICS)[0].decode()))

    @given(st.text(st.characters(exclude_categories=[])))
    def test_any_name_can_be_encoded(self, name: str) -> None:
        shown = printable(name)
        assert shown.isprintable()
        assert len(shown) == min(len(name), 128)
        assert shown.encode().decode() == printable(shown) == shown
