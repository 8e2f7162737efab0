"""Everything that is decided before the model is called.

    head ──> who calls? ──> which provider? ──> limits that the head suffices for ──> go on
    body ──> may this model be asked? ──> which provider? ──> guards ──> limits ──> edits ──> go on

Both are coroutines that seldom wait, see `extproc.eager`. Each gives the reply: to go on, or an answer in the model's
place. What guards refuse has cost nothing that is counted with the body; limits that the head suffices for come first.
"""

from __future__ import annotations

import asyncio

from extproc import replies
from extproc.bodies.json_edit import Uneditable, read_object
from extproc.bodies.request_reader import RequestReaderFactory
from extproc.exchange import denials
from extproc.exchange.callers import Caller
from extproc.exchange.directions import Directions, not_routed
from extproc.exchange.guarding import Guarding
from extproc.exchange.limits import Limits
from extproc.exchange.record import Record, State
from extproc.exchange.request_body import GO_ON, Reading, RequestBody
from extproc.facts import RequestFacts
from extproc.identity.model_guard import ModelGuard
from extproc.limiter.seam import MAX_HITS
from extproc.plan.plan import ActionSet
from extproc.providers.prompt_limits import Selection
from extproc.replies import Reply
from extproc.usage.estimate import Estimate, Job, by_size
from extproc.usage.held import HeldPrompt
from extproc.usage.include_usage import with_include_usage
from extproc.wire.external_processor_pb2 import ProcessingRequest

COUNTING = 0.25
"""Seconds that counting the tokens of a prompt may take before the call."""
_PLAIN = ("", "identity")
"""Content codings that are none."""


