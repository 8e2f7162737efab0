"""Finding a few values in JSON of any size without holding it.

Only containers on the way to a wanted pointer are walked token by token. All else is skipped: a string by
searching its end, a container by counting brackets between strings. Skipped parts are not validated, and
nesting costs an integer. What is held is one key or one wanted value, bounded by `MAX_TOKEN`.
"""

from __future__ import annotations

import re
from enum import Enum, auto

import orjson

from extproc.bodies.pointers import PointerTree, Values

MAX_TOKEN = 64 * 1024
"""Longest key that can match and longest value that is kept, in bytes; longer ones are skipped."""

# The bytes of a byte order mark are taken for space: some servers send one.
_SPACE = re.compile(rb"[ \t\r\n\xef\xbb\xbf]*+")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_STRING_BODY = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_SCALAR = re.compile(rb"[^\s,\]}{\[\":]++")
_BRACKET = re.compile(rb"[{}\[\]]")
_QUOTE, _BACKSLASH, _COLON, _COMMA = b'"\\:,'
_OPENING, _CLOSING = b"{[", b"}]"


class _State(Enum):
    VALUE = auto()
    KEY = auto()
    COLON = auto()
    AFTER = auto()
    SKIP_STRING = auto()
    SKIP_SCALAR = auto()
    SKIP_CONTAINER = auto()
    DONE = auto()
    BROKEN = auto()


_OVER = (_State.DONE, _State.BROKEN)


class _Frame:
    """A container on the way to a wanted pointer; `index` is None in an object."""

    __slots__ = ("index", "node")

    def __init__(self, node: PointerTree, index: int | None) -> None:
        self.node = node
        self.index = index


