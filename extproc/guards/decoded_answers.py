"""Compressed answers, decoded on their way to a guard. Streams go on to the client as they were decoded."""

from __future__ import annotations

from typing import Final

from extproc.bodies.decoders import Decoder, DecodingError, decoder_for

MAX_STEP: Final = 256 * 1024
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


class StreamDecoder:
    """A compressed stream, chunk by chunk. Clients must be told of no content-encoding, and of no content-length."""

    __slots__ = ("_decoder",)

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def decode(self, chunk: bytes, last: bool = False) -> bytes:
        """What a chunk comes to. Raises DecodingError for what is corrupt, or too much at a time."""
        pieces: list[bytes] = []
        size = 0
        for piece in self._decoder.decode(chunk):
            size += len(piece)
            pieces.append(piece)
            if size > MAX_STEP:
                raise DecodingError("too_large", "one chunk decodes to too much")
        if last:
            pieces += self._decoder.flush()
        return b"".join(pieces)
