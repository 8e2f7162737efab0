"""Authorino's pattern expressions as CEL.

Authorino compares texts: what a selector leads to is made one, the empty text when it leads nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from extproc.config.errors import quoted
from extproc.policies.auth_policy import NamedPatterns, Pattern, PatternOrRef
from extproc.policies.cel_text import (
    Unsupported,
    all_of,
    any_of,
    check_caller_expression,
    check_regular_expression,
    literal,
)
from extproc.policies.selectors import Selected, parse_selector


def conjunction(patterns: Sequence[PatternOrRef], named: Mapping[str, NamedPatterns]) -> str:
    """All of `patterns` hold; `named` are the sets that `patternRef` may name. Raises Unsupported."""
    return all_of(_condition(pattern, named) for pattern in patterns)


def _condition(pattern: PatternOrRef, named: Mapping[str, NamedPatterns]) -> str:
    given = pattern.model_fields_set
    comparing = given & {"selector", "operator", "value"}
    kinds = (given - comparing) | ({"selector"} if comparing else set())
    if len(kinds) != 1:
        raise Unsupported(
            "expected exactly one of `predicate`, `patternRef`, `all`, `any` and the three of `selector`, `operator`, "
            "`value`"
        )
    if pattern.predicate is not None:
        predicate = pattern.predicate.strip()
        check_caller_expression(predicate)
        return predicate
    if pattern.all is not None:
        return all_of(_condition(inner, named) for inner in pattern.all)
    if pattern.any is not None:
        return any_of(_condition(inner, named) for inner in pattern.any)
    if pattern.pattern_ref is not None:
        if (found := named.get(pattern.pattern_ref)) is None:
            raise Unsupported(f"`patterns` has no {quoted(pattern.pattern_ref)}")
        return all_of(_comparison(inner) for inner in found.all_of)
    return _comparison(pattern)


def _comparison(pattern: Pattern) -> str:
    if not pattern.selector or pattern.operator is None:
        raise Unsupported("`selector` and `operator` belong together")
    selected, value = parse_selector(pattern.selector), pattern.value or ""
    match pattern.operator:
        case "eq":
            return _equal(selected, value)
        case "neq":
            return f"!({_equal(selected, value)})"
        case "incl":
            return _included(selected, value)
        case "excl":
            return f"!({_included(selected, value)})"
        case "matches":
            check_regular_expression(value)
            return f"{selected.or_else(literal(''))}.matches({literal(value)})"


def _equal(selected: Selected, value: str) -> str:
    text = selected.or_else(literal(""))
    return any_of(f"{text} == {option}" for option in _options(value))


def _included(selected: Selected, value: str) -> str:
    many = selected.or_else("[]")
    within = any_of(f"v == {option}" for option in _options(value))
    return f"(type({many}) == list ? {many}.exists(v, {within}) : {_equal(selected, value)})"


def _options(value: str) -> list[str]:
    """The literals whose text is `value`: the text itself, and the number or truth value it may be of."""
    plain = value in ("true", "false") or (value.isdecimal() and value.isascii() and str(int(value)) == value)
    return [literal(value), value] if plain and len(value) < 18 else [literal(value)]
