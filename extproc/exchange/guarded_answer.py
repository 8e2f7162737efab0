"""An answer that guards look at before the client sees it.

What comes as one document is held, by Envoy where it can, and replaced as a whole; streams pass event by event, and
end with an error of their own kind where a text in them may not be shown. What is not shown was generated all the
same, so it is read and counted like any other answer.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from extproc import replies
from extproc.bodies.decoders import decoder_for
from extproc.exchange import denials
from extproc.exchange.denials import Reply
from extproc.exchange.record import Record
from extproc.guards.answers import Judged, Kind, answer_kind, judge_json, judge_text
from extproc.guards.decoded_answers import DecodedStream, decoded_body
from extproc.guards.final_events import Framing, replacement
from extproc.guards.guard import AnswerRules
from extproc.guards.stream_guard import StreamGuard
from extproc.plan.guarding import PlannedGuard
from extproc.refusals import Refusals
from extproc.wire.processing_mode_pb2 import ProcessingMode

_AT_ONCE: Final = 32 * 1024
"""Bytes of a document that are looked at on the event loop."""
_UNPARSABLE: Final = Judged("unparsable")


_DECODED: Final = 256 * 1024 * 1024
"""Bytes that a compressed stream may decode to."""


class _Stream:
    """What one guard makes of a stream; without a `guard` nothing passes any more."""

    __slots__ = ("guard", "planned", "told")

    def __init__(self, planned: PlannedGuard, guard: StreamGuard | DecodedStream | None) -> None:
        self.planned = planned
        self.guard = guard
        self.told = False


class GuardedAnswer:
    """One answer. Never raises; whatever goes wrong, nothing passes that was not looked at."""

    __slots__ = ("_encoding", "_guards", "_held", "_kind", "_overflow", "_record", "_streams")

    def __init__(self, record: Record, content_type: str, content_encoding: str) -> None:
        self._record = record
        self._encoding = content_encoding
        self._kind: Kind = answer_kind(content_type, content_encoding)
        self._guards = [
            (planned, planned.guard.answers) for planned in record.guards if planned.guard.answers is not None
        ]
        self._streams = [_Stream(planned, self._opened(planned, rules)) for planned, rules in self._guards]
        self._held: list[bytes] = []
        self._overflow = False

    @property
    def is_stream(self) -> bool:
        """Whether it passes as it comes."""
        return self._kind in ("sse", "ndjson")

    @property
    def mode(self) -> ProcessingMode:
        """How its body is to be sent."""
        return replies.READ_RESPONSE if self.is_stream else replies.HOLD_RESPONSE

    @property
    def removed(self) -> tuple[str, ...]:
        """Headers that will not be true any more."""
        if not self.is_stream and not self._record.streamed_response:
            return ()
        return ("content-length", "content-encoding") if self.is_stream and self._encoding else ("content-length",)

    @property
    def _refusals(self) -> Refusals:
        assert self._record.action_set is not None
        return self._record.action_set.refusals

    def refusal_of_head(self) -> Reply | None:
        """The reply in place of an answer in which nobody can look for texts."""
        if self._kind != "other":
            return None
        return self._judged([_UNPARSABLE] * len(self._guards))

    def passed_on(self, chunk: bytes, *, last: bool) -> bytes:
        """Of a stream: what the client gets in place of a chunk."""
        try:
            return self._through_guards(chunk, last=last)
        except Exception:  # noqa: BLE001 - what was not looked at does not pass
            self._record.defect("response_body")
            self._streams = [_Stream(planned, None) for planned, _ in self._guards]
            return b""

    async def held(self, chunk: bytes, *, last: bool) -> Reply:
        """Of a document: the reply to a piece, which is all of it where Envoy holds it."""
        streamed = self._record.streamed_response
        self._hold(chunk)
        if streamed and not last:
            return replies.response_body(b"")
        body = b"".join(self._held)
        whole = last or self._kind == "json"  # behind a whole JSON document trailers may follow, and no other text
        refusal = self._judged([await self._judge(body, rules, whole=whole) for _, rules in self._guards])
        if refusal is not None:
            return refusal
        return replies.response_body(body) if streamed else replies.CONTINUE["response_body"]

    def _opened(self, planned: PlannedGuard, rules: AnswerRules) -> StreamGuard | DecodedStream | None:
        if not self.is_stream:
            return None
        profile = planned.profile(self._refusals)
        framing: Framing = "ndjson" if self._kind == "ndjson" else "sse"
        guard = StreamGuard(
            rules.patterns, rules.look_behind, framing=framing, profile=profile, max_event=rules.max_body
        )
        # What is decoded for the first guard comes to the others as it is.
        if not self._encoding or planned is not self._guards[0][0]:
            return guard
        decoder = decoder_for(self._encoding, _DECODED)
        return guard if decoder is None else DecodedStream(guard, decoder)

    def _through_guards(self, chunk: bytes, *, last: bool) -> bytes:
        for stream in self._streams:
            if stream.guard is None:
                return b""
            passed = stream.guard.feed(chunk, last)
            if stream.guard.denied is not None and not stream.told:
                stream.told = True
                outcome = "deny" if stream.guard.denied.startswith("deny") else "unparsable"
                denials.note_answer(self._record, stream.planned, outcome, stream.guard.denied)
            if stream.planned.guard.enforces or isinstance(stream.guard, DecodedStream):
                chunk = passed
        return chunk

    def _hold(self, chunk: bytes) -> None:
        most = max(rules.max_body for _, rules in self._guards)
        if self._overflow or sum(map(len, self._held)) + len(chunk) > most:
            self._overflow = True
        else:
            self._held.append(chunk)

    async def _judge(self, body: bytes, rules: AnswerRules, *, whole: bool) -> Judged:
        if self._overflow or not whole or len(body) > rules.max_body:
            return _UNPARSABLE
        look = partial(self._look, body, rules)
        try:
            return look() if len(body) <= _AT_ONCE else await asyncio.to_thread(look)
        except Exception:  # noqa: BLE001 - as in `passed_on`
            self._record.defect("response_body")
            return _UNPARSABLE

    def _look(self, body: bytes, rules: AnswerRules) -> Judged:
        plain = decoded_body(body, self._encoding, rules.max_body) if self._encoding else body
        if plain is None:
            return _UNPARSABLE
        return judge_json(plain, rules.patterns) if self._kind == "json" else judge_text(plain, rules.patterns)

    def _judged(self, verdicts: list[Judged]) -> Reply | None:
        """What follows from the verdicts of all guards: None to let it pass."""
        refusal: Reply | None = None
        for (planned, rules), judged in zip(self._guards, verdicts, strict=True):
            allowed = judged.outcome == "allowed" or (judged.outcome == "unparsable" and not rules.denies_unparsable)
            if judged.outcome == "allowed":
                continue
            outcome = "deny" if judged.outcome == "denied" else "unparsable"
            denials.note_answer(self._record, planned, outcome, "" if allowed else judged.rule or "unparsable")
            if not allowed and planned.guard.enforces and refusal is None:
                refusal = self._withheld(planned)
        return refusal

    def _withheld(self, planned: PlannedGuard) -> Reply:
        if not self._record.streamed_response:
            return denials.withheld(self._record, planned)
        body = planned.denial.body
        return replies.response_body(
            replacement(planned.profile(self._refusals)).body if body is None else body.encode()
        )
