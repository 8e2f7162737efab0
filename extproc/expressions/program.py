"""One compiled CEL expression."""

from __future__ import annotations

import re
from typing import Any

import cel

from extproc.expressions.functions import BUILT_IN, LIBRARY
from extproc.expressions.references import References, find_references

MAX_SOURCE = 16 * 1024
_STRING = cel.compile("string(value)")
_OPERATOR = re.compile(r"[^A-Za-z]|_[^A-Za-z]")
_EVALUATION_ERRORS = (LookupError, TypeError, RuntimeError, ArithmeticError, ValueError)


class ExpressionError(Exception):
    """An expression does not compile, or has no value here."""


class MissingKey(ExpressionError):
    """A map has no such key: for a limit's condition that means the limit does not apply."""


class Expression:
    """A CEL expression, compiled once.

    Raises ExpressionError for what does not compile, for functions that do not exist, and for body
    functions whose argument is not literal.
    """

    __slots__ = ("_program", "functions", "looks_into_answer", "references", "source", "variables")

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE:
            raise ExpressionError(f"longer than {MAX_SOURCE} characters")
        try:
            self._program = cel.compile(source)
            self.references: References = find_references(source)
        except ValueError as error:
            raise ExpressionError(_first_problem(str(error))) from None
        self.looks_into_answer = any(call.body == "response" for call in self.references.calls)
        self.source = source
        self.variables = frozenset(self._program.variables())
        self.functions = frozenset(name for name in self._program.functions() if not _OPERATOR.match(name))
        if unknown := sorted(self.functions - BUILT_IN - LIBRARY.keys()):
            raise ExpressionError(f"unknown function `{unknown[0]}`")

    def evaluate(self, context: cel.Context) -> Any:
        """The value in `context`; raises ExpressionError (MissingKey for an absent map key)."""
        try:
            return self._program.execute(context)
        except KeyError as error:
            raise MissingKey(f"`{self.source}`: no such key {error}") from None
        except _EVALUATION_ERRORS as error:
            raise ExpressionError(f"`{self.source}`: {error}") from None

    def __repr__(self) -> str:
        return f"Expression({self.source!r})"


def text_of(value: Any) -> str:
    """`value` as a descriptor shows it: strings as they are, others as CEL's string() does, bools `true`/`false`.

    Raises ExpressionError for null, lists and maps, which have no text.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if value is None or isinstance(value, (list, dict)):
        raise ExpressionError(f"expected a string, a number or a bool, found {_kind(value)}")
    try:
        return str(_STRING.execute({"value": value}))
    except _EVALUATION_ERRORS:
        raise ExpressionError(f"a {type(value).__name__} has no text") from None


def _kind(value: Any) -> str:
    return "null" if value is None else "a list" if isinstance(value, list) else "a map"


def _first_problem(message: str) -> str:
    """The parser's first complaint, without the copy of the source that it carries."""
    found = re.search(r"ERROR: <input>:\d+:(\d+): (.*)", message)
    return f"{found.group(2)} (column {found.group(1)})" if found else message.splitlines()[0]
