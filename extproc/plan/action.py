"""Actions compiled: when one runs, and what it asks the limiter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import cel

from extproc.expressions import Expression, ExpressionError, text_of
from extproc.limiter.seam import MAX_HITS, Answer, Descriptor, Entry, Metadata, Query
from extproc.plan.bodies import BodyValues

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
    hits: int | Expression
    labels: tuple[Item, ...]

    def query(self, context: cel.Context) -> Query | None:
        """What to ask, None when the action does not apply. Raises ActionFailure.

        Its hits are those of the configuration, 0 where they are an expression: see `count`.
        """
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
            hits = self.hits if isinstance(self.hits, int) else 0
            return Query(self._domain(context), descriptors, hits)
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

    def count(self, hits: Expression, bodies: BodyValues, context: Callable[[], cel.Context]) -> int:
        """The hits addend that `hits` gives; `context` is called where CEL is needed.

        Raises ActionFailure when there is none: in an answer that does not tell, when it is over (S0.D5).
        """
        try:
            call = hits.references.sole_call
            return hits_of(hits.evaluate(context()) if call is None else bodies.find(call))
        except (ExpressionError, ValueError) as error:
            raise ActionFailure(f"`ratelimit.hits_addend`: {error}") from None


def hits_of(value: Any) -> int:
    """A hits addend: an integer that fits, or a double without a fraction; raises ValueError for anything else."""
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or not 0 <= value <= MAX_HITS:
        raise ValueError(f"expected a whole number from 0 to {MAX_HITS}, found {value!r:.60}")
    return value


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
