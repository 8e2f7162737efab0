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
        return not self.complete and bool(self._head)

    def feed(self, data: bytes) -> None:
        """Read the next piece."""
        if len(self._head) < HEAD:
            self._head += data[: HEAD - len(self._head)]
        if self._scanner is not None:
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
        self._findings.shape = self._wanted.recognise(self._head)
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
            tree = self._wanted.document
            tree.extract(document, self._findings)
            self._findings.collect_text_later(lambda text: tree.collect(document, text))

    def _scan(self) -> None:
        self._scanner = JsonScanner(self._wanted.document, self._findings)
        self._scanner.feed(bytes(self._buffer))
        self._buffer.clear()
