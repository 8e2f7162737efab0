"""Who is calling, for numbers and log lines: a few texts about a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from extproc.expressions import Expression, ExpressionError, text_of
from extproc.expressions.lookup import Lookup, NotThere
from extproc.facts import RequestFacts
from extproc.plan.attributes import getter_of
from extproc.plan.bodies import BodyValues
from extproc.plan.sight import Scope, Sight

MAX_VALUE = 128
"""Characters."""

Who = tuple[str, ...]
"""The values of all labels, "" where there is none."""
Find = Callable[[RequestFacts], Any]
"""A value, or one of the errors that mean none."""
_NO_VALUE = (NotThere, ExpressionError)


class Labels:
    """Labels by name; of the expressions of each the first that has a value counts. Nothing here fails a request."""

    __slots__ = ("_finders", "_nobody", "_only_auth", "names")

    def __init__(self, labels: Mapping[str, Sequence[Expression]], scope: Callable[[Expression], Scope]) -> None:
        self.names = tuple(labels)
        self._finders = tuple(tuple(_finder(each, scope) for each in candidates) for candidates in labels.values())
        self._nobody: Who = ("",) * len(self.names)
        self._only_auth = all(each.variables <= {"auth"} for candidates in labels.values() for each in candidates)

    def of(self, facts: RequestFacts) -> Who:
        """The values for one request."""
        if self._only_auth and facts.identity() is None:
            return self._nobody
        return tuple([_first(finders, facts) for finders in self._finders])


def _finder(expression: Expression, scope: Callable[[Expression], Scope]) -> Find:
    lookup = Lookup.of(expression.source)
    get = None if lookup is None else getter_of(lookup)
    if get is not None:
        return get
    seen = scope(expression)
    return lambda facts: expression.evaluate(Sight(seen, facts, BodyValues()).context)


def _first(finders: Sequence[Find], facts: RequestFacts) -> str:
    for find in finders:
        try:
            value = find(facts)
            text = ",".join(map(text_of, value)) if isinstance(value, list) else text_of(value)
        except _NO_VALUE:
            continue
        if text:
            return text[:MAX_VALUE]
    return ""
