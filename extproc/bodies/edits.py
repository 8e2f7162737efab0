"""Edits of many places of a JSON document in one pass, all other bytes as they were."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, NamedTuple

from extproc.bodies.json_edit import (
    SPELLED,
    Item,
    Member,
    Uneditable,
    append_to_root,
    items_at,
    members_at,
    to_json,
    without_escapes,
)

MAX_STEPS = 20_000
"""Members and items that are looked at, one by one, for one edit: some fifty milliseconds."""
MAX_DEPTH = 100
"""Steps to a text that is replaced. For each of them, what is beside the way is passed over once."""

Path = tuple[str | int, ...]
"""Keys and indices from the root of a document."""

_EVERY: Final = "*"
_REMOVED: Final = b""
"""In place of a new value: the member goes."""
_UNKNOWN: Final = object()
"""In place of a parsed value."""
_ROOT = re.compile(rb"[ \t\r\n\xef\xbb\xbf]*+")
_COLON = re.compile(rb"[ \t\r\n]*+:[ \t\r\n]*+")
_COMMA = re.compile(rb"[ \t\r\n]*+,[ \t\r\n]*+")
_BRACE, _BRACKET, _QUOTE, _COMMA_BYTE = b'{[",'
_PLAIN_KEY = re.compile(r"[\w.-]+", re.ASCII)
_SPACE = b" \t\r\n"
_PIECE = 256
"""Bytes before a member that are looked at in one go."""


_Inner = Member | Item


class _Place(NamedTuple):
    """A value that is edited, `document[start:end]`, in a member or item that begins at `begin`."""

    begin: int
    start: int
    end: int
    new: bytes


class _Span(NamedTuple):
    """The bytes `document[start:end]`, in whose place are `new`."""

    start: int
    end: int
    new: bytes


class _Step:
    """A step into a document: the value there becomes `new`, or is what further steps start from."""

    __slots__ = ("each", "keys", "new")

    def __init__(self, new: bytes | None = None) -> None:
        self.new = new
        self.keys: dict[str | int, _Step] = {}
        """By key of an object, or index of a list."""
        self.each: _Step | None = None
        """Into every item of a list."""

    def into(self, key: str | int) -> _Step:
        """The step from here, made where it is missing."""
        return self.keys.setdefault(key, _Step())

    def into_each(self) -> _Step:
        """The step from here into every item, made where it is missing."""
        if self.each is None:
            self.each = _Step()
        return self.each


class Edits:
    """Members that are removed from objects, and members of the root that are set.

    All members that go by an edited key are edited, however it is spelled: some parsers take the first of them.
    Lists keep their items.
    """

    __slots__ = ("_below", "_root")

    def __init__(self, remove: Iterable[tuple[str, ...]] = ()) -> None:
        """`remove`: ways from the root to members; `*` stands for every item of a list, a number for one, or a key.

        Raises ValueError for a way that leads to no member.
        """
        self._root = _Step()
        self._below: set[str] = set()
        """Keys of what is removed below the root."""
        for way in remove:
            self._remove(way)

    def _remove(self, way: tuple[str, ...]) -> None:
        if not way or way[-1] == _EVERY:
            raise ValueError("expected the way to a member of an object")
        steps = [self._root]
        for token in way[:-1]:
            if token == _EVERY:
                steps = [step.into_each() for step in steps]
            else:
                keys: list[str | int] = [token]
                if token.isascii() and token.isdecimal():
                    keys.append(int(token))
                steps = [step.into(key) for step in steps for key in keys]
        for step in steps:
            step.into(way[-1]).new = _REMOVED
        if len(way) > 1:
            self._below.add(way[-1])

    def apply(self, document: bytes, value: dict[str, Any], put: Mapping[str, bytes]) -> bytes:
        """`document` edited; itself where there is nothing to change.

        `value` is what a parser makes of the document (`read_object`). `put` has JSON by the keys of the root: a member
        that is there keeps its place, one that is not becomes the last. Raises Uneditable where more than `MAX_STEPS`
        would have to be looked at.
        """
        root = _Step()
        root.keys = {**self._root.keys, **{key: _Step(new) for key, new in put.items()}}
        places = self._in_root(document, root, value)
        if places is None:
            places = _walk(document, root, value)
        edited = _spliced(document, places)
        for key, new in put.items():
            if key not in value:
                edited = append_to_root(edited, to_json(key) + b":" + new)
        return edited

    def _in_root(self, document: bytes, root: _Step, value: dict[str, Any]) -> list[_Place] | None:
        """What is edited, if a search for each key can tell; else None.

        It can where the bytes have a key once and the parsed root has it, for that is the place, or neither has it. A
        duplicate, even one lost to the parser, or a member further below would be found as well.
        """
        edited = {key: step.new for key, step in root.keys.items() if step.new is not None and key in value}
        keys = self._below.union(map(str, edited))
        if not all(map(_PLAIN_KEY.fullmatch, keys)) or _may_be_escaped(keys, document):
            return None
        places = []
        for key in keys:
            spelled = b'"%b"' % key.encode()
            begin = document.find(spelled)
            if (begin >= 0) != (key in value) or (begin >= 0 and document.find(spelled, begin + 1) >= 0):
                return None
            if key in edited:
                start = _end_of(_COLON, document, begin + len(spelled))
                places.append(_Place(begin, start, SPELLED.end(document, start), edited[key]))
        return sorted(places)


def replace_texts(document: bytes, texts: Iterable[tuple[Path, str]]) -> bytes | None:
    """`document` with other strings at these places; None where one of the places has no string, or is too deep.

    The document must be valid, as `read_object` says. Of duplicate keys the last one counts, as it does for parsers.
    Of two texts for a place the last one counts too. Raises Uneditable as `Edits.apply` does.
    """
    root = _Step()
    wanted = set()
    for path, text in texts:
        if not 0 < len(path) <= MAX_DEPTH:
            return None
        step = root
        for key in path:
            step = step.into(key)
        step.new = to_json(text)
        wanted.add(path)
    places = _walk(document, root, _UNKNOWN, every=False)
    if len(places) != len(wanted) or any(document[place.start] != _QUOTE for place in places):
        return None
    return _spliced(document, places)


def _walk(document: bytes, root: _Step, value: Any, *, every: bool = True) -> list[_Place]:
    """What the steps from `root` lead to, in order: by `every` duplicate of a key, or by the last one.

    Where the parsed `value` is known, nothing is walked in vain.
    """
    plain = without_escapes(document)
    places: list[_Place] = []
    ahead = [(_end_of(_ROOT, plain, 0), root, value)]
    left = MAX_STEPS
    while ahead:
        start, step, value = ahead.pop()
        each = step.each if plain[start] == _BRACKET else None
        inside: list[_Inner] = list(islice(_inside(document, plain, start), left + 1))
        left -= len(inside)
        if left < 0:
            raise Uneditable(f"more than {MAX_STEPS} members and items to look at")
        last = {found.key: found for found in inside}
        if len(last) < len(inside):
            value = _UNKNOWN
        for found in inside if every else last.values():
            for child in (step.keys.get(found.key), each):
                if child is None:
                    continue
                if child.new is not None:
                    places.append(_Place(found.begin, found.start, found.end, child.new))
                elif _leads(inner := _at(value, found.key), child):
                    ahead.append((found.start, child, inner))
    return sorted(places)


def _inside(document: bytes, plain: bytes, start: int) -> Iterator[_Inner]:
    """What the value that starts at `start` holds."""
    if plain[start] == _BRACE:
        return members_at(document, plain, start)
    return items_at(plain, start) if plain[start] == _BRACKET else iter(())


def _at(value: Any, key: str | int) -> Any:
    try:
        return value[key]
    except (TypeError, LookupError):
        return _UNKNOWN


def _leads(value: Any, step: _Step) -> bool:
    """Whether `value` has something that a further step leads to."""
    if isinstance(value, dict):
        for key, child in step.keys.items():
            if key in value and (child.new is not None or _leads(value[key], child)):
                return True
        return False
    if isinstance(value, list):
        items = [(value[key], child) for key, child in step.keys.items() if isinstance(key, int) and key < len(value)]
        if any(_leads(item, child) for item, child in items):
            return True
        return step.each is not None and any(_leads(item, step.each) for item in value)
    return value is _UNKNOWN


def _spliced(document: bytes, places: list[_Place]) -> bytes:
    """`document` with each place changed, itself where none is."""
    pieces: list[bytes] = []
    reached = 0
    for start, end, new in _spans(document, places):
        pieces += document[reached:start], new
        reached = end
    return b"".join((*pieces, document[reached:])) if pieces else document


def _spans(document: bytes, places: list[_Place]) -> Iterator[_Span]:
    """What of the bytes changes. A place inside of another goes with it; neighbours that are removed, go together."""
    run: _Span | None = None
    reached = 0
    for begin, start, end, new in places:
        if begin < reached or document[start:end] == new:
            continue
        if run is not None and not new and _COMMA.fullmatch(document, run.end, begin):
            run = run._replace(end=end)
        else:
            if run is not None:
                yield _with_comma(document, run)
            run = None if new else _Span(begin, end, new)
        if new:
            yield _Span(start, end, new)
        reached = end
    if run is not None:
        yield _with_comma(document, run)


def _with_comma(document: bytes, run: _Span) -> _Span:
    """Members of an object, with the comma before them or else the one behind them, and the space beside it."""
    left = _without_space(document, run.start)
    if document[left - 1] == _COMMA_BYTE:
        return run._replace(start=_without_space(document, left - 1))
    comma = _COMMA.match(document, run.end)
    return run._replace(start=left) if comma is None else run._replace(end=comma.end())


def _without_space(document: bytes, end: int) -> int:
    """Where the space before `end` begins."""
    while piece := document[max(0, end - _PIECE) : end]:
        kept = len(piece.rstrip(_SPACE))
        end -= len(piece) - kept
        if kept:
            break
    return end


def _may_be_escaped(keys: Iterable[str], document: bytes) -> bool:
    """Whether `document` may spell a letter of these ASCII keys as `\\u00..`."""
    if b"\\" not in document:
        return False
    return any(escape in document for escape in {b"\\u00%x" % (ord(letter) >> 4) for key in keys for letter in key})


def _end_of(pattern: re.Pattern[bytes], document: bytes, position: int) -> int:
    """Where `pattern` stops matching."""
    found = pattern.match(document, position)
    if found is None:
        raise Uneditable(f"no JSON at byte {position}")
    return found.end()
