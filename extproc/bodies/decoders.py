"""Incremental, bounded decoders for the content codings of RFC 9110 section 8.4.

Output appears with the input that completes it: a flushed server-sent event comes out with the last of its
bytes. A small input can stand for a very large output, so nothing is ever decoded whole.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from functools import reduce
from typing import ClassVar, Protocol

import brotli
import zstandard

PIECE = 64 * 1024
"""The most bytes a decoder yields at once."""

MAX_CODINGS = 4
"""Longer Content-Encoding lists are treated as unknown: every coding multiplies the work a few bytes can cause."""

ZSTD_WINDOW = 8 * 1024 * 1024
"""The largest zstd window that is accepted, in bytes: what RFC 9659 allows in the content coding `zstd`."""

# How many bytes a library is given at once: some copy what they have not used yet on every call.
_STEP = 4096

_CODEC_ERRORS = (zlib.error, brotli.error, zstandard.ZstdError)


class DecodingError(Exception):
    """The body is not what its Content-Encoding says, or too large; what was yielded before stands.

    `limit` is the limit in bytes when the body decodes to more than that (exactly `limit` bytes were yielded),
    and None when the body is corrupt.
    """

    def __init__(self, coding: str, detail: str, limit: int | None = None) -> None:
        super().__init__(f"{coding}: {detail}")
        self.limit = limit


class Decoder(Protocol):
    """Decodes one body. Use up each iterator before the next call, and stop after an error."""

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Yield all that `data` completes, in pieces of 1 to PIECE bytes. May raise DecodingError."""

    def flush(self) -> Iterator[bytes]:
        """Yield what is still held when the body ends. A body cut short is no error."""


def decoder_for(content_encoding: str, limit: int, codings: int = MAX_CODINGS) -> Decoder | None:
    """A decoder for a Content-Encoding value such as `gzip, br`; None for an unknown coding, or more than `codings`.

    `limit` is the most bytes that each coding of the list may decode to; a body without coding has no limit.
    """
    names = [name for item in content_encoding.lower().split(",") if (name := item.strip()) not in ("", "identity")]
    if len(names) > codings or not all(name in _CODECS for name in names):
        return None
    decoders: list[Decoder] = [_CODECS[name](limit) for name in reversed(names)]
    return reduce(_Chain, decoders) if decoders else _Identity()


def _cut(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]


class _Identity:
    def decode(self, data: bytes) -> Iterator[bytes]:
        return _cut(data)

    def flush(self) -> Iterator[bytes]:
        return iter(())


class _Chain:
    """Two codings on top of each other; pieces pass through one by one."""

    def __init__(self, outer: Decoder, inner: Decoder) -> None:
        self._outer = outer
        self._inner = inner

    def decode(self, data: bytes) -> Iterator[bytes]:
        for piece in self._outer.decode(data):
            yield from self._inner.decode(piece)

    def flush(self) -> Iterator[bytes]:
        for piece in self._outer.flush():
            yield from self._inner.decode(piece)
        yield from self._inner.flush()


class _Codec(ABC):
    """What the codings share: small steps, errors of one kind, the limit."""

    coding: ClassVar[str]

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._room = limit

    def decode(self, data: bytes) -> Iterator[bytes]:
        try:
            for start in range(0, len(data), _STEP):
                for output in self._feed(data[start : start + _STEP]):
                    yield from self._counted(output)
        except _CODEC_ERRORS as error:
            raise DecodingError(self.coding, str(error)) from error

    def flush(self) -> Iterator[bytes]:
        # Every codec below hands out all it can in `_feed`.
        return iter(())

    def _counted(self, output: bytes) -> Iterator[bytes]:
        yield from _cut(output[: self._room])
        self._room -= len(output)
        if self._room < 0:
            raise DecodingError(self.coding, f"more than {self._limit} bytes decoded", self._limit)

    @abstractmethod
    def _feed(self, data: bytes) -> Iterator[bytes]:
        """Decode at most `_STEP` bytes; empty outputs are allowed, and outputs somewhat larger than PIECE."""


