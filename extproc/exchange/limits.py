"""What limiters are asked before the call of the model, and what their answers mean."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import monotonic

from extproc.exchange import denials
from extproc.exchange.record import Precharged, Record
from extproc.exchange.reporting import charging, report
from extproc.limiter.seam import Answer, Code, Decision, LimiterError, Query
from extproc.plan.action import Action, Precharge
from extproc.plan.routing import PromptGate
from extproc.plan.sight import ActionFailure
from extproc.providers.prompt_limits import Missing, Selection, legacy_body
from extproc.replies import Reply

Outcome = Decision | LimiterError | ActionFailure
Tokens = Callable[[], Awaitable[int]]
"""Of the prompt, estimated when somebody asks."""


class Limits:
    """Runs the actions of an action set in order, some when the head is there and the others when the body is."""

    __slots__ = ("_next", "_record", "limited")

    def __init__(self, record: Record) -> None:
        self._record = record
        self._next = 0
        self.limited = False
        """Whether a limit applies, as far as that is known."""

    async def ask(self, last: int, tokens: Tokens) -> Reply | None:
        """Run the actions before `last`; `tokens` counts the prompt. None to go on, or the reply that ends all."""
        assert self._record.action_set is not None
        actions = self._record.action_set.request_actions
        while self._next < last:
            action = actions[self._next]
            self._next += 1
            outcome = await self._ask(action, tokens)
            if outcome is not None and (denial := self._judge(action, outcome)) is not None:
                return denial
        return None

    async def ask_about_prompt(
        self, gate: PromptGate, selection: Selection, model: str, tokens: Tokens
    ) -> Reply | None:
        """Whether the prompt fits into the limits of `model`, which is what its provider calls it."""
        record = self._record
        found = gate.queries.query(selection, model, 1)
        if isinstance(found, Query):
            found = gate.queries.query(selection, model, await tokens())
        if found is None:
            return None
        if isinstance(found, Missing):
            reason = f"the header `{found.header}` is missing, by which prompts are limited"
            return denials.rejected(record, "no_selector", 403, reason)
        if not record.namespace:
            record.namespace = found.domain
        try:
            outcome: Outcome = await _answer(gate.service.ask(found, record.metadata))
        except LimiterError as error:
            outcome = error
        if isinstance(outcome, Decision) and outcome.code is Code.OVER_LIMIT:
            return denials.over_prompt_limit(record, outcome, legacy_body(found) if gate.shows_selector else None)
        return self._take(outcome, gate.service.name, denies=gate.service.denies_on_failure)

    async def _ask(self, action: Action, tokens: Tokens) -> Outcome | None:
        """None when the action does not apply or needs no answer."""
        record = self._record
        assert record.evaluation is not None
        try:
            query = record.evaluation.query(action)
            if query is None:
                return None
            if not isinstance(action.hits, int):
                query = charging(query, record.evaluation.count(action))
            if not record.namespace:
                record.namespace = query.domain
            if action.precharge is not None and record.metered:
                return await self._precharge(action, action.precharge, query, tokens)
            if action.service.call != "report":
                answer = action.service.ask(query, record.metadata)
                return answer if isinstance(answer, Decision) else await answer  # most answer at once
        except (ActionFailure, LimiterError) as error:
            return error
        report(record, action, query)
        return None

    async def _precharge(self, action: Action, precharge: Precharge, query: Query, tokens: Tokens) -> Decision:
        """Charge the prompt at once, and once; what the report of the same counters charges is the rest."""
        record = self._record
        key = action.service.endpoint, query.domain, query.descriptors[0]
        prompt = 0 if key in record.precharged else await tokens()
        if not prompt:
            return await _answer(action.service.ask(query, record.metadata))
        query = charging(query, prompt)
        decision = await _answer(precharge.charge(query, record.metadata))
        if decision.code is Code.OK:
            record.precharged[key] = Precharged(query, precharge.refund, precharge.keeps, monotonic())
        return decision

    def _judge(self, action: Action, outcome: Outcome) -> Reply | None:
        if isinstance(outcome, Decision) and outcome.code is Code.OVER_LIMIT:
            return denials.over_limit(self._record, outcome)
        is_report = action.service.call == "report"  # never a guard (S0.15)
        return self._take(outcome, action.service.name, denies=action.service.denies_on_failure and not is_report)

    def _take(self, outcome: Outcome, service: str, *, denies: bool) -> Reply | None:
        """What an answer other than a refusal means: None to go on, or the reply that ends the exchange."""
        record = self._record
        if isinstance(outcome, Decision) and outcome.code is Code.OK:
            if not outcome.unlimited:
                self.limited = True
            if outcome.headers:
                record.shown += outcome.headers
            if outcome.quotas:
                record.quotas += outcome.quotas
            return None
        reason = "the limiter answered UNKNOWN" if isinstance(outcome, Decision) else str(outcome)
        self.limited = True  # as far as that is known
        return denials.undecided(record, reason, service, denies=denies)


async def _answer(answer: Answer) -> Decision:
    return answer if isinstance(answer, Decision) else await answer
