"""Makes inputs out of choices: a valid answer, framed, then damaged where structure matters and where it does not.

The choices come from hypothesis, which makes a failing input small, or from atheris, which prefers those that reach
new code. Few choices are "no damage", so that valid answers, cut anywhere, are among the inputs.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import brotli
import zstandard

from fuzz.case import Case
from fuzz.framing import EVENT_STREAM, JSON, NDJSON, SSE, event_stream, message, ndjson, sse
from fuzz.seeds import DOCUMENTS, REQUESTS, STREAMS

T = TypeVar("T")


class Choices(Protocol):
    """Where decisions come from."""

    def below(self, bound: int) -> int:
        """A number from 0 to `bound` - 1; 0 is the simplest."""

    def octets(self, most: int) -> bytes:
        """At most so many bytes."""


LIMITS = (1024, 64 * 1024, 64, 1)
TYPES = (
    JSON,
    SSE,
    NDJSON,
    EVENT_STREAM,
    "",
    "text/event-stream; charset=UTF-8",
    "text/html",
    "application/jsonl",
    "a/b",
)
ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda body: gzip.compress(body, 1, mtime=0),
    "br": lambda body: brotli.compress(body, quality=1),
    "zstd": lambda body: zstandard.ZstdCompressor(level=1).compress(body),
    "deflate": lambda body: zlib.compress(body, 1),
    "gzip, br": lambda body: brotli.compress(gzip.compress(body, 1, mtime=0), quality=1),
    "identity": lambda body: body,
    "compress": lambda body: body,
}
_HOSTILE = (
    *(b"null", b"-1", b'"12"', b"1e400", b"-0", b"1.5", b"true", b"[]", b"{}", b"7", b"9007199254740993", b"0", b""),
    *(b'"\\ud800"', b'"\xff"', b'"a\x00b"', b'"\\"', b"NaN", b"[" * 300 + b"]" * 300, b'{"a":' * 2000, b"9" * 400),
    *(b"9" * 70_000, b'"' + b"x" * 70_000 + b'"', b"[" * 100_000, b'"' + b"\\" * 2001 + b'"', b'["a","\\n",{"b":1}]'),
)
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?|null|true|false', re.DOTALL)
_WORD = re.compile(rb'(?<="(?:text)":")\w++|(?<="content":")\w++|(?<="delta":")\w++')
_DENIED = (b"", b"denied", b"den", b"ied", b" ass", b"ass", b"es ", b"o", b"\\n", b"\\ud83d", b"\\ude00")
_INSERTED = (
    *(b"\n", b"\r\n", b"\r", b"\n\n", b"\x00", b"\xef\xbb\xbf", b"\xc3", b'"', b"\\", b"{", b"}", b"[", b"]", b","),
    *(b": ping\n\n", b"data: [DONE]\n\n", b"data:", b"event: x\n", b"id: 1\nretry: 5\n", b" ", b"<html>", b"\xf0\x9f"),
    *(message(b"{}"), message(b'{"message":"slow"}', {":message-type": "exception"}), message(b"", {}), b"y" * 150_000),
)


def build(target: str, choices: Choices) -> Case:
    """An input for `target`, which is a name in TARGETS."""
    return TARGETS[target](choices)


def _json(choices: Choices) -> Case:
    document = _one(choices, tuple(DOCUMENTS.values()))
    return _finished(choices, JSON, _damaged(choices, _rewritten(choices, document)))


def _sse(choices: Choices) -> Case:
    newline = _one(choices, (b"\n", b"\r\n", b"\r"))
    return _finished(choices, SSE, _damaged(choices, sse(_events(choices), newline)))


def _ndjson(choices: Choices) -> Case:
    newline = _one(choices, (b"\n", b"\r\n"))
    return _finished(choices, NDJSON, _damaged(choices, ndjson(_events(choices), newline)))


def _eventstream(choices: Choices) -> Case:
    stream = event_stream(_events(choices), wrap=bool(choices.below(2)))
    return _finished(choices, EVENT_STREAM, _damaged(choices, stream))


def _mismatch(choices: Choices) -> Case:
    """A format under the name of another, or nothing that has a format."""
    body = _any_format(choices) if choices.below(4) else choices.octets(200)
    return _finished(choices, _one(choices, TYPES), _damaged(choices, body))


def _encoded(choices: Choices) -> Case:
    """Content codings, and damage below them."""
    encoding = _one(choices, tuple(ENCODINGS))
    body = ENCODINGS[encoding](_damaged(choices, _any_format(choices)))
    return _finished(choices, _one(choices, TYPES), _damaged(choices, body), encoding)


def _request(choices: Choices) -> Case:
    body = _damaged(choices, _rewritten(choices, _one(choices, tuple(REQUESTS.values()))))
    return replace(_finished(choices, JSON, body), is_request=True)


def _guarded(choices: Choices) -> Case:
    content_type, write = _one(choices, ((SSE, sse), (NDJSON, ndjson)))
    newline = _one(choices, (b"\n", b"\r\n", b"\r") if content_type == SSE else (b"\n", b"\r\n"))
    body = write([_said(choices, event) for event in _events(choices)], newline)
    return replace(_finished(choices, content_type, _damaged(choices, body)), is_guarded=True)


def _said(choices: Choices, event: bytes) -> bytes:
    """An event whose texts begin with what a guard denies, or with a part of that."""
    word = _one(choices, _DENIED)
    return _WORD.sub(lambda _: word, event) if word else event


TARGETS: dict[str, Callable[[Choices], Case]] = {
    "json": _json,
    "sse": _sse,
    "ndjson": _ndjson,
    "eventstream": _eventstream,
    "mismatch": _mismatch,
    "encoded": _encoded,
    "request": _request,
    "guarded": _guarded,
}


def _any_format(choices: Choices) -> bytes:
    formats: tuple[Callable[[Sequence[bytes]], bytes], ...] = (sse, ndjson, event_stream, b",".join, b"".join)
    return _one(choices, formats)(_events(choices))


def _events(choices: Choices) -> list[bytes]:
    """The events of a stream, some of them changed, lost, doubled, moved, or from another stream."""
    streams = tuple(STREAMS.values())
    events = list(_one(choices, streams))
    for _ in range(choices.below(4)):
        at = choices.below(len(events) + 1)
        action = choices.below(5)
        if action == 0:
            events.insert(at, _one(choices, _one(choices, streams)))
        elif at == len(events):
            events.append(_one(choices, tuple(DOCUMENTS.values())))
        elif action == 1:
            del events[at]
        elif action == 2:
            events.insert(choices.below(len(events)), events[at])
        elif action == 3:
            events.append(events.pop(at))
        else:
            events[at] = _rewritten(choices, events[at])
    return events


def _rewritten(choices: Choices, text: bytes) -> bytes:
    """JSON in which some values, or keys, were replaced by what a careless server might send."""
    for _ in range(choices.below(3)):
        tokens = list(_TOKEN.finditer(text))
        if tokens:
            token = _one(choices, tokens)
            text = text[: token.start()] + _one(choices, _HOSTILE) + text[token.end() :]
    return text


def _damaged(choices: Choices, body: bytes) -> bytes:
    """Bytes that were cut, doubled, flipped, moved or inserted."""
    for _ in range(choices.below(4)):
        start = choices.below(len(body) + 1)
        end = min(len(body), start + choices.below(64))
        action = choices.below(7)
        if action == 0:
            body = body[:start]
        elif action == 1:
            body = body[:start] + _one(choices, _INSERTED) + body[start:]
        elif action == 2:
            body = body[:start] + bytes(byte ^ 1 << choices.below(8) for byte in body[start : start + 1]) + body[end:]
        elif action == 3:
            body = body[:end] + body[start:]
        elif action == 4:
            body = body[end:] + body[:start]
        elif action == 5:
            body = body[:start] + body[start:end] * choices.below(600) + body[end:]
        else:
            body = body[:start] + choices.octets(16) + body[end:]
    return body


def _finished(choices: Choices, content_type: str, body: bytes, encoding: str = "") -> Case:
    if choices.below(16) == 15 and len(body) <= 2048:
        cuts = list(range(1, len(body)))
    else:
        cuts = sorted(choices.below(len(body) + 1) for _ in range(choices.below(6)))
    return Case(content_type, encoding, body, tuple(cuts), _one(choices, LIMITS))


def _one(choices: Choices, of: Sequence[T]) -> T:
    return of[choices.below(len(of))]
