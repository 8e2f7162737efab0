"""The life of one HTTP exchange: messages go in, exactly one reply comes out for each, in order.

    request_headers ──> route ──> admission ──> reply: go on, or answer for the model
    request_body    ──> (only where it matters) the rest of the admission
    response_headers──> read the answer? ──> reply: with what the client is to see
    response_body   ──> reply at once, read after; the last one settles
    settle          ──> reports, exactly once, whatever ended the exchange

An exchange does no I/O. Where a limiter answers at once, so does the exchange; where it must wait, `receive` gives
back an awaitable.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Sequence
from typing import Final

from extproc import replies
from extproc.eager import begin
from extproc.exchange import denials
from extproc.exchange.admission import Admission
from extproc.exchange.answer import IGNORE, AnswerReading, ends, headers_of, length_of, with_shown
from extproc.exchange.directions import not_routed
from extproc.exchange.record import Record, State, Surroundings
from extproc.exchange.refunds import give_back
from extproc.exchange.settlement import Pending, Settlement
from extproc.facts import RequestFacts, attribute
from extproc.limiter.quotas import ratelimit_headers
from extproc.limiter.seam import Metadata, Quota
from extproc.plan.bodies import BodyValues
from extproc.plan.evaluation import Evaluation
from extproc.plan.plan import ActionSet, Plan
from extproc.plan.sight import ActionFailure
from extproc.replies import Reply
from extproc.telemetry.metrics import Ending
from extproc.wire.external_processor_pb2 import ProcessingRequest

_PROPAGATED = ("traceparent", "tracestate", "baggage")

Replies = Reply | Awaitable[Reply]

_NOT_OURS: Final = replies.request_headers(replies.SKIP_RESPONSE)
_HANDLERS: Final = {
    "request_headers": "_request_headers",
    "request_body": "_request_body",
    "request_trailers": "_request_trailers",
    "response_headers": "_response_headers",
    "response_body": "_response_body",
    "response_trailers": "_response_trailers",
}
"""The method for each kind of message."""


class Exchange:
    """One HTTP request and its response.

    Call `receive` for each message and send its reply, then `digest`; call `close` when the stream is over for
    whatever reason. None of them raises.
    """

    __slots__ = ("_admission", "_answer", "_counts", "_record", "_settlement")

    def __init__(self, plan: Plan, shared: Surroundings) -> None:
        self._record = Record(plan, shared)
        self._admission = Admission(self._record)
        self._answer: AnswerReading | None = None
        self._counts = False
        self._settlement: Settlement | None = None
        shared.metrics.exchanges_open += 1

    @property
    def request_id(self) -> str:
        """ "" until the request's head is there."""
        return self._record.request_id

    @property
    def metadata(self) -> Metadata:
        """What is passed on to limiters and authenticators."""
        return self._record.metadata

    @property
    def status(self) -> int:
        """Of the answer, 0 until it is there."""
        return self._record.status

    # ── messages ──────────────────────────────────────────────────────────────────────────────────

    def receive(self, message: ProcessingRequest) -> Replies | None:
        """The reply to one message; None for a message of no kind, which cannot be answered."""
        kind = message.WhichOneof("request")
        if kind is None:
            return None
        try:
            reply: Replies = getattr(self, _HANDLERS[kind])(message)
        except Exception:  # noqa: BLE001 - a defect must not end the stream, which would end the request
            return self._crashed(kind, message)
        return reply if isinstance(reply, bytes) else self._guarded(kind, message, reply)

    async def _guarded(self, kind: str, message: ProcessingRequest, reply: Awaitable[Reply]) -> Reply:
        try:
            return await reply
        except Exception:  # noqa: BLE001 - as in `receive`
            return self._crashed(kind, message)

    def _crashed(self, kind: str, message: ProcessingRequest) -> Reply:
        """A defect of ours: before the call it is a missing decision, after it the answer goes on (G3)."""
        record = self._record
        record.defect(kind)
        undecided = record.state in (State.NEW, State.REQUEST) and kind.startswith("request_")
        if undecided and record.denies_on_failure:
            return denials.broken(record)
        if record.withholds_answers and kind.startswith("response_"):
            return self._swallowed(kind, message)
        self._answer = None
        return self._unchanged(kind, message) + (record.changes if kind == "request_headers" else b"")

    def _swallowed(self, kind: str, message: ProcessingRequest) -> Reply:
        """Nothing of an answer passes that nobody has looked at."""
        if kind == "response_headers":
            return denials.broken(self._record)
        if kind == "response_trailers":
            return replies.CONTINUE[kind]
        duplex = self._record.duplex_response
        return replies.streamed_body(kind, message, b"") if duplex else replies.response_body(b"")

    def _unchanged(self, kind: str, message: ProcessingRequest) -> Reply:
        """Let a body chunk pass; in full duplex that means to send it back."""
        duplex = self._record.duplex_request if kind == "request_body" else self._record.duplex_response
        return replies.echo(kind, message) if duplex and kind.endswith("_body") else replies.CONTINUE[kind]

    def digest(self) -> bool:
        """Read what was answered before it was read. True when nothing that Envoy could still send matters.

        The stream may be ended then: Envoy goes on without us, but for full duplex, where it waits for every chunk.
        """
        if self._answer is not None:
            self._answer.digest()
        record = self._record
        return record.state is State.SETTLED and not (record.duplex_request or record.duplex_response)

    def close(self) -> None:
        """The stream is over: settle with what is known, unless that is done."""
        record = self._record
        record.shared.metrics.exchanges_open -= 1
        if self._answer is not None and not self._answer.received and record.withholds_answers:
            # It broke off, or the gateway takes no orders: then it passed, and nobody can call it back.
            record.log(logging.WARNING, "of an answer that is guarded nothing came to be looked at")
        if record.state is not State.SETTLED:
            try:
                self._settle("client_gone" if record.action_set is not None else "unmatched")
            except Exception:  # noqa: BLE001 - as in `receive`
                record.defect("settlement")
        if record.precharged and self._settlement is None and not self._answered_unread:
            give_back(record)
        if record.prompt is not None:
            record.prompt.release()

    @property
    def _answered_unread(self) -> bool:
        """Whether the model answered, and nobody wants to know what that took."""
        action_set = self._record.action_set
        return 0 < self._record.status < 300 and action_set is not None and action_set.response_reader is None

    # ── request ───────────────────────────────────────────────────────────────────────────────────

    def _request_headers(self, message: ProcessingRequest) -> Replies:
        record = self._record
        if record.state is not State.NEW:
            return replies.CONTINUE["request_headers"]
        record.note_modes(message)
        facts = RequestFacts(message)
        route = record.plan.hosts.find(facts.host)
        try:
            evaluation = Evaluation.of(route, facts)
        except ActionFailure as error:
            return denials.failed(record, f"route: {error}")
        if evaluation is None and record.plan.no_match is None:
            evaluation = self._bare(facts)
        if evaluation is None:
            return self._unmatched(facts)
        record.evaluation = evaluation
        record.action_set = evaluation.action_set
        record.shared.metrics.hits += 1
        record.state = State.REQUEST
        self._note_ids(facts)
        record.request_size = max(0, length_of(facts.headers.get("content-length", b"")))
        record.path = facts.headers.get(":path", b"")
        record.metered = facts.headers.get(":method", b"").upper() in record.plan.metered_methods
        return begin(self._admission.head(facts, has_body=not message.request_headers.end_of_stream))

    def _bare(self, facts: RequestFacts) -> Evaluation | None:
        """Of a request that no action set matches, but that is guarded or routed."""
        plan = self._record.plan
        routed = plan.routing is not None and plan.routing.hosts.find(facts.host)
        return Evaluation(plan.bare, facts, BodyValues()) if routed or plan.guards.of(facts.host) else None

    def _unmatched(self, facts: RequestFacts) -> Reply:
        """No action set is for this request: it passes, unless that is not wanted."""
        record = self._record
        record.shared.metrics.misses += 1
        record.end("unmatched")
        if record.plan.guards.by_name:
            record.trace("llm proxy plugin disabled")
        if record.plan.no_match is None:
            record.shared.metrics.allowed += 1
            routing = record.plan.routing
            stray = () if routing is None else not_routed(routing, facts)
            return _NOT_OURS + replies.request_changes((), stray, reroute=True) if stray else _NOT_OURS
        self._note_ids(facts)
        return denials.unmatched(record)

    def _note_ids(self, facts: RequestFacts) -> None:
        record = self._record
        record.request_id = facts.header("x-request-id") or str(uuid.uuid4())
        record.metadata = (("x-request-id", record.request_id),)
        for name in _PROPAGATED:
            if name in facts.headers:
                record.metadata += ((name, facts.header(name) or ""),)
        if record.plan.request_id_header is not None:
            record.shown += ((record.plan.request_id_header, record.request_id),)

    def _request_body(self, message: ProcessingRequest) -> Replies:
        record, chunk = self._record, message.request_body
        record.note_modes(message)
        reply = self._unchanged("request_body", message)
        if not self._admission.take(chunk.body):
            return reply
        ended = ends(chunk)
        # In full duplex a body that came whole may be told to have ended only by a message of its own.
        if record.streamed_request and not ended:
            return self._admission.asking_for_usage(message, reply) if record.duplex_request else reply
        return begin(self._admission.body(message, reply, ended=ended))

    def _request_trailers(self, message: ProcessingRequest) -> Replies:
        return begin(self._admission.body(None, replies.CONTINUE["request_trailers"]))

    # ── response ──────────────────────────────────────────────────────────────────────────────────

    def _response_headers(self, message: ProcessingRequest) -> Reply:
        record = self._record
        record.note_modes(message)
        action_set = record.action_set
        if action_set is None or record.state is State.SETTLED:
            return IGNORE
        if record.quotas and record.plan.shows_quotas:
            # What a limiter says itself comes later, and so wins.
            record.shown = ratelimit_headers(sorted(record.quotas, key=_remaining)) + record.shown
        headers = headers_of(message)
        status = headers.get(":status", b"")
        record.status = int(status) if status.isdigit() else 0
        ended = message.response_headers.end_of_stream
        if record.status < 300 and self._admission.unseen:
            return self._unguarded()
        self._counts = self._reads(action_set, ended=ended)
        guards = record.guards_answers and record.status < 300 and not ended
        if not (self._counts or guards):
            self._settle("complete")
            return with_shown(record, IGNORE, replies.SKIP_BODIES)
        if not record.request_size:
            size = attribute(message, "request.size")
            record.request_size = size if isinstance(size, int) else 0
        record.state = State.READING
        self._answer, reply = AnswerReading.begin(record, headers)
        if self._answer.refused:
            self._withheld(self._answer)
        return reply

    def _withheld(self, answer: AnswerReading) -> None:
        """Of an answer that was refused by its headers no more is known than what was asked."""
        self._answer = None
        answer.close()
        self._record.end("denied")
        if self._counts:
            self._settlement = Settlement(self._record, answer.first_byte)
            self._settlement.settle(answer.reader, 0, "complete", is_text=False)

    def _unguarded(self) -> Reply:
        """A gateway that takes no orders has passed on what was to be looked at: its answer does not get out."""
        return denials.not_seen(self._record)

    def _reads(self, action_set: ActionSet, *, ended: bool) -> bool:
        """Whether the answer is worth reading: it has a body, it was generated now, and is no error (S0.D7, S0.23)."""
        record = self._record
        charged = record.status < 300 or record.plan.charge_errors
        forwarded = record.state in (State.REQUEST, State.FORWARDED)
        return action_set.response_reader is not None and record.metered and forwarded and charged and not ended

    def _response_body(self, message: ProcessingRequest) -> Replies:
        reply = self._unchanged("response_body", message)
        if self._record.state is not State.READING or self._answer is None:
            return reply
        taken, over = self._answer.take(message, reply)
        if not isinstance(taken, bytes):
            return self._taken(taken, over=over)
        return self._response_complete(taken) if over else taken

    async def _taken(self, taken: Awaitable[Reply], *, over: bool) -> Reply:
        reply = await taken
        last = self._response_complete(reply) if over else reply
        return last if isinstance(last, bytes) else await last

    def _response_complete(self, reply: Reply) -> Replies:
        """The answer is over: settle, and hold the last reply until the reports are answered, but not for long."""
        if self._record.state is not State.READING:
            return reply
        pending = self._settle("complete")
        return self._hold(reply, pending) if pending else reply + self._metadata()

    def _response_trailers(self, message: ProcessingRequest) -> Replies:
        if self._answer is not None:
            self._answer.cut_short()
        return self._response_complete(replies.CONTINUE["response_trailers"])

    async def _hold(self, reply: Reply, pending: Sequence[asyncio.Task[None]]) -> Reply:
        await asyncio.wait(pending, timeout=self._record.plan.report_wait)
        return reply + self._metadata()

    def _metadata(self) -> bytes:
        return b"" if self._settlement is None else self._settlement.metadata()

    # ── settling ──────────────────────────────────────────────────────────────────────────────────

    def _settle(self, ending: Ending) -> Pending:
        """End the exchange: report what the model used, if it was called and answered. What is under way of that."""
        record = self._record
        self.digest()
        answer, self._answer = self._answer, None
        record.state = State.SETTLED
        if answer is not None:
            answer.close()
            if ending == "client_gone" and answer.reader.mid_event:
                ending = "upstream_cut"
        if ending == "complete" and record.status >= 400:
            ending = "error"
        record.shared.metrics.exchange_ended(ending)
        if answer is None or not (answer.is_read and self._counts) or ending == "denied" or ending == "unmatched":
            return []
        self._settlement = Settlement(record, answer.first_byte)
        return self._settlement.settle(answer.reader, answer.received, ending, is_text=answer.is_text)


def _remaining(quota: Quota) -> int:
    return quota.remaining
