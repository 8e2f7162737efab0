"""Numbers for Prometheus: plain integers on the hot path, turned into metrics when somebody scrapes.

Everything here belongs to the event loop's thread; nothing is locked. Label values are either one of the
`Literal`s below or names from configurations, of which a bounded number is told apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal, TypeVar, get_args

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from extproc import __version__
from extproc.telemetry import limiter_tally, nearness, spending_metrics
from extproc.telemetry.exposition import Family
from extproc.telemetry.genai import GenAiMetrics
from extproc.telemetry.guarding import GuardingMetrics
from extproc.telemetry.histogram import Histogram
from extproc.telemetry.limiter_tally import LimiterTally
from extproc.telemetry.names import bounded
from extproc.telemetry.nearness import LimitWatch
from extproc.telemetry.spending import Spending
from extproc.usage.usage import Ending as AnswerEnding
from extproc.usage.usage import Source, Usage

Ending = Literal[AnswerEnding, "denied", "unmatched"]
"""How an answer ended, or why the model was not asked or not ours to count."""
EstimateMethod = Literal["tokenizer", "bytes"]
ReportResult = Literal["sent", "dropped", "failed"]
Method = Literal["check", "report", "should_rate_limit", "refund"]
CallResult = Literal["ok", "over_limit", "unknown", "unreachable", "deadline", "refused", "nonsense"]
UnreadReason = Literal["too_large", "encoding", "corrupt", "not_sent"]
ReloadResult = Literal["ok", "rejected"]

BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Upper bounds in seconds; 20 ms is the default deadline of a service."""
MAX_ENDPOINTS: Final = 50
MAX_ACTION_SETS: Final = 500
"""Reloads can bring any number of names over time; those beyond are counted as one."""

_MAX_WAITING: Final = 256
"""Exchanges whose usage is not yet in the metrics by model; a scrape counts them all."""
_OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0"
_KUADRANT: Final = {
    "configs": "Configurations loaded.",
    "hits": "Requests that an action set matched.",
    "misses": "Requests that no action set matched.",
    "allowed": "Requests whose response headers came through.",
    "denied": "Requests that were answered with a denial.",
    "errors": "Failures while running actions.",
}

_ACTIVE: Final = Family("active_http_calls", "HTTP exchanges under way, as Plano calls them (S2.27).", "gauge")
_RATE_LIMITED: Final = Family("ratelimited_rq", "Requests over a prompt limit, as Plano calls them (S2.27).")

T = TypeVar("T")


