"""Remembering what requests come to.

CEL costs microseconds an expression and more for its variables, while most requests of a gateway look alike in the
few attributes that an action set names. So the queries of all its actions are remembered by the values of those.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from extproc.facts import RequestFacts
from extproc.limiter.seam import Query
from extproc.plan.action import ActionFailure

MAX_ENTRIES = 1024
MAX_KEY = 512
"""Characters; a request with longer values is not remembered, so that memory is bounded by both."""

Outcome = Query | ActionFailure | None
Outcomes = tuple[Outcome, ...]
"""What each action of a set comes to, by its index; None where it does not apply."""


class QueryMemo:
    """Queries by fingerprint; `compute` finds those of a request that looks like none before."""

    __slots__ = ("_compute", "_fingerprint", "_known")

    def __init__(
        self, fingerprint: Callable[[RequestFacts], tuple[Any, ...]], compute: Callable[[RequestFacts], Outcomes]
    ) -> None:
        self._fingerprint = fingerprint
        self._compute = compute
        self._known: dict[Hashable, Outcomes] = {}

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._known)

    def outcomes(self, facts: RequestFacts) -> Outcomes:
        """What the actions come to for one request."""
        key = self._fingerprint(facts)
        try:
            found = self._known.get(key)
        except TypeError:  # an attribute with a structure
            return self._compute(facts)
        if found is None:
            found = self._compute(facts)
            if sum(len(value) for value in key if isinstance(value, str)) <= MAX_KEY:
                if len(self._known) >= MAX_ENTRIES:
                    self._known.clear()
                self._known[key] = found
        return found
