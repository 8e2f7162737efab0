"""Answers that come as one document: which they are, and whether they may be shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple

from extproc.bodies.decoders import decoder_for
from extproc.guards.answer_texts import Piece, texts_of
from extproc.guards.final_events import Framing
from extproc.guards.growing_texts import DenyPatterns, Escapes, is_json, sound

Kind = Literal["json", "sse", "ndjson", "text", "other"]
"""`json` and `text` are held and judged as a whole, `sse` and `ndjson` guarded as they come; `other` is unparsable:
sound, images, Amazon's event stream, a coding that nobody here knows."""
Outcome = Literal["allowed", "denied", "unparsable"]

MAX_TEXTS: Final = 10_000
"""Texts of one document that are looked at; one with more is unparsable."""

_SSE = "text/event-stream"
_NDJSON = frozenset(
    "application/jsonl application/jsonlines application/ndjson application/stream+json application/x-jsonlines "
    "application/x-ndjson".split()
)
_JSON = frozenset({"application/json", "text/json"})
_XML = frozenset({"application/xml", "application/xhtml+xml"})
_SSE_BEGINNING = re.compile(rb"\s*+(?:data|event|id|retry)?+:")
_BOM = b"\xef\xbb\xbf"
_DATA = b"data:"


class Judged(NamedTuple):
    """Whether an answer may be shown; `rule` is the one that it breaks."""

    outcome: Outcome
    rule: str = ""


_ALLOWED: Final = Judged("allowed")
_UNPARSABLE: Final = Judged("unparsable")


def answer_kind(content_type: str, content_encoding: str) -> Kind:
    """How an answer with these headers is guarded; "" where there is none.

    What says nothing of itself is taken for text, and looked at for JSON and events.
    """
    if decoder_for(content_encoding, 0) is None:
        return "other"
    media = content_type.partition(";")[0].strip().lower()
    if media == _SSE:
        return "sse"
    if media in _NDJSON:
        return "ndjson"
    if media in _JSON or media.endswith("+json"):
        return "json"
    return "text" if not media or media.startswith("text/") or media in _XML else "other"


def judge_json(body: bytes, patterns: DenyPatterns) -> Judged:
    """Look at all texts of a JSON document: each alone, and those that stand at one place as the text they make.

    A text that is JSON itself, such as the arguments of a tool call, is also looked at with its escapes resolved. An
    empty body has no text. Nothing else that is not JSON can be judged.
    """
    if not body.removeprefix(_BOM).strip():
        return _ALLOWED
    pieces = texts_of(body)
    if pieces is None or len(pieces) > MAX_TEXTS:
        return _UNPARSABLE
    return _judge_texts(_readings(pieces), patterns)


def judge_text(body: bytes, patterns: DenyPatterns) -> Judged:
    """Look at a body that is no JSON by its headers: at what it says, and at JSON or events that it is all the same.

    Text is in UTF-8; in any other encoding it would read differently for the client.
    """
    try:
        text = body.removeprefix(_BOM).decode()
    except UnicodeDecodeError:
        return _UNPARSABLE
    if "\0" in text:
        return _UNPARSABLE
    judged = _judge_texts(_views(text), patterns)
    if judged is _ALLOWED and _SSE_BEGINNING.match(body.removeprefix(_BOM)):
        return _judge_events(body, patterns, "sse")
    if judged is _ALLOWED and is_json(text):
        judged = judge_json(body, patterns)
        return _judge_events(body, patterns, "ndjson") if judged is _UNPARSABLE else judged
    return judged


def _judge_events(body: bytes, patterns: DenyPatterns, framing: Framing) -> Judged:
    """Look at the texts of all events at once: each, and those that stand at one place as the text they make."""
    pieces: list[Piece] = []
    for data in _data_of(body, framing):
        pieces += texts_of(data) or ()
        if len(pieces) > MAX_TEXTS:
            return _UNPARSABLE
    return _judge_texts(_readings(pieces), patterns)


def _data_of(body: bytes, framing: Framing) -> Iterator[bytes]:
    """The data of each event, or each line."""
    if framing == "ndjson":
        yield from body.splitlines()
        return
    data: list[bytes] = []
    for line in (*body.removeprefix(_BOM).splitlines(), b""):
        if line.startswith(_DATA):
            data.append(line[len(_DATA) :])
        elif not line and data:
            yield b"\n".join(data)
            data = []


def _judge_texts(texts: Iterable[str], patterns: DenyPatterns) -> Judged:
    for text in texts:
        rule = patterns.denied_by(text)
        if rule is not None:
            return Judged("denied", rule)
    return _ALLOWED


def _readings(pieces: list[Piece]) -> Iterator[str]:
    """What there is to read in a document, once each."""
    places: dict[str, list[str]] = {}
    for place, text in pieces:
        places.setdefault(place, []).append(text)
    whole = ["".join(texts) for texts in places.values() if len(texts) > 1]
    for text in dict.fromkeys([text for _, text in pieces] + whole):
        yield from _views(text)


def _views(text: str) -> Iterator[str]:
    """A text as it is, and as it reads."""
    yield sound(text)
    if "\\" in text and is_json(text):
        yield sound(Escapes().resolve(text))