def _inflate(stream: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    """Decode until `data` is used up or the stream ends; what follows the end is in `stream.unused_data`."""
    while True:
        output = stream.decompress(data, PIECE)
        yield output
        data = stream.unconsumed_tail
        # After a full piece the stream may hold output whose input is already used up.
        if stream.eof or (not data and len(output) < PIECE):
            return


class _Gzip(_Codec):
    """RFC 1952: one member or several."""

    coding = "gzip"

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._member = self._new_member()

    @staticmethod
    def _new_member() -> zlib._Decompress:
        return zlib.decompressobj(zlib.MAX_WBITS | 16)

    def _feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._member.eof:
                self._member = self._new_member()
            yield from _inflate(self._member, data)
            data = self._member.unused_data


class _Deflate(_Codec):
    """RFC 1950, and the bare RFC 1951 that some servers send under the same name."""

    coding = "deflate"

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._head = b""
        self._stream: zlib._Decompress | None = None

    def _feed(self, data: bytes) -> Iterator[bytes]:
        if self._stream is None:
            data = self._head = self._head + data
            if len(data) < 2:
                return
            self._stream = zlib.decompressobj(zlib.MAX_WBITS if self._is_wrapped(data) else -zlib.MAX_WBITS)
        yield from _inflate(self._stream, data)
        if self._stream.unused_data:
            raise DecodingError(self.coding, "data after the end")

    @staticmethod
    def _is_wrapped(data: bytes) -> bool:
        """RFC 1950 section 2.2. As bare deflate these bytes would be a stored block with odd padding."""
        return data[0] & 0x0F == 8 and data[0] >> 4 <= 7 and (data[0] << 8 | data[1]) % 31 == 0


class _Brotli(_Codec):
    """RFC 7932. Windows are at most 16 MiB: the library refuses the larger ones of its own extension."""

    coding = "br"
    # The library fills whole blocks of its own, the first just under 32 KiB, until it has this many bytes.
    _OUTPUT = 16 * 1024

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._stream = brotli.Decompressor()

    def _feed(self, data: bytes) -> Iterator[bytes]:
        output = self._stream.process(data, output_buffer_limit=self._OUTPUT)
        while output:
            yield output
            output = self._stream.process(b"", output_buffer_limit=self._OUTPUT)


def _zstd_parts() -> Generator[int, bytes, None]:
    """The sizes of the parts of a zstd stream (RFC 8878 section 3.1); is sent the first four bytes of each.

    Checks nothing: the decoder does, and never gets beyond a part it finds fault with.
    """
    run_length = 1
    while True:
        magic = yield 4
        if magic.endswith(b"\x2a\x4d\x18"):
            yield int.from_bytes((yield 4), "little")
            continue
        descriptor = (yield 1)[0]
        single_segment = descriptor >> 5 & 1
        content_size = (single_segment, 2, 4, 8)[descriptor >> 6]
        dictionary_id = (0, 1, 2, 4)[descriptor & 3]
        yield 1 - single_segment + dictionary_id + content_size
        last_block = 0
        while not last_block:
            header = int.from_bytes((yield 3), "little")
            last_block, kind, size = header & 1, header >> 1 & 3, header >> 3
            yield 1 if kind == run_length else size
        yield 4 if descriptor & 4 else 0


class _Zstd(_Codec):
    """RFC 8878: one frame or several, skippable frames among them.

    The library cannot be told when to stop, and four bytes can be a run of 128 KiB. It is therefore given the input
    part by part: one block, at most 128 KiB of output, at a time.
    """

    coding = "zstd"

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
        self._frames = decompressor.decompressobj(write_size=PIECE, read_across_frames=True)
        self._parts = _zstd_parts()
        self._missing = next(self._parts)
        self._part = b""

    def _feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            taken, data = data[: self._missing], data[self._missing :]
            yield self._frames.decompress(taken)
            self._missing -= len(taken)
            self._part = (self._part + taken)[:4]
            while not self._missing:
                self._missing = self._parts.send(self._part)
                self._part = b""


_CODECS: dict[str, type[_Codec]] = {
    "gzip": _Gzip,
    "x-gzip": _Gzip,
    "deflate": _Deflate,
    "br": _Brotli,
    "zstd": _Zstd,
}
