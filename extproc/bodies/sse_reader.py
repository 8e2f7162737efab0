"""Reading server-sent events (WHATWG HTML, section 9.2) for a few JSON values.

Events are looked at only when they contain a key that is wanted; the others cost a search. Of each pointer the
last value that is not null counts, wherever it is in the stream: usage in every frame, in the last, or before
some more frames are all the same. Two liberties, because real streams take them: an event whose joined data is
no JSON has each `data:` line tried on its own, and an event without its final blank line counts.
"""

from __future__ import annotations

from typing import Literal

import orjson

from extproc.bodies.content import text_size_of_bytes
from extproc.bodies.pointers import PointerTree, Values

_BOM = b"\xef\xbb\xbf"


class SseReader:
    """Holds at most one unfinished event of `limit` bytes; lines longer than that are not read."""

    __slots__ = (
        "_buffer",
        "_carriage_return",
        "_count_text",
        "_limit",
        "_needles",
        "_skipping",
        "_start",
        "_tree",
        "text_bytes",
        "unread",
        "values",
    )

    def __init__(self, tree: PointerTree, needles: tuple[bytes, ...], limit: int, *, count_text: bool) -> None:
        self.values: Values = {}
        self.text_bytes = 0
        self.unread: Literal["too_large"] | None = None
        self._tree = tree
        self._needles = needles
        self._limit = limit
        self._count_text = count_text
        self._buffer = bytearray()
        self._carriage_return = False
        self._skipping = False
        self._start = True

    @property
    def complete(self) -> bool:
        """A stream has no end of its own."""
        return True

    def feed(self, data: bytes) -> None:
        """Read the next piece."""
        if self._skipping:
            data = self._resume(data)
        if not self._carriage_return and b"\r" in data:
            self._carriage_return = True
        buffer = self._buffer
        if not buffer and not self._carriage_return and data.endswith(b"\n\n"):
            self._read(data)
            return
        searched = max(0, len(buffer) - 2)
        buffer += data
        end = self._last_boundary(searched)
        if end:
            events = bytes(buffer[:end])
            del buffer[:end]
            self._read(events)
        if len(buffer) > self._limit:
            self._read_lines()

    def close(self) -> None:
        """Read an event that lacks its blank line."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        if rest:
            self._read(rest)

    def _last_boundary(self, start: int) -> int:
        """Where the last complete event ends, searched from `start`; 0 when none does."""
        buffer = self._buffer
        end = buffer.rfind(b"\n\n", start) + 2
        if self._carriage_return:
            end = max(end, buffer.rfind(b"\n\r\n", start) + 3, buffer.rfind(b"\r\r", start) + 2)
        return end if end > 3 else 0

    def _read(self, events: bytes) -> None:
        """Read complete events."""
        if self._start:
            self._start = False
            events = events.removeprefix(_BOM)
        if self._count_text:
            self.text_bytes += text_size_of_bytes(events)
        if not self._may_matter(events):
            return
        data: list[bytes] = []
        for line in events.splitlines():
            if line.startswith(b"data:"):
                data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line and data:
                self._dispatch(data)
                data = []
        if data:
            self._dispatch(data)

    def _may_matter(self, data: bytes) -> bool:
        return any(needle in data for needle in self._needles)

    def _dispatch(self, data: list[bytes]) -> None:
        if self._take(b"\n".join(data)) or len(data) == 1:
            return
        for line in data:
            self._take(line)

    def _take(self, text: bytes) -> bool:
        """Take what is wanted from one JSON text; False when it is no JSON."""
        if not self._may_matter(text):
            return True
        try:
            document = orjson.loads(text)
        except orjson.JSONDecodeError:
            return False
        self._tree.extract(document, self.values)
        return True

    def _read_lines(self) -> None:
        """The unfinished event is too large: read its complete lines one by one, and skip a line that is."""
        buffer = self._buffer
        end = max(buffer.rfind(b"\n"), buffer.rfind(b"\r")) + 1
        for line in bytes(buffer[:end]).splitlines():
            self._read(line)
        del buffer[:end]
        if len(buffer) > self._limit:
            buffer.clear()
            self._skipping = True
            self.unread = "too_large"

    def _resume(self, data: bytes) -> bytes:
        """What follows the end of a line that was too long."""
        ends = [end for end in (data.find(b"\n"), data.find(b"\r")) if end >= 0]
        if not ends:
            return b""
        self._skipping = False
        return data[min(ends) + 1 :]
