"""The arithmetic of buckets (GCRA, the generic cell rate algorithm): a burst, then a steady pace.

A full bucket has `maximum` hits. What is taken flows back, `maximum` hits in `seconds`, while something is missing. A
bucket is kept as the hits that were `taken` at some moment. GCRA's theoretical arrival time would say the same, but
this loses no small hit to a clock of large numbers, and stays what it is when the maximum changes.
"""

from __future__ import annotations

from math import ceil, inf
from typing import Final, NamedTuple

MOST: Final = 2**53 - 1
"""Hits that are taken from a bucket at most, which may have lent most of them: what a float tells apart."""
TOLERANCE: Final = 2.0**-20
"""Of a hit: nobody asks for so little, and rounding takes less."""


class Pace(NamedTuple):
    """`maximum` hits at once, and as many in `seconds`."""

    maximum: int
    seconds: int

    def left(self, taken: float, elapsed: float) -> float:
        """Of hits that were `taken` those that have not flowed back after so many seconds; a clock may go back."""
        return max(0.0, taken - max(0.0, elapsed) * self.maximum / self.seconds)

    def takes(self, hits: float) -> float:
        """Seconds in which so many hits flow back."""
        return hits * self.seconds / self.maximum if self.maximum else inf


def whole(taken: float) -> int:
    """`taken` as it counts: a hit that has not flowed back whole is missing."""
    return max(0, ceil(taken - TOLERANCE))
