"""Bodies as frames, whatever they say: a JSON document is one frame, or many when it is large, a stream is many.

What is generated stands in a document as `TEXT`, and is put in when the rest is encoded, so that neither a large text
nor a million frames are ever held at once. All text between these functions is escaped: as it stands between the
quotes of a JSON string.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from extproc.simulator.options import MAX_FRAME_SIZE, OptionError, Options

Frames = Callable[[], Iterator[bytes]]

JSON = "application/json"
SSE = "text/event-stream"
BLOCK = 64 * 1024
_PADDING_CHARACTER = b"x"
_PADDING = _PADDING_CHARACTER * BLOCK
_PROBE = _PADDING[:300]
HOLE = b"\x00"
"""Stands for what is filled in. Encoded JSON never has this byte, whatever clients send."""
TEXT = orjson.Fragment(b'"' + HOLE + b'"')
"""A string in a document, to be filled."""
ITEMS = orjson.Fragment(b"[" + HOLE + b"]")
"""A list in a document, to be filled."""
_STAMP_SIZE = 20


@dataclass(frozen=True, slots=True)
class Content:
    """A body before compression and framing; `frames()` begins it anew."""

    type: str
    frames: Frames
    streamed: bool = False


@dataclass(frozen=True, slots=True)
class Script:
    """A stream of one dialect, as frames; each is one write.

    `piece`: (text, completion tokens so far, beginning at 1) -> the frames of one piece of text, as many for each.
    `closing`: the whole text -> the last frames; it is asked with "" unless the dialect `repeats` the text there.
    `counting`: a piece depends on the tokens so far, beyond being the first or not.
    """

    piece: Callable[[bytes, int], Sequence[bytes]]
    closing: Callable[[bytes], Sequence[bytes]]
    opening: Sequence[bytes] = ()
    counting: bool = False
    repeats: bool = False


def fixed(answer: Any) -> Content:
    """A JSON document as it is."""
    body = orjson.dumps(answer)
    return Content(JSON, lambda: iter((body,)))


def encoded(event: Any, options: Options) -> bytes:
    """One JSON text of a stream."""
    return orjson.dumps(event) + (b"{" if options.invalid else b"")


def quoted(text: bytes) -> orjson.Fragment:
    """Escaped text as a value in a document."""
    return orjson.Fragment(b'"%b"' % text)


def document(answer: Any, options: Options) -> Content:
    """A JSON document that has one `TEXT`; raises OptionError where `text` is too large."""
    before, after = _parts(answer, options)
    text = _escaped(options.text)
    if len(text) * options.frames > MAX_FRAME_SIZE:
        raise OptionError(f"text: more than {MAX_FRAME_SIZE} bytes, use size instead")
    before += text * options.frames
    padding = max(0, options.size - len(before) - len(after))
    return Content(JSON, lambda: _padded(before, padding, after))


def listing(answer: Any, options: Options, items: Frames) -> Content:
    """A JSON document that has `ITEMS` and, behind them, a `TEXT` that takes the padding; items are made as they go."""
    before, middle, after = _parts(answer, options)
    padding = 0
    if options.size:
        known = len(before) + len(middle) + len(after) + _length(_separated(items()))
        padding = max(0, options.size - known)

    def frames() -> Iterator[bytes]:
        held, size = [before], len(before)
        for part in _separated(items()):
            held.append(part)
            size += len(part)
            if size >= BLOCK:
                yield b"".join(held)
                held, size = [], 0
        yield from _padded(b"".join((*held, middle)), padding, after)

    return Content(JSON, frames)


def streamed(content_type: str, script: Script, options: Options) -> Content:
    """Raises OptionError where `size` or `text` would make a frame that is too large."""
    count, text = options.frames, _escaped(options.text)
    padding = _stream_padding(script, options, text)
    each, rest = divmod(padding, count) if count else (0, 0)
    if each + _length(script.piece(text, 1)) > MAX_FRAME_SIZE:
        raise OptionError(f"size: more than {MAX_FRAME_SIZE} bytes a frame, ask for more frames")
    other = text + _PADDING_CHARACTER * each
    first = other + _PADDING_CHARACTER * rest

    def frames() -> Iterator[bytes]:
        yield from script.opening
        whole = first + other * (count - 1) if script.repeats and count else b""
        if options.stamp:
            said = []
            for completed in range(1, count + 1):
                stamp = b"%d" % time.monotonic_ns()
                yield from script.piece(stamp, completed)
                if script.repeats:
                    said.append(stamp)
            whole = b"".join(said)
        elif script.counting:
            for completed in range(1, count + 1):
                yield from script.piece(first if completed == 1 else other, completed)
        elif count:
            yield from script.piece(first, 1)
            again = script.piece(other, 2)
            yield from itertools.islice(itertools.cycle(again), len(again) * (count - 1))
        yield from script.closing(whole)

    return Content(content_type, frames, streamed=True)


def _stream_padding(script: Script, options: Options, text: bytes) -> int:
    """Bytes of padding, in all frames together, that make the body `size` long."""
    count = options.frames
    if script.repeats and max(len(text), options.stamp * _STAMP_SIZE) * count + options.size > MAX_FRAME_SIZE:
        raise OptionError(f"text, size: more than {MAX_FRAME_SIZE} bytes, and this dialect repeats them in a frame")
    if not options.size or not count:
        return 0
    piece, closing = _length(script.piece(text, 1)), script.closing(text * count if script.repeats else b"")
    missing = options.size - _length(script.opening) - piece * count - _length(closing)
    grown = _length(script.piece(text + _PROBE, 1)) - piece
    if script.repeats:
        grown += _length(script.closing(_PROBE)) - _length(script.closing(b""))
    return max(0, missing) * len(_PROBE) // grown


def _parts(answer: Any, options: Options) -> list[bytes]:
    parts = orjson.dumps(answer).split(HOLE)
    if options.invalid:
        parts[-1] = parts[-1][:-1]
    return parts


def _padded(before: bytes, padding: int, after: bytes) -> Iterator[bytes]:
    if padding <= BLOCK:
        yield before + _PADDING[:padding] + after
        return
    yield before
    blocks, rest = divmod(padding, BLOCK)
    for _ in range(blocks):
        yield _PADDING
    yield _PADDING[:rest] + after


def _separated(items: Iterator[bytes]) -> Iterator[bytes]:
    yield next(items, b"")
    for item in items:
        yield b"," + item


def _length(pieces: Iterable[bytes]) -> int:
    return sum(map(len, pieces))


def _escaped(text: str) -> bytes:
    return orjson.dumps(text)[1:-1]
