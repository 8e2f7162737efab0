"""What a page of metrics tells."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from extproc.telemetry.metrics import Metrics


def told(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """The series of the sample `name`: label values, in the order of the labels' names, to its value."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.render()[0].decode())
        for sample in family.samples
        if sample.name == name
    }
