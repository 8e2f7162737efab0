"""Everything that is decided before the model is called.

    head ──> who calls? ──> what has to be known of the body? ──> limits that the head suffices for ──> go on
    body ──> is it to be read for certain? ──> may this model be asked? ──> the other limits ──> edits ──> go on

Both are coroutines that seldom wait, see `extproc.eager`. Each gives the reply: to go on, or an answer in the model's
place.
"""

from __future__ import annotations

from extproc import replies
from extproc.exchange import denials
from extproc.exchange.callers import Caller
from extproc.exchange.limits import Limits
from extproc.exchange.record import Record, State
from extproc.exchange.request_body import GO_ON, Reading, RequestBody
from extproc.facts import RequestFacts
from extproc.identity.model_guard import ModelGuard
from extproc.usage.held import HeldPrompt
from extproc.usage.include_usage import with_include_usage
from extproc.wire.external_processor_pb2 import ProcessingRequest

Reply = bytes


class Admission:
    """Lets one request pass to the model, or not."""

    __slots__ = ("_body", "_guard", "_limits", "_may_ask", "_reading", "_record")

    def __init__(self, record: Record) -> None:
        self._record = record
        self._limits = Limits(record)
        self._body: RequestBody | None = None
        self._guard: ModelGuard | None = None
        self._may_ask = False
        self._reading: Reading = "nothing"

    async def head(self, facts: RequestFacts, *, has_body: bool) -> Reply:
        """The head of the request is there."""
        record = self._record
        assert record.evaluation is not None
        caller = Caller()
        refusal = await caller.identify(record, facts)
        if refusal is not None:
            return refusal
        record.evaluation.begin()
        record.who = record.plan.labels.of(facts)
        action_set = record.evaluation.action_set
        reading = self._needed(facts) if has_body else "nothing"
        waits = reading != "nothing" and action_set.decides_on_body
        last = action_set.before_body if waits else len(action_set.request_actions)
        if caller.models is not None:
            refusal = self._guard_models(caller.models, facts, has_body=has_body, waits=waits)
            if refusal is not None:
                return refusal
            if self._guard is not None:
                last = 0  # a request for another model uses up nothing
        refusal = await self._limits.ask(last)
        if refusal is None and not waits:
            refusal = self._forward()
        if refusal is not None:
            return refusal
        strips = action_set.response_reader is not None and record.metered and record.plan.strip_accept_encoding
        encoded = strips and "accept-encoding" in facts.headers
        self._reading = reading
        asked: Reading = "nothing" if record.streamed_request else reading
        return GO_ON[asked, encoded] + record.changes

    def take(self, piece: bytes) -> bool:
        """Take a piece of the body. Whether something waits for the rest."""
        if self._body is None:
            return False
        self._body.add(piece)
        return self._body.reader is not None

    async def body(self, message: ProcessingRequest | None, reply: Reply, *, ended: bool = True) -> Reply:
        """All of the body is there; `reply` lets it go on as it is, in answer to `message`, its last piece.

        When it has not `ended`, it is all that fitted into Envoy's buffer. A whole document is enough then, only
        trailers follow; of a part nothing is decided, because the rest may say something else (G14).
        """
        record, body = self._record, self._body
        if body is None or body.reader is None or record.action_set is None or record.state is State.SETTLED:
            return reply
        reader, body.reader = body.reader, None
        reader.close()
        record.model = reader.findings.model
        action_set = record.action_set
        whole = ended or (reader.complete and self._guard is None)
        if action_set.decides_on_body and (not whole or reader.unread == "too_large"):
            return denials.too_large(record)
        if self._guard is not None and not self._guard.allows(body.data):
            return denials.rejected(record, "model", 403, "the model is not allowed")
        if action_set.decides_on_body and reader.unread is not None and action_set.denies_on_failure:
            return denials.unreadable(record, reader.unread)
        if whole and message is not None:
            reply = self.asking_for_usage(message, reply)
        if record.state is State.REQUEST:
            assert record.evaluation is not None
            record.evaluation.request_is_there(reader.findings.values, body.data)
            refusal = await self._limits.ask(len(action_set.request_actions))
            if refusal is None:
                refusal = self._forward()
            reply = reply if refusal is None else refusal
        body.forget()
        return reply

    def _needed(self, facts: RequestFacts) -> Reading:
        """Make ready for the request body, as far as somebody needs it."""
        record = self._record
        assert record.action_set is not None
        action_set = record.action_set
        asks = action_set.include_usage
        self._may_ask = asks is not None and record.metered and asks.may_ask(facts)
        if self._may_ask or action_set.decides_on_body:
            self._hold(facts)
            fits = 0 < record.request_size <= record.plan.buffer
            return "editable" if self._may_ask and fits else "held"
        if action_set.reads_prompts and record.metered:
            record.prompt = HeldPrompt(record.shared.prompts)
            self._body = RequestBody(record.prompt, None)
            return "passing"
        return "nothing"

    def _hold(self, facts: RequestFacts) -> None:
        record = self._record
        assert record.action_set is not None
        assert record.action_set.request_reader is not None
        content_type = facts.header("content-type") or ""
        reader = record.action_set.request_reader.open(content_type, facts.header("content-encoding") or "")
        record.prompt = HeldPrompt(record.shared.prompts)
        self._body = RequestBody(record.prompt, reader)

    def _guard_models(
        self, models: frozenset[str], facts: RequestFacts, *, has_body: bool, waits: bool
    ) -> Reply | None:
        record = self._record
        guard = ModelGuard(models, facts, has_body=has_body)
        if guard.refuses:
            return denials.rejected(record, "model", 403, "the model is not allowed")
        if guard.needs_body and (record.streamed_request or not waits):
            return denials.failed(record, "nothing can be decided on a request body that the gateway does not hold")
        if guard.needs_body:
            self._guard = guard
        return None

    def _forward(self) -> Reply | None:
        """The request goes to the model, unless it has to be in some limit and is in none."""
        record = self._record
        assert record.action_set is not None
        if record.action_set.denies_without_limit and not self._limits.limited:
            return denials.rejected(record, "no_limit", 403, "no limit applies")
        record.state = State.FORWARDED
        record.shared.metrics.allowed += 1
        if record.namespace:
            record.shared.spending.allowed(record.who, record.namespace)
        return None

    def asking_for_usage(self, message: ProcessingRequest, reply: Reply) -> Reply:
        """Have the model report the usage of a stream whose client did not ask for it (S0.D6)."""
        record, body = self._record, self._body
        asks = None if record.action_set is None else record.action_set.include_usage
        # A gateway that is configured to stream has sent the length already.
        too_late = record.streamed_request and not record.duplex_request
        if asks is None or not self._may_ask or too_late or body is None or not body.in_one_piece:
            return reply
        edited = with_include_usage(message.request_body.body, asks.may_ask_model)
        if edited is None:
            return reply
        record.strips_usage = asks.strip
        if record.duplex_request:
            return replies.streamed_body("request_body", message, edited)
        return replies.request_body(edited, keeps_length=self._reading == "editable")
