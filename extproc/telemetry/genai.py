"""Tokens and times by model, under the names of OpenTelemetry's conventions where those have one.

Names, buckets and attributes are those of https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/
(status: development). Two attributes differ: `gen_ai.operation.name` is left out, because an answer does not tell
chat from completion in every dialect, and `gen_ai.response.model` is the requested model where an answer names none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, get_args

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric

from extproc.telemetry.histogram import Histogram
from extproc.telemetry.names import bounded, printable
from extproc.usage.usage import Ending, Source, Usage

MAX_MODELS: Final = 100
"""Models told apart: their names come from answers and clients (S4.D8)."""

TOKENS: Final = tuple(4.0**power for power in range(14))
FIRST_TOKEN: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
DURATION: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)

_DIRECTIONS: Final = ("input", "output", "cached", "cache_write", "reasoning")
_MODEL: Final = ("gen_ai_provider_name", "gen_ai_response_model")


class _Series:
    """What one model of one provider did."""

    __slots__ = ("cost", "durations", "first_token", "input", "output", "per_token", "tokens")

    def __init__(self) -> None:
        self.tokens: dict[Source, list[int]] = {source: [0] * len(_DIRECTIONS) for source in get_args(Source)}
        self.cost: int | None = None
        self.input = Histogram(TOKENS)
        self.output = Histogram(TOKENS)
        self.first_token = Histogram(FIRST_TOKEN)
        self.per_token = Histogram(PER_TOKEN)
        self.durations: dict[Ending, Histogram] = {ending: Histogram(DURATION) for ending in get_args(Ending)}


class GenAiMetrics:
    """Everything that is counted by model."""

    def __init__(self) -> None:
        self._models: set[str] = set()
        self._series: dict[tuple[str, str], _Series] = {}

    def used(self, usage: Usage, provider: str, seconds: float, first_token: float | None) -> None:
        """One exchange took `seconds`, of a stream `first_token` until there was something of the answer.

        `provider` is one of a bounded number, "" when it is not known.
        """
        series = self._series.get((usage.model, provider)) or self._series_of(usage.model, provider)
        prompt, completion, _, cached, written, reasoning, _, source, ending, _, cost = usage
        tokens = series.tokens[source]
        tokens[0] += prompt
        tokens[1] += completion
        tokens[2] += cached
        tokens[3] += written
        tokens[4] += reasoning
        if cost is not None:
            series.cost = cost + (series.cost or 0)
        if prompt:
            series.input.observe(prompt)
        if completion:
            series.output.observe(completion)
        series.durations[ending].observe(seconds)
        if first_token is not None and ending != "error":
            series.first_token.observe(first_token)
            if completion > 1 and ending == "complete":
                series.per_token.observe(max(0.0, seconds - first_token) / (completion - 1))

    def _series_of(self, model: str, provider: str) -> _Series:
        name = bounded(printable(model), self._models, MAX_MODELS)
        series = self._series.get((name, provider))
        if series is None:
            self._models.add(name)
            series = self._series[name, provider] = _Series()
        return series

    def collect(self) -> Iterable[Metric]:
        """For prometheus_client. Series without a value are left out."""
        yield self._tokens_by_model()
        yield self._cost_by_model()
        yield self._usage()
        yield self._seconds(
            "time_to_first_token", "Time until a stream had something of its answer.", lambda series: series.first_token
        )
        yield self._seconds(
            "time_per_output_token",
            "Time per output token of a stream after the first.",
            lambda series: series.per_token,
        )
        yield self._durations()

    def _tokens_by_model(self) -> Metric:
        sums: dict[tuple[str, str, str], int] = {}
        for (model, _), series in self._series.items():
            for source, tokens in series.tokens.items():
                if not any(tokens):
                    continue
                for direction, count in zip(_DIRECTIONS, tokens, strict=True):
                    key = (model, direction, source)
                    sums[key] = sums.get(key, 0) + count
        family = CounterMetricFamily(
            "extproc_tokens",
            "Tokens of answers; cached ones are among the input, reasoning among the output.",
            labels=("model", "direction", "source"),
        )
        for labels, count in sums.items():
            family.add_metric(labels, count)
        return family

    def _cost_by_model(self) -> Metric:
        sums: dict[str, int] = {}
        for (model, _), series in self._series.items():
            if series.cost is not None:
                sums[model] = sums.get(model, 0) + series.cost
        family = CounterMetricFamily(
            "extproc_cost", "Cost of answers in millionths of the prices' currency.", labels=("model",)
        )
        for model, millionths in sums.items():
            family.add_metric((model,), millionths)
        return family

    def _usage(self) -> Metric:
        family = HistogramMetricFamily(
            "gen_ai_client_token_usage",
            "Number of input and output tokens used.",
            labels=(*_MODEL, "gen_ai_token_type"),
        )
        for (model, provider), series in self._series.items():
            _add(family, (provider, model, "input"), series.input)
            _add(family, (provider, model, "output"), series.output)
        return family

    def _seconds(self, name: str, about: str, histogram_of: Callable[[_Series], Histogram]) -> Metric:
        family = HistogramMetricFamily(f"gen_ai_server_{name}", about, labels=_MODEL, unit="seconds")
        for (model, provider), series in self._series.items():
            _add(family, (provider, model), histogram_of(series))
        return family

    def _durations(self) -> Metric:
        """An answer that was not complete says how it ended in place of an error."""
        family = HistogramMetricFamily(
            "gen_ai_server_request_duration",
            "Time from the request to the last byte of the answer.",
            labels=(*_MODEL, "error_type"),
            unit="seconds",
        )
        for (model, provider), series in self._series.items():
            for ending, histogram in series.durations.items():
                _add(family, (provider, model, "" if ending == "complete" else ending), histogram)
        return family


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram) -> None:
    if histogram:
        family.add_metric(labels, histogram.cumulative(), histogram.total)
