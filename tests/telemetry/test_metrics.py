"""What a dashboard or an alert relies on in /metrics."""

from __future__ import annotations

import asyncio
from typing import get_args

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from extproc.telemetry import metrics as module
from extproc.telemetry.metrics import Metrics
from extproc.telemetry.names import OTHER
from extproc.usage.usage import Source, Usage

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
WASM_SHIM = ("configs", "hits", "misses", "allowed", "denied", "errors")


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Sample name and label values, in the order of the labels' names, to its value."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in parse_text(metrics.render()[0].decode())
        for sample in family.samples
    }


@pytest.mark.parametrize("name", WASM_SHIM)
def test_counters_of_wasm_shim_keep_their_names(name: str) -> None:
    """S0.18: type counter, and no `_total` that would empty existing dashboards."""
    metrics = Metrics()
    setattr(metrics, name, 3)
    text = metrics.render()[0].decode()
    for other in WASM_SHIM:
        value = 3.0 if other == name else 0.0
        assert f"# TYPE kuadrant_{other} counter\nkuadrant_{other} {value}\n" in text
        assert f"# HELP kuadrant_{other} " in text
    assert f"kuadrant_{name}_total" not in text
    parsed = {family.name: family.type for family in parse_text(text)}
    assert parsed[f"kuadrant_{name}"] == "counter"


@pytest.mark.parametrize("name", WASM_SHIM)
def test_openmetrics_has_the_same_sample_names(name: str) -> None:
    """S0.18: Prometheus asks for OpenMetrics first; the series must not change with it."""
    metrics = Metrics()
    setattr(metrics, name, 3)
    body, content_type = metrics.render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    found = {sample.name: sample.value for family in parse_openmetrics(body.decode()) for sample in family.samples}
    assert found[f"kuadrant_{name}"] == 3


@pytest.mark.parametrize(
    ("attribute", "sample"),
    [
        ("exchanges_open", "extproc_exchanges_open"),
        ("tokens_reported", "extproc_tokens_reported_total"),
        ("report_retries", "extproc_report_retries_total"),
        ("reports_pending", "extproc_reports_pending"),
    ],
)
def test_plain_numbers(attribute: str, sample: str) -> None:
    metrics = Metrics()
    assert samples(metrics)[(sample,)] == 0
    setattr(metrics, attribute, 7)
    assert samples(metrics)[(sample,)] == 7


@pytest.mark.parametrize(
    ("method", "sample", "labels"),
    [
        ("exchange_ended", "extproc_exchanges_total", module.Ending),
        ("estimated", "extproc_estimates_total", module.EstimateMethod),
        ("report_ended", "extproc_reports_total", module.ReportResult),
        ("body_unread", "extproc_body_unread_total", module.UnreadReason),
        ("reloaded", "extproc_reloads_total", module.ReloadResult),
    ],
)
def test_labelled_counters_start_at_zero_and_move_alone(method: str, sample: str, labels: object) -> None:
    """S0.15, S0.D5, S0.D16: an alert on `increase()` needs the series before the first event."""
    names = get_args(labels)
    for name in names:
        metrics = Metrics()
        getattr(metrics, method)(name)
        getattr(metrics, method)(name)
        found = samples(metrics)
        assert [found[(sample, other)] for other in names] == [2.0 if other == name else 0.0 for other in names]


@pytest.mark.parametrize("method", ["exchange_ended", "estimated", "report_ended", "body_unread", "reloaded"])
def test_unknown_label_value_makes_no_series(method: str) -> None:
    metrics = Metrics()
    with pytest.raises(KeyError):
        getattr(metrics, method)("surprise")
    assert "surprise" not in metrics.render()[0].decode()


def test_limiter_calls_are_counted_and_timed() -> None:
    metrics = Metrics()
    metrics.limiter_call("limitador", "check", "ok", 0.0004)
    metrics.limiter_call("limitador", "check", "over_limit", 0.02)
    metrics.limiter_call("limitador", "check", "deadline", 5.0)
    metrics.limiter_call("limitador", "report", "ok", 0.001)
    found = samples(metrics)
    for method, result, count in (
        ("check", "ok", 1),
        ("check", "over_limit", 1),
        ("check", "deadline", 1),
        ("check", "unreachable", 0),
        ("report", "ok", 1),
    ):
        assert found[("extproc_limiter_calls_total", "limitador", method, result)] == count
    assert ("extproc_limiter_calls_total", "limitador", "should_rate_limit", "ok") not in found
    bucket = "extproc_limiter_seconds_bucket"
    for bound, count in (("0.0005", 1), ("0.01", 1), ("0.02", 2), ("1.0", 2), ("+Inf", 3)):
        assert found[(bucket, "limitador", bound, "check")] == count
    assert found[("extproc_limiter_seconds_count", "limitador", "check")] == 3
    assert found[("extproc_limiter_seconds_sum", "limitador", "check")] == pytest.approx(5.0204)


