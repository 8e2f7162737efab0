"""Reading a JSON body: whole when small, scanned when large."""

from __future__ import annotations

from typing import Any, Literal

import orjson

from extproc.bodies.content import text_size
from extproc.bodies.json_scanner import JsonScanner
from extproc.bodies.pointers import PointerTree, Values


class JsonReader:
    """Holds up to `buffer` bytes and parses them at the end; beyond that hands over to a scanner.

    A small document that is not valid JSON is scanned too, so that a truncated answer keeps the
    values that did arrive, and so that the size alone never changes the answer.
    """

    __slots__ = ("_buffered", "_document", "_limit", "_pieces", "_scanner", "_tree", "unread", "values")

    def __init__(self, tree: PointerTree, buffer: int) -> None:
        self.values: Values = {}
        self.unread: Literal["corrupt"] | None = None
        self._tree = tree
        self._limit = buffer
        self._pieces: list[bytes] = []
        self._buffered = 0
        self._scanner: JsonScanner | None = None
        self._document: Any = None

    @property
    def text_bytes(self) -> int:
        """Bytes of generated text; counted when asked for, because a reported usage makes it needless."""
        return text_size(self._document) if self._scanner is None else self._scanner.text_bytes

    @property
    def complete(self) -> bool:
        """Whether, after `close`, a whole JSON document was there."""
        return self._document is not None if self._scanner is None else self._scanner.complete

    def feed(self, data: bytes) -> None:
        """Read the next piece."""
        if self._scanner is not None:
            self._scanner.feed(data)
            return
        self._pieces.append(data)
        self._buffered += len(data)
        if self._buffered > self._limit:
            self._scan()

    def close(self) -> None:
        """Parse what is held."""
        if self._scanner is None:
            if not self._buffered:
                return
            body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            try:
                self._document = orjson.loads(body.removeprefix(b"\xef\xbb\xbf"))
            except orjson.JSONDecodeError:
                self.unread = "corrupt"
                self._scan()
            else:
                self._pieces.clear()
                self._tree.extract(self._document, self.values)
        if self._scanner is not None:
            self._scanner.close()

    def _scan(self) -> None:
        self._scanner = JsonScanner(self._tree, self.values)
        for piece in self._pieces:
            self._scanner.feed(piece)
        self._pieces.clear()
