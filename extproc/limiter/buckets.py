"""Buckets in memory: the columns of limits with `algorithm: gcra`."""

from __future__ import annotations

from array import array
from math import inf

from extproc.limiter.gcra import MOST, Pace, whole
from extproc.limiter.limits import CompiledLimit
from extproc.limiter.rows import Column
from extproc.limiter.seam import Quota


class Buckets(Column):
    """The buckets of one limit: the hits `taken` from each as it was `at` a time. One that is full is over.

    One whose maximum falls is still over when it would have been: what was taken flows back no later for it.
    """

    __slots__ = ("at", "pace", "taken")

    def renew(self, rows: int) -> None:
        """As Column's."""
        super().renew(rows)
        self.taken = array("d", bytes(8 * rows))
        self.at = array("d", bytes(8 * rows))
        self.numbers = (self.taken, self.at)

    def serve(self, limit: CompiledLimit) -> None:
        """As Column's."""
        super().serve(limit)
        self.pace = Pace(limit.max_value, limit.window.seconds)

    def count(self, row: int, now: float) -> int:
        """As Column's; 0 of one that is over."""
        return whole(self._missing(row, now))

    def resets_in(self, row: int, now: float) -> float:
        """As Column's."""
        return min(self.pace.takes(self._missing(row, now)), self.ends[row] - now)

    def fits(self, row: int | None, hits: int, now: float) -> bool:
        """Whether so many hits are there: never more than the maximum."""
        return (0 if row is None else self.count(row, now)) + hits <= self.maximum

    def take(self, row: int, hits: int, now: float) -> None:
        """Take hits, also those that are not there: the bucket lends them. One for 0 hits has nothing to lend."""
        if self.maximum:
            self._leave(row, min(self._missing(row, now) + hits, MOST), now)

    def quota(self, row: int | None, hits: int, now: float, wall: float) -> Quota:
        """As Column's: of hits that do not fit, when they will; else when the bucket is full."""
        limit, maximum = self.limit, self.maximum
        taken = 0.0 if row is None else self._missing(row, now)
        resets_in = inf if hits > maximum else max(0.0, self.pace.takes(taken - maximum + (hits or maximum)))
        return Quota(limit.label, maximum, max(0, maximum - whole(taken)), resets_in, limit.window.seconds)

    def give_back(self, row: int, hits: int, age: float, now: float, wall: float) -> None:
        """As Column's, however long ago: a bucket does not start anew. It is not more than full afterwards."""
        if self.maximum and self.ends[row] > now:
            self._leave(row, max(0.0, self._missing(row, now) - hits), now)

    def _missing(self, row: int, now: float) -> float:
        return self.pace.left(self.taken[row], now - self.at[row]) if self.ends[row] > now else 0.0

    def _leave(self, row: int, taken: float, now: float) -> None:
        self.taken[row] = taken
        self.at[row] = now
        self.ends[row] = end = now + self.pace.takes(taken)
        self.table.ends[row] = max(self.table.ends[row], end)
