"""The life of one HTTP exchange: messages go in, exactly one reply comes out for each, in order.

    request_headers ──> route ──> who calls? ──> actions before the call ──> reply: go on, or answer for the model
    request_body    ──> (only where an expression reads it) the other actions before the call
    response_headers──> read the answer? ──> reply: with what the limiter wants the client to see
    response_body   ──> reply at once, read after; the last one settles
    settle          ──> actions after the call: reports, exactly once, whatever ended the exchange

An exchange does no I/O. Where a limiter answers at once, so does the exchange; where it must wait, `receive` gives
back an awaitable. It keeps the plan that it began with, so that a reload never changes it half-way.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from time import monotonic
from typing import Any, Final, Literal

from extproc import replies
from extproc.bodies.reader import BodyReader
from extproc.facts import RequestFacts, attribute
from extproc.identity.model_guard import ModelGuard
from extproc.identity.seam import AuthAnswer, AuthError, Verdict
from extproc.limiter.quotas import ratelimit_headers
from extproc.limiter.reports import ReportQueue
from extproc.limiter.seam import Answer, Code, Decision, LimiterError, Metadata, Query, Quota
from extproc.plan.action import Action, AuthAction
from extproc.plan.evaluation import Evaluation
from extproc.plan.labels import Who
from extproc.plan.plan import ActionSet, Plan
from extproc.plan.sight import ActionFailure
from extproc.refusals import Rejection
from extproc.telemetry.decisions import DecisionLog
from extproc.telemetry.metrics import Ending, Metrics
from extproc.telemetry.spending import Spending
from extproc.usage.dialects import DIALECTS
from extproc.usage.estimate import Estimator
from extproc.usage.held import HeldPrompt, PromptBudget
from extproc.usage.include_usage import UsageFrameFilter, with_include_usage
from extproc.usage.meter import Request
from extproc.usage.usage import Source, Usage
from extproc.wire.external_processor_pb2 import HttpBody, ProcessingRequest
from extproc.wire.processing_mode_pb2 import ProcessingMode

_LOG = logging.getLogger("extproc.exchange")
_PROPAGATED = ("traceparent", "tracestate", "baggage")
_TEXT_TYPES = ("text/plain", "text/event-stream", "application/x-ndjson", "application/ndjson", "application/jsonl")
"""Of these, what no dialect is recognised in counts as generated text altogether."""
_FAILED = b"Internal Server Error.\n"

Reply = bytes
Replies = Reply | Awaitable[Reply]

NOT_OURS: Final = replies.request_headers(replies.SKIP_RESPONSE)
TOO_LARGE: Final = replies.immediate(413, b"Payload Too Large\n", details="request_body_too_large")
BAD_REQUEST: Final = replies.immediate(400, b"Bad Request\n", details="request_body_unreadable")
UNSUPPORTED: Final = replies.immediate(415, b"Unsupported Media Type\n", details="request_body_unreadable")
FAILED: Final = replies.immediate(500, _FAILED, details="extproc_failure")
Reading = Literal["nothing", "passing", "buffered", "editable", "chunked"]
"""How a request body is asked for: not at all; while it goes on; before it goes on. Where it may be edited, Envoy must
either hold all of it, to be told the new length, or drop the length: of what it holds in part it cannot be told."""
_READING: Final[dict[Reading, ProcessingMode | None]] = {
    "nothing": None,
    "passing": replies.WATCH_REQUEST,
    "buffered": replies.READ_REQUEST,
    "editable": replies.EDIT_REQUEST,
    "chunked": replies.READ_REQUEST,
}


def _go_on(reading: Reading, *, encoded: bool) -> Reply:
    removed = [*(["accept-encoding"] if encoded else []), *(["content-length"] if reading == "chunked" else [])]
    return replies.request_headers(_READING[reading], remove=removed)


GO_ON: Final = {
    (reading, encoded): _go_on(reading, encoded=encoded) for reading in _READING for encoded in (True, False)
}
"""Keyed by what is asked for, and by whether an accept-encoding is taken away (S0.D11)."""
READ_RESPONSE: Final = replies.response_headers(replies.READ_RESPONSE)
IGNORE_RESPONSE: Final = replies.response_headers(replies.SKIP_BODIES)

_STREAMED = (ProcessingMode.STREAMED, ProcessingMode.FULL_DUPLEX_STREAMED)
_OUTCOMES = (Decision, LimiterError, ActionFailure)
_VERDICTS = (Verdict, AuthError, ActionFailure)
_HANDLERS: Final = {
    "request_headers": "_request_headers",
    "request_body": "_request_body_chunk",
    "request_trailers": "_request_trailers",
    "response_headers": "_response_headers",
    "response_body": "_response_body",
    "response_trailers": "_response_trailers",
}
"""The method for each kind of message."""


class _State(Enum):
    NEW = auto()
    REQUEST = auto()
    FORWARDED = auto()
    READING = auto()
    SETTLED = auto()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What exchanges share."""

    metrics: Metrics
    reports: ReportQueue
    spending: Spending
    decisions: DecisionLog
    estimator: Estimator
    prompts: PromptBudget


