"""What is wanted from a body, as a tree that a reader walks beside the document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from extproc.bodies.findings import MAX_MODEL, Findings, Path, Scalar, count_of
from extproc.bodies.text import Text

ANY = "*"
"""A step into every element of an array."""
MAX_VALUE = 64 * 1024
"""Characters of a string that an expression may read; a longer one is not found, parsed or scanned."""


class PointerTree:
    """One step of the wanted pointers, and what is wanted where a pointer ends: any of

    `wanted`: a scalar for expressions; `count`: a token count; `model`: the model's name; `text`: generated text.
    Build it with `add`, then `fold` once.
    """

    __slots__ = ("children", "count", "model", "repeated", "takes", "text", "twins", "wanted")

    def __init__(self, paths: Iterable[Path] = ()) -> None:
        self.children: dict[str, PointerTree] = {}
        self.wanted: Path | None = None
        self.count: str | None = None
        self.model = False
        self.text = False
        self.twins: tuple[str, ...] = ()
        """Names a set of places in one object whose text is the same: it counts once."""
        self.takes = False
        """Whether a scalar here is wanted whole, and not only as text that goes by."""
        self.repeated = False
        """Stands for many places of a document, so that one of them does not replace another."""
        for path in paths:
            self.at(path).wanted = path

    def at(self, path: Path) -> PointerTree:
        """The step where `path` ends, made where it is missing."""
        node = self
        for token in path:
            node = node.children.setdefault(token, PointerTree())
        return node

    def fold(self) -> None:
        """Give array indices what is wanted of every element."""
        self.takes = self.wanted is not None or self.count is not None or self.model
        general = self.children.get(ANY)
        if general is not None:
            general.repeated = True
            for key, child in self.children.items():
                if _index(key) is not None:
                    child._merge(general)
        for child in self.children.values():
            child.repeated |= self.repeated
            child.fold()

    def _merge(self, other: PointerTree) -> None:
        self.count = self.count or other.count
        self.model |= other.model
        self.text |= other.text
        self.twins = self.twins or other.twins
        for key, child in other.children.items():
            self.children.setdefault(key, PointerTree())._merge(child)

    def element(self, index: int) -> PointerTree | None:
        """The step into the element `index` of an array."""
        return self.children.get(str(index)) or self.children.get(ANY)

    def extract(self, document: Any, findings: Findings) -> None:
        """Put every scalar that is wanted of the parsed `document` into `findings`."""
        if isinstance(document, dict):
            children = self.children
            for key in document if len(document) < len(children) else children:
                child, value = children.get(key), document.get(key)
                if child is None or value is None:
                    continue
                if isinstance(value, (dict, list)):
                    child.extract(value, findings)
                elif child.takes:
                    child.take(value, findings)
        elif isinstance(document, list):
            for child, value in self._elements(document):
                child.extract(value, findings)
        elif document is not None and self.takes:
            self.take(document, findings)

    def collect(self, document: Any, text: Text) -> None:
        """Put all generated text of the parsed `document` into `text`."""
        if self.text and not (isinstance(document, list) and self.children):
            if document is not None:
                text.add_value(document)
        elif isinstance(document, dict):
            said = set()
            for key, child in self.children.items():
                value = document.get(key)
                if value is None:
                    continue
                if child.twins and value:
                    if child.twins in said:
                        continue
                    said.add(child.twins)
                child.collect(value, text)
        elif isinstance(document, list):
            for child, value in self._elements(document):
                child.collect(value, text)

    def _elements(self, document: list[Any]) -> Iterator[tuple[PointerTree, Any]]:
        """The elements of an array that steps lead to."""
        if ANY in self.children:
            for index, value in enumerate(document):
                child = self.element(index)
                assert child is not None
                yield child, value
        else:
            for key, child in self.children.items():
                if (number := _index(key)) is not None and number < len(document):
                    yield child, document[number]

    def take(self, value: Scalar, findings: Findings) -> None:
        """Put the scalar found here where it belongs."""
        if self.wanted is not None and not (isinstance(value, str) and len(value) > MAX_VALUE):
            findings.values[self.wanted] = value
        if self.count is not None:
            count = count_of(value)
            # Counts grow while a stream goes on; a zero behind them is a field that somebody filled in.
            if count or (count is not None and self.count not in findings.counts):
                findings.counts[self.count] = count
        if self.model and value and isinstance(value, str):
            findings.model = value[:MAX_MODEL]

    def forget(self, findings: Findings) -> None:
        """Remove what was found at or below this step: its value occurs a second time."""
        if self.repeated:
            return
        if self.wanted is not None:
            findings.values.pop(self.wanted, None)
        if self.count is not None:
            findings.counts.pop(self.count, None)
        for child in self.children.values():
            child.forget(findings)


def _index(key: str) -> int | None:
    """The array index that a reference token names (RFC 6901: digits without leading zeros), if it is one."""
    plain = key.isascii() and key.isdecimal() and len(key) < 10 and (key == "0" or key[0] != "0")
    return int(key) if plain else None


def needles(paths: Iterable[Path]) -> tuple[bytes, ...]:
    """For each pointer, bytes that a document must contain to have it; b"" where there are no such bytes.

    Keys that a sender could spell in two ways (`\\u`-escaped) give no needle, except that plain ASCII keys are
    taken to be spelt plainly, as every model server does.
    """
    found = set()
    for path in paths:
        keys = [token for token in path if not token.isdecimal() and token.isascii()]
        found.add(orjson.dumps(keys[-1]) if keys else b"")
    return tuple(sorted(found))
