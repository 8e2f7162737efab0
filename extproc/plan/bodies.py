"""What expressions see of bodies: `requestBodyJSON` and `responseBodyJSON`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from extproc.bodies.pointers import Scalar, Values
from extproc.expressions import PointerCall
from extproc.expressions.pointer import parse_pointer

_parse = lru_cache(maxsize=4096)(parse_pointer)


_NOTHING: Values = {}
"""What is found in a body that was not read; never written to."""


class BodyValues:
    """The values found in the two bodies of one exchange, each set when that body is over."""

    __slots__ = ("request", "response")

    def __init__(self) -> None:
        self.request = _NOTHING
        self.response = _NOTHING

    def function(self, name: str) -> Callable[..., Any]:
        """The CEL function `requestBodyJSON` or `responseBodyJSON`; it never raises, what is missing is null."""
        of_request = name == "requestBodyJSON"

        def lookup(pointers: Any, kind: str = "any") -> Scalar | None:
            values = self.request if of_request else self.response
            texts = pointers if isinstance(pointers, list) else (pointers,)
            return _first(values, map(_parse, texts), kind)

        return lookup

    def find(self, call: PointerCall) -> Scalar | None:
        """The value of a call that is a whole expression, without CEL."""
        values = self.request if call.body == "request" else self.response
        if call.kind == "any" and len(call.pointers) == 1:
            return values.get(call.pointers[0])
        return _first(values, call.pointers, call.kind)


def _first(values: Values, paths: Iterable[tuple[str, ...]], kind: str) -> Scalar | None:
    for path in paths:
        value = values.get(path)
        if value is not None and is_kind(value, kind):
            return value
    return None


def is_kind(value: Scalar, kind: str) -> bool:
    """Whether `value` is a `number`, a `string`, a `bool`, or `any` of them."""
    if kind == "any":
        return True
    if kind == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, str if kind == "string" else bool)
