"""Counters in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest
from operator import itemgetter

from extproc.limiter.buckets import Buckets
from extproc.limiter.limits import CompiledLimit, Group, LimitSet
from extproc.limiter.matching import Values
from extproc.limiter.rows import Column, Key, Table, Windows, key_of, values_of
from extproc.limiter.seam import Code, Decision, Metadata, Query, Quota
from extproc.limiter.tally import Tally

VISITED_PER_CALL = 2
"""Expired rows that a call which counts frees at most, beyond one for each that it may open: they never pile up."""
MAX_ROWS = 1_000_000
"""Some 150 bytes each, the text of its values, and for each limit with the same namespace and variables 16 bytes, or 24
for buckets."""
_MOST = 2**64 - 1

_OK = Decision(Code.OK)
_UNLIMITED = Decision(Code.OK, unlimited=True)
_UNKNOWN = Decision(Code.UNKNOWN)

_Touched = Sequence[tuple[Group, Values]]
_Sharing = tuple[str, tuple[str, ...]]
"""What limits have in common whose counters share rows: namespace and variables."""
_Place = tuple[Table, tuple[Windows, ...], tuple[Buckets, ...], tuple[Column, ...]]
"""Where a group's counters are: its windows, its buckets, and both in the order of the limits."""


@dataclass(frozen=True, slots=True)
class Counter:
    """A counter as it stands: hits `used` and `remaining`, seconds until it starts anew; of a bucket, until it is full.

    `values` are those of `limit.variables`, in their order; `used` may exceed the maximum.
    """

    limit: CompiledLimit
    values: Values
    used: int
    remaining: int
    resets_in: float


