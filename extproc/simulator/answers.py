"""From a body to bytes on an HTTP/1.1 connection: compression, pieces, cuts, framing, head."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

import brotli
import zstandard

from extproc.simulator.contents import Content
from extproc.simulator.options import Encoding, Options

_BODILESS = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


class Encoder(Protocol):
    """An incremental compressor."""

    def add(self, data: bytes) -> bytes:
        """Everything that is needed to decode all data so far, `data` included."""

    def end(self) -> bytes: ...


class _Zlib:
    def __init__(self, window: int) -> None:
        self._compressor = zlib.compressobj(level=1, wbits=window)

    def add(self, data: bytes) -> bytes:
        return self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._compressor.flush()


class _Brotli:
    def __init__(self) -> None:
        self._compressor = brotli.Compressor(quality=1)

    def add(self, data: bytes) -> bytes:
        return bytes(self._compressor.process(data) + self._compressor.flush())

    def end(self) -> bytes:
        return bytes(self._compressor.finish())


class _Zstandard:
    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=1).compressobj()

    def add(self, data: bytes) -> bytes:
        return self._compressor.compress(data) + self._compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)

    def end(self) -> bytes:
        return self._compressor.flush()


ENCODERS: dict[Encoding, Callable[[], Encoder]] = {
    "gzip": lambda: _Zlib(16 + zlib.MAX_WBITS),
    "deflate": lambda: _Zlib(zlib.MAX_WBITS),
    "br": _Brotli,
    "zstd": _Zstandard,
}


@dataclass(frozen=True, slots=True)
class Wire:
    """What the framing of an answer depends on, beside its options."""

    keep_alive: bool = True
    http_10: bool = False
    head_only: bool = False
    """The answer to HEAD."""
    encoding: Encoding = "identity"


@dataclass(frozen=True, slots=True)
class Answer:
    """`head` goes out with the first of the pieces, each of which is a write of its own.

    `close`: the connection ends after the last piece. Times are in seconds. A `hold` is waited for once, after
    the first write.
    """

    head: bytes
    pieces: Callable[[], Iterator[bytes]] = lambda: iter(())
    close: bool = False
    delay: float = 0.0
    gap: float = 0.0
    hold: str = ""

    def writes(self) -> Iterator[bytes]:
        pieces = self.pieces()
        yield self.head + next(pieces, b"")
        yield from pieces

    def at_once(self) -> bytes | None:
        """All bytes, where nothing keeps them from going out in one write; None for streams of any kind."""
        if self.delay or self.gap or self.hold or self.close:
            return None
        first = tuple(itertools.islice(self.writes(), 2))
        return first[0] if len(first) == 1 else None


def answer(content: Content, options: Options, wire: Wire, status: int = HTTPStatus.OK) -> Answer:
    """`content` as `options` want it sent."""
    framing = _framing(content, options, wire)
    closing = framing == "close" or not wire.keep_alive
    bodiless = status in _BODILESS
    body = _body(content, options, wire)

    fields = [f"HTTP/1.1 {status} {_reason(status)}", f"content-type: {options.content_type or content.type}"]
    if options.name:
        fields.append(f"x-sim-name: {options.name}")
    if content.streamed:
        fields.append("cache-control: no-cache")
    if wire.encoding != "identity":
        fields += [f"content-encoding: {wire.encoding}", "vary: accept-encoding"]
    if framing == "length" and not bodiless:
        fields.append(f"content-length: {_size(body(None))}")
    if framing == "chunked" and not bodiless:
        fields.append("transfer-encoding: chunked")
        fields += [f"trailer: {name}" for name, _ in options.trailers]
    if closing:
        fields.append("connection: close")
    head = "\r\n".join((*fields, "", "")).encode()

    delay, gap = options.first_byte_ms / 1000, options.frame_ms / 1000
    if wire.head_only or bodiless:
        return Answer(head, close=closing, delay=delay)
    cut = options.cut_frames is not None or options.cut_bytes is not None

    def pieces() -> Iterator[bytes]:
        sent = body(options.cut_frames)
        if options.hold and not content.streamed and not options.chunk:
            sent = _split(sent, (_size(body(None)) + 1) // 2 or 1)
        if options.cut_bytes is not None:
            sent = _limited(sent, options.cut_bytes)
        return sent if framing != "chunked" else _chunked(sent, None if cut else options.trailers)

    return Answer(head, pieces, closing or cut, delay, gap, options.hold)


def _body(content: Content, options: Options, wire: Wire) -> Callable[[int | None], Iterator[bytes]]:
    """A function (frames at most) -> the encoded pieces of the body, anew with each call."""

    def body(limit: int | None) -> Iterator[bytes]:
        frames: Iterator[bytes] = itertools.islice(content.frames(), limit)
        if wire.encoding != "identity":
            frames = _encoded(frames, ENCODERS[wire.encoding](), finished=limit is None)
        return _split(frames, options.chunk) if options.chunk else frames

    return body


def _size(pieces: Iterable[bytes]) -> int:
    return sum(map(len, pieces))


def accepted(encoding: Encoding, accept_encoding: str) -> bool:
    """Does an Accept-Encoding field (RFC 9110, 12.5.3) allow `encoding`?"""
    weights = {}
    for item in accept_encoding.lower().split(","):
        coding, _, weight = item.replace(" ", "").partition(";q=")
        weights[coding] = weight
    weight = weights.get(encoding, weights.get("*", "0"))
    return weight.strip("0.") != "" or weight == ""


def _framing(content: Content, options: Options, wire: Wire) -> str:
    framing: str = options.framing
    if options.trailers:
        framing = "chunked"
    elif framing == "auto":
        framing = "chunked" if content.streamed else "length"
    return "close" if framing == "chunked" and wire.http_10 else framing


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unassigned"


def _encoded(frames: Iterable[bytes], encoder: Encoder, finished: bool) -> Iterator[bytes]:
    for frame in frames:
        yield encoder.add(frame)
    if finished:
        yield encoder.end()


def _split(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of `size`, only the last of each given piece may be shorter."""
    for piece in pieces:
        for start in range(0, len(piece), size):
            yield piece[start : start + size]


def _limited(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    for piece in pieces:
        if size <= 0:
            return
        yield piece[:size]
        size -= len(piece)


def _chunked(pieces: Iterable[bytes], trailers: tuple[tuple[str, str], ...] | None) -> Iterator[bytes]:
    """RFC 9112, 7.1. Without the end where `trailers` is None."""
    for piece in pieces:
        if piece:
            yield b"%x\r\n%b\r\n" % (len(piece), piece)
    if trailers is not None:
        fields = "".join(f"{name}: {value}\r\n" for name, value in trailers)
        yield f"0\r\n{fields}\r\n".encode()
