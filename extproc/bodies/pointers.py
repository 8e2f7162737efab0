"""The JSON pointers that are wanted from a body, as a tree that a reader walks beside the document."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

Path = tuple[str, ...]
Scalar = str | int | float | bool
Values = dict[Path, Scalar]
"""What was found: null, lists and maps count as not found."""


class PointerTree:
    """One step of the wanted pointers: `wanted` is the full path when a pointer ends here."""

    __slots__ = ("children", "wanted")

    def __init__(self, paths: Iterable[Path] = ()) -> None:
        self.children: dict[str, PointerTree] = {}
        self.wanted: Path | None = None
        for path in paths:
            node = self
            for token in path:
                node = node.children.setdefault(token, PointerTree())
            node.wanted = path

    def paths(self) -> list[Path]:
        """Every pointer at or below this step."""
        below = [path for child in self.children.values() for path in child.paths()]
        return below if self.wanted is None else [self.wanted, *below]

    def extract(self, document: Any, values: Values) -> None:
        """Put every wanted scalar of the parsed `document` into `values`; leave the others as they are."""
        if isinstance(document, dict):
            for key, child in self.children.items():
                if key in document:
                    child.extract(document[key], values)
        elif isinstance(document, list):
            for key, child in self.children.items():
                if (index := _index(key)) is not None and index < len(document):
                    child.extract(document[index], values)
        elif self.wanted is not None and document is not None:
            values[self.wanted] = document

    def forget(self, values: Values) -> None:
        """Remove what was found at or below this step: its value occurs a second time."""
        for path in self.paths():
            values.pop(path, None)


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
