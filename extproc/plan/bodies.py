"""What expressions see of bodies: `requestBodyJSON` and `responseBodyJSON`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from extproc.bodies.findings import Path, Scalar, Values, count_of
from extproc.expressions import PointerCall
from extproc.expressions.pointer import parse_pointer
from extproc.usage.usage import Usage

_parse = lru_cache(maxsize=4096)(parse_pointer)


_NOTHING: Values = {}
"""What is found in a body that was not read; never written to."""


_PROMPT = frozenset(
    "prompt_tokens input_tokens inputTokens promptTokenCount inputTokenCount prompt_eval_count "
    "prompt_token_count".split()
)
_COMPLETION = frozenset(
    "completion_tokens output_tokens outputTokens candidatesTokenCount outputTokenCount eval_count "
    "generation_token_count".split()
)
_TOTAL = frozenset("total_tokens totalTokens totalTokenCount".split())
"""What the providers call their counts: where an answer lacks one, the usage that was found has it."""


class BodyValues:
    """The values found in the two bodies of one exchange, each set when that body is over.

    With `usage`, counts that expressions look for in an answer of another dialect, or in one that tells no usage,
    are taken from it.
    """

    __slots__ = ("request", "response", "usage")

    def __init__(self) -> None:
        self.request = _NOTHING
        self.response = _NOTHING
        self.usage: Usage | None = None

    def function(self, name: str) -> Callable[..., Any]:
        """The CEL function `requestBodyJSON` or `responseBodyJSON`; it never raises, what is missing is null."""
        of_request = name == "requestBodyJSON"

        def lookup(pointers: Any, kind: str = "any") -> Scalar | None:
            texts = pointers if isinstance(pointers, list) else (pointers,)
            paths = tuple(map(_parse, texts))
            return self._in_request(paths, kind) if of_request else self._in_response(paths, kind)

        return lookup

    def find(self, call: PointerCall) -> Scalar | None:
        """The value of a call that is a whole expression, without CEL."""
        if call.body == "request":
            return self._in_request(call.pointers, call.kind)
        if self.usage is None and call.kind == "any" and len(call.pointers) == 1:
            return self.response.get(call.pointers[0])
        return self._in_response(call.pointers, call.kind)

    def _in_request(self, paths: Sequence[Path], kind: str) -> Scalar | None:
        return _first(self.request, paths, kind)

    def _in_response(self, paths: Sequence[Path], kind: str) -> Scalar | None:
        if self.usage is None:
            return _first(self.response, paths, kind)
        for path in paths:
            value, count = self.response.get(path), _count_at(path, self.usage)
            if value is not None and is_kind(value, kind) and (count is None or count_of(value)):
                return value
        counts = (_count_at(path, self.usage) for path in paths)
        return next((count for count in counts if count is not None), None)


def _count_at(path: Path, usage: Usage) -> int | None:
    name = path[-1] if path else ""
    if name in _TOTAL:
        return usage.total_tokens
    if name in _PROMPT:
        return usage.prompt_tokens
    return usage.completion_tokens if name in _COMPLETION else None


def _first(values: Values, paths: Iterable[Path], kind: str) -> Scalar | None:
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
