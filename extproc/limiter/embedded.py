"""Counters in this process."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace

from extproc.limiter.limits import CompiledLimit, LimitSet, Touched, Values
from extproc.limiter.seam import Code, Decision, Metadata, Query

FREED_PER_CALL = 32
"""Expired counters that one call frees at most, beyond one for each that it may open: garbage never piles up."""
MAX_COUNTERS = 1_000_000
"""Some 250 bytes each, and the text of its values."""

_OK = Decision(Code.OK)
_UNKNOWN = Decision(Code.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Counter:
    """A counter as it stands: hits `used` and `remaining`, seconds until it starts anew.

    `values` are those of `limit.variables`, in their order; `used` may exceed the maximum.
    """

    limit: CompiledLimit
    values: Values
    used: int
    remaining: int
    resets_in: float


class EmbeddedLimiter:
    """Limitador's in-memory semantics, answered at once.

    A window is fixed and starts with its first hit. Confined to one thread (one event loop): no method
    awaits, so calls never interleave and counts are exact however many tasks call.
    No more than `max_counters` are kept; beyond that the counter of the limit that expires next gives way.

    `clock` gives seconds, from anywhere, never going back.
    """

    def __init__(
        self,
        limits: LimitSet,
        clock: Callable[[], float] = time.monotonic,
        max_counters: int = MAX_COUNTERS,
    ) -> None:
        self._clock = clock
        self._max_counters = max_counters
        self._limits = LimitSet()
        self._windows: dict[CompiledLimit, _Windows] = {}
        self._expiry: list[_Windows] = []
        self._size = 0
        self.replace_limits(limits)

    def check(self, query: Query, metadata: Metadata = ()) -> Decision:
        """OVER_LIMIT when one more hit would exceed a limit, whatever `query.hits_addend` says."""
        return self._decide(query, 1) or _OK

    def report(self, query: Query, metadata: Metadata = ()) -> Decision:
        """Add the hits, also beyond a maximum; an addend of 0 counts as 1."""
        if not query.domain:
            return _UNKNOWN
        self._add(query, query.hits_addend or 1)
        return _OK

    def should_rate_limit(self, query: Query, metadata: Metadata = ()) -> Decision:
        """Add the hits unless that would exceed a limit: then nothing is added. 0 counts as 1."""
        hits = query.hits_addend or 1
        if (refusal := self._decide(query, hits)) is not None:
            return refusal
        self._add(query, hits)
        return _OK

    def replace_limits(self, limits: LimitSet) -> None:
        """Use `limits` from now on; counters of limits with an unchanged identity keep their hits."""
        kept = {limit.identity: windows for limit, windows in self._windows.items()}
        self._limits = limits
        self._windows = {}
        for limit in limits.limits:
            windows = kept.get(limit.identity) or _Windows()
            windows.serve(limit)
            self._windows[limit] = windows
        self._expiry = [windows for windows in self._windows.values() if windows.order]
        heapify(self._expiry)
        self._size = sum(len(windows.order) for windows in self._expiry)

    def snapshot(self) -> Iterator[Counter]:
        """Every live counter."""
        now = self._clock()
        for limit, windows in tuple(self._windows.items()):
            for window in tuple(windows.by_values.values()):
                if window.reset > now:
                    yield Counter(
                        limit=limit,
                        values=window.values,
                        used=window.used,
                        remaining=max(0, limit.max_value - window.used),
                        resets_in=window.reset - now,
                    )

    def __len__(self) -> int:
        """Counters in memory, live or expired and not yet freed."""
        return self._size

    def sweep(self) -> None:
        """Free every expired counter now; calls do it bit by bit anyway."""
        self._free(self._clock(), self._size)

    def _decide(self, query: Query, hits: int) -> Decision | None:
        """The refusal of `hits` more hits, if there is one."""
        if not query.domain:
            return _UNKNOWN
        now = self._clock()
        for limit, values in self._touched(query, now):
            windows = self._windows[limit]
            window = windows.by_values.get(values)
            used = window.used if window is not None and window.reset > now else 0
            if used + hits > limit.max_value:
                return windows.refusal
        return None

    def _add(self, query: Query, hits: int) -> None:
        now = self._clock()
        for limit, values in self._touched(query, now):
            windows = self._windows[limit]
            window = windows.by_values.get(values)
            if window is not None and window.reset > now:
                window.used += hits
            else:
                self._open(windows, _Window(values, hits, now + limit.identity.seconds))

    def _touched(self, query: Query, now: float) -> tuple[Touched, ...]:
        touched = self._limits.counters(query.domain, query.descriptors)
        if self._expiry and self._expiry[0].next_reset <= now:
            self._free(now, FREED_PER_CALL + len(touched))
        return touched

    def _open(self, windows: _Windows, window: _Window) -> None:
        if self._size >= self._max_counters:
            self._free_first()
        windows.by_values[window.values] = window
        windows.order.append(window)
        self._size += 1
        if len(windows.order) == 1:
            windows.next_reset = window.reset
            heappush(self._expiry, windows)

    def _free(self, now: float, at_most: int) -> None:
        while at_most and self._expiry and self._expiry[0].next_reset <= now:
            self._free_first()
            at_most -= 1

    def _free_first(self) -> None:
        windows = self._expiry[0]
        windows.drop_first()
        self._size -= 1
        if windows.order:
            heapreplace(self._expiry, windows)
        else:
            heappop(self._expiry)


class _Window:
    """The hits of one counter until `reset`."""

    __slots__ = ("reset", "used", "values")

    def __init__(self, values: Values, used: int, reset: float) -> None:
        self.values = values
        self.used = used
        self.reset = reset


class _Windows:
    """The windows of one limit; ordered by when the first of them expires.

    All windows of a limit are equally long, so the order in which they open is the order in which they
    expire: a queue does what would otherwise need a heap entry for every counter.
    """

    __slots__ = ("by_values", "next_reset", "order", "refusal")

    def __init__(self) -> None:
        self.by_values: dict[Values, _Window] = {}
        self.order: deque[_Window] = deque()
        self.next_reset = 0.0
        self.refusal = Decision(Code.OVER_LIMIT)

    def __lt__(self, other: _Windows) -> bool:
        return self.next_reset < other.next_reset

    def serve(self, limit: CompiledLimit) -> None:
        self.refusal = Decision(Code.OVER_LIMIT, limit=limit.label)

    def drop_first(self) -> None:
        """Forget the window that expires first, unless a newer one has taken its place."""
        first = self.order.popleft()
        if self.by_values.get(first.values) is first:
            del self.by_values[first.values]
        if self.order:
            self.next_reset = self.order[0].reset
