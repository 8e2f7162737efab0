"""Reading a request body that a decision depends on.

Clients are not trusted to keep it short: nothing is searched piece by piece, and neither a few bytes that decode to
many, nor many that mean little, hold up everybody else. What is no JSON document has no values.
"""

from __future__ import annotations

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

    def open(self, content_encoding: str) -> BodyReader:
        """A reader for a body in this encoding; "" when it is as it is."""
        reader = RequestReader(self._wanted, self._largest)
        if not content_encoding:
            return reader
        decoder = decoder_for(content_encoding, min(self._largest, DECODED), codings=1)
        return Unreadable() if decoder is None else DecodingReader(decoder, reader)


class RequestReader:
    """Holds a body and parses it once."""

    __slots__ = ("_body", "_largest", "_wanted", "complete", "findings", "unread")

    mid_event = False
    streaming = False

    def __init__(self, wanted: Wanted, largest: int) -> None:
        self.findings = Findings()
        self.complete = False
        """Whether, after `close`, a whole document was there."""
        self.unread: Unread | None = None
        self._wanted = wanted
        self._largest = largest
        self._body = bytearray()

    def feed(self, data: bytes) -> None:
        """Hold the next piece."""
        if self.unread is None:
            self._body += data
            if len(self._body) > self._largest:
                self._give_up()

    def close(self) -> None:
        """Parse what is held."""
        body = self._body
        if len(body) > MARKS and sum(map(body.count, (b",", b"[", b"{"))) > MARKS:
            self._give_up()
        if self.unread is None and body:
            try:
                document = orjson.loads(body.removeprefix(_BOM))
            except orjson.JSONDecodeError:
                return
            self.complete = True
            self._wanted.document.extract(document, self.findings)

    def _give_up(self) -> None:
        self.unread = "too_large"
        self._body = bytearray()
