"""Writing CEL: literals, conjunctions, and what may not be read where."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import cel

from extproc.config.errors import listed, quoted, shown
from extproc.expressions.program import Expression, ExpressionError
from extproc.expressions.references import Path

TRUE = "true"
FALSE = "false"
_REQUEST_ROOTS = frozenset({"request", "source", "destination", "connection", "metadata", "auth", "xds"})
CALLER_MEMBERS: Mapping[str, frozenset[str]] = {
    "auth": frozenset({"identity"}),
    "request": frozenset({"headers", "host", "method", "path", "url_path"}),
}
"""What is known when a caller is identified."""

_TYPES = frozenset({"bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"})
_STRING = r"""[rR]?(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")"""
_IDENTITY = r"auth\s*\.\s*identity"
_USE = re.compile(
    rf"""(?P<literal>{_STRING})
     |(?<![\w.])has\(\s*{_IDENTITY}\s*\.\s*(?P<asked>[A-Za-z_]\w*)\s*\)
     |(?<![\w.])auth\b(?:\s*\.\s*identity\b(?:\s*\.\s*(?P<name>[A-Za-z_]\w*)|\s*\[\s*(?P<key>{_STRING})\s*\])?)?""",
    re.VERBOSE,
)

_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ASCII = {
    "d": "[0-9]",
    "D": "[^0-9]",
    "w": "[0-9A-Za-z_]",
    "W": "[^0-9A-Za-z_]",
    "s": r"[\t\n\f\r ]",
    "S": r"[^\t\n\f\r ]",
    "b": r"(?-u:\b)",
    "B": r"(?-u:\B)",
}


class Unsupported(ValueError):
    """Something that means something, but not to us; the text says what, and what to do instead."""


def literal(value: Any) -> str:
    """Plain data as a CEL literal."""
    return json.dumps(value, ensure_ascii=False)


def all_of(conditions: Iterable[str]) -> str:
    """Every one of `conditions` holds."""
    needed = [condition for condition in dict.fromkeys(conditions) if condition != TRUE]
    return _joined(needed, " && ") if needed else TRUE


def any_of(conditions: Iterable[str]) -> str:
    """One of `conditions` holds at least."""
    enough = [condition for condition in dict.fromkeys(conditions) if condition != FALSE]
    return TRUE if TRUE in enough else _joined(enough, " || ") if enough else FALSE


def check_request_expression(source: str) -> None:
    """`source` can be evaluated when a request comes, before it is answered. Raises Unsupported."""
    expression = _compiled(source, _REQUEST_ROOTS)
    if expression.looks_into_answer:
        raise Unsupported("reads the answer, which is not there when the limit is asked")


def check_caller_expression(source: str, absent: Iterable[Path] = ()) -> None:
    """`source` can be evaluated when a caller has been identified, and reads none of `absent`. Raises Unsupported."""
    expression = _compiled(source, frozenset(CALLER_MEMBERS))
    if expression.references.calls:
        raise Unsupported("reads a body, which is not there when a caller is identified")
    for member in sorted(expression.references.members):
        if len(member) > 1 and member[1] not in CALLER_MEMBERS.get(member[0], member):
            known = listed(f"{member[0]}.{name}" for name in sorted(CALLER_MEMBERS[member[0]]))
            raise Unsupported(f"reads {quoted('.'.join(member[:2]))}, known are {known}")
    for path in absent:
        if any(member[: len(path)] == path for member in expression.references.members):
            raise Unsupported(f"reads {quoted('.'.join(path))}, which is not known here of a Secret")


def regular_expression(expression: str) -> str:
    r"""One of RE2's kind as `matches` takes it: `\w` and the like mean ASCII, as in RE2, and not all of Unicode.

    Raises Unsupported.
    """
    written = _ESCAPE.sub(lambda escape: _ASCII.get(escape[1], escape[0]), expression)
    try:
        Expression(f'"".matches({literal(written)})').evaluate(cel.Context())
    except ExpressionError:
        raise Unsupported(f"{shown(expression)} is no regular expression of RE2's kind") from None
    return written


def with_identity_of(source: str, replaced: Mapping[str, str]) -> str:
    """`source` with `auth.identity.NAME` written out as `replaced` says. Raises Unsupported where that cannot be."""

    def write_out(use: re.Match[str]) -> str:
        if use["literal"] is not None:
            return use.group()
        if use["asked"] is not None:
            return TRUE if use["asked"] in replaced else use.group()
        name = use["name"] or (use["key"] or "")[1:-1]
        if not name or "\\" in name:
            raise Unsupported("`auth.identity` as a whole cannot be read beside `overrides` or `defaults` of a source")
        return f"({replaced[name]})" if name in replaced else use.group()

    return _USE.sub(write_out, source) if replaced else source


def _compiled(source: str, roots: frozenset[str]) -> Expression:
    try:
        expression = Expression(source)
    except ExpressionError as error:
        raise Unsupported(f"invalid CEL expression: {error}") from None
    if unknown := expression.variables - expression.references.locals - _TYPES - roots:
        raise Unsupported(f"unknown variable `{min(unknown)}`, known are {', '.join(sorted(roots))}")
    return expression


def _joined(conditions: list[str], operator: str) -> str:
    return conditions[0] if len(conditions) == 1 else operator.join(map(_enclosed, conditions))


def _enclosed(condition: str) -> str:
    return f"({condition})" if any(mark in condition for mark in ("||", "&&", "?")) else condition
