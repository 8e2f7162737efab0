"""Actions compiled: when one runs, and what it asks the limiter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import cel

from extproc.expressions import Expression, ExpressionError, text_of
from extproc.limiter.seam import MAX_HITS, Answer, Descriptor, Entry, Metadata, Query

Call = Literal["check", "report", "should_rate_limit"]


class Phase(IntEnum):
    """The earliest moment at which everything an action needs is there."""

    REQUEST_HEADERS = 0
    REQUEST_BODY = 1
    RESPONSE = 2


class ActionFailure(Exception):
    """A predicate is no bool, or a value has no text: the action cannot be carried out."""


@dataclass(frozen=True, slots=True)
class Service:
    """A policy service: where it is, what it is asked and what a missing decision means."""

    name: str
    call: Call
    ask: Callable[[Query, Metadata], Answer]
    """The limiter's method for `call`."""
    denies_on_failure: bool


@dataclass(frozen=True, slots=True)
class Item:
    """A descriptor entry to be: a literal, or an expression for its value."""

    key: str
    value: str | Expression

    def entry(self, context: cel.Context) -> Entry:
        """The entry; raises ExpressionError when the value has no text."""
        if isinstance(self.value, str):
            return self.key, self.value
        return self.key, text_of(self.value.evaluate(context))


@dataclass(frozen=True, slots=True)
class Block:
    """Entries that count when all predicates hold."""

    predicates: tuple[Expression, ...]
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """Whom a call is about: a query but for its hits."""

    domain: str
    descriptors: tuple[Descriptor, ...]

    def query(self, hits: int) -> Query:
        """The query that asks about so many hits."""
        return Query(self.domain, self.descriptors, hits)


@dataclass(frozen=True, slots=True)
class Action:
    """One call to a service, the `index`th of its action set.

    `domain` and `hits` come from the data `ratelimit.domain` and `ratelimit.hits_addend`; `labels` from
    `requestData` make the second descriptor.
    """

    index: int
    service: Service
    phase: Phase
    scope: str
    predicates: tuple[Expression, ...]
    blocks: tuple[Block, ...]
    domain: str | Expression | None
    hits: str | Expression
    labels: tuple[Item, ...]

    def target(self, context: cel.Context) -> Target | None:
        """Whom to ask about; None when the action does not apply. Raises ActionFailure."""
        try:
            if not all_true(self.predicates, context):
                return None
            entries: list[Entry] = []
            for block in self.blocks:
                if all_true(block.predicates, context):
                    entries.extend(item.entry(context) for item in block.items)
            if not entries:
                return None
            descriptors: tuple[Descriptor, ...] = (tuple(entries),)
            if self.labels:
                descriptors += (tuple(item.entry(context) for item in self.labels),)
            return Target(self._domain(context), descriptors)
        except ExpressionError as error:
            raise ActionFailure(str(error)) from None

    def _domain(self, context: cel.Context) -> str:
        if self.domain is None:
            domain: Any = self.scope
        else:
            domain = self.domain if isinstance(self.domain, str) else self.domain.evaluate(context)
        if not isinstance(domain, str) or not domain:
            raise ActionFailure("`ratelimit.domain` must be a string that is not empty")
        return domain

    def count(self, context: cel.Context) -> int | None:
        """The hits addend, None when the answer of the model did not give it (S0.D5). Raises ActionFailure."""
        try:
            hits = int(self.hits) if isinstance(self.hits, str) else hits_of(self.hits.evaluate(context))
            if not 0 <= hits <= MAX_HITS:
                raise ValueError(f"{hits} is not in 0..{MAX_HITS}")
        except (ExpressionError, ValueError) as error:
            if self.phase is Phase.RESPONSE:
                return None
            raise ActionFailure(f"`ratelimit.hits_addend`: {error}") from None
        return hits


def hits_of(value: Any) -> int:
    """A hits addend: an integer, or a double without a fraction; raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, found {type(value).__name__}")
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"expected a whole number, found {value}")
    return int(value)


def all_true(predicates: tuple[Expression, ...], context: cel.Context) -> bool:
    """Whether every predicate holds; later ones are not evaluated after a false one.

    Raises ActionFailure for a value that is no bool, ExpressionError for none.
    """
    for predicate in predicates:
        value = predicate.evaluate(context)
        if value is False:
            return False
        if value is not True:
            raise ActionFailure(f"`{predicate.source}`: expected a bool, found {type(value).__name__}")
    return True
