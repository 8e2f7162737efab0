"""Generated text that went by in an answer: how much, and up to a bound what it was.

It is what an estimate is made of when a model reports no usage. Text is kept as it stands between the quotes of
JSON strings, escapes included, and decoded only when somebody asks: most answers do report their usage.
"""

from __future__ import annotations

import json
import re

import orjson

_TAIL = 64
_CUT_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*(\\(?:u[0-9a-fA-F]{0,3})?)$")


class Text:
    """`size` is in bytes, escapes as they were written; `kept` of them, from the beginning, are held."""

    __slots__ = ("_kept", "_limit", "size")

    def __init__(self, limit: int = 0) -> None:
        self.size = 0
        self._limit = limit
        self._kept = bytearray()

    @property
    def kept(self) -> int:
        """Bytes that are held, at most the limit."""
        return len(self._kept)

    def add(self, escaped: bytes) -> None:
        """Take a JSON string, or a part of one, without its quotes."""
        self.size += len(escaped)
        if self.size <= self._limit:
            self._kept += escaped
        elif (room := self._limit - len(self._kept)) > 0:
            self._kept += escaped[:room]

    def add_value(self, value: object) -> None:
        """Take a parsed value: a string as it is, tool call arguments and the like as their JSON."""
        try:
            text = value if isinstance(value, str) else orjson.dumps(value).decode()
        except TypeError:  # nested deeper than it goes
            return
        self.add(json.dumps(text, ensure_ascii=False)[1:-1].encode("utf-8", "surrogatepass"))

    def decoded(self) -> str:
        """The text that was kept. What is no proper JSON string is given as it was written."""
        kept = bytes(self._kept)
        if self.size > len(kept) and (cut := _CUT_ESCAPE.search(kept[-_TAIL:])) is not None:
            kept = kept[: cut.start(1) - min(_TAIL, len(kept))]
        try:
            return str(orjson.loads(b'"' + kept + b'"'))
        except orjson.JSONDecodeError:
            pass
        text = kept.decode("utf-8", "replace")
        try:
            return str(json.loads(f'"{text}"', strict=False)).encode("utf-8", "replace").decode()
        except ValueError:
            return text