@pytest.mark.parametrize("ending", ["complete", "client_gone", "upstream_cut", "error", "denied", "unmatched"])
def test_exchanges_are_counted_by_every_ending(ending: module.Ending) -> None:
    metrics = Metrics()
    metrics.exchange_ended(ending)
    assert samples(metrics)[("extproc_exchanges_total", ending)] == metrics.ended == 1


@pytest.mark.parametrize("source", ["reported", "estimated", "fixed", "none"])
def test_exchanges_are_counted_by_who_told_their_usage(source: Source) -> None:
    """S0.D5: the series are there before the first exchange."""
    metrics = Metrics()
    assert samples(metrics)[("extproc_usage_total", source)] == 0
    metrics.used(Usage(source=source), "openai", 1.0, None)
    found = samples(metrics)
    sources = {other: found[("extproc_usage_total", other)] for other in get_args(Source)}
    assert sources == {other: float(other == source) for other in get_args(Source)}


def test_names_from_reloads_do_not_pile_up() -> None:
    metrics = Metrics()
    for number in range(module.MAX_ACTION_SETS + 10):
        metrics.action_failed(f"set-{number}")
        metrics.limiter_call(f"endpoint-{number}", "check", "ok", 0.001)
    metrics.action_failed("set-0")
    found = samples(metrics)
    assert found[("extproc_action_failures_total", "set-0")] == 2
    assert found[("extproc_action_failures_total", OTHER)] == 10
    beyond = module.MAX_ACTION_SETS + 10 - module.MAX_ENDPOINTS
    assert found[("extproc_limiter_calls_total", OTHER, "check", "ok")] == beyond
    endpoints = {key[1] for key in found if key[0] == "extproc_limiter_calls_total"}
    assert len(endpoints) == module.MAX_ENDPOINTS + 1


def test_awkward_names_survive_the_exposition() -> None:
    metrics = Metrics()
    name = 'ns/route "a"\\b\né'
    metrics.action_failed(name)
    metrics.limiter_call(name, "check", "ok", 0.001)
    assert samples(metrics)[("extproc_action_failures_total", name)] == 1
    openmetrics = metrics.render(OPENMETRICS)[0].decode()
    assert any(
        sample.labels.get("action_set") == name
        for family in parse_openmetrics(openmetrics)
        for sample in family.samples
    )


def test_build_process_and_garbage_collection() -> None:
    found = samples(Metrics(version="1.2.3"))
    assert found[("extproc_build_info", "1.2.3")] == 1
    names = {key[0] for key in found}
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"} <= names
    assert {"python_gc_collections_total", "python_info"} <= names


def test_every_metric_is_explained_once() -> None:
    text = Metrics().render()[0].decode()
    helps = [line.split(" ", 3) for line in text.splitlines() if line.startswith("# HELP ")]
    assert len({parts[2] for parts in helps}) == len(helps)
    assert all(len(parts) == 4 and parts[3] for parts in helps)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain"),
        ("*/*", "text/plain"),
        ("text/plain;version=0.0.4", "text/plain"),
        ("application/openmetrics-text", "application/openmetrics-text"),
        ("application/openmetrics-text; version=nonsense; escaping=nonsense", "application/openmetrics-text"),
        (OPENMETRICS, "application/openmetrics-text"),
    ],
)
def test_content_negotiation(accept: str, kind: str) -> None:
    body, content_type = Metrics().render(accept)
    assert content_type.startswith(f"{kind}; version=")
    assert body.endswith(b"# EOF\n") == (kind != "text/plain")


def test_two_instances_do_not_share() -> None:
    one, two = Metrics(), Metrics()
    one.hits += 1
    one.exchange_ended("complete")
    found = samples(two)
    assert "kuadrant_hits 0.0" in two.render()[0].decode()
    assert found[("extproc_exchanges_total", "complete")] == 0


async def test_any_number_of_scrapers_cost_as_much_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that many ask for at a time is made once: with many users it takes a while."""
    metrics = Metrics()
    made: list[str] = []
    collect = metrics.collect

    def noted() -> object:
        made.append("page")
        return collect()

    monkeypatch.setattr(metrics, "collect", noted)
    pages = await asyncio.gather(*(metrics.page() for _ in range(50)))
    assert len({page for page, _ in pages}) == 1
    assert made == ["page"]
    metrics.hits += 1
    assert b"kuadrant_hits 1.0" in (await metrics.page())[0]
