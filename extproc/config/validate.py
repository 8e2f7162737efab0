"""Plain data to models, with a sentence for everything that is wrong.

Data is compared with the JSON Schema first, one value at a time: that stops after enough problems, while pydantic
would collect millions of errors from a large file of nonsense. What has passed is given to pydantic, which builds
the models and checks the little that a schema does not say.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from extproc.config.dialect import fault_of
from extproc.config.duration import DURATION, PATTERN
from extproc.config.errors import (
    MAX_PROBLEMS,
    ConfigError,
    Problem,
    Step,
    first_problems,
    listed,
    quoted,
    shown,
    similar,
)
from extproc.config.fields import Written
from extproc.config.masking import holds_secret, without_userinfo
from extproc.config.schema import Schema, schema_of

T = TypeVar("T")
Steps = tuple[Step, ...]

_JSON_TYPES: dict[type, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",
    dict: "object",
    type(None): "null",
}
_EXPECTED = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "`true` or `false`",
    "array": "a list",
    "object": "an object",
}
_BOUNDS: tuple[tuple[str, str, Callable[[Any, Any], bool]], ...] = (
    ("minimum", "of at least", operator.ge),
    ("maximum", "of at most", operator.le),
    ("exclusiveMinimum", "above", operator.gt),
    ("exclusiveMaximum", "below", operator.lt),
)


def validate(adapter: TypeAdapter[T], data: Any, *, base: Path, file: str = "") -> T:
    """The model of `data`, in which relative paths start at `base`.

    Raises ConfigError, each problem with its field and with `file`.
    """
    comparison = _Comparison(schema_of(adapter), file)
    if problems := first_problems(comparison.problems(data)):
        raise ConfigError(problems)
    try:
        return adapter.validate_python(data, context=Written(base.absolute()), by_alias=True, by_name=False)
    except ValidationError as error:
        details = islice(error.errors(include_url=False), MAX_PROBLEMS + 1)
        problems = first_problems(Problem.at(detail["loc"], _sentence(detail), file) for detail in details)
    raise ConfigError(problems)


def _sentence(error: ErrorDetails) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return error["msg"].replace("Input should be", "expected a value", 1)


class _Comparison:
    """Says where data is not what a schema allows; knows the keywords that our models produce."""

    def __init__(self, schema: Schema, file: str) -> None:
        self._root = schema
        self._file = file

    def problems(self, data: Any) -> Iterator[Problem]:
        return self._compare(data, self._root, ())

    def _compare(self, value: Any, schema: Schema, steps: Steps) -> Iterator[Problem]:
        kind = _JSON_TYPES[type(value)]
        kinds = (kind, "number") if kind == "integer" else (kind,)
        arm = next((arm for arm in self._arms(schema) if arm.get("type") in kinds), None)
        if arm is None:
            hint = "; put it in quotes" if self._expected(schema) == "a string" and _is_scalar(value) else ""
            message = f"expected {self._expected(schema)}, found {_found(value, steps)}{hint}"
            yield self._problem(steps, message)
        elif isinstance(value, dict):
            yield from self._object(value, arm, steps)
        elif isinstance(value, list):
            yield from self._list(value, arm, steps)
        elif fault := self._scalar_fault(value, schema, arm, steps):
            yield self._problem(steps, fault)

    def _object(self, value: dict[str, Any], schema: Schema, steps: Steps) -> Iterator[Problem]:
        if fault := fault_of(schema.get("title", ""), value):
            yield self._problem(steps, fault)
            return
        fields: Schema = schema.get("properties", {})
        required = schema.get("required", ())
        for name, field in fields.items():
            if name in value:
                yield from self._compare(value[name], field, (*steps, name))
            elif name in required:
                yield self._problem((*steps, name), "missing")
        others = schema.get("additionalProperties")
        for name in value:
            if name in fields:
                continue
            if isinstance(others, dict):
                yield from self._compare(value[name], others, (*steps, name))
            else:
                guess = similar(name, fields)
                message = f"unknown field{guess or ','} expected one of {listed(fields)}"
                yield self._problem((*steps, name), message)

    def _list(self, value: list[Any], schema: Schema, steps: Steps) -> Iterator[Problem]:
        if len(value) < schema.get("minItems", 0):
            yield self._problem(steps, "expected at least one entry")
        for index, item in enumerate(value):
            yield from self._compare(item, schema["items"], (*steps, index))

    def _scalar_fault(self, value: Any, schema: Schema, arm: Schema, steps: Steps) -> str:
        """What is wrong with a value of the right type, "" when nothing is."""
        if "enum" in arm and value not in arm["enum"]:
            variant = "" if holds_secret(steps) else f" {quoted(value)}"
            return f"unknown variant{variant}, expected {self._expected(schema)}"
        for keyword, words, holds in _BOUNDS:
            if keyword in arm and not holds(value, arm[keyword]):
                return f"expected {self._expected(arm)} {words} {arm[keyword]}, found {_found(value, steps)}"
        return ""

    def _expected(self, schema: Schema) -> str:
        """What `schema` allows, `null` left out."""
        return " or ".join(_expected(arm) for arm in self._arms(schema) if arm["type"] != "null")

    def _arms(self, schema: Schema) -> Iterator[Schema]:
        """Everything that a value may be; no two of them have the same type."""
        if "$ref" in schema:
            yield from self._arms(self._root["$defs"][schema["$ref"].rpartition("/")[2]])
        elif "type" in schema:
            yield schema
        else:
            for arm in schema.get("anyOf") or schema["oneOf"]:
                yield from self._arms(arm)

    def _problem(self, steps: Steps, message: str) -> Problem:
        return Problem.at(steps, message, self._file)


def _expected(arm: Schema) -> str:
    if "enum" in arm:
        return f"one of {listed(arm['enum'])}"
    return DURATION if arm.get("pattern") == PATTERN else _EXPECTED[arm["type"]]


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float)


def _found(value: Any, steps: Steps) -> str:
    if value is None or isinstance(value, list | dict):
        return shown(value)
    kind = _JSON_TYPES[type(value)]
    if holds_secret(steps):
        return f"a secret value ({kind})"
    return f"{shown(without_userinfo(value) if isinstance(value, str) else value)} ({kind})"
