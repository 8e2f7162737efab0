"""Remembering what requests come to.

CEL costs microseconds an expression and more for its variables, while most requests of a gateway look alike in the
few attributes that a configuration compares. So what they come to is remembered by the values of those.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from extproc.facts import RequestFacts

MAX_ENTRIES = 1024
MAX_KEY = 512
"""Characters; a request with longer values is not remembered, so that memory is bounded by both."""

T = TypeVar("T")


class Memo(Generic[T]):
    """Outcomes by fingerprint; `compute` finds that of a request that looks like none before.

    Without a `fingerprint` no two requests look alike.
    """

    __slots__ = ("_compute", "_fingerprint", "_known")

    def __init__(
        self, fingerprint: Callable[[RequestFacts], tuple[Any, ...]] | None, compute: Callable[[RequestFacts], T]
    ) -> None:
        self._fingerprint = fingerprint
        self._compute = compute
        self._known: dict[Hashable, T] = {}

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._known)

    def of(self, facts: RequestFacts) -> T:
        """What one request comes to."""
        if self._fingerprint is None:
            return self._compute(facts)
        key = self._fingerprint(facts)
        try:
            return self._known[key]
        except TypeError:  # an attribute with a structure
            return self._compute(facts)
        except KeyError:
            found = self._compute(facts)
        if sum(len(value) for value in key if isinstance(value, (str, bytes))) <= MAX_KEY:
            if len(self._known) >= MAX_ENTRIES:
                self._known.clear()
            self._known[key] = found
        return found
