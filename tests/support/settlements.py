"""What exchanges came to: the reports that arrived, and what the metrics say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from extproc.server import Server
from support.limiters import REPORT, ScriptedLimiter
from support.waiting import until

_ENDINGS, _SOURCES, _REPORTS = "extproc_exchanges_total", "extproc_usage_total", "extproc_reports_total"
Sample = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class Settlement:
    """What happened since the last look. Counts that are 0 are left out of the mappings."""

    hits: tuple[int, ...]
    """Of each report, as the limiter received it."""
    endings: Mapping[str, int]
    sources: Mapping[str, int]
    reports: Mapping[str, int]


class Settlements:
    """Looks at one server and its limiter: `await settlements.next()`."""

    def __init__(self, server: Server, limiter: ScriptedLimiter) -> None:
        self._server = server
        self._limiter = limiter
        self._samples = self._look()
        self._reports = len(limiter.of(REPORT))

    async def next(self, exchanges: int = 1) -> Settlement:
        """Wait until so many more exchanges are over and no report is under way, and say what came of them."""
        metrics = self._server.metrics
        due = exchanges + sum(value for (name, _), value in self._samples.items() if name == _ENDINGS)
        await until(lambda: metrics.ended >= due and not metrics.exchanges_open and not metrics.reports_pending)
        now = self._look()
        hits = tuple(call.request.hits_addend for call in self._limiter.of(REPORT))[self._reports :]
        found = Settlement(
            hits,
            self._since(now, _ENDINGS, "ending"),
            self._since(now, _SOURCES, "source"),
            self._since(now, _REPORTS, "result"),
        )
        self._samples = now
        self._reports += len(hits)
        return found

    def _look(self) -> dict[Sample, float]:
        return samples(self._server.metrics.render()[0].decode())

    def _since(self, now: Mapping[Sample, float], name: str, label: str) -> dict[str, int]:
        changed = {
            dict(labels)[label]: int(value - self._samples.get((sample, labels), 0))
            for (sample, labels), value in now.items()
            if sample == name
        }
        return {key: value for key, value in changed.items() if value}


def samples(page: str) -> dict[Sample, float]:
    """A metrics page: name and labels -> value."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