class EmbeddedLimiter:
    """Limitador's in-memory semantics, answered at once.

    A window starts with its first hit, and ends as the limit's `window` says; a bucket fills steadily. Confined to one
    thread (one event loop): no method that counts awaits, so calls never interleave and counts are exact however many
    tasks call. Counters of the same namespace, variables and values share a row; no more than `max_rows` are kept.
    Beyond that, of a few rows of the largest table the one that expires first gives way.

    `clock` gives seconds, from anywhere, never going back; `wall` those since 1970, which calendars go by.
    `tells_quotas` has allowed decisions tell what remains too. `tally` counts the calls.
    """

    def __init__(
        self,
        limits: LimitSet,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        max_rows: int = MAX_ROWS,
    ) -> None:
        self.tells_quotas = False
        self.tally = Tally()
        self._clock = clock
        self._wall = wall
        self._max_rows = max_rows
        self._limits = LimitSet()
        self._places: dict[Group, _Place] = {}
        self._columns: list[Column] = []
        self._tables: list[Table] = []
        self._turn = 0
        self._size = 0
        self.replace_limits(limits)

    def check(self, query: Query, metadata: Metadata = ()) -> Decision:
        """OVER_LIMIT when one more hit would exceed a limit, whatever `query.hits_addend` says."""
        domain, descriptors, _ = query
        if not domain:
            return _UNKNOWN
        touched = self._limits.touched(domain, descriptors)
        now = self._clock()
        if self._refuses(touched, 1, now):
            return self._refusal(domain, touched, 1, now)
        self.tally.allowed(domain)
        if not touched:
            return _UNLIMITED
        return self._allowance(touched, now) if self.tells_quotas else _OK

    def report(self, query: Query, metadata: Metadata = ()) -> Decision:
        """Add the hits, also beyond a maximum; an addend of 0 counts as 1."""
        domain, descriptors, hits = query
        if not domain:
            return _UNKNOWN
        self._add(domain, self._limits.touched(domain, descriptors), hits or 1, self._clock())
        return _OK

    def should_rate_limit(self, query: Query, metadata: Metadata = ()) -> Decision:
        """Add the hits unless that would exceed a limit: then nothing is added. 0 counts as 1."""
        domain, descriptors, hits = query
        if not domain:
            return _UNKNOWN
        hits = hits or 1
        touched = self._limits.touched(domain, descriptors)
        now = self._clock()
        if self._refuses(touched, hits, now):
            return self._refusal(domain, touched, hits, now)
        self.tally.allowed(domain)
        self._add(domain, touched, hits, now)
        if not touched:
            return _UNLIMITED
        return self._allowance(touched, now) if self.tells_quotas else _OK

    def refund(self, query: Query, metadata: Metadata = (), age: float = 0.0) -> Decision:
        """As Refunding's. The tally of hits does not fall."""
        domain, descriptors, hits = query
        if not domain:
            return _UNKNOWN
        if not hits:
            return _OK
        now, wall, age = self._clock(), self._wall(), max(0.0, age)
        for group, values in self._limits.touched(domain, descriptors):
            table, _, _, columns = self._places[group]
            row = table.rows.get(key_of(values))
            if row is not None:
                for column in columns:
                    column.give_back(row, hits, age, now, wall)
        return _OK

    def replace_limits(self, limits: LimitSet) -> None:
        """Use `limits` from now on; counters of limits with an unchanged identity keep their hits."""
        old_tables = {_sharing(column.limit): column.table for column in self._columns}
        old_columns = {column.limit.identity: column for column in self._columns}
        tables: dict[_Sharing, Table] = {}
        self._places = {}
        self._columns = []
        for group in limits.groups:
            sharing = _sharing(group.limits[0])
            table = tables.setdefault(sharing, old_tables.get(sharing) or Table())
            columns = tuple(old_columns.get(limit.identity) or _column(table, limit) for limit in group.limits)
            for column, limit in zip(columns, group.limits, strict=True):
                column.serve(limit)
            windows = tuple(column for column in columns if isinstance(column, Windows))
            buckets = tuple(column for column in columns if isinstance(column, Buckets))
            self._places[group] = table, windows, buckets, columns
            self._columns += columns
        for table in tables.values():
            table.serve([column for column in self._columns if column.table is table])
        self._limits = limits
        self._tables = list(tables.values())
        self._turn = 0
        self._size = sum(len(table.keys) for table in self._tables)

    def snapshot(self) -> Iterator[Counter]:
        """Every live counter; those that come or go meanwhile may be missing. Of many `counters` tells the first."""
        limits = self._limits
        now = self._clock()
        for column in self._columns:
            for row, end in enumerate(column.ends):
                if self._limits is not limits:
                    return
                if end > now:
                    yield _counter(column, row, now)

    async def counters(self, at_most: int) -> list[Counter]:
        """The live counters that are nearest to their maximum, or farthest beyond it, those first.

        Others run meanwhile: one that begins then may be missing.
        """
        nearest: dict[tuple[Column, Key], float] = {}
        for column in self._columns:
            for rows in column.table.slices():
                if column not in self._columns:
                    break
                nearest |= column.shares(rows, self._clock())
                nearest = dict(nlargest(at_most, nearest.items(), key=itemgetter(1)))
                await asyncio.sleep(0)
        now = self._clock()
        found = ((column, column.table.rows.get(key)) for column, key in nearest if column in self._columns)
        return [_counter(column, row, now) for column, row in found if row is not None and column.ends[row] > now]

    def __len__(self) -> int:
        """Rows in memory, live or expired and not yet freed."""
        return self._size

    def sweep(self, at_most: int | None = None) -> None:
        """Free expired rows now, of `at_most` that are looked at or of all; calls do it bit by bit anyway."""
        now = self._clock()
        for table in self._tables:
            if at_most is None or table.hand >= len(table.keys):
                table.hand = 0
            self._size -= table.visit(len(table.keys) if at_most is None else at_most, now)

    def _refuses(self, touched: _Touched, hits: int, now: float) -> bool:
        for group, values in touched:
            table, windows, buckets, _ = self._places[group]
            row = table.rows.get(key_of(values))
            for column in windows:
                used = column.used[row] if row is not None and column.ends[row] > now else 0
                if used + hits > column.maximum:
                    return True
            for bucket in buckets:
                if not bucket.fits(row, hits, now):
                    return True
        return False

    def _add(self, domain: str, touched: _Touched, hits: int, now: float) -> None:
        self.tally.counted(domain, hits)
        if self._size:
            self._tidy(VISITED_PER_CALL + len(touched), now)
        for group, values in touched:
            table, windows, buckets, _ = self._places[group]
            row = table.rows.get(key_of(values))
            if row is None:
                row = self._add_row(table, key_of(values))
            for column in windows:
                if column.ends[row] > now:
                    used = column.used[row] + hits
                    column.used[row] = used if used < _MOST else _MOST
                else:
                    column.open(row, min(hits, _MOST), now + column.limit.window.ends_in(self._wall()))
            for bucket in buckets:
                bucket.take(row, hits, now)

    def _add_row(self, table: Table, key: Key) -> int:
        if self._size >= self._max_rows:
            largest = max(self._tables, key=lambda each: len(each.keys))
            largest.free(largest.candidate())
            self._size -= 1
        self._size += 1
        return table.add(key)

    def _tidy(self, at_most: int, now: float) -> None:
        """Free what has expired among the next rows, of one table after the other."""
        table = self._tables[self._turn]
        self._size -= table.visit(at_most, now)
        if table.hand >= len(table.keys):
            table.hand = 0
            self._turn = (self._turn + 1) % len(self._tables)

    def _refusal(self, domain: str, touched: _Touched, hits: int, now: float) -> Decision:
        quotas = [quota for quota in self._quotas(touched, hits, now) if quota.remaining < hits]
        quotas.sort(key=lambda quota: quota.resets_in, reverse=True)
        self.tally.refused(domain, quotas[0].limit)
        return Decision(Code.OVER_LIMIT, limit=quotas[0].limit, quotas=tuple(quotas))

    def _allowance(self, touched: _Touched, now: float) -> Decision:
        return Decision(Code.OK, quotas=tuple(sorted(self._quotas(touched, 0, now), key=lambda quota: quota.remaining)))

    def _quotas(self, touched: _Touched, hits: int, now: float) -> Iterator[Quota]:
        wall = self._wall()
        for group, values in touched:
            table, _, _, columns = self._places[group]
            row = table.rows.get(key_of(values))
            for column in columns:
                yield column.quota(row, hits, now, wall)


def _column(table: Table, limit: CompiledLimit) -> Column:
    return Buckets(table, limit) if limit.steady else Windows(table, limit)


def _sharing(limit: CompiledLimit) -> _Sharing:
    return limit.identity.namespace, limit.identity.variables


def _counter(column: Column, row: int, now: float) -> Counter:
    limit, used = column.limit, column.count(row, now)
    return Counter(
        limit=limit,
        values=values_of(column.table.keys[row]),
        used=used,
        remaining=max(0, limit.max_value - used),
        resets_in=column.resets_in(row, now),
    )
