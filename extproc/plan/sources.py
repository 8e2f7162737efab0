"""Expressions as an operator writes them: compiled, and every mistake named by its field."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence

import cel

from extproc.config.errors import Problem
from extproc.expressions import Expression, ExpressionError, text_of
from extproc.expressions.functions import LIBRARY
from extproc.plan.attributes import KNOWN, ROOTS, USAGE
from extproc.usage.usage import Usage

_TYPES = frozenset({"bool", "bytes", "double", "dyn", "int", "list", "map", "null_type", "string", "type", "uint"})
_PATH = re.compile(r"""\brequest\s*(?:\.\s*path\b|\[\s*["']path["']\s*\])""")
_SAFE_PATH = re.compile(_PATH.pattern + r"\s*\)*\s*\.\s*(?:startsWith|contains)\s*\(")
_HOST = re.compile(r"""\brequest\s*\.\s*host\b(?!\s*\.\s*(?:lowerAscii|startsWith|contains))""")


class Sources:
    """Compiles expressions and collects what is wrong with them. `prices` are the models that have one."""

    def __init__(self, prices: Container[str]) -> None:
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self._prices = prices

    def predicates(self, sources: Sequence[str], path: str) -> tuple[Expression, ...]:
        compiled = (self.value(source, f"{path}[{i}]") for i, source in enumerate(sources))
        found = tuple(expression for expression in compiled if expression is not None)
        self.constants(found, path, predicate=True)
        return found

    def value(self, source: str, path: str) -> Expression | None:
        try:
            expression = Expression(source)
        except ExpressionError as error:
            self.problem(path, f"invalid CEL expression `{_shorten(source)}`: {error}")
            return None
        names = expression.variables - expression.references.locals - _TYPES
        if unknown := names - ROOTS - {USAGE}:
            known = ", ".join(sorted({*ROOTS, USAGE}))
            self.problem(path, f"unknown variable `{min(unknown)}` in `{_shorten(source)}`, known are {known}")
            return None
        for member in expression.references.members:
            if member[0] == USAGE and USAGE in names and len(member) > 1 and member[1] not in Usage._fields:
                fields = ", ".join(Usage._fields)
                self.problem(path, f"unknown field `{'.'.join(member[:2])}`, known are {fields}")
                return None
        for member in sorted(expression.references.members):
            self._unknown_attribute(member, path)
        if (USAGE, "cost") in expression.references.members and "*" not in self._prices:
            self.warn(path, "`usage.cost` is null for models without a price, and what needs it fails; `*` prices all")
        return expression

    def _unknown_attribute(self, member: tuple[str, ...], path: str) -> None:
        if len(member) > 1 and member[0] in ROOTS - {"auth", "metadata"} and member[:2] not in KNOWN:
            name = ".".join(member[:2])
            self.warn(path, f"`{name}` is no attribute Envoy knows; it is null unless Envoy sends one by that name")
        if member[:2] == ("request", "headers") and len(member) > 2 and not member[2].islower():
            self.warn(path, f"header names are lower case in `request.headers`: `{member[2]}` is never there")

    def bypass(self, predicates: Iterable[Expression], path: str) -> None:
        """S0.D9: a query string, a port or another case is enough to escape some comparisons."""
        for expression in predicates:
            source = _SAFE_PATH.sub("", expression.source)
            if _PATH.search(source):
                self.warn(
                    path,
                    f"`{_shorten(expression.source)}` can be bypassed: `request.path` includes the query string, "
                    "so a client escapes by adding `?x=1`; use `request.url_path`",
                )
            if _HOST.search(source):
                self.warn(
                    path,
                    f"`{_shorten(expression.source)}` can be bypassed: `request.host` is as the client wrote it, with "
                    "its case, port and trailing dot; use `hostnames`",
                )

    def constants(self, expressions: Iterable[Expression], path: str, *, predicate: bool) -> None:
        """Tell of expressions that depend on nothing and fail: they would fail for every request."""
        for expression in expressions:
            if expression.variables or expression.references.calls:
                continue
            try:
                value = expression.evaluate(cel.Context(functions=dict(LIBRARY)))
                if predicate and not isinstance(value, bool):
                    raise ExpressionError(f"`{expression.source}`: expected a bool")
                if not predicate:
                    text_of(value)
            except ExpressionError as error:
                self.warn(path, f"always fails: {error}")

    def problem(self, path: str, message: str) -> None:
        self.problems.append(Problem(path, message))

    def warn(self, path: str, message: str) -> None:
        self.warnings.append(Problem(path, message))


def _shorten(source: str) -> str:
    return source if len(source) <= 80 else source[:77] + "..."