class Metrics(Collector):
    """Everything this process counts. Add to the attributes, call the methods, `render` for a scrape.

    `configs` to `errors` are wasm-shim's counters under their own names, so that its dashboards keep working.
    `spending`, `tally` and `limits`, where they are given, are counted elsewhere and shown here too.
    """

    def __init__(
        self,
        version: str = __version__,
        spending: Spending | None = None,
        tally: LimiterTally | None = None,
        limits: LimitWatch | None = None,
    ) -> None:
        self.spending = spending
        self.tally = tally
        self.limits = limits
        self.configs = 0
        self.hits = 0
        self.misses = 0
        self.allowed = 0
        self.denied = 0
        self.errors = 0
        self.guarding = GuardingMetrics()
        self.exchanges_open = 0
        self.tokens_reported = 0
        """Sum of the hits addends of reports."""
        self.report_retries = 0
        self.reports_pending = 0
        self._version = version
        self._endings: dict[Ending, int] = dict.fromkeys(get_args(Ending), 0)
        self._sources: dict[Source, int] = dict.fromkeys(get_args(Source), 0)
        self._estimates: dict[EstimateMethod, int] = dict.fromkeys(get_args(EstimateMethod), 0)
        self._reports: dict[ReportResult, int] = dict.fromkeys(get_args(ReportResult), 0)
        self._unread: dict[UnreadReason, int] = dict.fromkeys(get_args(UnreadReason), 0)
        self._reloads: dict[ReloadResult, int] = dict.fromkeys(get_args(ReloadResult), 0)
        self._calls: dict[str, _Calls] = {}
        self._action_failures: dict[str, int] = {}
        self._genai = GenAiMetrics()
        self._used: list[tuple[Usage, str, float, float | None]] = []
        self._making: dict[bool, asyncio.Task[tuple[bytes, str]]] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def exchange_ended(self, ending: Ending) -> None:
        """An exchange is over; `exchanges_open` is the caller's to lower."""
        self._endings[ending] += 1

    @property
    def ended(self) -> int:
        """Exchanges that are over."""
        return sum(self._endings.values())

    @property
    def version(self) -> str:
        """What is running."""
        return self._version

    @property
    def sources(self) -> Mapping[Source, int]:
        """Exchanges by where their usage came from."""
        self._count_used()
        return self._sources

    @property
    def reports(self) -> Mapping[ReportResult, int]:
        """Reports that ended, by how."""
        return self._reports

    def used(self, usage: Usage, provider: str, seconds: float, first_token: float | None) -> None:
        """An exchange with an answer used `usage`; see `GenAiMetrics.used`.

        Among the work of a request that costs several times what it costs in a row with others, so it waits for them.
        """
        self._used.append((usage, provider, seconds, first_token))
        if len(self._used) >= _MAX_WAITING:
            self._count_used()

    def _count_used(self) -> None:
        for usage, provider, seconds, first_token in self._used:
            self._sources[usage.source] += 1
            self._genai.used(usage, provider, seconds, first_token)
        self._used.clear()

    def estimated(self, method: EstimateMethod) -> None:
        """Tokens that no model reported were counted in a text, or guessed from a size."""
        self._estimates[method] += 1

    def report_ended(self, result: ReportResult) -> None:
        """A report was taken by the limiter, had no room in the queue, or was given up."""
        self._reports[result] += 1

    def limiter_call(self, endpoint: str, method: Method, result: CallResult, seconds: float) -> None:
        """One attempt of a call to the limiter `endpoint` took `seconds`."""
        calls = self._calls_to(endpoint)
        calls.results[method][result] += 1
        calls.seconds[method].observe(seconds)

    def limiter_answers(self, endpoint: str) -> Mapping[Method, dict[CallResult, int]]:
        """Where a limiter that answers at once counts, by method and result."""
        return self._calls_to(endpoint).results

    def _calls_to(self, endpoint: str) -> _Calls:
        calls = self._calls.get(endpoint)
        if calls is None:
            calls = self._calls.setdefault(bounded(endpoint, self._calls, MAX_ENDPOINTS), _Calls())
        return calls

    def action_failed(self, action_set: str) -> None:
        """An action reached no decision, whatever its failure mode made of that."""
        action_set = bounded(action_set, self._action_failures, MAX_ACTION_SETS)
        self._action_failures[action_set] = self._action_failures.get(action_set, 0) + 1

    def body_unread(self, reason: UnreadReason) -> None:
        """A body that was wanted for its usage or data could not be read."""
        self._unread[reason] += 1

    def reloaded(self, result: ReloadResult) -> None:
        """A changed configuration was taken or rejected."""
        self._reloads[result] += 1

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type: OpenMetrics 1.0 when the `Accept` header names it, else text.

        OpenMetrics knows no counter without `_total`, so wasm-shim's have no type there.
        """
        pieces, content_type = self._exposition(accept)
        return b"".join(pieces), content_type

    async def page(self, accept: str = "") -> tuple[bytes, str]:
        """As `render`, with limits as they are now, and with turns for others in between: users may be many.

        Those who ask while a page is being made get that one: any number of scrapers cost as much as one.
        """
        openmetrics = "application/openmetrics-text" in accept
        making = self._making.get(openmetrics)
        if making is None or making.done():
            making = self._making[openmetrics] = asyncio.create_task(self._page(accept))
        return await asyncio.shield(making)

    async def _page(self, accept: str) -> tuple[bytes, str]:
        if self.limits is not None:
            await self.limits.look()
        written: list[bytes] = []
        pieces, content_type = self._exposition(accept)
        for piece in pieces:
            written.append(piece)
            await asyncio.sleep(0)
        return b"".join(written), content_type

    def _exposition(self, accept: str) -> tuple[Iterator[bytes], str]:
        openmetrics = "application/openmetrics-text" in accept
        encode, content_type = choose_encoder(_OPENMETRICS if openmetrics else "")

        def pieces() -> Iterator[bytes]:
            for text in self._written(openmetrics):
                yield text.encode()
            yield encode(self._registry)

        return pieces(), content_type

    def _written(self, openmetrics: bool) -> Iterator[str]:
        """What is not made by prometheus_client; its text comes last, because it ends OpenMetrics."""
        for name, about in _KUADRANT.items():
            family = Family(f"kuadrant_{name}", about)
            yield family.header(openmetrics) + family.lines([("", float(getattr(self, name)))])
        for family, value in ((_ACTIVE, self.exchanges_open), (_RATE_LIMITED, self.guarding.prompts_limited)):
            yield family.header(openmetrics) + family.lines([("", float(value))])
        if self.tally is not None:
            yield from limiter_tally.exposition(self.tally, openmetrics)
        if self.limits is not None:
            yield from nearness.exposition(self.limits.last, openmetrics)
        if self.spending is not None:
            yield from spending_metrics.exposition(self.spending, openmetrics)

    def collect(self) -> Iterable[Metric]:
        """Ours, for prometheus_client."""
        self._count_used()
        yield _gauge("exchanges_open", "HTTP exchanges under way.", self.exchanges_open)
        yield _counter("exchanges", "HTTP exchanges that ended, by how.", "ending", self._endings)
        yield _counter("usage", "Exchanges by where their token usage came from.", "source", self._sources)
        yield _counter("estimates", "Estimates of tokens, by how they were made.", "method", self._estimates)
        yield from self._genai.collect()
        yield _total("tokens_reported", "Tokens reported to limiters (hits addends).", self.tokens_reported)
        yield _counter("reports", "Reports that ended, by how.", "result", self._reports)
        yield _total("report_retries", "Reports tried again.", self.report_retries)
        yield _gauge("reports_pending", "Reports under way.", self.reports_pending)
        yield from self._limiter_calls()
        yield from self.guarding.collect()
        yield _counter("action_failures", "Actions without a decision.", "action_set", self._action_failures)
        yield _counter("body_unread", "Bodies that could not be read, by why.", "reason", self._unread)
        yield _counter("reloads", "Changed configurations, by outcome.", "result", self._reloads)
        yield InfoMetricFamily("extproc_build", "What is running.", value={"version": self._version})

    def _limiter_calls(self) -> Iterable[Metric]:
        calls = CounterMetricFamily(
            "extproc_limiter_calls",
            "Calls to limiters, by outcome.",
            labels=("endpoint", "method", "result"),
        )
        seconds = HistogramMetricFamily(
            "extproc_limiter_seconds", "Duration of calls to limiters.", labels=("endpoint", "method")
        )
        for endpoint, made in self._calls.items():
            for method, results in made.results.items():
                if not any(results.values()):
                    continue
                for result, count in results.items():
                    calls.add_metric((endpoint, method, result), count)
                histogram = made.seconds[method]
                if histogram:
                    seconds.add_metric((endpoint, method), histogram.cumulative(), histogram.total)
        yield calls
        yield seconds


class _Calls:
    """What one endpoint was asked."""

    __slots__ = ("results", "seconds")

    def __init__(self) -> None:
        self.results: dict[Method, dict[CallResult, int]] = {
            method: dict.fromkeys(get_args(CallResult), 0) for method in get_args(Method)
        }
        self.seconds: dict[Method, Histogram] = {method: Histogram(BUCKETS) for method in get_args(Method)}


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(f"extproc_{name}", about, value=value)


def _total(name: str, about: str, value: float) -> Metric:
    return CounterMetricFamily(f"extproc_{name}", about, value=value)


def _counter(name: str, about: str, label: str, values: Mapping[T, int]) -> Metric:
    family = CounterMetricFamily(f"extproc_{name}", about, labels=(label,))
    for key, value in values.items():
        family.add_metric((str(key),), value)
    return family
