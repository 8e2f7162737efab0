"""What every body reader does, and which one a body gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from extproc.bodies.decoders import Decoder, DecodingError, decoder_for
from extproc.bodies.eventstream_reader import EventStreamReader
from extproc.bodies.findings import Findings
from extproc.bodies.json_reader import JsonReader
from extproc.bodies.ndjson_reader import NdjsonReader
from extproc.bodies.sse_reader import SseReader
from extproc.bodies.wanted import Wanted

Unread = Literal["too_large", "encoding", "corrupt"]
"""Why a body, or the rest of it, was not read."""

Stream = SseReader | NdjsonReader | EventStreamReader
_STREAMS: dict[str, type[Stream]] = {
    "text/event-stream": SseReader,
    "application/x-ndjson": NdjsonReader,
    "application/ndjson": NdjsonReader,
    "application/jsonl": NdjsonReader,
    "application/vnd.amazon.eventstream": EventStreamReader,
}
_SSE_BEGINNINGS = (b"data:", b"event:", b"id:", b"retry:", b":")
_BLANK = b" \t\r\n\xef\xbb\xbf"
_HEAD = 64
"""Bytes that may tell the format; after so many that are blank the content type alone does."""


class Format(Protocol):
    """Reads a body that is not encoded, fed in any pieces. Never raises for what the bytes are."""

    @property
    def unread(self) -> Unread | None:
        """Why something was not read, None when all was."""

    @property
    def complete(self) -> bool:
        """Whether, after `close`, what came was a whole document and not the beginning of one."""

    @property
    def mid_event(self) -> bool:
        """Whether, after `close`, the body turned out to stop inside of what a server writes whole."""

    def feed(self, data: bytes) -> None:
        """Read the next piece."""

    def close(self) -> None:
        """The body is over, complete or not. Called once."""


class BodyReader(Format, Protocol):
    """Reads a body into `findings`."""

    findings: Findings

    @property
    def streaming(self) -> bool:
        """Whether the body is a stream of events."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Caps in bytes; see `bodies` in the configuration."""

    json_buffer: int = 64 * 1024
    sse_event: int = 1024 * 1024
    decoded: int = 256 * 1024 * 1024


class ReaderFactory:
    """Makes readers; made once per configuration."""

    __slots__ = ("_limits", "_wanted")

    def __init__(self, wanted: Wanted, limits: BodyLimits) -> None:
        self._wanted = wanted
        self._limits = limits

    def open(self, content_type: str, content_encoding: str) -> BodyReader:
        """A reader for a body with these headers (lower case not needed; empty when absent)."""
        findings = Findings(self._wanted.keep_text)
        body = Body(self._wanted, self._limits, findings, content_type.partition(";")[0].strip().lower())
        if not content_encoding:
            return body
        decoder = decoder_for(content_encoding, self._limits.decoded)
        return Unreadable() if decoder is None else DecodingReader(decoder, body)


class Body:
    """Chooses the format by the content type, and by the first bytes where those say otherwise."""

    __slots__ = ("_content_type", "_format", "_head", "_limits", "_wanted", "feed", "findings")

    def __init__(self, wanted: Wanted, limits: BodyLimits, findings: Findings, content_type: str) -> None:
        self.findings = findings
        self._wanted = wanted
        self._limits = limits
        self._content_type = content_type
        self._head = b""
        self._format: Format | None = None
        self.feed: Callable[[bytes], None] = self._begin

    @property
    def unread(self) -> Unread | None:
        return None if self._format is None else self._format.unread

    @property
    def complete(self) -> bool:
        return self._format is not None and self._format.complete

    @property
    def mid_event(self) -> bool:
        return self._format is not None and self._format.mid_event

    @property
    def streaming(self) -> bool:
        return self._format is not None and not isinstance(self._format, JsonReader)

    def _begin(self, data: bytes) -> None:
        if not self._head and data.startswith(b"{") and self._content_type not in _STREAMS:
            self._choose(None)
        else:
            self._head += data
            if _undecided(self._head):
                return
            data, self._head = self._head, b""
            self._choose(self._stream_of(data))
        self.feed(data)

    def close(self) -> None:
        if self._format is None and self._head:
            self._choose(self._stream_of(self._head))
            self.feed(self._head)
        if self._format is not None:
            self._format.close()

    def _stream_of(self, head: bytes) -> type[Stream] | None:
        """The format of a stream that begins like this, None for a document."""
        beginning = head[:_HEAD].lstrip(_BLANK)
        stream = _STREAMS.get(self._content_type)
        if stream in (SseReader, EventStreamReader) and beginning.startswith((b"{", b"[")):
            return None
        return SseReader if stream is None and beginning.startswith(_SSE_BEGINNINGS) else stream

    def _choose(self, stream: type[Stream] | None) -> None:
        chosen: Format
        if stream is None:
            chosen = JsonReader(self._wanted, self.findings, self._limits.json_buffer)
        else:
            chosen = stream(self._wanted, self.findings, self._limits.sse_event)
        self._format = chosen
        self.feed = chosen.feed


def _undecided(head: bytes) -> bool:
    """Whether more bytes could still tell another format."""
    beginning = head[:_HEAD].lstrip(_BLANK)
    if len(head) >= _HEAD:
        return False
    return not beginning or any(known.startswith(beginning) and known != beginning for known in _SSE_BEGINNINGS)


class Unreadable:
    """Reads nothing: the encoding is not known."""

    __slots__ = ("findings",)

    complete = False
    mid_event = False
    streaming = False
    unread: Unread | None = "encoding"

    def __init__(self) -> None:
        self.findings = Findings()

    def feed(self, data: bytes) -> None:
        """Nothing can be read."""

    def close(self) -> None:
        """Nothing to finish."""


class DecodingReader:
    """Decodes on the way to another reader."""

    __slots__ = ("_decoder", "_reader", "_unread", "findings")

    def __init__(self, decoder: Decoder, reader: BodyReader) -> None:
        self.findings = reader.findings
        self._decoder: Decoder | None = decoder
        self._reader = reader
        self._unread: Unread | None = None

    @property
    def complete(self) -> bool:
        return self._unread is None and self._reader.complete

    @property
    def mid_event(self) -> bool:
        return self._reader.mid_event

    @property
    def streaming(self) -> bool:
        return self._reader.streaming

    @property
    def unread(self) -> Unread | None:
        return self._unread or self._reader.unread

    def feed(self, data: bytes) -> None:
        """Read the next encoded piece; after corrupt or too many bytes the rest is not read."""
        if self._decoder is None:
            return
        try:
            for piece in self._decoder.decode(data):
                self.findings.body_size += len(piece)
                self._reader.feed(piece)
        except DecodingError as error:
            self._give_up(error)

    def close(self) -> None:
        """Read what the decoder still holds."""
        if self._decoder is not None:
            try:
                for piece in self._decoder.flush():
                    self._reader.feed(piece)
            except DecodingError as error:
                self._give_up(error)
        self._reader.close()

    def _give_up(self, error: DecodingError) -> None:
        self._decoder = None
        self._unread = "too_large" if error.limit is not None else "corrupt"
