"""The page `/usage`: who spends what, and how near which limit is to its end, as JSON values.

Names in it come out of requests: whoever shows them must not take them for markup.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping
from heapq import heappush, heapreplace
from typing import Any, Final, Protocol

from extproc.limiter.embedded import Counter
from extproc.telemetry.metrics import Metrics
from extproc.telemetry.names import printable
from extproc.telemetry.nearness import LimitUse, Near
from extproc.telemetry.paced import Paced
from extproc.telemetry.spending import Account, Spending

ROWS: Final = 500
"""Users that are shown one by one; those with fewer tokens are one row together."""
LIMITS: Final = 100
"""Counters that are shown."""
REFUSING: Final = 100
"""Limits of which it is shown how often they refused."""
_SLICE: Final = 200
"""Users looked at before others get their turn."""

Json = dict[str, Any]


class UsagePage:
    """Calling it gives the page, as it is or was a moment ago: a browser asks every two seconds.

    `clock` gives seconds since 1970.
    """

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.time) -> None:
        self._metrics = metrics
        self._clock = clock
        self._began = clock()
        self._page = Paced(self._make)

    async def __call__(self) -> Mapping[str, Any]:
        """The page; see docs/spending.md."""
        return await self._page()

    async def _make(self) -> Json:
        metrics = self._metrics
        near = Near() if metrics.limits is None else await metrics.limits.look()
        now = self._clock()
        page: Json = {
            "now": round(now, 3),
            "version": metrics.version,
            "uptime": round(now - self._began, 3),
            "labels": [],
            "rows": [],
            "other": None,
            "limits": [_limit(counter) for counter in near.counters[:LIMITS]],
            "totals": {"sources": dict(metrics.sources), "reports": dict(metrics.reports)},
        }
        if (spending := metrics.spending) is not None:
            page["labels"] = list(spending.label_names)
            page["rows"], page["other"] = await _rows(spending)
            page["totals"] |= _totals(spending)
        return page


async def _rows(spending: Spending) -> tuple[list[Json], Json | None]:
    """The users with most tokens, and all others together: the smaller ones, and those beyond the capacity."""
    largest = _Largest(ROWS)
    accounts = spending.accounts()
    for start in range(0, len(accounts), _SLICE):
        for account in accounts[start : start + _SLICE]:
            if not spending.is_other(account):
                largest.add(account)
        await asyncio.sleep(0)
    chosen = largest.sorted()
    rest = _Sums()
    shown = set(map(id, chosen))
    for start in range(0, len(accounts), _SLICE):
        for account in accounts[start : start + _SLICE]:
            if id(account) not in shown:
                rest.add(account)
        await asyncio.sleep(0)
    names = spending.label_names
    rows = [{"who": dict(zip(names, account.who, strict=True)), **_Sums().add(account).json()} for account in chosen]
    return rows, rest.json() if rest.accounts else None


class _Sums:
    """What one or several accounts have counted."""

    def __init__(self) -> None:
        self.accounts = 0
        self._namespaces: set[str] = set()
        self._allowed = 0
        self._refused: dict[str, int] = {}
        self._charged = 0
        self._models: dict[str, Json] = {}
        self._last_seen = 0.0

    def add(self, account: Account) -> _Sums:
        """Count what `account` has counted."""
        self.accounts += 1
        self._last_seen = max(self._last_seen, account.last_seen)
        for namespace, requests in account.requests.items():
            self._namespaces.add(namespace)
            self._allowed += requests.allowed
            for limit, count in requests.refused.items():
                self._refused[limit] = self._refused.get(limit, 0) + count
        for (namespace, model, _), spent in account.spent.items():
            self._namespaces.add(namespace)
            self._charged += spent.charged
            sums = self._models.setdefault(model, {"input": 0, "output": 0, "total": 0, "cost": None})
            sums["input"] += spent.input
            sums["output"] += spent.output
            sums["total"] += spent.total
            if spent.cost is not None:
                sums["cost"] = spent.cost + (sums["cost"] or 0)
        return self

    def json(self) -> Json:
        """As the page has it."""
        models = self._models.values()
        costs = [sums["cost"] for sums in models if sums["cost"] is not None]
        tokens = {kind: sum(sums[kind] for sums in models) for kind in ("input", "output", "total")}
        return {
            "namespaces": sorted(self._namespaces),
            "requests": {"allowed": self._allowed, "refused": sum(self._refused.values())},
            "refusals": self._refused,
            "tokens": {**tokens, "charged": self._charged},
            "cost": sum(costs) if costs else None,
            "models": self._models,
            "last_seen": round(self._last_seen, 3),
        }


def _totals(spending: Spending) -> Json:
    refusals = sorted(spending.refusals.items(), key=lambda item: (-item[1], item[0]))[:REFUSING]
    return {
        "tokens": spending.tokens,
        "requests": {
            "allowed": spending.allowed_requests,
            "refused": sum(spending.refusals.values()),
            **spending.rejections,
        },
        "refusals": [
            {"namespace": namespace, "limit": limit, "requests": count} for (namespace, limit), count in refusals
        ],
        "users": {"told_apart": spending.told_apart, "at_most": spending.capacity},
    }


class Limiter(Protocol):
    """The embedded limiter, wherever its counters are."""

    async def counters(self, at_most: int) -> list[Counter]:
        """Those nearest to their maximum, those first."""


async def nearest(limiter: Limiter, at_most: int) -> list[LimitUse]:
    """Its counters, for a `LimitWatch`."""
    return [
        LimitUse(
            namespace=counter.limit.identity.namespace,
            limit=counter.limit.label,
            values=counter.values,
            used=counter.used,
            maximum=counter.limit.max_value,
            resets_in=counter.resets_in,
            window=counter.limit.window.seconds,
        )
        for counter in await limiter.counters(at_most)
    ]


class _Largest:
    """The accounts with most tokens among those that are added."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[int, int, Account]] = []
        self._number = itertools.count()

    def add(self, account: Account) -> None:
        """Keep it, if it is among the largest so far."""
        entry = (account.tokens, -next(self._number), account)
        if len(self._heap) < self._most:
            heappush(self._heap, entry)
        elif entry > self._heap[0]:
            heapreplace(self._heap, entry)

    def sorted(self) -> list[Account]:
        """The largest first, of equals the first added."""
        return [account for _, _, account in sorted(self._heap, reverse=True)]


def _limit(counter: LimitUse) -> Json:
    return {
        "namespace": printable(counter.namespace),
        "limit": printable(counter.limit),
        "values": [printable(value) for value in counter.values],
        "used": counter.used,
        "maximum": counter.maximum,
        "resets_in": round(counter.resets_in, 3),
        "window": counter.window,
    }
