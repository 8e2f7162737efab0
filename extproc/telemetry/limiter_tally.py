"""What Limitador's own /metrics would say, of the embedded limiter (S1.11)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Protocol

from extproc.telemetry.exposition import Family, labels

AUTHORIZED_CALLS: Final = Family("authorized_calls", "Requests that the embedded limiter allowed.")
LIMITED_CALLS: Final = Family("limited_calls", "Requests that the embedded limiter refused.")
AUTHORIZED_HITS: Final = Family("authorized_hits", "Hits that the embedded limiter counted.")
REFUSALS: Final = Family("extproc_limit_refusals_total", "Requests that the embedded limiter refused, by limit.")


class LimiterTally(Protocol):
    """What is rendered; satisfied by extproc.limiter.tally.Tally."""

    @property
    def authorized_calls(self) -> Mapping[str, int]:
        """By namespace."""

    @property
    def limited_calls(self) -> Mapping[tuple[str, str], int]:
        """By namespace and limit, "" for one without a name."""

    @property
    def authorized_hits(self) -> Mapping[str, int]:
        """By namespace."""


def exposition(tally: LimiterTally, openmetrics: bool) -> Iterator[str]:
    """Limitador's counters without `limit_name`, as it has them unless told otherwise, and refusals by limit."""
    for family, counts in (
        (AUTHORIZED_CALLS, tally.authorized_calls.items()),
        (LIMITED_CALLS, ((namespace, refused) for (namespace, _), refused in tally.limited_calls.items())),
        (AUTHORIZED_HITS, tally.authorized_hits.items()),
    ):
        samples = _sums((labels(limitador_namespace=namespace), count) for namespace, count in counts)
        yield family.header(openmetrics) + family.lines(samples)
    refusals = _sums(
        (labels(namespace=namespace, limit=limit), count) for (namespace, limit), count in tally.limited_calls.items()
    )
    yield REFUSALS.header(openmetrics) + REFUSALS.lines(refusals)


def _sums(samples: Iterable[tuple[str, int]]) -> Iterable[tuple[str, int]]:
    """One sample for all whose labels look the same: Prometheus refuses a page with two."""
    sums: dict[str, int] = {}
    for looks, count in samples:
        sums[looks] = sums.get(looks, 0) + count
    return sums.items()
