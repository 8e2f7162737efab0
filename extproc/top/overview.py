"""Processes that serve together as one: their pages added up, and how fast the sums grow."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from extproc.top.page import Limit, Page, Requests, Spent, Tokens

Who = tuple[str, ...]
By = Literal["tokens", "requests", "cost", "refused"]
"""What users may be ordered by."""

_SPAN: Final = 60.0
"""Seconds over which rates are taken."""
_SIZES: Final[Mapping[By, Callable[[Spent], int]]] = {
    "tokens": lambda spent: spent.tokens.total,
    "requests": lambda spent: spent.requests.allowed + spent.requests.refused,
    "cost": lambda spent: spent.cost or 0,
    "refused": lambda spent: spent.requests.refused,
}


@dataclass(frozen=True, slots=True)
class User:
    """A row: the values of the labels, the numbers, and tokens a minute, None while that is not known."""

    who: Who
    spent: Spent
    rate: float | None


@dataclass(frozen=True, slots=True)
class Overview:
    """All processes together."""

    version: str
    uptime: float
    """Seconds, of the one that runs longest."""
    labels: tuple[str, ...]
    users: tuple[User, ...]
    """Ordered as asked for."""
    other: Spent | None
    limits: tuple[Limit, ...]
    """The nearest to its maximum first; of a counter that several processes show, the highest."""
    refusals: tuple[tuple[str, str, int], ...]
    """Namespace, limit and requests, most first."""
    requests: Mapping[str, int]
    sources: Mapping[str, int]
    reports: Mapping[str, int]
    tokens: int
    rate: float | None
    """Tokens a minute, None while that is not known."""

    def json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "version": self.version,
            "uptime": self.uptime,
            "labels": self.labels,
            "rows": [
                {"who": dict(zip(self.labels, user.who, strict=True)), **user.spent.model_dump(), "rate": user.rate}
                for user in self.users
            ],
            "other": None if self.other is None else self.other.model_dump(),
            "limits": [limit.model_dump() for limit in self.limits],
            "totals": {
                "tokens": self.tokens,
                "rate": self.rate,
                "requests": dict(self.requests),
                "refusals": [
                    {"namespace": namespace, "limit": limit, "requests": count}
                    for namespace, limit, count in self.refusals
                ],
                "sources": dict(self.sources),
                "reports": dict(self.reports),
            },
        }


@dataclass(slots=True)
class Overviews:
    """Makes one overview after another, and remembers a minute of them."""

    by: By = "tokens"
    _seen: deque[tuple[float, int, dict[Who, int]]] = field(default_factory=deque)

    def of(self, pages: Sequence[Page], now: float) -> Overview:
        """The overview of one page or several, taken at `now` seconds."""
        users = _users(pages)
        tokens = sum(page.totals.tokens for page in pages)
        self._remember(now, tokens, {who: spent.tokens.total for who, spent in users.items()})
        size = _SIZES[self.by]
        ordered = sorted(users.items(), key=lambda user: (-size(user[1]), user[0]))
        refusals = sum((_refusals(page) for page in pages), Counter[tuple[str, str]]())
        return Overview(
            version=", ".join(dict.fromkeys(page.version for page in pages)),
            uptime=max(page.uptime for page in pages),
            labels=pages[0].labels,
            users=tuple(User(who, spent, self._rate(who, spent.tokens.total)) for who, spent in ordered),
            other=total_of([page.other for page in pages if page.other is not None]),
            limits=_limits(pages),
            refusals=tuple((*limit, count) for limit, count in refusals.most_common()),
            requests=_added(page.totals.requests for page in pages),
            sources=_added(page.totals.sources for page in pages),
            reports=_added(page.totals.reports for page in pages),
            tokens=tokens,
            rate=self._rate(None, tokens),
        )

    def _remember(self, now: float, tokens: int, users: dict[Who, int]) -> None:
        if self._seen and tokens < self._seen[-1][1]:
            # A process began anew, or did not answer.
            self._seen.clear()
        self._seen.append((now, tokens, users))
        while now - self._seen[0][0] > _SPAN:
            self._seen.popleft()

    def _rate(self, who: Who | None, tokens: int) -> float | None:
        then, all_tokens, users = self._seen[0]
        passed = self._seen[-1][0] - then
        if passed <= 0:
            return None
        before = all_tokens if who is None else users.get(who, 0)
        return max(0, tokens - before) / passed * 60


def _users(pages: Sequence[Page]) -> dict[Who, Spent]:
    users: dict[Who, list[Spent]] = {}
    labels = pages[0].labels
    for page in pages:
        for row in page.rows:
            users.setdefault(tuple(row.who.get(label, "") for label in labels), []).append(row)
    return {who: spent for who, parts in users.items() if (spent := total_of(parts)) is not None}


def total_of(parts: Sequence[Spent]) -> Spent | None:
    """Several as one; None of none."""
    if not parts:
        return None
    costs = [part.cost for part in parts if part.cost is not None]
    return Spent(
        requests=Requests(**_added(part.requests.model_dump() for part in parts)),
        tokens=Tokens(**_added(part.tokens.model_dump() for part in parts)),
        cost=sum(costs) if costs else None,
        last_seen=max(part.last_seen for part in parts),
    )


def _limits(pages: Sequence[Page]) -> tuple[Limit, ...]:
    highest: dict[tuple[str, str, Who], Limit] = {}
    for page in pages:
        for limit in page.limits:
            key = (limit.namespace, limit.limit, limit.values)
            if key not in highest or limit.used > highest[key].used:
                highest[key] = limit
    return tuple(sorted(highest.values(), key=lambda limit: -limit.ratio))


def _refusals(page: Page) -> Counter[tuple[str, str]]:
    refusals: Counter[tuple[str, str]] = Counter()
    for each in page.totals.refusals:
        refusals[each.namespace, each.limit] += each.requests
    return refusals


def _added(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for part in parts:
        for name, number in part.items():
            sums[name] = sums.get(name, 0) + number
    return sums
