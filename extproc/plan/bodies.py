"""What expressions see of bodies: `requestBodyJSON` and `responseBodyJSON`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from extproc.bodies.pointers import Scalar, Values
from extproc.expressions.pointer import parse_pointer

_parse = lru_cache(maxsize=4096)(parse_pointer)


class BodyValues:
    """The values found so far in the two bodies of one exchange."""

    __slots__ = ("request", "response")

    def __init__(self) -> None:
        self.request: Values = {}
        self.response: Values = {}

    def function(self, name: str) -> Callable[..., Any]:
        """The CEL function `requestBodyJSON` or `responseBodyJSON`; it never raises, what is missing is null."""
        request = name == "requestBodyJSON"

        def lookup(pointers: Any, kind: str = "any") -> Scalar | None:
            values = self.request if request else self.response
            for pointer in pointers if isinstance(pointers, list) else (pointers,):
                value = values.get(_parse(pointer))
                if value is not None and is_kind(value, kind):
                    return value
            return None

        return lookup


def is_kind(value: Scalar, kind: str) -> bool:
    """Whether `value` is a `number`, a `string`, a `bool`, or `any` of them."""
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "string":
        return isinstance(value, str)
    return kind == "any" or isinstance(value, bool)
