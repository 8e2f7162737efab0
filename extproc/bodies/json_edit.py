"""The smallest edits of a JSON document's bytes.

An edit inserts into the bytes as they came and never writes the document anew: order, spacing, the spelling of numbers
and strings, duplicate keys and what nobody here knows stay as they are. A document is judged by a strict parser first
(`parse_object`), so what walks it afterwards may trust its syntax. Positions count from the first byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"
_SCALAR = re.compile(rb"[^ \t\r\n,\]}]++")
_BEFORE_KEY = re.compile(rb"[ \t\r\n,]*+")
_BEFORE_VALUE = re.compile(rb"[ \t\r\n:]*+")
_TO_BRACKET = re.compile(rb'[^"{}\[\]]*+(?:"[^"]*+"[^"{}\[\]]*+)*+[{}\[\]]')
"""From outside of a string to after the next bracket that is in no string."""
_QUOTE, _BACKSLASH = b'"\\'
_OPENING, _CLOSING = b"{[", b"}]"


class Member(NamedTuple):
    """One member of an object: its key as parsers read it, and its value's bytes, `document[start:end]`."""

    key: str
    start: int
    end: int


def parse_object(document: bytes) -> dict[str, Any] | None:
    """The value of a document that is one JSON object, a byte order mark before it allowed; None for all else.

    Strict (RFC 8259), and nested no deeper than the parser bears. Of duplicate keys the last one counts.
    """
    try:
        value = orjson.loads(memoryview(document)[len(_BOM) :] if document.startswith(_BOM) else document)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def members(document: bytes, start: int = 0) -> Iterator[Member]:
    """The members of the first object that begins at or after `start`, in order, duplicates too.

    The document must be valid, as `parse_object` says. Values are skipped without recursion.
    """
    plain = _without_escapes(document)
    position = plain.index(b"{", start) + 1
    while True:
        position = _end_of(_BEFORE_KEY, plain, position)
        if plain[position] != _QUOTE:
            return
        key_end = _end_of_string(plain, position)
        value = _end_of(_BEFORE_VALUE, plain, key_end)
        end = _end_of_value(plain, value)
        yield Member(_key(document[position:key_end]), value, end)
        position = end


def find_member(document: bytes, key: str, start: int = 0) -> Member | None:
    """The member that counts for `key`, which is the last one, in the object `members` would walk."""
    found = None
    for member in members(document, start):
        if member.key == key:
            found = member
    return found


def append_member(document: bytes, end: int, member: bytes) -> bytes:
    """`document` with `member`, the JSON of a key and its value, at the end of the object that ends before `end`.

    It is put right after what the object holds so far: space before the closing brace stays before the brace.
    """
    before = document[: end - 1].rstrip(_SPACE)
    comma = b"" if before.endswith(b"{") else b","
    return b"".join((before, comma, member, document[len(before) :]))


def append_to_root(document: bytes, member: bytes) -> bytes:
    """`append_member` for the object that is the whole document."""
    return append_member(document, document.rindex(b"}") + 1, member)


def _without_escapes(document: bytes) -> bytes:
    """`document` with other bytes in place of escaped quotes and backslashes, so that a string ends at a quote.

    Every position stays. Backslashes are in strings alone, so they pair up from the left.
    """
    if b"\\" not in document:
        return document
    return document.replace(rb"\\", b"__").replace(rb"\"", b"__")


def _key(raw: bytes) -> str:
    key: str = orjson.loads(raw) if _BACKSLASH in raw else raw[1:-1].decode()
    return key


def _end_of_value(plain: bytes, start: int) -> int:
    byte = plain[start]
    if byte == _QUOTE:
        return _end_of_string(plain, start)
    if byte not in _OPENING:
        return _end_of(_SCALAR, plain, start)
    depth = 0
    for bracket in _TO_BRACKET.finditer(plain, start):
        end = bracket.end()
        depth += -1 if plain[end - 1] in _CLOSING else 1
        if not depth:
            return end
    raise ValueError("a bracket is not closed")


def _end_of_string(plain: bytes, start: int) -> int:
    return plain.index(b'"', start + 1) + 1


def _end_of(pattern: re.Pattern[bytes], plain: bytes, position: int) -> int:
    """Where `pattern` stops matching."""
    found = pattern.match(plain, position)
    if found is None:
        raise ValueError(f"no JSON at byte {position}")
    return found.end()
