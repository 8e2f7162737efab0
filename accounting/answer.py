"""From a transcript's answer to the bytes that are delivered, in the pieces in which they come."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import brotli
import zstandard

from accounting.events import Event, compact
from accounting.transcript import Encoding, Transcript, TranscriptError

_WRAPPED = "chunk"
"""Bedrock's InvokeModelWithResponseStream puts every event of the model into one of this name, in base64."""
_STRING = 7
"""The type of an event stream's header."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`chunks` are as Envoy passes them on; `texts` is the generated text in events that were delivered whole."""

    chunks: tuple[bytes, ...]
    texts: tuple[str, ...]


def answer_of(transcript: Transcript) -> Answer:
    """What is delivered. Raises TranscriptError for an answer that is shorter than it is to be cut."""
    events = transcript.response.body.all_events
    frames, whole = _delivered(_frames(transcript, events), transcript)
    chunks = _encoded(frames, transcript.encoding, ended=transcript.ending == "complete")
    if transcript.chunks is not None:
        size, body = transcript.chunks, b"".join(chunks)
        chunks = [body[start : start + size] for start in range(0, len(body), size)]
    return Answer(tuple(chunk for chunk in chunks if chunk), _texts(events[:whole]))


def _frames(transcript: Transcript, events: Sequence[Event]) -> list[bytes]:
    """The answer as its server writes it: an event at a time, or all at once."""
    body = transcript.response.body
    if body.events is not None:
        frame = _FRAMINGS.get(transcript.response.content_type, _array)
        return list(frame(events))
    if body.text is not None:
        return [body.text.encode()]
    if body.base64 is not None:
        return [base64.b64decode(body.base64)]
    return [compact(body.value).encode()]


def _delivered(frames: list[bytes], transcript: Transcript) -> tuple[list[bytes], int]:
    """The frames that arrived, and how many of them whole."""
    cut = transcript.after
    if cut is None:
        return frames, len(frames)
    following = frames[cut.events] if cut.events < len(frames) else b""
    if cut.events > len(frames) or cut.bytes > len(following):
        raise TranscriptError(f"{transcript.name}: `after`: the answer is over before")
    part = [following[: cut.bytes]] if cut.bytes else []
    return [*frames[: cut.events], *part], cut.events


def _texts(events: Sequence[Event]) -> tuple[str, ...]:
    texts: dict[int, str] = {}
    for event in events:
        if event.part >= 0:
            texts[event.part] = texts.get(event.part, "") + event.text
    return tuple(texts.values())


# ── framings ──────────────────────────────────────────────────────────────────────────────────────────


def _sse(events: Sequence[Event]) -> Iterator[bytes]:
    for event in events:
        if event.comment:
            yield f": {event.data}\n\n".encode()
        else:
            name = f"event: {event.name}\n" if event.name else ""
            yield f"{name}data: {event.data}\n\n".encode()


def _ndjson(events: Sequence[Event]) -> Iterator[bytes]:
    for event in events:
        yield f"{event.data}\n".encode()


def _array(events: Sequence[Event]) -> Iterator[bytes]:
    for number, event in enumerate(events):
        yield f"{',' if number else '['}{event.data}\n".encode()
    yield b"]"


def _event_stream(events: Sequence[Event]) -> Iterator[bytes]:
    for event in events:
        payload = event.data.encode()
        if not event.name:
            payload = compact({"bytes": base64.b64encode(payload).decode(), "p": "abcdefghij"}).encode()
        yield _message(payload, event.name or _WRAPPED)


def _message(payload: bytes, name: str) -> bytes:
    said = {":event-type": name, ":content-type": "application/json", ":message-type": "event"}
    headers = b"".join(
        bytes([len(key)]) + key.encode() + bytes([_STRING]) + len(value).to_bytes(2, "big") + value.encode()
        for key, value in said.items()
    )
    prelude = (len(headers) + len(payload) + 16).to_bytes(4, "big") + len(headers).to_bytes(4, "big")
    message = prelude + zlib.crc32(prelude).to_bytes(4, "big") + headers + payload
    return message + zlib.crc32(message).to_bytes(4, "big")


_FRAMINGS: dict[str, Callable[[Sequence[Event]], Iterator[bytes]]] = {
    "text/event-stream": _sse,
    "application/x-ndjson": _ndjson,
    "application/vnd.amazon.eventstream": _event_stream,
}


# ── encodings ─────────────────────────────────────────────────────────────────────────────────────────


def _encoded(frames: list[bytes], encoding: Encoding | None, *, ended: bool) -> list[bytes]:
    """The frames, encoded and flushed one by one as a server does that streams."""
    if encoding is None:
        return frames
    encode, end = _ENCODERS[encoding]()
    encoded = [encode(frame) for frame in frames]
    return [*encoded, end()] if ended else encoded


_Encoder = tuple[Callable[[bytes], bytes], Callable[[], bytes]]
"""Encodes and flushes a frame; ends the body."""


def _zlib(window: int) -> _Encoder:
    compressor = zlib.compressobj(wbits=window)
    return lambda frame: compressor.compress(frame) + compressor.flush(zlib.Z_SYNC_FLUSH), compressor.flush


def _brotli() -> _Encoder:
    compressor = brotli.Compressor()
    return lambda frame: compressor.process(frame) + compressor.flush(), compressor.finish


def _zstd() -> _Encoder:
    compressor = zstandard.ZstdCompressor().compressobj()
    flush = zstandard.COMPRESSOBJ_FLUSH_BLOCK
    return lambda frame: compressor.compress(frame) + compressor.flush(flush), compressor.flush


_ENCODERS: dict[Encoding, Callable[[], _Encoder]] = {
    "gzip": lambda: _zlib(31),
    "deflate": lambda: _zlib(15),
    "br": _brotli,
    "zstd": _zstd,
}
