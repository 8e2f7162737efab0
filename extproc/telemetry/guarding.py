"""Numbers of guards and providers: what was refused by which rule, how long guards took, who got the requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal, TypeVar

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric

from extproc.telemetry.histogram import Histogram
from extproc.telemetry.names import bounded, printable

Labels = TypeVar("Labels", bound=tuple[str, ...])
Subject = Literal["request", "answer"]
BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds; 10 s is the default deadline of a guard."""
MAX_NAMES: Final = 200
"""Guards and providers told apart: reloads can bring any number over time."""
MAX_RULES: Final = 2000


class GuardingMetrics:
    """Confined to the event loop, as all of `Metrics`."""

    def __init__(self) -> None:
        self.prompts_limited = 0
        """Requests over a prompt limit."""
        self._verdicts: dict[tuple[str, str, str, str], int] = {}
        self._denied: dict[tuple[str, str, str], int] = {}
        self._seconds: dict[str, Histogram] = {}
        self._tokens: dict[str, int] = {}
        self._providers: dict[str, int] = {}

    def judged(self, guard: str, subject: Subject, outcome: str, *, enforced: bool) -> None:
        """A guard gave a verdict on a request or an answer, or there was none for the reason `outcome`."""
        guard = self._guard(guard)
        key = (guard, subject, outcome, _mode(enforced))
        self._verdicts[key] = self._verdicts.get(key, 0) + 1

    def took(self, guard: str, seconds: float, tokens: int) -> None:
        """A guard was at work for so long, and took tokens of a model."""
        guard = self._guard(guard)
        self._seconds[guard].observe(seconds)
        self._tokens[guard] += tokens

    def denied(self, guard: str, rule: str, *, enforced: bool) -> None:
        """Something was refused by a rule of a guard, or would have been."""
        key = (self._guard(guard), printable(rule), _mode(enforced))
        if key not in self._denied and len(self._denied) >= MAX_RULES:
            key = (key[0], "(other)", key[2])
        self._denied[key] = self._denied.get(key, 0) + 1

    def routed(self, provider: str) -> None:
        """A provider was chosen for a request."""
        provider = bounded(provider, self._providers, MAX_NAMES)
        self._providers[provider] = self._providers.get(provider, 0) + 1

    def _guard(self, name: str) -> str:
        name = bounded(name, self._seconds, MAX_NAMES)
        if name not in self._seconds:
            self._seconds[name] = Histogram(BUCKETS)
            self._tokens[name] = 0
        return name

    def collect(self) -> Iterable[Metric]:
        """For prometheus_client."""
        yield _counter(
            "extproc_guard_verdicts",
            "Verdicts of guards, and why there was none.",
            ("guard", "subject", "outcome", "mode"),
            self._verdicts,
        )
        about = "Requests and answers refused by guards, by rule; with mode `shadow` they passed (S3.D14)."
        yield _counter("guard_denied", about, ("guard", "rule", "mode"), self._denied)
        seconds = HistogramMetricFamily("extproc_guard_seconds", "How long guards took.", labels=("guard",))
        for guard, histogram in self._seconds.items():
            seconds.add_metric((guard,), histogram.cumulative(), histogram.total)
        yield seconds
        tokens = {(guard,): count for guard, count in self._tokens.items()}
        yield _counter("extproc_guard_tokens", "Tokens that guards took themselves.", ("guard",), tokens)
        providers = {(provider,): count for provider, count in self._providers.items()}
        yield _counter("extproc_routed", "Requests by the provider that was chosen.", ("provider",), providers)


def _mode(enforced: bool) -> str:
    return "enforce" if enforced else "shadow"


def _counter(name: str, about: str, labels: tuple[str, ...], values: Mapping[Labels, int]) -> Metric:
    family = CounterMetricFamily(name, about, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
