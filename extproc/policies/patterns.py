"""Authorino's pattern expressions as CEL.

Authorino compares texts: what a selector leads to is made one, the empty text of null and when it leads nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal

from extproc.config.errors import quoted
from extproc.policies.auth_policy import NamedPatterns, Pattern, PatternOrRef
from extproc.policies.cel_text import (
    FALSE,
    TRUE,
    Unsupported,
    all_of,
    any_of,
    check_caller_expression,
    literal,
    regular_expression,
)
from extproc.policies.selectors import Selected, parse_selector

_NULL = "null"
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]{0,30})(?:\.[0-9]{1,30})?")


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
    if [] in (pattern.all, pattern.any):
        raise Unsupported("empty: `all` and `any` have one pattern at least")
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
            return f"{selected.or_else(literal(''))}.matches({literal(regular_expression(value))})"


def _equal(selected: Selected, value: str) -> str:
    text = selected.or_else(literal(""))
    return any_of(f"{text} == {option}" for option in _options(value))


def _included(selected: Selected, value: str) -> str:
    """In a list, or as the one value that is no list; null is as good as no value at all."""
    many, options = selected.or_else("[]"), _options(value)
    within = any_of(f"v == {option}" for option in options)
    alone = any_of(f"{selected.cel} == {option}" for option in options if option != _NULL)
    return f"(type({many}) == list ? {many}.exists(v, {within}) : {alone})"


def _options(value: str) -> list[str]:
    """The literals whose text is `value`: the text itself, and null, the truth value or the number that has it."""
    if value.startswith(("[", "{")):
        raise Unsupported("`value` is that of a list or an object, whose text is not compared; write a `predicate`")
    if not value:
        return [literal(value), _NULL]
    if value in (TRUE, FALSE):
        return [literal(value), value]
    return [literal(value), *_number(value)]


def _number(text: str) -> list[str]:
    """The number whose text is `text`, as a literal: numbers of a token are doubles, and written without exponent."""
    if not _DECIMAL.fullmatch(text) or f"{Decimal(repr(float(text))):f}".removesuffix(".0") != text:
        return []
    return [text if "." in text or len(text) < 16 else f"{text}.0"]
