"""Reading a JSON body: whole when small, scanned when large."""

from __future__ import annotations

from typing import Any, Literal

import orjson

from extproc.bodies.findings import Findings
from extproc.bodies.json_scanner import JsonScanner
from extproc.bodies.wanted import HEAD, Wanted

_BOM = b"\xef\xbb\xbf"


class JsonReader:
    """Holds up to `buffer` bytes and parses them at the end; beyond that hands over to a scanner.

    A small body that is not valid JSON is scanned too, so that a truncated answer keeps the values that did arrive,
    documents that follow one another are all read, and the size alone never changes the answer.
    """

    __slots__ = ("_buffer", "_findings", "_head", "_limit", "_parsed", "_scanner", "_wanted", "unread")

    def __init__(self, wanted: Wanted, findings: Findings, buffer: int) -> None:
        self.unread: Literal["corrupt"] | None = None
        self._wanted = wanted
        self._findings = findings
        self._limit = buffer
        self._buffer = bytearray()
        self._head = b""
        self._parsed = False
        self._scanner: JsonScanner | None = None

    @property
    def complete(self) -> bool:
        """Whether, after `close`, a whole JSON document was there."""
        return self._parsed if self._scanner is None else self._scanner.complete

    @property
    def mid_event(self) -> bool:
        """Whether, after `close`, the document lacks its end."""
        return not self.complete and (self._scanner is not None or bool(self._buffer))

    def feed(self, data: bytes) -> None:
        """Read the next piece."""
        if self._scanner is not None:
            if len(self._head) < HEAD:
                self._head += data[: HEAD - len(self._head)]
            self._scanner.feed(data)
            return
        self._buffer += data
        if len(self._buffer) > self._limit:
            self._scan()

    def close(self) -> None:
        """Parse what is held."""
        if self._scanner is None and self._buffer:
            self._parse(bytes(self._buffer))
        if self._scanner is not None:
            self._scanner.close()
        findings, wanted = self._findings, self._wanted
        findings.shape = wanted.shape_of(findings.counts, self._head or bytes(self._buffer[:HEAD]))
        if self._parsed and not findings.shape:
            body = bytes(self._buffer)
            findings.collect_text_later(lambda text: wanted.collect_other_text(body, text))
        self._buffer.clear()

    def _parse(self, body: bytes) -> None:
        try:
            document: Any = orjson.loads(body.removeprefix(_BOM))
        except orjson.JSONDecodeError:
            self._scan()
            assert self._scanner is not None
            self._scanner.close()
            self.unread = None if self._scanner.complete else "corrupt"
        else:
            self._parsed = True
            self._wanted.document.extract(document, self._findings)
            with_text = self._wanted.with_text
            self._findings.collect_text_later(lambda text: with_text.collect(document, text))

    def _scan(self) -> None:
        self._scanner = JsonScanner(self._wanted.with_text, self._findings)
        self._head = bytes(self._buffer[:HEAD])
        self._scanner.feed_all(self._buffer)
        self._buffer.clear()
