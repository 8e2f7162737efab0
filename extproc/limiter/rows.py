"""Rows of counters in memory, of which there may be a million: numbers in arrays, and hardly an object for each."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from math import inf
from typing import Final, TypeVar

from extproc.limiter.limits import CompiledLimit
from extproc.limiter.matching import Values

CANDIDATES: Final = 8
"""Rows of which one gives way when there is no room."""
SLICE: Final = 1_000
"""Rows that are looked at before others may run."""

N = TypeVar("N", int, float)
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

    A row has a key, a window in each of `columns`, and in `ends` the time until which any of them lives. `hand` is
    the row that is visited next.
    """

    __slots__ = ("columns", "ends", "hand", "keys", "rows")

    def __init__(self) -> None:
        self.rows: dict[Key, int] = {}
        self.keys: list[Key] = []
        self.ends = array("d")
        self.columns: list[Column] = []
        self.hand = 0

    def add(self, key: Key) -> int:
        """A row without hits."""
        row = self.rows[key] = len(self.keys)
        self.keys.append(key)
        self.ends.append(-inf)
        for column in self.columns:
            column.used.append(0)
            column.ends.append(-inf)
        return row

    def free(self, row: int) -> None:
        """Forget a row."""
        del self.rows[self.keys[row]]
        last = self.keys.pop()
        if row < len(self.keys):
            self.keys[row] = last
            self.rows[last] = row
        _fill(self.ends, row)
        for column in self.columns:
            _fill(column.used, row)
            _fill(column.ends, row)
        if not self.keys:
            self._give_back()

    def _give_back(self) -> None:
        """Let go of the memory of an empty table: neither a dict nor an array does when items leave one by one."""
        self.rows.clear()
        self.ends = array("d")
        for column in self.columns:
            column.used, column.ends = array("Q"), array("d")

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


class Column:
    """The windows of one limit, by row: the hits `used`, and when the window `ends`; one that is over is empty."""

    __slots__ = ("ends", "limit", "maximum", "table", "used")

    def __init__(self, table: Table, limit: CompiledLimit) -> None:
        self.table = table
        self.used = array("Q", bytes(8 * len(table.keys)))
        self.ends = array("d", [-inf]) * len(table.keys)
        self.serve(limit)

    def serve(self, limit: CompiledLimit) -> None:
        """Count for `limit`, which has the same identity as the one before."""
        self.limit = limit
        self.maximum = limit.max_value

    def open(self, row: int, hits: int, end: float) -> None:
        """Begin a window."""
        self.used[row] = hits
        self.ends[row] = end
        self.table.ends[row] = max(self.table.ends[row], end)

    def shares(self, rows: range, now: float) -> dict[tuple[Column, Key], float]:
        """How much of its maximum each live counter among `rows` has used; 1 is all of it."""
        keys = self.table.keys
        return {
            (self, keys[row]): self.used[row] / self.maximum if self.maximum else inf
            for row in rows
            if self.ends[row] > now
        }


def _fill(column: array[N], row: int) -> None:
    """Take the last item away, and put it in the place of `row` if it is another."""
    last = column.pop()
    if row < len(column):
        column[row] = last
