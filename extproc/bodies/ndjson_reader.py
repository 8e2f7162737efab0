"""Reading newline-delimited JSON (application/x-ndjson, application/jsonl): one JSON text a line, as Ollama streams."""

from __future__ import annotations

from typing import Literal

import orjson

from extproc.bodies.events import EventSink
from extproc.bodies.findings import Findings
from extproc.bodies.wanted import Wanted

_BOM = b"\xef\xbb\xbf"


class NdjsonReader:
    """Holds at most one unfinished line of `limit` bytes; a longer one is not read."""

    __slots__ = ("_buffer", "_limit", "_sink", "_skipping", "_start", "mid_event", "unread")

    def __init__(self, wanted: Wanted, findings: Findings, limit: int) -> None:
        self.unread: Literal["too_large"] | None = None
        self.mid_event = False
        """After `close`: the stream ended inside a line that is no JSON without its rest."""
        self._sink = EventSink(wanted, findings)
        self._limit = limit
        self._buffer = bytearray()
        self._skipping = False
        self._start = True

    @property
    def complete(self) -> bool:
        """A stream has no end of its own."""
        return True

    def feed(self, data: bytes) -> None:
        """Read the next piece."""
        end = data.rfind(b"\n") + 1
        if end:
            self._read(self._completed(data[:end]))
            data = data[end:]
        if self._skipping:
            return
        self._buffer += data
        if len(self._buffer) > self._limit:
            self._buffer.clear()
            self._start = False
            self._skipping = True
            self.unread = "too_large"

    def close(self) -> None:
        """Read a last line that lacks its line feed."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self.mid_event = self._skipping or _is_cut(rest)
        self._read(rest)

    def _completed(self, lines: bytes) -> bytes:
        """`lines`, the first of which may have begun earlier."""
        if self._skipping:
            self._skipping = False
            return lines[lines.index(b"\n") + 1 :]
        if self._buffer:
            lines = bytes(self._buffer) + lines
            self._buffer.clear()
        return lines

    def _read(self, lines: bytes) -> None:
        """Read complete lines."""
        if not lines:
            return
        if len(lines) > self._limit:
            lines = self._without_long(lines)
        if self._start:
            self._start = False
            lines = lines.removeprefix(_BOM)
        if self._sink.scan(lines):
            for line in lines.split(b"\n"):
                if line:
                    self._sink.parse(line)

    def _without_long(self, lines: bytes) -> bytes:
        """`lines` less those over the limit, so that the size of pieces does not decide what is read."""
        kept = [line if len(line) <= self._limit else None for line in lines.split(b"\n")]
        if None in kept:
            self.unread = "too_large"
        return b"\n".join(line or b"" for line in kept)


def _is_cut(line: bytes) -> bool:
    if not line.removeprefix(_BOM).strip():
        return False
    try:
        orjson.loads(line.removeprefix(_BOM))
    except orjson.JSONDecodeError:
        return True
    return False
