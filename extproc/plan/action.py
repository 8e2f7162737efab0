"""Actions compiled: when one runs, and what it asks the limiter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import cel

from extproc.expressions import Expression, ExpressionError, text_of
from extproc.expressions.lookup import Lookup, NotThere
from extproc.facts import RequestFacts
from extproc.identity.seam import AuthAnswer
from extproc.limiter.seam import MAX_HITS, Answer, Descriptor, Entry, Metadata, Query
from extproc.plan.attributes import Getter, getter_of
from extproc.plan.bodies import BodyValues
from extproc.plan.sight import ActionFailure, Condition, Sight, all_true

Call = Literal["check", "report", "should_rate_limit"]
Ask = Callable[[Query, Metadata], Answer]
Refund = Callable[[Query, Metadata, float], Answer]
"""Its third argument is how long ago it was charged, in seconds."""


class Phase(IntEnum):
    """The earliest moment at which everything an action needs is there."""

    REQUEST_HEADERS = 0
    REQUEST_BODY = 1
    RESPONSE = 2


@dataclass(frozen=True, slots=True)
class Service:
    """A policy service: where it is, what it is asked and what a missing decision means."""

    name: str
    endpoint: str
    call: Call
    ask: Ask
    """The limiter's method for `call`."""
    denies_on_failure: bool


@dataclass(frozen=True, slots=True)
class Precharge:
    """Charging the prompt when it is only asked whether there is room; `refund` gives back, where that is possible."""

    charge: Ask
    refund: Refund | None
    keeps: bool
    """Whether what was charged for a call that failed, or too much, is kept."""


@dataclass(frozen=True, slots=True)
class Item:
    """A descriptor entry to be: a literal, or an expression for its value; `native` where that needs no CEL."""

    key: str
    value: str | Expression
    native: Getter | None = None
    """Raises NotThere."""

    @classmethod
    def of(cls, key: str, value: str | Expression) -> Item:
        """The entry `key`, natively where that gives the same."""
        lookup = None if isinstance(value, str) else Lookup.of(value.source)
        return cls(key, value, None if lookup is None else getter_of(lookup))

    @property
    def source(self) -> str:
        """What tells its value from others: an expression, or a literal in quotes."""
        return repr(self.value) if isinstance(self.value, str) else self.value.source

    def entry(self, sight: Sight) -> Entry:
        """The entry; raises ExpressionError or NotThere when the value has no text."""
        if isinstance(self.value, str):
            return self.key, self.value
        if self.native is not None and sight.facts is not None:
            return self.key, text_of(self.native(sight.facts))
        return self.key, text_of(self.value.evaluate(sight.context))


@dataclass(frozen=True, slots=True)
class Block:
    """Entries that count when all predicates hold."""

    predicates: tuple[Condition, ...]
    items: tuple[Item, ...]


def _entries(items: tuple[Item, ...], sight: Sight) -> Descriptor:
    return tuple([item.entry(sight) for item in items])


@dataclass(frozen=True, slots=True)
class Form:
    """A query whose values are still to be filled in: of requests that look alike, everything they have in common."""

    domain: str
    descriptors: tuple[tuple[Item, ...], ...]
    hits: int

    def settled(self, sight: Sight) -> Form | Query:
        """The same with all values that take CEL; a query when no other is left. Raises ActionFailure."""
        if all(item.native is None for items in self.descriptors for item in items):
            return self.fill(sight)
        try:
            descriptors = tuple(
                tuple(item if item.native is not None else Item(*item.entry(sight)) for item in items)
                for items in self.descriptors
            )
        except (ExpressionError, NotThere) as error:
            raise ActionFailure(str(error)) from None
        return Form(self.domain, descriptors, self.hits)

    def fill(self, sight: Sight, filled: dict[int, tuple[Descriptor, ...]] | None = None) -> Query:
        """The query of one request; `filled` are descriptors that are there already, by the id of ours.

        Raises ActionFailure.
        """
        descriptors = None if filled is None else filled.get(id(self.descriptors))
        if descriptors is None:
            try:
                descriptors = tuple([_entries(items, sight) for items in self.descriptors])
            except (ExpressionError, NotThere) as error:
                raise ActionFailure(str(error)) from None
            if filled is not None:
                filled[id(self.descriptors)] = descriptors
        return Query(self.domain, descriptors, self.hits)


@dataclass(frozen=True, slots=True)
class AuthService:
    """Where it is asked who calls, and what a missing verdict means."""

    name: str
    authenticate: Callable[[RequestFacts, str, Metadata], AuthAnswer]
    denies_on_failure: bool


@dataclass(frozen=True, slots=True)
class AuthAction:
    """Finding out who calls, by the rules of `scope`; the `index`th action of its set."""

    index: int
    service: AuthService
    scope: str
    predicates: tuple[Condition, ...]
    checks_model: bool
    """Whether a verdict may depend on the model that the request asks for."""

    def applies(self, sight: Sight) -> bool:
        """Whether this request is to be asked. Raises ActionFailure."""
        try:
            return all_true(self.predicates, sight)
        except (ExpressionError, NotThere) as error:
            raise ActionFailure(str(error)) from None


@dataclass(frozen=True, slots=True)
class Action:
    """One call to a limiter, the `index`th of its action set.

    `domain` and `hits` come from the data `ratelimit.domain` and `ratelimit.hits_addend`; `labels` from
    `requestData` make the second descriptor.
    """

    index: int
    service: Service
    phase: Phase
    scope: str
    predicates: tuple[Condition, ...]
    blocks: tuple[Block, ...]
    domain: str | Expression | None
    hits: int | Expression
    labels: tuple[Item, ...]
    precharge: Precharge | None = None

    def form(self, sight: Sight) -> Form | None:
        """What to ask but for its values, None when the action does not apply. Raises ActionFailure.

        Its hits are those of the configuration, 0 where they are an expression: see `count`.
        """
        try:
            if not all_true(self.predicates, sight):
                return None
            items = [item for block in self.blocks if all_true(block.predicates, sight) for item in block.items]
            if not items:
                return None
            descriptors = (tuple(items), self.labels) if self.labels else (tuple(items),)
            hits = self.hits if isinstance(self.hits, int) else 0
            return Form(self._domain(sight), descriptors, hits)
        except (ExpressionError, NotThere) as error:
            raise ActionFailure(str(error)) from None

    def query(self, sight: Sight) -> Query | None:
        """What to ask, None when the action does not apply. Raises ActionFailure."""
        form = self.form(sight)
        return None if form is None else form.fill(sight)

    def _domain(self, sight: Sight) -> str:
        if self.domain is None:
            domain: Any = self.scope
        else:
            domain = self.domain if isinstance(self.domain, str) else self.domain.evaluate(sight.context)
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
