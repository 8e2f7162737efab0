"""Compressed answers, decoded on their way to a guard. Streams go on to the client as they were decoded."""

from __future__ import annotations

from typing import Final

from extproc.bodies.decoders import Decoder, DecodingError, decoder_for
from extproc.guards.stream_guard import StreamGuard

MAX_STEP: Final = 4 * 1024 * 1024
"""Bytes that one chunk of a stream may decode to: far beyond what events written one by one do."""
CORRUPT: Final = "unparsable"
"""The rule that a stream breaks which does not decode, or to too much."""


def decoded_body(body: bytes, content_encoding: str, limit: int) -> bytes | None:
    """A held body without its codings; None for one that does not decode, or to more than `limit` bytes."""
    decoder = decoder_for(content_encoding, limit)
    if decoder is None:
        return None
    pieces: list[bytes] = []
    try:
        pieces += decoder.decode(body)
        pieces += decoder.flush()
    except DecodingError:
        return None
    return b"".join(pieces)


class DecodedStream:
    """A guard behind a decoder. Clients must be told of no content-encoding, and of no content-length."""

    __slots__ = ("_decoder", "_guard")

    def __init__(self, guard: StreamGuard, decoder: Decoder) -> None:
        self._guard = guard
        self._decoder = decoder

    @property
    def denied(self) -> str | None:
        """The rule that the stream broke: nothing more is passed on."""
        return self._guard.denied

    @property
    def held(self) -> int:
        """Decoded bytes held back."""
        return self._guard.held

    def feed(self, chunk: bytes, last: bool = False) -> bytes:
        """What to send, decoded, in place of `chunk`. A chunk that cannot be read ends the stream."""
        if self._guard.denied is not None:
            return b""
        passed: list[bytes] = []
        size = 0
        try:
            for piece in self._decoder.decode(chunk):
                size += len(piece)
                passed.append(self._guard.feed(piece))
                if self._guard.denied is not None:
                    return b"".join(passed)
                if size > MAX_STEP:
                    passed.append(self._guard.refuse(CORRUPT))
                    return b"".join(passed)
            if last:
                passed += [self._guard.feed(piece) for piece in self._decoder.flush()]
        except DecodingError:
            passed.append(self._guard.refuse(CORRUPT))
        if last:
            passed.append(self._guard.feed(b"", last=True))
        return b"".join(passed)
