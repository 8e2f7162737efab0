"""The end of an exchange: what the model used, and who is told. Exactly once, whatever ended it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable
from time import monotonic

from extproc import replies
from extproc.bodies.reader import BodyReader
from extproc.exchange.record import Record
from extproc.exchange.refunds import give_back_rest, settle_rest
from extproc.exchange.reporting import charging, report
from extproc.plan.action import Action
from extproc.plan.evaluation import Evaluation
from extproc.plan.sight import ActionFailure
from extproc.usage.dialects import DIALECTS
from extproc.usage.meter import Request
from extproc.usage.usage import Ending as AnswerEnding
from extproc.usage.usage import Usage

Pending = list[asyncio.Task[None]]


class Settlement:
    """One exchange that was answered. `first_byte` is when the answer began, in seconds of the monotonic clock."""

    __slots__ = ("_charged", "_first_byte", "_record", "_streaming", "_used")

    def __init__(self, record: Record, first_byte: float) -> None:
        self._record = record
        self._first_byte = first_byte
        self._streaming = False
        self._used: Usage | None = None
        self._charged: int | None = None

    def settle(self, reader: BodyReader, received: int, ending: AnswerEnding, *, is_text: bool) -> Pending:
        """Report what an answer of `received` bytes, now in `reader`, used; the reports under way."""
        record = self._record
        shared = record.shared
        if reader.unread is not None:
            shared.metrics.body_unread(reader.unread)
        assert record.evaluation is not None
        findings = reader.findings
        # Of an encoding that nobody here can read, the encoded size is all that is known.
        is_text = is_text or reader.unread == "encoding"
        findings.body_size = (findings.body_size or received) if is_text else 0
        record.evaluation.answer_is_there(findings.values)
        usage = record.plan.meter.read(findings, self._request, ending, shared.estimator, shared.metrics.estimated)
        self._streaming = reader.streaming
        ended = monotonic()
        if isinstance(usage, Usage):
            return self._account(usage, ended)
        # Counting may take longer than this stream lives.
        later = self._counted(usage)
        return [shared.reports.defer(later, lambda counted: self._account_later(counted, ended), record.request_id)]

    def metadata(self) -> bytes:
        """What the gateway's access log can show (G10, S4.13); protobuf messages merge when their bytes are joined."""
        if self._used is None:
            return b""
        namespace = self._record.plan.metadata_namespace
        return replies.usage(namespace, self._used, self._charged, streaming=self._streaming)

    def _request(self) -> Request:
        """What is known of the request, for those answers that do not tell everything."""
        record = self._record
        size, prompt = record.request_size, record.prompt
        if prompt is not None and prompt.size < size:
            prompt = None  # a part says little of the whole
        elif prompt is not None:
            size = prompt.size
        return Request(record.path.decode("latin-1"), record.model, prompt, size)

    async def _counted(self, usage: Awaitable[Usage]) -> Usage | None:
        try:
            return await usage
        except Exception:  # noqa: BLE001 - a defect must not end the queue of reports
            self._record.defect("settlement")
            return None

    def _account_later(self, usage: Usage | None, ended: float) -> Pending:
        try:
            return [] if usage is None else self._account(usage, ended)
        except Exception:  # noqa: BLE001 - as in `_counted`
            self._record.defect("settlement")
            return []

    def _account(self, usage: Usage, ended: float) -> Pending:
        """Tell everybody who wants to know what was used; the reports under way."""
        record, evaluation = self._record, self._record.evaluation
        assert evaluation is not None
        dialect = DIALECTS.get(usage.dialect)
        first_token = self._first_byte - record.started if self._streaming else None
        provider = "" if dialect is None else dialect.provider
        if record.provider is not None:
            provider = record.provider.name
        record.shared.metrics.used(usage, provider, ended - record.started, first_token)
        evaluation.usage_is_there(usage)
        self._used = usage
        if not evaluation.action_set.response_actions:
            self._note(usage)
        actions: Iterable[Action] = evaluation.action_set.response_actions
        if record.precharged:
            # What was charged before the call goes to the report that has exactly its entries, if there is one.
            actions = sorted(actions, key=lambda action: not self._is_precharged(action, evaluation))
        pending = [self._settle_action(action, evaluation, usage) for action in actions]
        if record.precharged:
            give_back_rest(record)
        record.shared.spending.used(record.who, record.namespace, usage, self._charged, provider)
        return [task for task in pending if task is not None]

    def _note(self, usage: Usage) -> None:
        """Where no limiter is told, the log is (S2.23)."""
        record = self._record
        if record.shared.decisions.enabled:
            fields = {**record.about, "total_tokens": usage.total_tokens, "completion_tokens": usage.completion_tokens}
            fields |= {"usage": usage.source, "ending": usage.ending, "model": usage.model, "status": record.status}
            record.shared.decisions.note("consumed", {**fields, "end_stream": True})

    def _is_precharged(self, action: Action, evaluation: Evaluation) -> bool:
        try:
            query = evaluation.query(action)
        except ActionFailure:
            return False
        if query is None:
            return False
        return (action.service.endpoint, query.domain, query.descriptors[0]) in self._record.precharged

    def _settle_action(self, action: Action, evaluation: Evaluation, usage: Usage) -> asyncio.Task[None] | None:
        record = self._record
        try:
            query = evaluation.query(action)
            if query is None:
                return None
            hits, source = evaluation.hits(action, usage)
        except ActionFailure as failure:
            record.shared.metrics.errors += 1
            record.shared.metrics.action_failed(record.action_set_name)
            record.log(logging.WARNING, "rate limit report failed", reason=str(failure), service=action.service.name)
            return None
        if self._charged is None:
            self._charged = hits
            record.namespace = query.domain
        rest = settle_rest(record, action.service.endpoint, query, hits)
        return report(record, action, charging(query, rest), usage, source, hits - rest)