class JsonScanner:
    """Fed the bytes of one JSON document in any pieces; puts what is wanted into `values`.

    `text_bytes` counts the bytes inside skipped strings: a measure of the text that went by.
    After a syntax error on the way to a wanted pointer the rest is not read. `complete`: the document has ended.
    """

    __slots__ = (
        "_carry",
        "_depth",
        "_escaped",
        "_frames",
        "_node",
        "_state",
        "_then",
        "text_bytes",
        "values",
    )

    def __init__(self, tree: PointerTree, values: Values) -> None:
        self.values = values
        self.text_bytes = 0
        self._node: PointerTree | None = tree
        self._frames: list[_Frame] = []
        self._state = _State.VALUE
        self._then = _State.AFTER
        self._carry = b""
        self._depth = 0
        self._escaped = False

    def feed(self, data: bytes) -> None:
        """Read the next piece."""
        if self._carry:
            data = self._carry + data
            self._carry = b""
        position, end = 0, len(data)
        while position < end and self._state not in _OVER:
            after = self._step(data, position)
            if after < 0:
                self._carry = data[position:]
                return
            position = after

    def close(self) -> None:
        """The document is over. A number that is all of it is complete now; inside a container it was cut off."""
        rest = self._carry.strip()
        if rest and self._state is _State.VALUE and not self._frames:
            self._scalar(rest)
        self._carry = b""

    @property
    def complete(self) -> bool:
        """Whether the document has ended, as far as it was walked."""
        return self._state is _State.DONE

    def _step(self, data: bytes, position: int) -> int:
        """Handle what starts at `position`; the position after it, or -1 when more bytes are needed."""
        state = self._state
        if state is _State.SKIP_STRING:
            return self._skip_string(data, position)
        if state is _State.SKIP_CONTAINER:
            return self._skip_container(data, position)
        if state is _State.SKIP_SCALAR:
            return self._skip_scalar(data, position)
        position = _end_of(_SPACE, data, position)
        if position == len(data):
            return position
        byte = data[position]
        if state is _State.VALUE:
            return self._value(data, position, byte)
        if state is _State.KEY:
            return self._key(data, position, byte)
        if state is _State.COLON:
            self._state = _State.VALUE if byte == _COLON else _State.BROKEN
        elif byte == _COMMA:
            self._next_member()
        elif byte in _CLOSING:
            self._pop()
        else:
            self._state = _State.BROKEN
        return position + 1

    def _key(self, data: bytes, position: int, byte: int) -> int:
        if byte in _CLOSING:
            self._pop()
            return position + 1
        if byte != _QUOTE:
            self._state = _State.BROKEN
            return position
        found = _STRING.match(data, position)
        if found is None and len(data) - position <= MAX_TOKEN:
            return -1
        if found is None or found.end() - position > MAX_TOKEN:
            self._node = None
            return self._enter_string(position, _State.COLON)
        raw = found.group()
        key = _loads(raw) if _BACKSLASH in raw else raw[1:-1].decode("utf-8", "replace")
        self._node = self._frames[-1].node.children.get(key) if isinstance(key, str) else None
        self._state = _State.COLON
        return found.end()

    def _value(self, data: bytes, position: int, byte: int) -> int:
        if byte in _OPENING:
            self._open(is_object=byte == _OPENING[0])
            return position + 1
        if byte in _CLOSING:
            self._pop()
            return position + 1
        if byte == _QUOTE:
            if self._wanted is None:
                return self._enter_string(position, self._outside)
            found = _STRING.match(data, position)
        else:
            found = _SCALAR.match(data, position)
            if found is None:
                self._state = _State.BROKEN
                return position
            if found.end() == len(data):
                found = None
        if found is None and len(data) - position <= MAX_TOKEN:
            return -1
        if found is None or found.end() - position > MAX_TOKEN:
            return self._skip_long_value(position, byte)
        self._scalar(found.group())
        return found.end()

    @property
    def _wanted(self) -> tuple[str, ...] | None:
        return None if self._node is None else self._node.wanted

    @property
    def _outside(self) -> _State:
        """What follows a complete value."""
        return _State.AFTER if self._frames else _State.DONE

    def _scalar(self, raw: bytes) -> None:
        wanted = self._wanted
        if self._node is not None:
            self._node.forget(self.values)
        if wanted is not None:
            value = _loads(raw)
            if isinstance(value, (str, int, float)):
                self.values[wanted] = value
        self._state = self._outside

    def _open(self, *, is_object: bool) -> None:
        node = self._node
        if node is not None:
            node.forget(self.values)
        if node is None or not node.children:
            self._state = _State.SKIP_CONTAINER
            self._depth = 1
            return
        self._frames.append(_Frame(node, None if is_object else 0))
        self._state = _State.KEY if is_object else _State.VALUE
        self._node = None if is_object else node.children.get("0")

    def _pop(self) -> None:
        if self._frames:
            self._frames.pop()
        self._state = self._outside

    def _next_member(self) -> None:
        frame = self._frames[-1]
        if frame.index is None:
            self._state = _State.KEY
            return
        frame.index += 1
        self._node = frame.node.children.get(str(frame.index))
        self._state = _State.VALUE

    def _skip_long_value(self, position: int, byte: int) -> int:
        if self._node is not None:
            self._node.forget(self.values)
        if byte == _QUOTE:
            return self._enter_string(position, self._outside)
        self._state = _State.SKIP_SCALAR
        return position

    def _enter_string(self, position: int, then: _State) -> int:
        self._state = _State.SKIP_STRING
        self._then = then
        return position + 1

    def _skip_string(self, data: bytes, position: int) -> int:
        start = position
        if self._escaped:
            self._escaped = False
            position += 1
        close = data.find(b'"', position)
        if data.find(b"\\", position, close if close >= 0 else len(data)) >= 0:
            close = _end_of(_STRING_BODY, data, position)
            if close < len(data) and data[close] == _BACKSLASH:
                self._escaped = True
                self.text_bytes += len(data) - start
                return len(data)
        if close < 0 or close == len(data):
            self.text_bytes += len(data) - start
            return len(data)
        self.text_bytes += close - start
        self._state = self._then
        return close + 1

    def _skip_scalar(self, data: bytes, position: int) -> int:
        found = _SCALAR.match(data, position)
        if found is None or found.end() < len(data):
            self._state = self._outside
        return position if found is None else found.end()

    def _skip_container(self, data: bytes, position: int) -> int:
        quote = data.find(b'"', position)
        end = len(data) if quote < 0 else quote
        closing = data.count(b"}", position, end) + data.count(b"]", position, end)
        if closing < self._depth:
            opening = data.count(b"{", position, end) + data.count(b"[", position, end)
            self._depth += opening - closing
        else:
            for bracket in _BRACKET.finditer(data, position, end):
                self._depth += 1 if bracket.group() in (b"{", b"[") else -1
                if self._depth == 0:
                    self._state = self._outside
                    return bracket.end()
        return end if quote < 0 else self._enter_string(quote, _State.SKIP_CONTAINER)


def _end_of(pattern: re.Pattern[bytes], data: bytes, position: int) -> int:
    """Where `pattern`, which also matches nothing, stops matching."""
    found = pattern.match(data, position)
    assert found is not None
    return found.end()


def _loads(raw: bytes) -> object:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
