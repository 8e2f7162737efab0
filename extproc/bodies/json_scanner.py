"""Finding a few values in JSON of any size without holding it.

Only containers on the way to a wanted pointer are walked token by token. All else is skipped: a string by
searching its end, a container by counting brackets between strings. Skipped parts are not validated, and
nesting costs an integer. What is held is one key or one wanted value, bounded by `MAX_TOKEN`.
"""

from __future__ import annotations

import re
from enum import Enum, auto

import orjson

from extproc.bodies.findings import Findings
from extproc.bodies.pointers import PointerTree

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
_PIECE = 65_536
_BLOCK = 8192
"""Bytes that are skipped at a time inside of a container."""


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


class _Frame:
    """A container on the way to a wanted pointer; `index` is None in an object."""

    __slots__ = ("index", "node", "said")

    def __init__(self, node: PointerTree, index: int | None) -> None:
        self.node = node
        self.index = index
        self.said: set[tuple[str, ...]] = set()
        """Twins whose text has been noted in this object."""


class JsonScanner:
    """Fed the bytes of a JSON document, or of several in a row, in any pieces; puts what is wanted into `findings`.

    After a syntax error on the way to a wanted pointer the rest is not read.
    """

    __slots__ = (
        "_carry",
        "_depth",
        "_escaped",
        "_findings",
        "_following",
        "_frames",
        "_inside_text",
        "_node",
        "_state",
        "_text",
        "_then",
        "_tree",
    )

    def __init__(self, tree: PointerTree, findings: Findings, *, following: bool = False) -> None:
        """`following`: what other documents said before this one still holds where it says nothing."""
        self._findings = findings
        self._tree = tree
        self._node: PointerTree | None = tree
        self._frames: list[_Frame] = []
        self._state = _State.VALUE
        self._then = _State.AFTER
        self._carry = b""
        self._depth = 0
        self._escaped = False
        self._text = False
        self._inside_text = False
        self._following = following

    def feed(self, data: bytes) -> None:
        """Read the next piece."""
        if self._carry:
            data = self._carry + data
            self._carry = b""
        position, end = 0, len(data)
        while position < end and self._state is not _State.BROKEN:
            after = self._step(data, position)
            if after < 0:
                self._carry = data[position:]
                return
            position = after

    def feed_all(self, data: bytearray, start: int = 0) -> None:
        """Read what was held from `start` on, without another copy of all of it."""
        for position in range(start, len(data), _PIECE):
            self.feed(bytes(data[position : position + _PIECE]))

    def close(self) -> None:
        """The document is over. A number that is all of it is complete now; inside a container it was cut off."""
        rest = self._carry.strip()
        if rest and self._state is _State.VALUE and not self._frames:
            self._scalar(rest)
        self._carry = b""

    @property
    def complete(self) -> bool:
        """Whether the last document has ended, as far as it was walked."""
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
        if state is _State.VALUE or state is _State.DONE:
            if state is _State.DONE:
                self._begin_again()
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
            if self._node is None or not self._node.takes:
                if position + 1 == len(data):
                    return -1
                return self._enter_string(
                    position, self._outside, text=self._is_text(empty=data[position + 1] == _QUOTE)
                )
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

    def _begin_again(self) -> None:
        """Another document follows; what it does not say still holds."""
        self._following = True
        self._node = self._tree
        self._state = _State.VALUE

    @property
    def _outside(self) -> _State:
        """What follows a complete value."""
        return _State.AFTER if self._frames else _State.DONE

    def _scalar(self, raw: bytes) -> None:
        node = self._node
        if node is not None:
            self._forget(node)
            if node.takes:
                value = _loads(raw)
                if isinstance(value, (str, int, float)):
                    node.take(value, self._findings)
                    if node.text:
                        self._findings.text.add_value(value)
        self._state = self._outside

    def _forget(self, node: PointerTree) -> None:
        if not self._following:
            node.forget(self._findings)

    def _open(self, *, is_object: bool) -> None:
        node = self._node
        if node is not None:
            self._forget(node)
        if node is None or not node.children or (node.text and is_object):
            self._inside_text = node is not None and node.text
            self._state = _State.SKIP_CONTAINER
            self._depth = 1
            return
        self._frames.append(_Frame(node, None if is_object else 0))
        self._state = _State.KEY if is_object else _State.VALUE
        self._node = None if is_object else node.element(0)

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
        self._node = frame.node.element(frame.index)
        self._state = _State.VALUE

    def _skip_long_value(self, position: int, byte: int) -> int:
        if self._node is not None:
            self._forget(self._node)
        if byte == _QUOTE:
            return self._enter_string(position, self._outside, text=self._is_text(empty=False))
        self._state = _State.SKIP_SCALAR
        return position

    def _is_text(self, *, empty: bool) -> bool:
        """Whether the string that begins is text to be noted."""
        node = self._node
        if node is None or not node.text:
            return False
        if not node.twins or not self._frames or empty:
            return True
        said = self._frames[-1].said
        first = node.twins not in said
        said.add(node.twins)
        return first

    def _enter_string(self, position: int, then: _State, *, text: bool = False) -> int:
        self._text = text
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
                close = -1
        end = len(data) if close < 0 else close
        if self._text:
            self._findings.text.add(data[start:end])
        if end == len(data):
            return end
        self._state = self._then
        return close + 1

    def _skip_scalar(self, data: bytes, position: int) -> int:
        found = _SCALAR.match(data, position)
        if found is None or found.end() < len(data):
            self._state = self._outside
        return position if found is None else found.end()

    def _skip_container(self, data: bytes, position: int) -> int:
        if not self._inside_text:
            return self._skip_block(data, position)
        quote = data.find(b'"', position)
        end = len(data) if quote < 0 else quote
        closed = self._close_brackets(data[position:end])
        if closed >= 0:
            return position + closed
        return end if quote < 0 else self._enter_string(quote, _State.SKIP_CONTAINER, text=True)

    def _skip_block(self, data: bytes, position: int) -> int:
        """Skip a block of the container without a look at each of its strings.

        Where the block ends inside a string, the state is that of the string.
        """
        block = data[position : position + _BLOCK]
        if b"\\" in block:
            # What is escaped becomes plain, at the same length; half an escape at the end begins the next block.
            block = block.replace(b"\\\\", b"__").replace(b'\\"', b"__")
            if block.endswith(b"\\") and len(block) > 1:
                block = block[:-1]
        parts = block.split(b'"')
        outside = b"".join(parts[::2])
        closing = outside.count(b"}") + outside.count(b"]")
        if closing < self._depth:
            self._depth += outside.count(b"{") + outside.count(b"[") - closing
        else:
            before = self._depth
            if self._close_brackets(outside) >= 0:
                self._depth = before
                return position + self._end_in(parts)
        if len(parts) % 2 == 0:
            return self._enter_string(position + len(block) - 1, _State.SKIP_CONTAINER)
        return position + len(block)

    def _end_in(self, parts: list[bytes]) -> int:
        """Where the container ends in a block that was cut at its quotes, which it does outside of a string."""
        offset = 0
        for index, part in enumerate(parts):
            if index % 2 == 0 and (closed := self._close_brackets(part)) >= 0:
                return offset + closed
            offset += len(part) + 1
        raise AssertionError("the container ends in this block")

    def _close_brackets(self, outside: bytes) -> int:
        """Count the brackets of bytes outside of strings; where the container ends in them, -1 when it does not."""
        depth = self._depth
        for bracket in _BRACKET.finditer(outside):
            depth += 1 if bracket.group() in (b"{", b"[") else -1
            if depth == 0:
                self._depth = 0
                self._state = self._outside
                return bracket.end()
        self._depth = depth
        return -1


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
