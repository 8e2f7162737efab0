"""An answer that guards look at before the client sees it.

What comes as one document is held, by Envoy where it can, and replaced as a whole; streams pass event by event, and
end with an error of their own kind where a text in them may not be shown. What is not shown was generated all the
same, so it is read and counted like any other answer. Where all guards only watch, nothing is held or changed.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from extproc import replies
from extproc.bodies.decoders import DecodingError, decoder_for
from extproc.exchange import denials
from extproc.exchange.record import Record
from extproc.guards.answers import Judged, Kind, judge_json, judge_text
from extproc.guards.decoded_answers import CORRUPT, StreamDecoder, decoded_body
from extproc.guards.final_events import Framing, Profile, replacement
from extproc.guards.guard import AnswerRules
from extproc.guards.patterns import Refusal
from extproc.guards.stream_guard import StreamGuard
from extproc.plan.guarding import PlannedGuard
from extproc.replies import Reply
from extproc.wire.external_processor_pb2 import ProcessingRequest

_AT_ONCE: Final = 8 * 1024
"""Bytes of a document that are looked at on the event loop."""
_DECODED: Final = 256 * 1024 * 1024
"""Bytes that a compressed stream may decode to."""
_ALLOWED: Final = Judged("allowed")
_UNPARSABLE: Final = Judged("unparsable")

Guards = tuple[tuple[PlannedGuard, AnswerRules], ...]


def guards_of(record: Record) -> Guards:
    """Those that look at answers."""
    found = ((planned, planned.guard.answers) for planned in record.guards)
    return tuple((planned, rules) for planned, rules in found if rules is not None)


class GuardedStream:
    """An answer that comes as events. Never raises; what was not looked at does not pass."""

    __slots__ = ("_corrupt", "_decoder", "_record", "_watches")

    def __init__(self, record: Record, framing: Framing, content_encoding: str) -> None:
        self._record = record
        self._watches = [_Watch(record, planned, rules, framing) for planned, rules in guards_of(record)]
        decoder = decoder_for(content_encoding, _DECODED) if content_encoding else None
        self._decoder = None if decoder is None else StreamDecoder(decoder)
        self._corrupt = False

    @property
    def decodes(self) -> bool:
        """Whether what passes is not in the coding any more that the headers tell of."""
        return self._decoder is not None and self._record.withholds_answers

    def feed(self, chunk: bytes, *, last: bool) -> bytes:
        """What the client gets in place of a chunk; the chunk itself where nobody may withhold anything."""
        passed = self._plain(chunk, last=last)
        for watch in self._watches:
            passed = watch.let_pass(passed, last=last, corrupt=self._corrupt)
        return passed if self._record.withholds_answers else chunk

    def _plain(self, chunk: bytes, *, last: bool) -> bytes:
        if self._decoder is None:
            return chunk
        try:
            return b"" if self._corrupt else self._decoder.decode(chunk, last)
        except DecodingError:
            self._corrupt = True
            return b""


class _Watch:
    """What one guard makes of a stream."""

    __slots__ = ("_broken", "_guard", "_planned", "_record", "_told")

    def __init__(self, record: Record, planned: PlannedGuard, rules: AnswerRules, framing: Framing) -> None:
        self._record = record
        self._planned = planned
        self._guard = StreamGuard(
            rules.patterns,
            rules.look_behind,
            framing=framing,
            profile=_profile(record, planned),
            max_event=rules.max_body,
        )
        self._told = False
        self._broken = False

    def let_pass(self, data: bytes, *, last: bool, corrupt: bool) -> bytes:
        """What of `data` goes on; of a `corrupt` stream nothing more comes."""
        passed = b"" if self._broken else self._looked_at(data, last=last, corrupt=corrupt)
        return passed if self._planned.guard.enforces else data

    def _looked_at(self, data: bytes, *, last: bool, corrupt: bool) -> bytes:
        guard = self._guard
        try:
            passed = guard.refuse(CORRUPT) if corrupt and guard.denied is None else guard.feed(data, last)
        except Exception:  # noqa: BLE001 - a defect of ours
            self._record.defect("response_body")
            self._broken = True
            return b""
        if last and guard.denied is None and not self._told:
            self._told = True
            denials.note_allowed_answer(self._record, self._planned)
        if guard.denied is not None and not self._told:
            self._told = True
            outcome = "deny" if guard.denied.startswith("deny") else "unparsable"
            denials.note_answer(self._record, self._planned, outcome, guard.denied)
        return passed


class HeldAnswer:
    """An answer that comes as one document. Never raises; what was not looked at does not pass."""

    __slots__ = ("_decided", "_encoding", "_guards", "_held", "_kind", "_most", "_record", "_size", "_swallows")

    def __init__(self, record: Record, kind: Kind, content_encoding: str) -> None:
        self._record = record
        self._kind = kind
        self._encoding = content_encoding
        self._guards = guards_of(record)
        self._most = max(rules.max_body for _, rules in self._guards)
        self._held: list[bytes] = []
        self._size = 0
        self._decided = False
        self._swallows = False

    @property
    def holds(self) -> bool:
        """Whether something was kept from the client that nobody has decided about."""
        return not self._decided and self._size > 0 and self._record.withholds_answers

    def refusal_of_head(self) -> Reply | None:
        """The reply in place of an answer in which nobody can look for texts."""
        return self._judged([_UNPARSABLE] * len(self._guards), streamed=None)

    async def take(self, message: ProcessingRequest, reply: Reply, *, last: bool) -> Reply:
        """The reply to a piece, `reply` where it may pass. Where Envoy holds the answer, a piece is all of it."""
        record = self._record
        holds = record.withholds_answers and record.streamed_response
        if self._decided:
            return _in_place(record, message, b"") if self._swallows else reply
        self._held.append(message.response_body.body)
        self._size += len(message.response_body.body)
        if not last and self._size <= self._most and (holds or not record.withholds_answers):
            return _in_place(record, message, b"") if holds else reply
        self._decided = True
        self._swallows = record.withholds_answers  # until it is known that it may pass
        body, self._held = b"".join(self._held), []
        # Behind a whole JSON document trailers may follow, and no other text.
        whole = last or (self._kind == "json" and bool(body.strip()))
        verdicts = [await self._judge(body, rules, whole=whole) for _, rules in self._guards]
        refusal = self._judged(verdicts, streamed=message if record.streamed_response else None)
        if refusal is not None:
            return refusal
        self._swallows = False
        return _in_place(record, message, body) if holds else reply

    async def _judge(self, body: bytes, rules: AnswerRules, *, whole: bool) -> Judged:
        if not whole or len(body) > rules.max_body:
            return _UNPARSABLE
        look = partial(self._look, body, rules)
        try:
            found = look() if len(body) <= _AT_ONCE else rules.worker.run(len(body), look)
            judged = found if isinstance(found, (Judged, Refusal)) else await found
            return _UNPARSABLE if isinstance(judged, Refusal) else judged
        except Exception:  # noqa: BLE001 - a defect of ours
            self._record.defect("response_body")
            return _UNPARSABLE

    def _look(self, body: bytes, rules: AnswerRules) -> Judged:
        plain = decoded_body(body, self._encoding, rules.max_body) if self._encoding else body
        if plain is None:
            return _UNPARSABLE
        return judge_json(plain, rules.patterns) if self._kind == "json" else judge_text(plain, rules.patterns)

    def _judged(self, verdicts: list[Judged], *, streamed: ProcessingRequest | None) -> Reply | None:
        """What follows from the verdicts of all guards: None to let it pass.

        `streamed` is the piece that is answered where the headers have left already.
        """
        refusing: PlannedGuard | None = None
        for (planned, rules), judged in zip(self._guards, verdicts, strict=True):
            if judged == _ALLOWED:
                denials.note_allowed_answer(self._record, planned)
                continue
            allowed = judged.outcome == "unparsable" and not rules.denies_unparsable
            outcome = "deny" if judged.outcome == "denied" else "unparsable"
            denials.note_answer(self._record, planned, outcome, "" if allowed else judged.rule or "unparsable")
            if not allowed and planned.guard.enforces and refusing is None:
                refusing = planned
        if refusing is None:
            return None
        if streamed is None:
            return denials.withheld(self._record, refusing)
        body, told = refusing.denial.body, replacement(_profile(self._record, refusing))
        return _in_place(self._record, streamed, told.body if body is None else body.encode())


def _in_place(record: Record, message: ProcessingRequest, data: bytes) -> Reply:
    duplex = record.duplex_response
    return replies.streamed_body("response_body", message, data) if duplex else replies.response_body(data)


def _profile(record: Record, planned: PlannedGuard) -> Profile:
    assert record.action_set is not None
    return planned.profile(record.action_set.refusals)
