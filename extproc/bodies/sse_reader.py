"""Reading server-sent events (WHATWG HTML, section 9.2).

Usage in every frame, in the last, or before some more frames are all the same: the last value counts. Two liberties,
because real streams take them: an event whose joined data is no JSON has each `data:` line tried on its own, and an
event without its final blank line counts.
"""

from __future__ import annotations

from typing import Literal

from extproc.bodies.events import EventSink
from extproc.bodies.findings import Findings
from extproc.bodies.json_scanner import JsonScanner
from extproc.bodies.wanted import Wanted

_BOM = b"\xef\xbb\xbf"
_CARRIAGE_RETURN = 13


class SseReader:
    """Holds at most one unfinished event of `limit` bytes; a longer line of data is scanned while it comes."""

    __slots__ = (
        "_buffer",
        "_carriage_return",
        "_limit",
        "_long",
        "_sink",
        "_skipping",
        "_start",
        "mid_event",
        "unread",
    )

    def __init__(self, wanted: Wanted, findings: Findings, limit: int) -> None:
        self.unread: Literal["too_large"] | None = None
        self.mid_event = False
        """After `close`: the stream ended inside a line."""
        self._sink = EventSink(wanted, findings)
        self._limit = limit
        self._buffer = bytearray()
        self._carriage_return = False
        self._skipping = False
        self._long: JsonScanner | None = None
        self._start = True

    @property
    def complete(self) -> bool:
        """A stream has no end of its own."""
        return True

    def feed(self, data: bytes) -> None:
        """Read the next piece."""
        if self._skipping:
            data = self._resume(data)
        if not self._carriage_return and _CARRIAGE_RETURN in data:
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
        self.mid_event = self._skipping or bool(rest and not rest.endswith((b"\n", b"\r")) and b"[DONE]" not in rest)
        self._skip_no_more()
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
        if not self._sink.scan(events):
            return
        data: list[bytes] = []
        for line in events.splitlines():
            if line.startswith(b"data:"):
                data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line and data:
                self._sink.parse(*data)
                data = []
        if data:
            self._sink.parse(*data)

    def _read_lines(self) -> None:
        """The unfinished event is too large: read its complete lines one by one, and skip a line that is."""
        buffer = self._buffer
        end = max(buffer.rfind(b"\n"), buffer.rfind(b"\r")) + 1
        for line in bytes(buffer[:end]).splitlines():
            self._read(line)
        del buffer[:end]
        if len(buffer) > self._limit:
            self._skipping = True
            if buffer.startswith(b"data:"):
                self._long = self._sink.scanner()
                self._long.feed_all(buffer, 5)
            else:
                self.unread = "too_large"
            buffer.clear()

    def _resume(self, data: bytes) -> bytes:
        """What follows the end of a line that was too long."""
        ends = [end for end in (data.find(b"\n"), data.find(b"\r")) if end >= 0]
        end = min(ends, default=len(data))
        if self._long is not None:
            self._long.feed(data[:end])
        if not ends:
            return b""
        self._skip_no_more()
        return data[end + 1 :]

    def _skip_no_more(self) -> None:
        self._skipping = False
        if self._long is not None:
            self._long.close()
            self._long = None
