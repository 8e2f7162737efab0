"""How many calls and hits a limiter has seen, as Limitador counts them."""

from __future__ import annotations

from typing import Final, TypeVar

from extproc.limiter.messages import encodable

MAX_NAMESPACES: Final = 500
MAX_LIMITS: Final = 2_000
"""Pairs of a namespace and a limit that refused."""
MAX_NAME: Final = 128
OTHER: Final = "(other)"
"""Stands for all namespaces, and all pairs, beyond these bounds."""

K = TypeVar("K")


class Tally:
    """Counts since the start, by namespace.

    `authorized_calls` are checks and should_rate_limit calls that were allowed, `limited_calls` those that were
    refused, also by the label of the limit; `authorized_hits` are hits that were counted. Names are cut to 128
    characters; a namespace comes from a call, so of those that come first so many are told apart.
    """

    __slots__ = ("authorized_calls", "authorized_hits", "limited_calls")

    def __init__(self) -> None:
        self.authorized_calls: dict[str, int] = {}
        self.authorized_hits: dict[str, int] = {}
        self.limited_calls: dict[tuple[str, str], int] = {}

    def allowed(self, namespace: str) -> None:
        """A call of `namespace` was allowed."""
        counts = self.authorized_calls
        counts[namespace if namespace in counts else _room(counts, _name(namespace), OTHER, MAX_NAMESPACES)] += 1

    def refused(self, namespace: str, limit: str) -> None:
        """A call of `namespace` was refused by `limit`, a label."""
        counts = self.limited_calls
        pair = (namespace, limit)
        if pair not in counts:
            pair = _room(counts, (_name(namespace), _name(limit)), (OTHER, OTHER), MAX_LIMITS)
        counts[pair] += 1

    def counted(self, namespace: str, hits: int) -> None:
        """So many hits of `namespace` were added."""
        counts = self.authorized_hits
        counts[namespace if namespace in counts else _room(counts, _name(namespace), OTHER, MAX_NAMESPACES)] += hits


def _room(counts: dict[K, int], key: K, other: K, most: int) -> K:
    """`key`, or `other` when there are `most` keys already; it is among `counts` afterwards."""
    key = key if key in counts or len(counts) < most else other
    counts.setdefault(key, 0)
    return key


def _name(name: str) -> str:
    return encodable(name[:MAX_NAME])
