"""What must hold for every input: `check` raises Broken when something does not."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from types import FrameType
from typing import Any, NamedTuple

from extproc.bodies.decoders import DecodingError, decoder_for
from extproc.bodies.findings import MAX_COUNT, MAX_MODEL, Findings
from extproc.bodies.json_scanner import MAX_TOKEN
from extproc.bodies.reader import BodyLimits, BodyReader, ReaderFactory, Unread
from extproc.bodies.wanted import HEAD, Wanted
from extproc.usage.dialects import DIALECTS, reported
from fuzz.case import Case
from fuzz.framing import SSE

KEEP_TEXT = 512
DECODED = 1024 * 1024
SECONDS = 10.0
"""A check that takes longer has hung."""
_OVERHEAD = 4096
"""Bytes a reader may hold besides what is limited: numbers and names of its state."""

POINTERS = frozenset(
    {("usage", "total_tokens"), ("usage", "prompt_tokens"), ("model",), ("choices", "0", "finish_reason"), ("0", "x")}
)
WANTED = Wanted(POINTERS, [dialect.shape for dialect in DIALECTS.values()], keep_text=KEEP_TEXT)


_BLANK_LINE = re.compile(rb"(?:\r\n|\r|\n){2}")
_SSE_BEGINNING = re.compile(rb"[ \t\r\n\xef\xbb\xbf]*(?:data|event|id|retry)?:")


class Broken(AssertionError):
    """An invariant does not hold for `case`."""

    def __init__(self, case: Case, what: str) -> None:
        super().__init__(what)
        self.case = case


class Outcome(NamedTuple):
    """All that reading a body tells."""

    values: dict[tuple[str, ...], Any]
    counts: dict[str, int]
    model: str
    text_size: int
    text: str
    shape: str
    size: int
    unread: Unread | None
    complete: bool
    mid_event: bool


def check(case: Case) -> Outcome:
    """Read `case` in its pieces, again, and in one piece. Raises Broken; returns what was read.

    The last comparison leaves out what depends on the pieces by design, see `_may_differ`.
    """
    with watched(case):
        found = _read(case, case.pieces())
        if _read(case, case.pieces()) != found:
            raise Broken(case, "a second run gives another result")
        whole = _read(case, [case.body])
    if whole != found and not _may_differ(case, found, whole):
        raise Broken(case, f"in pieces, not as a whole: {_difference(found, whole)}")
    return found


def _may_differ(case: Case, found: Outcome, whole: Outcome) -> bool:
    """Whether the pieces may decide.

    Bytes damaged below a content coding yield more or less before the damage is noticed. A server-sent event over the
    limit is read line by line while it is not complete. Of text, and of nothing else, more may be noted in lines of
    such a stream that are no data, or in data that is spread over lines.
    """
    if case.content_encoding and found.unread and whole.unread:
        return True
    body = _decoded(case)
    is_sse = case.content_type.startswith(SSE) or _SSE_BEGINNING.match(body) is not None
    if not is_sse:
        return False
    if max(map(len, _BLANK_LINE.split(body))) > case.limit:
        return True
    lines = [*body.splitlines(), b""]
    odd = any(
        b'"' in line and not (line.startswith(b"data:") and not following.startswith(b"data:"))
        for line, following in pairwise(lines)
    )
    return odd and found == whole._replace(text_size=found.text_size, text=found.text)


def _decoded(case: Case) -> bytes:
    decoder = decoder_for(case.content_encoding, DECODED)
    pieces: list[bytes] = []
    with suppress(DecodingError):
        pieces.extend(decoder.decode(case.body) if decoder is not None else ())
    return b"".join(pieces)


def _read(case: Case, pieces: Iterable[bytes]) -> Outcome:
    limits = BodyLimits(json_buffer=case.limit, sse_event=case.limit, decoded=DECODED)
    try:
        reader = ReaderFactory(WANTED, limits).open(case.content_type, case.content_encoding)
        for piece in pieces:
            reader.feed(piece)
            _check_held(case, reader)
        reader.close()
        reported(reader.findings)
        return _outcome(reader)
    except (Broken, Hung):
        raise
    except Exception as error:
        raise Broken(case, f"raised {type(error).__name__}: {error}") from error


def _outcome(reader: BodyReader) -> Outcome:
    findings = reader.findings
    return Outcome(
        values=findings.values,
        counts=findings.counts,
        model=findings.model,
        text_size=findings.text.size,
        text=findings.text.decoded(),
        shape=findings.shape,
        size=findings.body_size,
        unread=reader.unread,
        complete=reader.complete,
        mid_event=reader.mid_event,
    )


def _check_held(case: Case, reader: BodyReader) -> None:
    findings = reader.findings
    cap = max(case.limit, MAX_TOKEN) + HEAD + _OVERHEAD
    if (size := held(reader)) > cap:
        raise Broken(case, f"a reader holds {size} bytes, at most {cap} are allowed")
    if findings.text.kept > KEEP_TEXT or len(findings.model) > MAX_MODEL:
        raise Broken(case, "more text is kept than was asked for")
    largest = max(MAX_TOKEN, case.limit)
    if any(isinstance(value, str) and len(value) > largest for value in findings.values.values()):
        raise Broken(case, f"a value of more than {largest} characters is kept")
    if any(type(count) is not int or not 0 <= count <= MAX_COUNT for count in findings.counts.values()):
        raise Broken(case, f"counts that are none: {findings.counts}")


def held(reader: object) -> int:
    """Bytes in buffers of `reader` and of the readers inside of it; what is shared or was found is left out.

    Decoders are left out too: their memory is that of the libraries they use.
    """
    total = 0
    todo: list[object] = [reader]
    while todo:
        each = todo.pop()
        if isinstance(each, (bytes, bytearray)):
            total += len(each)
        elif isinstance(each, (list, tuple)):
            todo.extend(each)
        elif type(each).__module__ in _READERS and not isinstance(each, (Findings, Wanted)):
            slots = (name for kind in type(each).__mro__ for name in getattr(kind, "__slots__", ()))
            todo.extend(getattr(each, name, None) for name in slots)
    return total


_READERS = {
    f"extproc.bodies.{name}"
    for name in ("reader", "events", "json_reader", "json_scanner", "sse_reader", "ndjson_reader", "eventstream_reader")
}


def _difference(found: Outcome, whole: Outcome) -> str:
    parts = zip(Outcome._fields, found, whole, strict=True)
    return ", ".join(f"{name} {one!r:.200}, not {other!r:.200}" for name, one, other in parts if one != other)


class Hung(Exception):
    """A check that takes too long is ended by this."""


@contextmanager
def watched(case: Case) -> Iterator[None]:
    """Ends a check that hangs; only where signals can be set, which is the main thread."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Hung

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    except Hung:
        raise Broken(case, f"took more than {SECONDS:g} seconds") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
