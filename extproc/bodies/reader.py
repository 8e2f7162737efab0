"""What every body reader does, and which one an answer gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from extproc.bodies.decoders import Decoder, DecodingError, decoder_for
from extproc.bodies.json_reader import JsonReader
from extproc.bodies.pointers import PointerTree, Values, needles
from extproc.bodies.sse_reader import SseReader

Unread = Literal["too_large", "encoding", "corrupt"]
"""Why a body, or the rest of it, was not read."""


class BodyReader(Protocol):
    """Reads one body, fed in any pieces. Never raises for what the bytes are."""

    @property
    def values(self) -> Values:
        """What was found so far."""

    @property
    def text_bytes(self) -> int:
        """Bytes of generated text that went by; complete after `close`."""

    @property
    def unread(self) -> Unread | None:
        """Why something was not read, None when all was."""

    @property
    def complete(self) -> bool:
        """Whether, after `close`, what came was a whole document and not the beginning of one."""

    def feed(self, data: bytes) -> None:
        """Read the next piece."""

    def close(self) -> None:
        """The body is over, complete or not. Called once."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Caps in bytes; see `bodies` in the configuration."""

    json_buffer: int = 64 * 1024
    sse_event: int = 1024 * 1024
    decoded: int = 256 * 1024 * 1024


class ReaderFactory:
    """Makes readers for one set of wanted pointers; made once per configuration."""

    __slots__ = ("_count_text", "_limits", "_needles", "_tree")

    def __init__(self, paths: frozenset[tuple[str, ...]], limits: BodyLimits, *, count_text: bool) -> None:
        self._tree = PointerTree(paths)
        self._needles = needles(paths)
        self._limits = limits
        self._count_text = count_text

    def open(self, content_type: str, content_encoding: str) -> BodyReader:
        """A reader for an answer with these headers (lower case not needed; empty when absent)."""
        reader: BodyReader
        if "text/event-stream" in content_type.lower():
            reader = SseReader(self._tree, self._needles, self._limits.sse_event, count_text=self._count_text)
        else:
            reader = JsonReader(self._tree, self._limits.json_buffer)
        if not content_encoding:
            return reader
        decoder = decoder_for(content_encoding, self._limits.decoded)
        return Unreadable() if decoder is None else DecodingReader(decoder, reader)


class Unreadable:
    """Reads nothing: the encoding is not known."""

    __slots__ = ("text_bytes", "unread", "values")

    def __init__(self) -> None:
        self.values: Values = {}
        self.text_bytes = 0
        self.unread: Unread | None = "encoding"

    @property
    def complete(self) -> bool:
        """Nobody can tell."""
        return False

    def feed(self, data: bytes) -> None:
        """Count the bytes: compressed text is all that is known of the answer's size."""
        self.text_bytes += len(data)

    def close(self) -> None:
        """Nothing to finish."""


class DecodingReader:
    """Decodes on the way to another reader."""

    __slots__ = ("_decoder", "_reader", "_unread")

    def __init__(self, decoder: Decoder, reader: BodyReader) -> None:
        self._decoder: Decoder | None = decoder
        self._reader = reader
        self._unread: Unread | None = None

    @property
    def values(self) -> Values:
        return self._reader.values

    @property
    def text_bytes(self) -> int:
        return self._reader.text_bytes

    @property
    def complete(self) -> bool:
        return self._unread is None and self._reader.complete

    @property
    def unread(self) -> Unread | None:
        return self._unread or self._reader.unread

    def feed(self, data: bytes) -> None:
        """Read the next encoded piece; after corrupt or too many bytes the rest is not read."""
        if self._decoder is None:
            return
        try:
            for piece in self._decoder.decode(data):
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