class Admission:
    """Lets one request pass to the model, or not."""

    __slots__ = (
        "_allowed",
        "_body",
        "_directions",
        "_guarding",
        "_limits",
        "_may_ask",
        "_model_guard",
        "_reading",
        "_record",
        "_selection",
        "_tokens",
        "_waits",
    )

    def __init__(self, record: Record) -> None:
        self._record = record
        self._limits = Limits(record)
        self._allowed: frozenset[str] | None = None
        self._body: RequestBody | None = None
        self._model_guard: ModelGuard | None = None
        self._guarding: Guarding | None = None
        self._directions: Directions | None = None
        self._selection: Selection = {}
        self._tokens: int | None = None
        self._may_ask = False
        self._waits = False
        self._reading: Reading = "nothing"

    async def head(self, facts: RequestFacts, *, has_body: bool) -> Reply:
        """The head of the request is there."""
        record = self._record
        assert record.evaluation is not None
        action_set = record.evaluation.action_set
        refusal = None
        if action_set.auth_actions:
            caller = Caller()
            refusal = await caller.identify(record, facts)
            self._allowed = caller.models
        if refusal is None and record.plan.directs:
            refusal = self._direct(facts, has_body=has_body)
        if refusal is not None:
            return refusal
        record.evaluation.begin()
        record.who = record.plan.labels.of(facts)
        if has_body:
            self._reading = self._needed(facts)
        if self._allowed is not None:
            refusal = self._guard_models(self._allowed, facts, has_body=has_body)
        if record.streamed_request and refusal is None and self._is_strict:
            refusal = denials.not_held(record)
        if refusal is None:
            refusal = await self._limits.ask(self._actions_at_head(action_set), self._prompt_tokens)
        if refusal is None and not self._waits:
            refusal = self._forward()
        if refusal is not None:
            return refusal
        reads = action_set.response_reader is not None and record.metered and record.plan.strip_accept_encoding
        encoded = (reads or record.withholds_answers) and "accept-encoding" in facts.headers
        asked: Reading = "nothing" if record.streamed_request else self._reading
        return GO_ON[asked, encoded] + record.changes

    def take(self, piece: bytes) -> bool:
        """Take a piece of the body. Whether something waits for the rest."""
        if self._body is None:
            return False
        self._body.add(piece)
        return self._body.waits

    async def body(self, message: ProcessingRequest | None, reply: Reply, *, ended: bool = True) -> Reply:
        """All of the body is there; `reply` lets it go on as it is, in answer to `message`, its last piece.

        When it has not `ended`, it is all that fitted into Envoy's buffer. A whole document is enough then, only
        trailers follow; of a part nothing is decided, because the rest may say something else (G14).
        """
        record, body = self._record, self._body
        if body is None or not body.waits or record.action_set is None or record.state is State.SETTLED:
            return reply
        if message is None and self._is_strict and not body.came:
            return denials.not_seen(record)
        body.read()
        record.model = body.model
        # Only trailers follow what is as long as was announced.
        as_announced = 0 < record.request_size <= len(body.data)
        whole = ended or as_announced or (body.complete and not self._is_strict)
        refusal = self._unfit(record.action_set, body, whole=whole)
        if refusal is None and record.state is State.REQUEST:
            refusal = await self._decide(body, whole=whole)
        if refusal is None and message is not None and whole:
            reply = self._edited(message, body, reply)
        # Last: until then a defect is a missing decision.
        if refusal is None and record.state is State.REQUEST:
            refusal = self._forward()
        body.forget()
        self._guarding = None
        return reply if refusal is None else refusal

    def asking_for_usage(self, message: ProcessingRequest, reply: Reply) -> Reply:
        """In full duplex, where the end of a body may be told later: the reply to its first piece."""
        return reply if self._body is None else self._edited(message, self._body, reply)

    @property
    def unseen(self) -> bool:
        """Whether a model answers though the body that it got was to be decided about, and never came here."""
        return self._record.state is State.REQUEST and self._is_strict

    # ── the head ──────────────────────────────────────────────────────────────────────────────────

    def _direct(self, facts: RequestFacts, *, has_body: bool) -> Reply | None:
        """Who guards the request, and where it goes."""
        record = self._record
        routing = record.plan.routing
        assert record.action_set is not None
        guards = record.plan.guards.of(facts.host, record.action_set.guards)
        if guards:
            record.guard_with(guards)
        if guards and has_body:
            self._guarding = Guarding(record, facts)
        if routing is None:
            return None
        if not record.action_set.routed or not routing.hosts.find(facts.host):
            stray = not_routed(routing, facts)
            record.change_headers((), stray)
            record.reroutes = bool(stray)
            return None
        if routing.prompts is not None:
            self._selection = routing.prompts.queries.select(facts)
        self._directions = Directions(record, routing)
        return self._directions.by_head(facts, has_body=has_body)

    @property
    def _edits(self) -> bool:
        """Whether the body is one of those that are edited, and whose prompts are counted."""
        return self._directions is not None and self._directions.edits

    @property
    def _is_strict(self) -> bool:
        """Whether nothing may pass of which not all was seen."""
        guards = self._guarding is not None and self._guarding.enforces
        return guards or self._model_guard is not None or self._edits

    def _needed(self, facts: RequestFacts) -> Reading:
        """Make ready for the request body, as far as somebody needs it."""
        record = self._record
        assert record.action_set is not None
        action_set = record.action_set
        asks = action_set.include_usage
        # A gateway that is configured to stream has sent the length already: nothing can be added.
        late = record.streamed_request and not record.duplex_request
        self._may_ask = asks is not None and record.metered and not late and asks.may_ask(facts)
        self._waits = action_set.decides_on_body or self._edits or self._guarding is not None
        if self._may_ask or self._waits:
            self._hold(action_set.request_reader, facts)
            edits = self._may_ask or self._edits or self._guarding is not None
            return "editable" if edits and 0 < record.request_size <= record.plan.buffer else "held"
        if action_set.reads_prompts and record.metered:
            record.prompt = HeldPrompt(record.shared.prompts)
            self._body = RequestBody(record.prompt, None)
            return "passing"
        return "nothing"

    def _hold(self, factory: RequestReaderFactory | None, facts: RequestFacts) -> None:
        assert factory is not None
        reader = factory.open(facts.header("content-type") or "", facts.header("content-encoding") or "")
        self._record.prompt = HeldPrompt(self._record.shared.prompts)
        self._body = RequestBody(self._record.prompt, reader)
        self._body.is_encoded = (facts.header("content-encoding") or "identity").strip().lower() not in _PLAIN

    def _guard_models(self, models: frozenset[str], facts: RequestFacts, *, has_body: bool) -> Reply | None:
        record = self._record
        guard = ModelGuard(models, facts, has_body=has_body)
        if guard.refuses:
            return denials.rejected(record, "model", 403, "the model is not allowed")
        if guard.needs_body and not self._waits:
            return denials.not_held(record)
        if guard.needs_body:
            self._model_guard = guard
        return None

    def _actions_at_head(self, action_set: ActionSet) -> int:
        """How many actions the head suffices for. A request for another model uses up nothing."""
        if not self._waits:
            return len(action_set.request_actions)
        return 0 if self._model_guard is not None else action_set.before_body

    # ── the body ──────────────────────────────────────────────────────────────────────────────────

    def _unfit(self, action_set: ActionSet, body: RequestBody, *, whole: bool) -> Reply | None:
        """Why nothing can be decided on this body."""
        record = self._record
        if (action_set.decides_on_body or self._edits) and (not whole or body.unread == "too_large"):
            return denials.too_large(record)
        if self._model_guard is not None and not self._model_guard.allows(body.data):
            return denials.rejected(record, "model", 403, "the model is not allowed")
        # Where guards look, it is theirs to say what follows from a body that they cannot read.
        if self._edits and self._guarding is None and not body.is_encoded and (problem := _problem(body)):
            return denials.rejected(record, "body", 400, "the request body cannot be edited", message=problem)
        if action_set.decides_on_body and body.unread is not None and action_set.denies_on_failure:
            return denials.unreadable(record, body.unread)
        if body.is_encoded and (self._edits or action_set.charges_prompt):
            return denials.unreadable(record, "encoding")
        return None

    async def _decide(self, body: RequestBody, *, whole: bool) -> Reply | None:
        record = self._record
        assert record.action_set is not None
        assert record.evaluation is not None
        refusal, sent = None, body.data
        if self._directions is not None and self._directions.waits:
            refusal = self._directions.by_model(record.model)
            if refusal is None:
                record.evaluation.begin(self._directions.facts)
        if refusal is None and not self._may_send_model:
            refusal = denials.rejected(record, "model", 403, "the model of the provider is not allowed")
        if refusal is None and self._guarding is not None:
            refusal = await self._guarding.ask(body, whole=whole)
        if refusal is None and self._edits:
            refusal = self._rewrite(body)
        if refusal is None:
            record.evaluation.request_is_there(body.values, sent)
            refusal = await self._limits.ask(len(record.action_set.request_actions), self._prompt_tokens)
        routing = record.plan.routing
        if refusal is None and self._edits and routing is not None and routing.prompts is not None:
            model = self._model_sent
            refusal = await self._limits.ask_about_prompt(routing.prompts, self._selection, model, self._prompt_tokens)
        return refusal

    @property
    def _may_send_model(self) -> bool:
        """Whether the caller may ask for what the provider makes of the model; by another name it is the same model."""
        provider, asked = self._record.provider, self._record.model
        if self._allowed is None or provider is None or not self._edits or provider.aliases.find(asked) is not None:
            return True
        return provider.model in (None, asked) or provider.model in self._allowed

    @property
    def _model_sent(self) -> str:
        """The model as its provider calls it."""
        record = self._record
        sent = None if record.provider is None else record.provider.model_for(record.model)
        return record.model if sent is None else sent

    async def _prompt_tokens(self) -> int:
        if self._tokens is None:
            data = b"" if self._body is None else self._body.data
            estimate = await self._estimated(Job(self._model_sent, data, len(data)))
            self._record.shared.metrics.estimated(estimate.method)
            self._tokens = min(estimate.prompt, MAX_HITS)
        return self._tokens

    async def _estimated(self, job: Job) -> Estimate:
        """By the size of the prompt where counting takes too long: Envoy waits for a request that long, not longer."""
        estimator = self._record.shared.estimator
        found = estimator.estimate(job)
        if isinstance(found, Estimate):
            return found
        try:
            async with asyncio.timeout(COUNTING):
                return await found
        except TimeoutError:
            return by_size(job)

    def _forward(self) -> Reply | None:
        """The request goes to the model, unless it has to be in some limit and is in none."""
        record = self._record
        assert record.action_set is not None
        if record.action_set.denies_without_limit and not self._limits.limited:
            return denials.rejected(record, "no_limit", 403, "no limit applies")
        record.state = State.FORWARDED
        record.called = True
        record.shared.metrics.allowed += 1
        if record.namespace:
            record.shared.spending.allowed(record.who, record.namespace)
        return None

    def _edited(self, message: ProcessingRequest, body: RequestBody, reply: Reply) -> Reply:
        """The reply that lets the body go on, as the model is to see it."""
        record = self._record
        # A gateway that is configured to stream has sent the length already, and the beginning of what is in pieces.
        if not body.in_one_piece or (record.streamed_request and not record.duplex_request):
            return reply
        self._ask_for_usage(body)
        if body.edited and record.duplex_request:
            return replies.streamed_body("request_body", message, body.data)
        if body.edited:
            reply = replies.request_body(body.data, keeps_length=self._reading == "editable")
        return reply if self._directions is None else reply + self._directions.changes

    def _rewrite(self, body: RequestBody) -> Reply | None:
        """Take out what the provider is not to see, and put in what it calls the model (S2.9).

        What cannot be edited is refused in the parser's words (S2.10).
        """
        record = self._record
        assert record.plan.routing is not None
        assert record.provider is not None
        document = None if body.edited else body.document
        try:
            edited = record.plan.routing.rewrite.apply(body.data, record.provider.model_for(record.model), document)
        except Uneditable as error:
            return denials.rejected(record, "body", 400, "the request body cannot be edited", message=f"{error}")
        if edited is not None:
            body.replace(edited)
        return None

    def _ask_for_usage(self, body: RequestBody) -> None:
        """Have the model report the usage of a stream whose client did not ask for it (S0.D6)."""
        record = self._record
        asks = None if record.action_set is None else record.action_set.include_usage
        if asks is None or not self._may_ask:
            return
        edited = with_include_usage(body.data, asks.may_ask_model)
        if edited is not None:
            record.strips_usage = asks.strip
            body.replace(edited)


def _problem(body: RequestBody) -> str:
    """What the parser says of a body that is to be edited and cannot be (S2.10); "" of one that can, or is empty."""
    try:
        if body.data and not body.data.isspace():
            read_object(body.data, body.document)
    except Uneditable as error:
        return str(error)
    return ""
