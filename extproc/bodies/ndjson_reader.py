"""Reading newline-delimited JSON (application/x-ndjson, application/jsonl): one JSON text a line, as Ollama streams."""

from __future__ import annotations

import orjson

from extproc.bodies.events import EventSink
from extproc.bodies.findings import Findings
from extproc.bodies.json_scanner import JsonScanner
from extproc.bodies.wanted import Wanted

_BOM = b"\xef\xbb\xbf"


class NdjsonReader:
    """Holds at most one unfinished line of `limit` bytes; a longer one is scanned while it comes."""

    __slots__ = ("_buffer", "_limit", "_long", "_sink", "_start", "mid_event")

    unread = None
    """Nothing is left out."""

    def __init__(self, wanted: Wanted, findings: Findings, limit: int) -> None:
        self.mid_event = False
        """After `close`: the stream ended inside a line that is no JSON without its rest."""
        self._sink = EventSink(wanted, findings)
        self._limit = limit
        self._buffer = bytearray()
        self._long: JsonScanner | None = None
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
        if self._long is not None:
            self._long.feed(data)
            return
        self._buffer += data
        if len(self._buffer) > self._limit:
            self._start = False
            self._long = self._sink.scanner()
            self._long.feed_all(self._buffer)
            self._buffer.clear()

    def close(self) -> None:
        """Read a last line that lacks its line feed."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self.mid_event = _is_cut(rest)
        if self._long is not None:
            self._long.close()
            self.mid_event = not self._long.complete
        self._read(rest)

    def _completed(self, lines: bytes) -> bytes:
        """`lines`, the first of which may have begun earlier."""
        if self._long is not None:
            end = lines.index(b"\n")
            self._long.feed(lines[:end])
            self._long.close()
            self._long = None
            return lines[end + 1 :]
        if self._buffer:
            lines = bytes(self._buffer) + lines
            self._buffer.clear()
        return lines

    def _read(self, lines: bytes) -> None:
        """Read complete lines."""
        if not lines:
            return
        if self._start:
            self._start = False
            lines = lines.removeprefix(_BOM)
        if len(lines) > self._limit:
            # One of them may be too long, and the size of pieces must not decide how it is read.
            for line in lines.split(b"\n"):
                self._read_line(line)
        elif self._sink.scan(lines):
            for line in lines.split(b"\n"):
                if line:
                    self._sink.parse(line)

    def _read_line(self, line: bytes) -> None:
        if len(line) > self._limit:
            scanner = self._sink.scanner()
            scanner.feed(line)
            scanner.close()
        elif line and self._sink.scan(line):
            self._sink.parse(line)


def _is_cut(line: bytes) -> bool:
    if not line.removeprefix(_BOM).strip():
        return False
    try:
        orjson.loads(line.removeprefix(_BOM))
    except orjson.JSONDecodeError:
        return True
    return False
