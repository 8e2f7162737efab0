"""What expressions see of one exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import cel

from extproc.expressions import Expression
from extproc.expressions.functions import LIBRARY
from extproc.expressions.lookup import Comparison, Lookup, NotThere
from extproc.facts import RequestFacts
from extproc.plan.attributes import Attributes, Getter, getter_of
from extproc.plan.bodies import BodyValues

Fingerprint = Callable[[RequestFacts], tuple[Any, ...]]


class ActionFailure(Exception):
    """A predicate is no bool, or a value has no text: the action cannot be carried out."""

    def again(self) -> ActionFailure:
        """The same to raise. One that is remembered must not be raised itself: it would keep every frame it passes."""
        return ActionFailure(*self.args)


@dataclass(frozen=True, slots=True)
class Scope:
    """What a set of expressions sees: attributes, and the functions they call."""

    attributes: Attributes
    functions: frozenset[str]
    """Names of functions beyond CEL's own."""
    usage: bool
    """Whether they name `usage`."""

    def bind(self, facts: RequestFacts | None, bodies: BodyValues) -> cel.Context:
        """A context for one exchange; the body functions look into `bodies` whenever they are called.

        Without `facts` for expressions that name no attribute.
        """
        context = cel.Context() if facts is None else cel.Context(variables=self.attributes.bind(facts))
        for name in self.functions:
            context.add_function(name, LIBRARY.get(name) or bodies.function(name))
        return context


class Sight:
    """The request, and the bodies as far as they are known. CEL's context is made when the first expression needs it.

    Without `facts` for expressions that name no attribute of the request.
    """

    __slots__ = ("_bodies", "_context", "_scope", "facts")

    def __init__(self, scope: Scope, facts: RequestFacts | None, bodies: BodyValues) -> None:
        self.facts = facts
        self._scope = scope
        self._bodies = bodies
        self._context: cel.Context | None = None

    @property
    def context(self) -> cel.Context:
        """For CEL."""
        if self._context is None:
            self._context = self._scope.bind(self.facts, self._bodies)
        return self._context


@dataclass(frozen=True, slots=True)
class Equality:
    """An attribute compared with a text, without CEL."""

    lookup: Lookup
    get: Getter
    """The attribute at `lookup`. Raises NotThere."""
    literal: str

    @classmethod
    def of(cls, expression: Expression) -> Equality | None:
        """`expression` as an equality, where that gives the same."""
        comparison = Comparison.of(expression.source)
        get = None if comparison is None else getter_of(comparison.lookup)
        return None if comparison is None or get is None else cls(comparison.lookup, get, comparison.literal)


@dataclass(frozen=True, slots=True)
class Condition:
    """A predicate. Most compare an attribute with a text: those have an `equality`."""

    expression: Expression
    equality: Equality | None = None

    @classmethod
    def of(cls, expression: Expression) -> Condition:
        """`expression` as a condition."""
        return cls(expression, Equality.of(expression))

    def holds(self, sight: Sight) -> bool:
        """Raises ActionFailure for a value that is no bool, ExpressionError or NotThere for none."""
        equality = self.equality
        if equality is not None and sight.facts is not None:
            return bool(equality.get(sight.facts) == equality.literal)
        value = self.expression.evaluate(sight.context)
        if not isinstance(value, bool):
            raise ActionFailure(f"`{self.expression.source}`: expected a bool, found {type(value).__name__}")
        return value


def all_true(conditions: Iterable[Condition], sight: Sight) -> bool:
    """Whether every condition holds; later ones are not evaluated after a false one. Raises what `holds` does."""
    return all(condition.holds(sight) for condition in conditions)


def fingerprint_of(equalities: Iterable[Equality], attributes: Attributes) -> Fingerprint:
    """What tells requests apart in `equalities` and in `attributes`, which are all that is compared."""
    literals: dict[Lookup, set[str]] = {}
    getters: dict[Lookup, Getter] = {}
    for equality in equalities:
        literals.setdefault(equality.lookup, set()).add(equality.literal)
        getters[equality.lookup] = equality.get
    keys = tuple(_which(getters[lookup], frozenset(texts)) for lookup, texts in literals.items())
    if not keys:
        return attributes.fingerprint
    return lambda facts: (*[key(facts) for key in keys], *attributes.fingerprint(facts))


def _which(get: Getter, literals: frozenset[str]) -> Callable[[RequestFacts], str | bool | None]:
    """Which of `literals` an attribute is; False for none of them, None where it is not there."""

    def key(facts: RequestFacts) -> str | bool | None:
        try:
            value = get(facts)
        except NotThere:
            return None
        return value if type(value) is str and value in literals else False

    return key