class Exchange:
    """One HTTP request and its response.

    Call `receive` for each message and send its reply, then `digest`; call `close` when the stream is over for
    whatever reason. None of them raises.
    """

    __slots__ = (
        "_action_set",
        "_changes",
        "_charged",
        "_duplex_request",
        "_duplex_response",
        "_evaluation",
        "_expected",
        "_first_byte",
        "_frame_filter",
        "_guard",
        "_headers",
        "_is_text",
        "_limited",
        "_may_ask",
        "_metered",
        "_model",
        "_models",
        "_namespace",
        "_next_action",
        "_path",
        "_plan",
        "_prompt",
        "_quotas",
        "_reader",
        "_received",
        "_request_body",
        "_request_reader",
        "_request_size",
        "_shared",
        "_started",
        "_state",
        "_streamed_request",
        "_streaming",
        "_strips_usage",
        "_undigested",
        "_used",
        "_who",
        "metadata",
        "request_id",
        "status",
    )

    def __init__(self, plan: Plan, shared: Surroundings) -> None:
        self.request_id = ""
        self.metadata: Metadata = ()
        self.status = 0
        self._plan = plan
        self._shared = shared
        self._state = _State.NEW
        self._action_set: ActionSet | None = None
        self._evaluation: Evaluation | None = None
        self._headers: tuple[tuple[str, str], ...] = ()
        self._changes = b""
        self._who: Who = ()
        self._namespace = ""
        self._limited = False
        self._models: frozenset[str] | None = None
        self._guard: ModelGuard | None = None
        self._quotas: tuple[Quota, ...] = ()
        self._next_action = 0
        self._request_reader: BodyReader | None = None
        self._request_body: list[bytes] | None = None
        self._request_size = 0
        self._path = b""
        self._model = ""
        self._prompt: HeldPrompt | None = None
        self._may_ask = False
        self._metered = False
        self._is_text = False
        self._strips_usage = False
        self._frame_filter: UsageFrameFilter | None = None
        self._started = monotonic()
        self._first_byte = 0.0
        self._reader: BodyReader | None = None
        self._received = 0
        self._expected = -1
        self._undigested = b""
        self._used: Usage | None = None
        self._charged: int | None = None
        self._streaming = False
        self._streamed_request = False
        self._duplex_request = False
        self._duplex_response = False
        shared.metrics.exchanges_open += 1

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

    def _crashed(self, kind: str, message: ProcessingRequest | None = None) -> Reply:
        """A defect of ours: before the call it is a missing decision, after it the answer goes on (G3)."""
        _LOG.exception("internal error", extra={"fields": {"request_id": self.request_id, "message": kind}})
        self._reader = None
        # A defect before the action set is found must not open a way around all of them.
        possible = self._plan.action_sets if self._action_set is None else (self._action_set,)
        undecided = self._state in (_State.NEW, _State.REQUEST) and kind.startswith("request_")
        if undecided and any(action_set.denies_on_failure for action_set in possible):
            return self._fail("internal error", "")
        self._shared.metrics.errors += 1
        changes = self._changes if kind == "request_headers" else b""
        return replies.CONTINUE[kind] if message is None else self._unchanged(kind, message) + changes

    def _unchanged(self, kind: str, message: ProcessingRequest) -> Reply:
        """Let a body chunk pass; in full duplex that means to send it back."""
        duplex = self._duplex_request if kind == "request_body" else self._duplex_response
        return replies.echo(kind, message) if duplex and kind.endswith("_body") else replies.CONTINUE[kind]

    def digest(self) -> bool:
        """Read what was answered before it was read. True when nothing that Envoy could still send matters.

        The stream may be ended then: Envoy goes on without us, but for full duplex, where it waits for every chunk.
        """
        if self._undigested and self._reader is not None:
            chunk, self._undigested = self._undigested, b""
            try:
                self._reader.feed(chunk)
            except Exception:  # noqa: BLE001 - as in `receive`
                self._crashed("response_body")
        return self._state is _State.SETTLED and not (self._duplex_request or self._duplex_response)

    def close(self) -> None:
        """The stream is over: settle with what is known, unless that is done."""
        self._shared.metrics.exchanges_open -= 1
        if self._state is not _State.SETTLED:
            try:
                self._settle("client_gone" if self._action_set is not None else "unmatched")
            except Exception:  # noqa: BLE001 - as in `receive`
                self._crashed("response_trailers")
        if self._prompt is not None:
            self._prompt.release()

    # ── request ───────────────────────────────────────────────────────────────────────────────────

    def _request_headers(self, message: ProcessingRequest) -> Replies:
        if self._state is not _State.NEW:
            return replies.CONTINUE["request_headers"]
        self._note_modes(message)
        facts = RequestFacts(message)
        route = self._plan.hosts.find(facts.host)
        try:
            evaluation = Evaluation.of(route, facts)
        except ActionFailure as error:
            return self._fail(f"route: {error}", "")
        if evaluation is None:
            return self._unmatched(facts)
        self._evaluation = evaluation
        self._action_set = action_set = evaluation.action_set
        self._shared.metrics.hits += 1
        self._state = _State.REQUEST
        self._note_ids(facts)
        self._request_size = max(0, _length(facts.headers.get("content-length", b"")))
        self._path = facts.headers.get(":path", b"")
        self._metered = facts.headers.get(":method", b"").upper() in self._plan.metered_methods
        if action_set.auth_actions:
            return self._identified(facts, message, 0)
        return self._admitted(facts, message)

    def _unmatched(self, facts: RequestFacts) -> Reply:
        """No action set is for this request: it passes, unless that is not wanted."""
        self._shared.metrics.misses += 1
        self._end("unmatched")
        refusals = self._plan.no_match
        if refusals is None:
            self._shared.metrics.allowed += 1
            return NOT_OURS
        self._shared.metrics.denied += 1
        self._shared.spending.rejected("no_match")
        self._note_ids(facts)
        self._shared.decisions.note("denied", {**self._about, "decision": "denied", "code": 404, "reason": "no match"})
        return refusals.rejected("no_match", 404, shown=self._headers, request_id=self.request_id)

    # ── who calls ─────────────────────────────────────────────────────────────────────────────────

    def _identified(self, facts: RequestFacts, message: ProcessingRequest, number: int) -> Replies:
        """Ask who calls, from the `number`th auth action on, then run the others; a refusal is the reply."""
        assert self._action_set is not None
        for action in self._action_set.auth_actions[number:]:
            number += 1
            answer = self._who_calls(action, facts)
            if answer is None:
                continue
            if not isinstance(answer, _VERDICTS):
                return self._wait_for_verdict(action, answer, facts, message, number)
            refusal = self._admit(action, answer, facts)
            if refusal is not None:
                return refusal
        return self._admitted(facts, message)

    async def _wait_for_verdict(
        self,
        action: AuthAction,
        answer: Awaitable[Verdict],
        facts: RequestFacts,
        message: ProcessingRequest,
        number: int,
    ) -> Reply:
        try:
            outcome: Verdict | AuthError = await answer
        except AuthError as error:
            outcome = error
        refusal = self._admit(action, outcome, facts)
        if refusal is not None:
            return refusal
        rest = self._identified(facts, message, number)
        return rest if isinstance(rest, bytes) else await rest

    def _who_calls(self, action: AuthAction, facts: RequestFacts) -> AuthAnswer | AuthError | ActionFailure | None:
        """Ask; None when the action does not apply."""
        assert self._evaluation is not None
        try:
            if not self._evaluation.applies(action):
                return None
            return action.service.authenticate(facts, action.scope, self.metadata)
        except (ActionFailure, AuthError) as error:
            return error

    def _admit(
        self, action: AuthAction, outcome: Verdict | AuthError | ActionFailure, facts: RequestFacts
    ) -> Reply | None:
        """What a verdict means for the request: None to go on, or the reply that ends it."""
        if not isinstance(outcome, Verdict):
            return self._undecided(str(outcome), action.service.name, denies=action.service.denies_on_failure)
        if outcome.status:
            kind: Rejection = "unauthenticated" if outcome.status == 401 else "unauthorized"
            return self._reject(kind, outcome.status, outcome.reason, outcome.headers, outcome.body)
        facts.auth = outcome.auth
        facts.change_headers(outcome.set_headers, outcome.remove_headers)
        if outcome.set_headers or outcome.remove_headers:
            self._changes += replies.request_changes(outcome.set_headers, outcome.remove_headers)
        if outcome.models is not None:
            self._models = outcome.models if self._models is None else self._models & outcome.models
        return None

    def _reject(
        self,
        kind: Rejection,
        status: int,
        reason: str,
        headers: tuple[tuple[str, str], ...] = (),
        body: bytes | None = None,
    ) -> Reply:
        """Refuse a caller, for another reason than a limit."""
        assert self._action_set is not None
        self._shared.metrics.denied += 1
        self._shared.spending.rejected(kind)
        self._end("denied")
        fields = {**self._about, "decision": "denied", "code": status, "reason": reason}
        self._shared.decisions.note("denied", fields)
        return self._action_set.refusals.rejected(
            kind, status, headers, body, self._headers, request_id=self.request_id
        )

    def _admitted(self, facts: RequestFacts, message: ProcessingRequest) -> Replies:
        """It is known who calls, as far as anybody wants to know: run the actions that the headers suffice for."""
        assert self._evaluation is not None
        action_set = self._evaluation.action_set
        self._evaluation.begin()
        self._who = self._plan.labels.of(facts)
        reading: Reading = (
            "nothing" if message.request_headers.end_of_stream else self._reads_request(action_set, facts)
        )
        waits = reading != "nothing" and action_set.decides_on_body
        last = action_set.before_body if waits else len(action_set.request_actions)
        if self._models is not None:
            guard = ModelGuard(self._models, facts, has_body=not message.request_headers.end_of_stream)
            if guard.refuses:
                return self._reject("model", 403, "the model is not allowed")
            if guard.needs_body and (self._streamed_request or not waits):
                return self._fail("nothing can be decided on a request body that the gateway does not hold", "")
            if guard.needs_body:
                self._guard = guard
                self._request_body = []
                last = 0  # a request for another model uses up nothing
        strip = action_set.response_reader is not None and self._metered and self._plan.strip_accept_encoding
        encoded = strip and "accept-encoding" in facts.headers
        asked: Reading = "nothing" if self._streamed_request else reading
        return self._run(last, GO_ON[asked, encoded] + self._changes, forwards=not waits)

    # ── request body ──────────────────────────────────────────────────────────────────────────────

    def _reads_request(self, action_set: ActionSet, facts: RequestFacts) -> Reading:
        """Make ready for the request body, as far as somebody needs it."""
        asks = action_set.include_usage
        self._may_ask = asks is not None and self._metered and asks.may_ask(facts)
        if self._may_ask or action_set.decides_on_body:
            self._prompt = HeldPrompt(self._shared.prompts)
            self._read_request(action_set, facts)
            if asks is None or not self._may_ask:
                return "buffered"
            return "editable" if 0 < self._request_size <= asks.buffer else "chunked"
        if action_set.reads_prompts and self._metered:
            self._prompt = HeldPrompt(self._shared.prompts)
            return "passing"
        return "nothing"

    def _note_ids(self, facts: RequestFacts) -> None:
        self.request_id = facts.header("x-request-id") or str(uuid.uuid4())
        self.metadata = (("x-request-id", self.request_id),)
        for name in _PROPAGATED:
            if name in facts.headers:
                self.metadata += ((name, facts.header(name) or ""),)
        if self._plan.request_id_header is not None:
            self._headers += ((self._plan.request_id_header, self.request_id),)

    def _read_request(self, action_set: ActionSet, facts: RequestFacts) -> None:
        assert action_set.request_reader is not None
        encoding = facts.header("content-encoding") or ""
        self._request_reader = action_set.request_reader.open(facts.header("content-type") or "", encoding)
        if self._evaluation is not None and self._evaluation.names_body:
            self._request_body = []

    def _request_body_chunk(self, message: ProcessingRequest) -> Replies:
        self._note_modes(message)
        chunk = message.request_body
        reply = self._unchanged("request_body", message)
        body = chunk.body
        if self._prompt is not None:
            self._prompt.add(body)
        if self._request_reader is None:
            return reply
        self._request_reader.feed(body)
        if self._request_body is not None:
            self._request_body.append(body)
        ended = _ends(chunk)
        if self._streamed_request and not ended:
            # In full duplex a body that came whole may be told to have ended only by a message of its own.
            return self._asking_for_usage(message, reply) if self._duplex_request else reply
        return self._request_complete(message, reply, ended=ended)

    def _request_complete(self, message: ProcessingRequest | None, reply: Reply, *, ended: bool = True) -> Replies:
        """All of the request is there: run the actions that waited for its body.

        When it has not `ended`, it is all that fitted into Envoy's buffer. A whole document is enough then, only
        trailers follow; of a part nothing is decided, because the rest may say something else (G14).
        """
        reader, action_set = self._request_reader, self._action_set
        if reader is None or action_set is None or self._state is _State.SETTLED:
            return reply
        self._request_reader = None
        reader.close()
        self._model = reader.findings.model
        whole = ended or (reader.complete and self._guard is None)
        if action_set.decides_on_body and (not whole or reader.unread == "too_large"):
            return self._too_large()
        if self._guard is not None and not self._guard.allows(b"".join(self._request_body or ())):
            return self._reject("model", 403, "the model is not allowed")
        if action_set.decides_on_body and reader.unread is not None and action_set.denies_on_failure:
            return self._unreadable(reader.unread)
        if whole and message is not None:
            reply = self._asking_for_usage(message, reply)
        if self._state is not _State.REQUEST:
            return reply
        assert self._evaluation is not None
        self._evaluation.request_is_there(reader.findings.values, b"".join(self._request_body or ()))
        self._request_body = None
        return self._run(len(action_set.request_actions), reply, forwards=True)

    def _asking_for_usage(self, message: ProcessingRequest, reply: Reply) -> Reply:
        """Have the model report the usage of a stream whose client did not ask for it (S0.D6)."""
        asks = None if self._action_set is None else self._action_set.include_usage
        body = message.request_body.body
        in_one_piece = self._prompt is not None and self._prompt.size == len(body)
        # A gateway that is configured to stream has sent the length already.
        too_late = self._streamed_request and not self._duplex_request
        if asks is None or not self._may_ask or too_late or not in_one_piece:
            return reply
        edited = with_include_usage(body, asks.may_ask_model)
        if edited is None:
            return reply
        self._strips_usage = asks.strip
        return replies.body("request_body", message, edited, duplex=self._duplex_request)

    def _request_trailers(self, message: ProcessingRequest) -> Replies:
        return self._request_complete(None, replies.CONTINUE["request_trailers"])

    # ── actions before the call ───────────────────────────────────────────────────────────────────

    def _run(self, last: int, reply: Reply, *, forwards: bool) -> Replies:
        """Run the actions before `last`, then reply; a denial replaces the reply."""
        assert self._action_set is not None
        actions = self._action_set.request_actions
        while self._next_action < last:
            action = actions[self._next_action]
            self._next_action += 1
            answer = self._ask(action)
            if answer is None:
                continue
            if not isinstance(answer, _OUTCOMES):
                return self._wait(action, answer, last, reply, forwards=forwards)
            denial = self._judge(action, answer)
            if denial is not None:
                return denial
        if forwards:
            if self._action_set.denies_without_limit and not self._limited:
                return self._reject("no_limit", 403, "no limit applies")
            self._state = _State.FORWARDED
            self._shared.metrics.allowed += 1
            if self._namespace:
                self._shared.spending.allowed(self._who, self._namespace)
        return reply

    async def _wait(
        self, action: Action, answer: Awaitable[Decision], last: int, reply: Reply, *, forwards: bool
    ) -> Reply:
        try:
            outcome: Decision | LimiterError = await answer
        except LimiterError as error:
            outcome = error
        denial = self._judge(action, outcome)
        if denial is not None:
            return denial
        rest = self._run(last, reply, forwards=forwards)
        return rest if isinstance(rest, bytes) else await rest

    def _ask(self, action: Action) -> Answer | LimiterError | ActionFailure | None:
        """Ask the limiter; None when the action does not apply or needs no answer."""
        assert self._evaluation is not None
        try:
            query = self._evaluation.query(action)
            if query is None:
                return None
            if not isinstance(action.hits, int):
                query = _charging(query, self._evaluation.count(action))
            if not self._namespace:
                self._namespace = query.domain
            if action.service.call != "report":
                return action.service.ask(query, self.metadata)
        except (ActionFailure, LimiterError) as error:
            return error
        self._report(action, query)
        return None

    def _judge(self, action: Action, outcome: Decision | LimiterError | ActionFailure) -> Reply | None:
        """What a limiter's answer means for the request: None to go on, or the reply that ends it."""
        if isinstance(outcome, Decision) and outcome.code is Code.OK:
            if not outcome.unlimited:
                self._limited = True
            if outcome.headers:
                self._headers += outcome.headers
            if outcome.quotas:
                self._quotas += outcome.quotas
            return None
        if isinstance(outcome, Decision) and outcome.code is Code.OVER_LIMIT:
            return self._deny(outcome)
        reason = "the limiter answered UNKNOWN" if isinstance(outcome, Decision) else str(outcome)
        report = action.service.call == "report"  # never a guard (S0.15)
        denies = action.service.denies_on_failure and not report
        self._limited = True  # as far as that is known
        return self._undecided(reason, action.service.name, denies=denies)

    def _undecided(self, reason: str, service: str, *, denies: bool) -> Reply | None:
        """No decision was reached: what the service's failure mode makes of that."""
        if denies:
            return self._fail(reason, service)
        self._shared.metrics.errors += 1
        self._shared.metrics.action_failed(self._action_set_name)
        self._log(logging.WARNING, "allowed without a decision", reason=reason, service=service)
        return None

    def _deny(self, decision: Decision) -> Reply:
        assert self._action_set is not None
        self._shared.metrics.denied += 1
        self._shared.spending.refused(self._who, self._namespace, decision.limit)
        self._end("denied")
        fields = {**self._about, "decision": "denied", "code": "OVER_LIMIT", "limit": decision.limit}
        self._shared.decisions.note("denied", fields)
        return self._action_set.refusals.limited(decision, self._headers, request_id=self.request_id)

    def _too_large(self) -> Reply:
        self._shared.metrics.denied += 1
        self._end("denied")
        reason = "the request body does not fit into Envoy's buffer"
        self._shared.decisions.note("denied", {**self._about, "reason": reason})
        return replies.with_headers(TOO_LARGE, self._headers) if self._headers else TOO_LARGE

    def _unreadable(self, why: str) -> Reply:
        """Nothing is decided on a body that others may read otherwise."""
        self._shared.metrics.denied += 1
        self._shared.metrics.body_unread("encoding" if why == "encoding" else "corrupt")
        self._end("denied")
        reason = f"the request body cannot be read: {why}"
        self._shared.decisions.note("denied", {**self._about, "decision": "denied", "reason": reason})
        reply = UNSUPPORTED if why == "encoding" else BAD_REQUEST
        return replies.with_headers(reply, self._headers) if self._headers else reply

    def _fail(self, reason: str, service: str) -> Reply:
        """No decision, and the service denies then: 500 (S0.14)."""
        self._shared.metrics.errors += 1
        self._shared.metrics.denied += 1
        self._shared.metrics.action_failed(self._action_set_name)
        self._end("error")
        self._log(logging.ERROR, "denied: no decision", reason=reason, **({"service": service} if service else {}))
        return replies.with_headers(FAILED, self._headers) if self._headers else FAILED

    # ── response ──────────────────────────────────────────────────────────────────────────────────

    def _response_headers(self, message: ProcessingRequest) -> Reply:
        self._note_modes(message)
        action_set = self._action_set
        if action_set is None or self._state is _State.SETTLED:
            return IGNORE_RESPONSE
        if self._quotas and self._plan.shows_quotas:
            # What a limiter says itself comes later, and so wins.
            self._headers = ratelimit_headers(sorted(self._quotas, key=_remaining)) + self._headers
        headers = _headers(message)
        status = headers.get(":status", b"")
        self.status = int(status) if status.isdigit() else 0
        if not self._reads(action_set, ended=message.response_headers.end_of_stream):
            self._settle("complete")
            return self._with_headers(IGNORE_RESPONSE, replies.SKIP_BODIES)
        assert action_set.response_reader is not None
        if not self._request_size:
            size = attribute(message, "request.size")
            self._request_size = size if isinstance(size, int) else 0
        self._state = _State.READING
        self._expected = _length(headers.get("content-length", b""))
        content_type = headers.get("content-type", b"").decode("latin-1")
        content_encoding = headers.get("content-encoding", b"").decode("latin-1")
        self._reader = action_set.response_reader.open(content_type, content_encoding)
        self._is_text = not content_type or content_type.lower().startswith(_TEXT_TYPES)
        if self._strips_usage and not content_encoding and "text/event-stream" in content_type.lower():
            self._frame_filter = UsageFrameFilter()
            self._expected = -1
            return replies.response_headers(replies.READ_RESPONSE, add=self._headers, remove=("content-length",))
        return self._with_headers(READ_RESPONSE, replies.READ_RESPONSE)

    def _with_headers(self, plain: Reply, mode: ProcessingMode) -> Reply:
        return replies.response_headers(mode, add=self._headers) if self._headers else plain

    def _reads(self, action_set: ActionSet, *, ended: bool) -> bool:
        """Whether the answer is worth reading: it has a body, it was generated now, and is no error (S0.D7, S0.23)."""
        charged = self.status < 300 or self._plan.charge_errors
        forwarded = self._state in (_State.REQUEST, _State.FORWARDED)
        return action_set.response_reader is not None and self._metered and forwarded and charged and not ended

    def _response_body(self, message: ProcessingRequest) -> Replies:
        chunk = message.response_body
        reply = replies.echo("response_body", message) if self._duplex_response else replies.CONTINUE["response_body"]
        if self._state is not _State.READING:
            return reply
        self.digest()
        body = chunk.body
        self._undigested = body
        if not self._received:
            self._first_byte = monotonic()
        self._received += len(body)
        if self._frame_filter is not None:
            left = self._without_usage_frame(self._frame_filter, body, last=_ends(chunk))
            if left is not None:
                reply = replies.body("response_body", message, left, duplex=self._duplex_response)
        # A client that was told the length is done with the last byte, and Envoy may tell us of the end later.
        over = _ends(chunk) or self._received == self._expected
        return self._response_complete(reply) if over else reply

    def _without_usage_frame(self, frames: UsageFrameFilter, body: bytes, *, last: bool) -> bytes | None:
        """What the client is to see of a piece; None for all of it."""
        try:
            return frames.feed(body, last)
        except Exception:  # noqa: BLE001 - as in `receive`
            _LOG.exception("internal error", extra={"fields": {"request_id": self.request_id}})
            self._shared.metrics.errors += 1
            self._frame_filter = None
            return None

    def _response_complete(self, reply: Reply) -> Replies:
        """The answer is over: settle, and hold the last reply until the reports are answered, but not for long."""
        if self._state is not _State.READING:
            return reply
        pending = self._settle("complete")
        return self._hold(reply, pending) if pending else reply + self._metadata()

    def _response_trailers(self, message: ProcessingRequest) -> Replies:
        return self._response_complete(replies.CONTINUE["response_trailers"])

    async def _hold(self, reply: Reply, pending: Sequence[asyncio.Task[None]]) -> Reply:
        await asyncio.wait(pending, timeout=self._plan.report_wait)
        return reply + self._metadata()

    def _metadata(self) -> bytes:
        """What the gateway's access log can show (G10, S4.13); protobuf messages merge when their bytes are joined."""
        if self._used is None:
            return b""
        return replies.usage(self._plan.metadata_namespace, self._used, self._charged, streaming=self._streaming)

    # ── settling ──────────────────────────────────────────────────────────────────────────────────

    def _settle(self, ending: Ending) -> list[asyncio.Task[None]]:
        """End the exchange: report what the model used, if it was called and answered. What is under way of that."""
        reader = self._reader
        self.digest()
        self._state = _State.SETTLED
        self._reader = None
        if reader is not None:
            reader.close()
            if ending == "client_gone" and reader.mid_event:
                ending = "upstream_cut"
        if ending == "complete" and self.status >= 400:
            ending = "error"
        self._shared.metrics.exchange_ended(ending)
        if reader is None or not self._received or ending == "denied" or ending == "unmatched":
            return []
        if reader.unread is not None:
            self._shared.metrics.body_unread(reader.unread)
        assert self._evaluation is not None
        findings = reader.findings
        # Of an encoding that nobody here can read, the encoded size is all that is known.
        is_text = self._is_text or reader.unread == "encoding"
        findings.body_size = (findings.body_size or self._received) if is_text else 0
        self._evaluation.answer_is_there(findings.values)
        shared = self._shared
        usage = self._plan.meter.read(findings, self._request, ending, shared.estimator, shared.metrics.estimated)
        self._streaming = reader.streaming
        ended = monotonic()
        if isinstance(usage, Usage):
            return self._account(usage, ended)
        # Counting may take longer than this stream lives.
        later = self._counted(usage)
        return [shared.reports.defer(later, lambda counted: self._account_later(counted, ended), self.request_id)]

    def _request(self) -> Request:
        """What is known of the request, for those answers that do not tell everything."""
        size, prompt = self._request_size, self._prompt
        if prompt is not None and prompt.size < size:
            prompt = None  # a part says little of the whole
        elif prompt is not None:
            size = prompt.size
        return Request(self._path.decode("latin-1"), self._model, prompt, size)

    async def _counted(self, usage: Awaitable[Usage]) -> Usage | None:
        try:
            return await usage
        except Exception:  # noqa: BLE001 - as in `receive`
            self._crashed("response_trailers")
            return None

    def _account_later(self, usage: Usage | None, ended: float) -> list[asyncio.Task[None]]:
        try:
            return [] if usage is None else self._account(usage, ended)
        except Exception:  # noqa: BLE001 - as in `receive`
            self._crashed("response_trailers")
            return []

    def _account(self, usage: Usage, ended: float) -> list[asyncio.Task[None]]:
        """Tell everybody who wants to know what was used; the reports under way."""
        evaluation = self._evaluation
        assert evaluation is not None
        dialect = DIALECTS.get(usage.dialect)
        first_token = self._first_byte - self._started if self._streaming else None
        provider = "" if dialect is None else dialect.provider
        self._shared.metrics.used(usage, provider, ended - self._started, first_token)
        evaluation.usage_is_there(usage)
        self._used = usage
        pending = [self._settle_action(action, evaluation, usage) for action in evaluation.action_set.response_actions]
        self._shared.spending.used(self._who, self._namespace, usage, self._charged, provider)
        return [task for task in pending if task is not None]

    def _settle_action(self, action: Action, evaluation: Evaluation, usage: Usage) -> asyncio.Task[None] | None:
        try:
            query = evaluation.query(action)
            if query is None:
                return None
            hits, source = evaluation.hits(action, usage)
        except ActionFailure as failure:
            self._shared.metrics.errors += 1
            self._shared.metrics.action_failed(self._action_set_name)
            self._log(logging.WARNING, "rate limit report failed", reason=str(failure), service=action.service.name)
            return None
        if self._charged is None:
            self._charged = hits
            self._namespace = query.domain
        return self._report(action, _charging(query, hits), usage, source)

    def _report(
        self, action: Action, query: Query, usage: Usage | None = None, source: Source = "fixed"
    ) -> asyncio.Task[None] | None:
        """Hand a report over; none for 0 hits, which Limitador would count as 1 (S0.D8)."""
        decisions = self._shared.decisions
        if decisions.enabled:
            fields = self._about
            fields["decision"] = "allowed"
            fields["domain"] = query.domain
            fields["hits_addend"] = query.hits_addend
            if usage is not None:
                fields["usage"] = source
                fields["ending"] = usage.ending
                fields["model"] = usage.model
            fields["status"] = self.status
            decisions.note("consumed", fields)
        if query.hits_addend == 0:
            return None
        self._shared.metrics.tokens_reported += query.hits_addend
        return self._shared.reports.submit(action.service.ask, query, self.metadata, self.request_id)

    def _end(self, ending: Ending) -> None:
        self._state = _State.SETTLED
        self._shared.metrics.exchange_ended(ending)

    # ── helpers ───────────────────────────────────────────────────────────────────────────────────

    def _note_modes(self, message: ProcessingRequest) -> None:
        """The first message tells how bodies are sent; in full duplex they must be sent back."""
        if self._state is _State.NEW and message.HasField("protocol_config"):
            modes = message.protocol_config
            self._streamed_request = modes.request_body_mode in _STREAMED
            self._duplex_request = modes.request_body_mode == ProcessingMode.FULL_DUPLEX_STREAMED
            self._duplex_response = modes.response_body_mode == ProcessingMode.FULL_DUPLEX_STREAMED

    def _log(self, level: int, event: str, **fields: Any) -> None:
        _LOG.log(level, event, extra={"fields": {**self._about, **fields}})

    @property
    def _about(self) -> dict[str, Any]:
        """What every log line of this exchange begins with."""
        about: dict[str, Any] = {"request_id": self.request_id, "action_set": self._action_set_name}
        who = zip(self._plan.labels.names, self._who, strict=False)  # nobody yet: a refusal before that
        about.update((name, value) for name, value in who if value)
        return about

    @property
    def _action_set_name(self) -> str:
        return self._action_set.name if self._action_set is not None else ""


def _charging(query: Query, hits: int) -> Query:
    return Query(query.domain, query.descriptors, hits)


def _headers(message: ProcessingRequest) -> dict[str, bytes]:
    """The response headers; of one that occurs several times, the last."""
    sent = message.response_headers.headers.headers
    headers = {header.key: header.raw_value for header in sent}
    return headers if headers.get(":status") else {header.key: header.value.encode() for header in sent}


def _length(value: bytes) -> int:
    """A content-length, -1 where there is none that can be read."""
    return int(value) if value.isdigit() and len(value) < 16 else -1


def _remaining(quota: Quota) -> int:
    return quota.remaining


def _ends(chunk: HttpBody) -> bool:
    return chunk.end_of_stream or chunk.end_of_stream_without_message
