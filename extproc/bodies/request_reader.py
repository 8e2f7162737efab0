"""Reading a request body that a decision depends on.

Clients are not trusted to keep it short: nothing is searched piece by piece, and neither a few bytes that decode to
many, nor many that mean little, hold up everybody else. What is no JSON document has no values.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from extproc.bodies.decoders import decoder_for
from extproc.bodies.findings import Findings
from extproc.bodies.reader import BodyReader, DecodingReader, Unread, Unreadable
from extproc.bodies.wanted import Wanted

DECODED = 4 * 1024 * 1024
"""Bytes that a compressed body may decode to."""
MARKS = 300_000
"""Commas and opening brackets, in texts too: so many values are parsed in some fifty milliseconds."""
_BOM = b"\xef\xbb\xbf"


class RequestReaderFactory:
    """Makes readers of JSON requests of at most `largest` bytes; made once per configuration."""

    __slots__ = ("_largest", "_wanted")

    def __init__(self, wanted: Wanted, largest: int) -> None:
        self._wanted = wanted
        self._largest = largest

    def open(self, content_type: str, content_encoding: str) -> BodyReader:
        """A reader for a body with these headers; "" where there is none."""
        is_json = not content_type or "json" in content_type.lower()
        reader = RequestReader(self._wanted, self._largest, is_json=is_json)
        if content_encoding.strip().lower() in ("", "identity"):
            return reader
        decoder = decoder_for(content_encoding, min(self._largest, DECODED), codings=1)
        return Unreadable() if decoder is None else DecodingReader(decoder, reader)


def _parsed(body: bytes) -> Any:
    """A document, also one with NaN, lone surrogates or in UTF-16: models written in Python take those."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        if body.startswith(_BOM):
            raise  # one is allowed, and taken off by now
        return json.loads(body, strict=False)


def added(body: bytes | bytearray, piece: bytes) -> bytes | bytearray:
    """`body` and one more piece; the first is not copied, and the others are not kept one by one."""
    if not body:
        return piece
    if isinstance(body, bytes):
        body = bytearray(body)
    body += piece
    return body


class RequestReader:
    """Holds a body and parses it once; what should be JSON and is none could not be read."""

    __slots__ = ("_body", "_is_json", "_largest", "_wanted", "complete", "document", "findings", "unread")

    mid_event = False
    streaming = False

    def __init__(self, wanted: Wanted, largest: int, *, is_json: bool) -> None:
        self.findings = Findings()
        self.complete = False
        """Whether, after `close`, a whole document was there."""
        self.unread: Unread | None = None
        self.document: Any = None
        """What the body says, after `close`."""
        self._wanted = wanted
        self._largest = largest
        self._is_json = is_json
        self._body: bytes | bytearray = b""
        """What came in one piece is not copied."""

    def feed(self, data: bytes) -> None:
        """Hold the next piece."""
        if self.unread is None:
            self._body = added(self._body, data)
            if len(self._body) > self._largest:
                self._give_up()

    def close(self) -> None:
        """Parse what is held."""
        body, self._body = bytes(self._body), b""
        if len(body) > MARKS and sum(map(body.count, (b",", b"[", b"{"))) > MARKS:
            self._give_up()
        if self.unread is not None or not body or body.isspace():
            return
        try:
            self.document = _parsed(body.removeprefix(_BOM))
        except (ValueError, RecursionError):
            self.unread = "corrupt" if self._is_json else None
            return
        self.complete = True
        self._wanted.document.extract(self.document, self.findings)

    def _give_up(self) -> None:
        self.unread = "too_large"
        self._body = b""
