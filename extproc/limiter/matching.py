"""Which calls a limit applies to, and by which values it counts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, NamedTuple, Protocol

import cel

from extproc.expressions import Expression, ExpressionError, text_of
from extproc.expressions.lookup import Comparison, Lookup
from extproc.limiter.messages import encodable
from extproc.limiter.seam import Descriptor

MAX_VALUE: Final = 256
"""Characters of a counter's value as it is; a longer one is its digest, which is as distinct."""
NO_CONTEXT: Final = cel.Context()

Entries = Mapping[str, str]
"""A descriptor; of several entries with one key the last one counts."""
Values = tuple[str, ...]
"""What a limit's variables evaluate to, in their order."""


class Matcher(Protocol):
    """Conditions and variables that limits have in common."""

    @property
    def needs_cel(self) -> bool:
        """Must `values` be given a context?"""

    def values(self, entries: Sequence[Entries], context: cel.Context) -> Values | None:
        """The values that a call is counted by; None when a condition does not hold.

        `entries` are the call's descriptors, `context` is `context_of` them, or NO_CONTEXT.
        Raises ExpressionError (MissingKey for an absent key).
        """


@dataclass(frozen=True, slots=True)
class CelMatcher:
    """Decides for one limit, because expressions may read its `limit.id` and `limit.name`."""

    id: str
    name: str
    conditions: tuple[Expression, ...]
    variables: tuple[Expression, ...]

    @property
    def needs_cel(self) -> bool:
        """As Matcher's."""
        return True

    def values(self, entries: Sequence[Entries], context: cel.Context) -> Values | None:
        """As Matcher's."""
        context.add_variable("limit", {"id": self.id, "name": self.name})
        for condition in self.conditions:
            holds = condition.evaluate(context)
            if not isinstance(holds, bool):
                raise ExpressionError(f"`{condition.source}`: expected a bool")
            if not holds:
                return None
        return tuple([_bounded(text_of(variable.evaluate(context))) for variable in self.variables])


class _Place(NamedTuple):
    """`descriptors[number][key]`."""

    number: int
    key: str


@dataclass(frozen=True, slots=True)
class LookupMatcher:
    """Conditions `descriptors[0]['key'] == 'text'` and variables `descriptors[0]['key']`: CEL's answers without CEL."""

    conditions: tuple[tuple[int, str, str], ...]
    variables: tuple[_Place, ...]

    @classmethod
    def of(cls, conditions: Sequence[Expression], variables: Sequence[Expression]) -> LookupMatcher | None:
        """None when one of the expressions is something else."""
        compared = [_condition(expression.source) for expression in conditions]
        places = [_place(Lookup.of(expression.source)) for expression in variables]
        if None in compared or None in places:
            return None
        return cls(tuple(filter(None, compared)), tuple(filter(None, places)))

    @property
    def needs_cel(self) -> bool:
        """As Matcher's."""
        return False

    def values(self, entries: Sequence[Entries], context: cel.Context) -> Values | None:
        """As Matcher's, but None for an absent key too: the limit does not apply either way."""
        try:
            for number, key, text in self.conditions:
                if entries[number].get(key) != text:
                    return None
            variables = self.variables
            if len(variables) == 1:  # as nearly always, and a comprehension takes its time
                number, key = variables[0]
                return (_counted(entries[number][key]),)
            return tuple([_counted(entries[number][key]) for number, key in variables])
        except KeyError:
            return None
        except IndexError:
            raise ExpressionError(f"there are no more than {len(entries)} descriptors") from None


def context_of(descriptors: Sequence[Descriptor]) -> cel.Context:
    """What CEL sees of a call."""
    maps = [{encodable(key): encodable(value) for key, value in entries} for entries in descriptors]
    return cel.Context(variables={"descriptors": maps})


def _condition(source: str) -> tuple[int, str, str] | None:
    comparison = Comparison.of(source)
    if comparison is None or not _is_only_itself(comparison.literal):
        return None
    place = _place(comparison.lookup)
    return None if place is None else (*place, comparison.literal)


def _place(lookup: Lookup | None) -> _Place | None:
    match lookup:
        case Lookup("descriptors", (int(number), str(key))) if _is_only_itself(key):
            return _Place(number, key)
        case _:
            return None


def _is_only_itself(text: str) -> bool:
    """Whether no other text is `text` once it is encodable: then the texts of a call may be compared as they are."""
    return "?" not in text


def _counted(value: str) -> str:
    return value if value.isascii() and len(value) <= MAX_VALUE else _bounded(encodable(value))


def _bounded(value: str) -> str:
    return value if len(value) <= MAX_VALUE else "sha256:" + sha256(encodable(value).encode()).hexdigest()
