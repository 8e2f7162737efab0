"""Rows of counters in memory, of which there may be a million: numbers in arrays, and hardly an object for each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator
from math import inf
from typing import Any, Final

from extproc.limiter.limits import CompiledLimit
from extproc.limiter.matching import Values
from extproc.limiter.seam import Quota

CANDIDATES: Final = 8
"""Rows of which one gives way when there is no room."""
SLICE: Final = 1_000
"""Rows that are looked at before others may run."""

Key = str | Values
"""What a row is found by: the value of a single variable itself, else the tuple of all."""


def key_of(values: Values) -> Key:
    """The key of the row of `values`."""
    return values[0] if len(values) == 1 else values


def values_of(key: Key) -> Values:
    """The values whose row has `key`."""
    return (key,) if isinstance(key, str) else key


class Table:
    """Rows of counters, close together: where one is freed the last one takes its place.

    A row has a key, a counter in each of `columns`, and in `ends` the time until which any of them lives. `hand` is
    the row that is visited next.
    """

    __slots__ = ("_all_ends", "_numbers", "columns", "ends", "hand", "keys", "rows")

    def __init__(self) -> None:
        self.rows: dict[Key, int] = {}
        self.keys: list[Key] = []
        self.ends = array("d")
        self.hand = 0
        self.serve([])

    def serve(self, columns: list[Column]) -> None:
        """Have `columns` from now on, each with as many rows as the table."""
        self.columns = columns
        self._all_ends = [self.ends, *(column.ends for column in columns)]
        self._numbers = [numbers for column in columns for numbers in column.numbers]

    def add(self, key: Key) -> int:
        """A row without hits."""
        row = self.rows[key] = len(self.keys)
        self.keys.append(key)
        for ends in self._all_ends:
            ends.append(-inf)
        for numbers in self._numbers:
            numbers.append(0)
        return row

    def free(self, row: int) -> None:
        """Forget a row."""
        del self.rows[self.keys[row]]
        last = self.keys.pop()
        if row < len(self.keys):
            self.keys[row] = last
            self.rows[last] = row
        for ends in self._all_ends:
            _fill(ends, row)
        for numbers in self._numbers:
            _fill(numbers, row)
        if not self.keys:
            self._give_back()

    def _give_back(self) -> None:
        """Let go of the memory of an empty table: neither a dict nor an array does when items leave one by one."""
        self.rows.clear()
        self.ends = array("d")
        for column in self.columns:
            column.renew(0)
        self.serve(self.columns)

    def visit(self, at_most: int, now: float) -> int:
        """Look at so many rows, but not beyond the last, and free those that have expired; how many."""
        ends, row, size = self.ends, self.hand, len(self.ends)
        last = min(row + at_most, size)
        while row < last:
            if ends[row] > now:
                row += 1
            else:
                self.free(row)
                last -= 1
        self.hand = row
        return size - len(ends)

    def candidate(self) -> int:
        """Of the next few rows the one that expires first."""
        size = len(self.keys)
        chosen = min(((self.hand + step) % size for step in range(CANDIDATES)), key=self.ends.__getitem__)
        self.hand = (self.hand + CANDIDATES) % size
        return chosen

    def slices(self) -> Iterator[range]:
        """All rows, in parts, with time for changes in between: a row may come twice then, but none is left out.

        From the last to the first, because only the last ones are moved.
        """
        below = len(self.keys)
        while below > 0:
            yield range(max(below - SLICE, 0), below)
            below = min(below - SLICE, len(self.keys))


class Column(ABC):
    """The counters of one limit, by row: when each `ends`, and is as good as none, and other `numbers`, 0 at first."""

    __slots__ = ("ends", "limit", "maximum", "numbers", "table")

    def __init__(self, table: Table, limit: CompiledLimit) -> None:
        self.table = table
        self.numbers: tuple[array[Any], ...]
        self.renew(len(table.keys))
        self.serve(limit)

    @abstractmethod
    def renew(self, rows: int) -> None:
        """Begin with new arrays, of so many rows without a counter."""
        self.ends = array("d", [-inf]) * rows

    def serve(self, limit: CompiledLimit) -> None:
        """Count for `limit`, which has the same identity as the one before."""
        self.limit = limit
        self.maximum = limit.max_value

    @abstractmethod
    def count(self, row: int, now: float) -> int:
        """Hits of a live counter."""

    @abstractmethod
    def resets_in(self, row: int, now: float) -> float:
        """Seconds until a live counter is over."""

    @abstractmethod
    def quota(self, row: int | None, hits: int, now: float, wall: float) -> Quota:
        """What is left to a call with so many hits, which do not fit; 0 to one that was allowed."""

    @abstractmethod
    def give_back(self, row: int, hits: int, age: float, now: float, wall: float) -> None:
        """Take hits off that were counted `age` seconds ago."""

    def shares(self, rows: range, now: float) -> dict[tuple[Column, Key], float]:
        """How much of its maximum each live counter among `rows` has used; 1 is all of it."""
        keys = self.table.keys
        return {
            (self, keys[row]): self.count(row, now) / self.maximum if self.maximum else inf
            for row in rows
            if self.ends[row] > now
        }


class Windows(Column):
    """The windows of one limit: the hits `used` in each."""

    __slots__ = ("used",)

    def renew(self, rows: int) -> None:
        """As Column's."""
        super().renew(rows)
        self.used = array("Q", bytes(8 * rows))
        self.numbers = (self.used,)

    def open(self, row: int, hits: int, end: float) -> None:
        """Begin a window."""
        self.used[row] = hits
        self.ends[row] = end
        self.table.ends[row] = max(self.table.ends[row], end)

    def count(self, row: int, now: float) -> int:
        """As Column's."""
        return self.used[row]

    def resets_in(self, row: int, now: float) -> float:
        """As Column's."""
        return self.ends[row] - now

    def quota(self, row: int | None, hits: int, now: float, wall: float) -> Quota:
        """As Column's."""
        limit, maximum = self.limit, self.maximum
        if row is not None and self.ends[row] > now:
            remaining, resets_in = max(0, maximum - self.used[row]), self.ends[row] - now
        else:
            remaining, resets_in = maximum, limit.window.ends_in(wall)
        return Quota(limit.label, maximum, remaining, inf if hits > maximum else resets_in, limit.window.seconds)

    def give_back(self, row: int, hits: int, age: float, now: float, wall: float) -> None:
        """As Column's, where the window that counted them lasts."""
        left = self.ends[row] - now
        if left > 0 and self.limit.window.was_open(left, age, wall):
            self.used[row] = max(0, self.used[row] - hits)


def _fill(column: array[Any], row: int) -> None:
    """Take the last item away, and put it in the place of `row` if it is another."""
    last = column.pop()
    if row < len(column):
        column[row] = last
