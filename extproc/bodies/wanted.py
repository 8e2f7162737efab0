"""What readers look for in the bodies of one action set; made once per configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from extproc.bodies.findings import Path
from extproc.bodies.pointers import ANY, PointerTree, needles
from extproc.bodies.shapes import Shape
from extproc.bodies.text import Text

HEAD = 4096
"""Bytes of a document that tell its shape."""

OTHER_KEYS = ("answer", "completion", "content", "generated_text", "output", "output_text", "response", "text")
"""Where documents of families that we do not know keep what was generated."""

FindAll = Callable[[bytes], list[bytes]]


class Events:
    """How the events of a stream are read: which are parsed, for what, and where their text is."""

    __slots__ = ("all_needles", "exact_needles", "exact_text", "find_text", "tree")

    def __init__(self, pointers: Iterable[Path], shapes: Sequence[Shape], *, count_text: bool) -> None:
        self.tree = PointerTree(pointers)
        for shape in shapes:
            _add_counts(self.tree, (*shape.counts, *shape.event_counts), shape.models)
        # What one shape says exactly would be wrong for another.
        exact = shapes if count_text and len(shapes) == 1 else ()
        self.tree.fold()
        self.exact_text = PointerTree()
        _add_text(self.exact_text, (path for shape in exact for path in shape.event_text))
        _add_twins(self.exact_text, (twins for shape in exact for twins in shape.twins))
        self.exact_text.fold()
        known = {needle for shape in shapes for needle in shape.needles}
        extra = {needle for needle in needles(pointers) if not any(part in needle for part in known)}
        self.exact_needles = tuple(each for shape in exact for each in shape.exact_needles)
        self.all_needles = tuple(sorted(known | extra))
        """An event without any of these, or of the exact ones, is not parsed."""
        keys = sorted({key for shape in shapes for key in shape.event_keys})
        self.find_text: FindAll | None = _strings_at(keys).findall if keys and count_text else None


class Wanted:
    """`pointers` of expressions, and the usage and text of `shapes`, of which at most `keep_text` bytes are kept.

    `document` finds all but the text of a document, `with_text` that too.
    """

    __slots__ = ("_by_shape", "_openings", "_other_text", "_owners", "any_shape", "document", "keep_text", "with_text")

    def __init__(
        self, pointers: frozenset[Path], shapes: Sequence[Shape] = (), *, keep_text: int = 0, count_text: bool = True
    ) -> None:
        self.keep_text = keep_text
        self.document = PointerTree(pointers)
        self.with_text = PointerTree(pointers)
        for shape in shapes:
            _add_counts(self.document, shape.counts, shape.models)
            _add_counts(self.with_text, shape.counts, shape.models)
            if count_text:
                _add_text(self.with_text, shape.text)
                _add_twins(self.with_text, shape.twins)
        self.document.fold()
        self.with_text.fold()
        self.any_shape = Events(pointers, shapes, count_text=count_text)
        self._by_shape = {shape.name: Events(pointers, (shape,), count_text=count_text) for shape in shapes}
        self._other_text = _strings_at(OTHER_KEYS).findall if count_text else None
        self._owners = {pointer: shape.name for shape in shapes for pointer in shape.own}
        self._openings = [(re.compile(shape.opening).search, shape.name) for shape in shapes]

    def collect_other_text(self, body: bytes, text: Text) -> None:
        """Put what looks generated in a document of no shape into `text`."""
        if self._other_text is not None:
            for found in self._other_text(body):
                text.add(found)

    def recognise(self, beginning: bytes) -> str:
        """The name of the shape that begins like this, "" for none."""
        return next((name for search, name in self._openings if search(beginning)), "")

    def shape_of(self, counts: Iterable[str], beginning: bytes) -> str:
        """The name of the shape of a document with these counts that begins like this, "" for none."""
        for pointer in counts:
            if pointer in self._owners:
                return self._owners[pointer]
        return self.recognise(beginning)

    def events_of(self, shape: str) -> Events:
        """How streams of a recognised shape are read."""
        return self._by_shape.get(shape, self.any_shape)


def _add_counts(tree: PointerTree, counts: Iterable[str], models: Iterable[str]) -> None:
    for pointer in counts:
        for path in _places(pointer):
            tree.at(path).count = pointer
    for pointer in models:
        for path in _places(pointer):
            tree.at(path).model = True


def _add_text(tree: PointerTree, pointers: Iterable[str]) -> None:
    for pointer in pointers:
        for path in _places(pointer):
            tree.at(path).text = True


def _add_twins(tree: PointerTree, twins: Iterable[tuple[str, ...]]) -> None:
    for pointers in twins:
        for pointer in pointers:
            for path in _places(pointer):
                tree.at(path).twins = pointers


def _places(pointer: str) -> tuple[Path, Path]:
    """Where a pointer leads in a document, and in an array of documents."""
    path = tuple(pointer.split("/")[1:])
    return path, (ANY, *path)


def _strings_at(keys: Iterable[str]) -> re.Pattern[bytes]:
    """Matches the contents of strings at `keys`; quotes in JSON strings are escaped, so nothing else can match.

    The same string again, a few members later in the same object, is another name for it and does not count.
    """
    key = rb'"(?:' + "|".join(map(re.escape, keys)).encode() + rb')"[ \t]*+:[ \t]*+"'
    again = rb'(?:(?:[^"}\r\n]*+"[^"\r\n]*+"){0,4}?[^"}\r\n]*+' + key + rb'\1")?+'
    return re.compile(key + rb'([^"\\\r\n]*+(?:\\.[^"\\\r\n]*+)*+)"' + again)
