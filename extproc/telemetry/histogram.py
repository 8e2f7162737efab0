"""Counts by bucket."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from prometheus_client.utils import floatToGoString


class Histogram:
    """How many values lie in which bucket, and their sum; one `observe` is a bisection and two additions.

    `bounds` are the buckets' upper bounds, rising; a value on a bound belongs to its bucket.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def __bool__(self) -> bool:
        """Whether there is anything in it."""
        return any(self.counts)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Upper bound and number of values up to it, as Prometheus wants them."""
        bounds = [*map(floatToGoString, self.bounds), "+Inf"]
        return [(bound, float(count)) for bound, count in zip(bounds, accumulate(self.counts), strict=True)]
