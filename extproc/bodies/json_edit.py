"""The smallest edits of a JSON document's bytes.

An edit takes out of the bytes as they came, or puts into them, and never writes the document anew: order, spacing, the
spelling of numbers and strings, duplicate keys and what nobody here knows stay as they are. A document is judged by a
parser first (`parse_object`, `read_object`), so what walks it afterwards may trust its syntax. Positions count from the
first byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from extproc.bodies.request_reader import MARKS

MAX_LENIENT = 4 * 1024 * 1024
"""Bytes of a document that a second parser gets, which takes more, and longer."""

_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"
_BEFORE_ITEM = rb"[ \t\r\n,]*+"
_MEMBER = re.compile(_BEFORE_ITEM + rb'("[^"]*+")[ \t\r\n]*+:[ \t\r\n]*+')
_ITEM = re.compile(_BEFORE_ITEM + rb"(?=[^\] \t\r\n,])")
_BACKSLASH = ord("\\")
_OPENING, _CLOSING = b"{[", b"}]"


class Uneditable(ValueError):
    """Bytes that are no JSON object, or too much of one. It says why and where, but not what they are."""


class Member(NamedTuple):
    """One member of an object: its key as parsers read it, and its value's bytes, `document[start:end]`.

    All of it is `document[begin:end]`.
    """

    key: str
    start: int
    end: int
    begin: int


class Item(NamedTuple):
    """One item of a list, numbered by `key`: its bytes are `document[start:end]`, and `begin` is where they start."""

    key: int
    start: int
    end: int
    begin: int


def parse_object(document: bytes) -> dict[str, Any] | None:
    """The value of a document that is one JSON object, a byte order mark before it allowed; None for all else.

    Strict (RFC 8259), and nested no deeper than the parser bears. Of duplicate keys the last one counts.
    """
    try:
        value = _strictly(document)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def read_object(document: bytes, value: Any = None) -> dict[str, Any]:
    """The value of a document that is one JSON object; raises Uneditable for all else.

    It may also hold what models written in Python take: NaN, numbers beyond a double, lone surrogates, control
    characters in strings. Give the `value` where somebody has parsed the document already.
    """
    if value is None:
        value = _parsed(document)
    elif not json.detect_encoding(document).startswith("utf-8"):
        raise Uneditable("not UTF-8")
    if not isinstance(value, dict):
        raise Uneditable("expected an object: line 1 column 1 (char 0)")
    return value


def members(document: bytes, start: int = 0) -> Iterator[Member]:
    """The members of the first object that begins at or after `start`, in order, duplicates too.

    The document must be valid, as `parse_object` or `read_object` says. Values are skipped without recursion.
    """
    plain = without_escapes(document)
    return members_at(document, plain, plain.index(b"{", start))


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


def to_json(text: str) -> bytes:
    """A JSON string in UTF-8, lone surrogates as escapes."""
    try:
        return orjson.dumps(text)
    except TypeError:
        return json.dumps(text).encode()


class Values:
    """Where values end in documents with a certain spelling of strings; nothing is parsed, nothing recurses."""

    __slots__ = ("_to_bracket", "_value")

    def __init__(self, string: bytes) -> None:
        outside = rb'[^"{}\[\]]*+'
        between = outside + b"(?:" + string + outside + b")*+"
        nested = rb"[{\[]" + between + rb"[}\]]"
        for _ in range(11):
            nested = rb"[{\[]" + between + b"(?:" + nested + between + rb")*+[}\]]"
        scalar = rb'[^"{\[ \t\r\n,\]}]++'
        self._value = re.compile(string + b"|" + nested + b"|" + scalar)
        """Containers as deep as most are; in one go it takes half the time."""
        self._to_bracket = re.compile(between + rb"[{}\[\]]")
        """From outside of a string to after the next bracket that is in no string."""

    def end(self, document: bytes, start: int) -> int:
        """Where the value that starts at `start` ends."""
        value = self._value.match(document, start)
        if value is not None:
            return value.end()
        depth = 0
        for bracket in self._to_bracket.finditer(document, start):
            end = bracket.end()
            depth += -1 if document[end - 1] in _CLOSING else 1
            if not depth:
                return end
        raise Uneditable(f"no JSON at byte {start}")


PLAIN = Values(rb'"[^"]*+"')
"""For documents `without_escapes`; five times as fast."""
SPELLED = Values(rb'"[^"\\]*+(?:\\[\x00-\xff][^"\\]*+)*+"')
"""For documents as they came."""


def without_escapes(document: bytes) -> bytes:
    """`document` with other bytes in place of escaped quotes and backslashes, so that a string ends at a quote.

    Every position stays. Backslashes are in strings alone, so they pair up from the left.
    """
    if b"\\" not in document:
        return document
    return document.replace(rb"\\", b"__").replace(rb"\"", b"__")


def members_at(document: bytes, plain: bytes, start: int) -> Iterator[Member]:
    """The members of the object that starts at `start`; `plain` is the document without escapes."""
    position = start + 1
    while (head := _MEMBER.match(plain, position)) is not None:
        begin, after_key = head.span(1)
        value = head.end()
        position = PLAIN.end(plain, value)
        yield Member(_key(document[begin:after_key]), value, position, begin)


def items_at(plain: bytes, start: int) -> Iterator[Item]:
    """The items of the list that starts at `start`, in a document without escapes."""
    position, index = start + 1, 0
    while (head := _ITEM.match(plain, position)) is not None:
        value = head.end()
        position = PLAIN.end(plain, value)
        yield Item(index, value, position, value)
        index += 1


def _strictly(document: bytes) -> Any:
    return orjson.loads(memoryview(document)[len(_BOM) :] if document.startswith(_BOM) else document)


def _parsed(document: bytes) -> Any:
    if len(document) > MARKS and sum(map(document.count, (b",", b"[", b"{"))) > MARKS:
        raise Uneditable(f"more than {MARKS} values")
    try:
        return _strictly(document)
    except orjson.JSONDecodeError as error:
        if len(document) > MAX_LENIENT:
            raise Uneditable(str(error)) from None
    try:
        return json.loads(document.removeprefix(_BOM).decode("utf-8", "surrogatepass"), strict=False)
    except json.JSONDecodeError as error:
        problem = str(error)
    except UnicodeDecodeError as error:
        problem = f"not UTF-8: byte {error.start}"
    except RecursionError:
        problem = "nested too deeply"
    except ValueError:
        problem = "a number has too many digits"
    raise Uneditable(problem)


def _key(raw: bytes) -> str:
    if _BACKSLASH not in raw:
        return raw[1:-1].decode("utf-8", "surrogatepass")
    try:
        key: str = orjson.loads(raw)
    except orjson.JSONDecodeError:
        key = json.loads(raw.decode("utf-8", "surrogatepass"), strict=False)
    return key
