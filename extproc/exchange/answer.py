"""The model's answer as it goes by: replied to first, read after."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from time import monotonic
from typing import Final

from extproc import replies
from extproc.bodies.reader import BodyReader
from extproc.eager import begin
from extproc.exchange.guarded_answer import GuardedStream, HeldAnswer
from extproc.exchange.record import Record
from extproc.guards.answers import answer_kind
from extproc.replies import Reply
from extproc.usage.include_usage import UsageFrameFilter
from extproc.wire.external_processor_pb2 import HttpBody, ProcessingRequest
from extproc.wire.processing_mode_pb2 import ProcessingMode

_LOG = logging.getLogger("extproc.exchange")
_TEXT_TYPES = ("text/plain", "text/event-stream", "application/x-ndjson", "application/ndjson", "application/jsonl")
"""Of these, what no dialect is recognised in counts as generated text altogether."""


_READ: Final = replies.response_headers(replies.READ_RESPONSE)
IGNORE: Final = replies.response_headers(replies.SKIP_BODIES)


class AnswerReading:
    """Reads one answer, from its headers on."""

    __slots__ = (
        "_announced",
        "_broken",
        "_document",
        "_expected",
        "_frames",
        "_record",
        "_stream",
        "_undigested",
        "first_byte",
        "is_text",
        "reader",
        "received",
        "refused",
    )

    def __init__(self, record: Record, reader: BodyReader, content_type: str, expected: int) -> None:
        self._record = record
        self._expected = expected
        self._announced = expected
        self._frames: UsageFrameFilter | None = None
        self._stream: GuardedStream | None = None
        self._document: HeldAnswer | None = None
        self._undigested = b""
        self._broken = False
        self.refused = False
        """Whether its headers were enough to keep it from the client."""
        self.reader = reader
        self.received = 0
        self.first_byte = 0.0
        self.is_text = not content_type or content_type.lower().startswith(_TEXT_TYPES)

    @classmethod
    def begin(cls, record: Record, headers: dict[str, bytes]) -> tuple[AnswerReading, Reply]:
        """Read what follows these headers; with the reply that asks for it."""
        assert record.action_set is not None
        content_type = headers.get("content-type", b"").decode("latin-1")
        content_encoding = headers.get("content-encoding", b"").decode("latin-1")
        reader = record.action_set.reader_for(record.provider).open(content_type, content_encoding)
        reading = cls(record, reader, content_type, length_of(headers.get("content-length", b"")))
        is_sse = "text/event-stream" in content_type.lower()
        if record.guards_answers and (refusal := reading._guard(content_type, content_encoding)) is not None:
            reading.refused = True
            return reading, refusal
        if reading._stream is not None and reading._stream.decodes:
            content_encoding = ""
        if record.strips_usage and not content_encoding and is_sse:
            reading._frames = UsageFrameFilter()
        return reading, reading._asking()

    def _guard(self, content_type: str, content_encoding: str) -> Reply | None:
        """Have guards look at what comes; the reply in place of an answer in which they cannot."""
        record, kind = self._record, answer_kind(content_type, content_encoding)
        if kind in ("sse", "ndjson"):
            self._stream = GuardedStream(record, "sse" if kind == "sse" else "ndjson", content_encoding)
            return None
        document = HeldAnswer(record, kind, content_encoding)
        if kind == "other":
            return document.refusal_of_head()
        self._document = document
        return None

    def _asking(self) -> Reply:
        """The reply to the headers: how the body is to be sent, and what of them will not be true any more."""
        record, withholds = self._record, self._record.withholds_answers
        changed = self._frames is not None or (self._stream is not None and withholds)
        held = self._document is not None and withholds
        if not changed and not held:
            return with_shown(record, _READ, replies.READ_RESPONSE)
        removed = ["content-length"] if changed or record.streamed_response else []
        if self._stream is not None and self._stream.decodes:
            removed.append("content-encoding")
        if removed:
            self._expected = -1
        mode = replies.HOLD_RESPONSE if held else replies.READ_RESPONSE
        return replies.response_headers(mode, add=record.shown, remove=removed)

    def take(self, message: ProcessingRequest, reply: Reply) -> tuple[Reply | Awaitable[Reply], bool]:
        """The reply to a piece, `reply` unless it is changed; and whether it was the last one."""
        chunk = message.response_body
        self.digest()
        body = chunk.body
        self._undigested = body
        if not self.received:
            self.first_byte = monotonic()
        self.received += len(body)
        last = ends(chunk)
        if self._document is not None:
            over = last or self.received == self._announced
            return begin(self._document.take(message, reply, last=over)), over
        shown = body if self._stream is None else self._stream.feed(body, last=last)
        if self._frames is not None:
            shown = self._without_usage_frame(self._frames, shown, last=last)
        if shown is not body:
            duplex = self._record.duplex_response
            reply = replies.streamed_body("response_body", message, shown) if duplex else replies.response_body(shown)
        # A client that was told the length is done with the last byte, and Envoy may tell us of the end later.
        return reply, last or self.received == self._expected

    def cut_short(self) -> None:
        """Trailers ended it, and no more can be sent: what guards still hold is lost, but not what they make of it."""
        if self._stream is not None and self._record.withholds_answers and self._stream.feed(b"", last=True):
            self._record.log(logging.WARNING, "the end of an answer was lost: trailers came before guards let it pass")
        if self._document is not None and self._document.holds:
            self._record.log(logging.WARNING, "an answer was lost: trailers came before guards knew that it was all")

    def digest(self) -> None:
        """Read what was replied to before it was read."""
        if self._undigested:
            chunk, self._undigested = self._undigested, b""
            try:
                if not self._broken:
                    self.reader.feed(chunk)
            except Exception:  # noqa: BLE001 - a defect of ours costs the count, not the answer
                self._broken = True
                self._record.defect("response_body")

    def close(self) -> None:
        """The answer is over."""
        self.digest()
        self.reader.close()

    @property
    def is_read(self) -> bool:
        """Whether there was something, and all of it was read."""
        return bool(self.received) and not self._broken

    def _without_usage_frame(self, frames: UsageFrameFilter, body: bytes, *, last: bool) -> bytes:
        """What the client is to see of a piece."""
        try:
            left = frames.feed(body, last)
        except Exception:  # noqa: BLE001 - the answer goes on, with a frame more than the client asked for
            self._record.defect("response_body")
            self._frames = None
            return body
        return body if left is None else left


def with_shown(record: Record, plain: Reply, mode: ProcessingMode) -> Reply:
    """The reply `plain`, with what the client is to see beside."""
    return replies.response_headers(mode, add=record.shown) if record.shown else plain


def headers_of(message: ProcessingRequest) -> dict[str, bytes]:
    """The response headers; of one that occurs several times, the last."""
    sent = message.response_headers.headers.headers
    headers = {header.key: header.raw_value for header in sent}
    return headers if headers.get(":status") else {header.key: header.value.encode() for header in sent}


def length_of(value: bytes) -> int:
    """A content-length, -1 where there is none that can be read."""
    return int(value) if value.isdigit() and len(value) < 16 else -1


def ends(chunk: HttpBody) -> bool:
    """Whether it is the last piece."""
    return chunk.end_of_stream or chunk.end_of_stream_without_message
