"""Expressions about a caller: `auth.identity` as a source found it, and `request`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import cel

from extproc.config.errors import Problem, Step, listed
from extproc.expressions import Expression, ExpressionError
from extproc.expressions.functions import LIBRARY
from extproc.expressions.lookup import Comparison, Lookup, NotThere
from extproc.facts import RequestFacts

_TYPES: Final = frozenset("bool bytes double dyn int list map null_type string type uint".split())
_FIELDS: Final[Mapping[str, Callable[[Sight], Any]]] = {
    "method": lambda sight: sight.facts.header(":method"),
    "path": lambda sight: sight.facts.header(":path"),
    "url_path": lambda sight: (sight.facts.header(":path") or "").partition("?")[0],
    "host": lambda sight: sight.facts.host,
    "headers": lambda sight: _decoded(sight.headers),
}
_MEMBERS: Final[Mapping[str, frozenset[str]]] = {
    "auth": frozenset({"identity"}),
    "request": frozenset(_FIELDS),
}

Path = tuple[str, ...]
T = TypeVar("T")

NO_VALUE: Final = (ExpressionError, NotThere)
"""What an expression raises that has no value."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A compiled expression. What only walks to a value, or compares one with a text, needs no CEL."""

    expression: Expression
    native: Callable[[Sight], Any] | None

    @property
    def repeatable(self) -> bool:
        """Whether its value depends on nothing but the identity."""
        return all(member[0] != "request" for member in self.expression.references.members)

    def value(self, sight: Sight) -> Any:
        """Raises one of NO_VALUE."""
        return self.expression.evaluate(sight.context) if self.native is None else self.native(sight)


class Needs:
    """What CEL has to be told for a set of expressions: it takes microseconds for each value."""

    def __init__(self, readings: Iterable[Reading]) -> None:
        members = {m for reading in readings if reading.native is None for m in reading.expression.references.members}
        self._claims = _below(members, ("auth", "identity"))
        self._headers = _below(members, ("request", "headers"))
        fields = _below(members, ("request",))
        self._fields = frozenset(_FIELDS) - {"headers"} if fields is None else fields - {"headers"}

    def bind(self, sight: Sight) -> dict[str, Any]:
        """The variables."""
        request: dict[str, Any] = {name: _FIELDS[name](sight) for name in self._fields}
        request["headers"] = _decoded(_only(sight.headers, self._headers))
        return {"auth": {"identity": _only(sight.auth["identity"], self._claims)}, "request": request}


class Sight:
    """What expressions see of one caller and one request. CEL's context is made when the first of them needs it."""

    __slots__ = ("_context", "_hidden", "_needs", "auth", "facts")
    auth: dict[str, Mapping[str, Any]]
    facts: RequestFacts

    def __init__(self, identity: Mapping[str, Any], facts: RequestFacts, hidden: tuple[str, ...], needs: Needs) -> None:
        """Headers that are `hidden` are not believed, so nobody sees them."""
        self.auth = {"identity": identity}
        self.facts = facts
        self._hidden = hidden
        self._needs = needs
        self._context: cel.Context | None = None

    @property
    def headers(self) -> Mapping[str, bytes]:
        """Those of the request that are believed."""
        headers = self.facts.headers
        return {name: headers[name] for name in headers if name not in self._hidden} if self._hidden else headers

    @property
    def context(self) -> cel.Context:
        """For CEL."""
        if self._context is None:
            self._context = cel.Context(variables=self._needs.bind(self), functions=dict(LIBRARY))
        return self._context


class Compiler:
    """Compiles expressions, and collects what is wrong with them."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def reading(self, source: str, *steps: Step) -> Reading | None:
        """The expression in the field that `steps` lead to; None, and one problem more, when it cannot be used."""
        try:
            expression = Expression(source)
            _check(expression)
        except ExpressionError as error:
            self.problems.append(Problem.at(steps, str(error)))
            return None
        return Reading(expression, _native(source))


def _check(expression: Expression) -> None:
    """Raises ExpressionError for names that mean nothing here."""
    references = expression.references
    if references.calls:
        raise ExpressionError("the bodies are not there yet when it is asked who calls")
    names = expression.variables - references.locals - _TYPES
    if unknown := sorted(names - _MEMBERS.keys()):
        raise ExpressionError(f"unknown variable `{unknown[0]}`, known are {listed(_MEMBERS)}")
    for member in sorted(references.members):
        root = member[0]
        if root in names and len(member) > 1 and member[1] not in _MEMBERS[root]:
            known = listed(f"{root}.{field}" for field in sorted(_MEMBERS[root]))
            raise ExpressionError(f"unknown field `{root}.{member[1]}`, known are {known}")


def _native(source: str) -> Callable[[Sight], Any] | None:
    lookup = Lookup.of(source)
    if lookup is not None:
        return _finder(lookup)
    comparison = Comparison.of(source)
    find = None if comparison is None else _finder(comparison.lookup)
    if comparison is None or find is None:
        return None
    literal, found = comparison.literal, find
    return lambda sight: bool(found(sight) == literal)


def _finder(lookup: Lookup) -> Callable[[Sight], Any] | None:
    if lookup.root == "auth":
        return lambda sight: lookup.find(sight.auth)
    if lookup.root != "request" or not lookup.steps:
        return None
    get, below = _FIELDS[str(lookup.steps[0])], Lookup(lookup.root, lookup.steps[1:])
    return lambda sight: below.find(get(sight))


def _below(members: Iterable[Path], path: Path) -> frozenset[str] | None:
    """The names that `members` give right below `path`; None when one of them takes it as a whole."""
    depth = len(path)
    if any(member == path[: len(member)] for member in members):
        return None
    return frozenset(member[depth] for member in members if member[:depth] == path)


def _only(values: Mapping[str, T], names: frozenset[str] | None) -> Mapping[str, T]:
    return values if names is None else {name: values[name] for name in names if name in values}


def _decoded(headers: Mapping[str, bytes]) -> dict[str, str]:
    return {name: value.decode("utf-8", "replace") for name, value in headers.items()}
