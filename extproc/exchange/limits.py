"""The actions before the call of the model: what limiters are asked, and what their answers mean."""

from __future__ import annotations

from extproc.exchange import denials
from extproc.exchange.denials import Reply
from extproc.exchange.record import Record
from extproc.exchange.reporting import charging, report
from extproc.limiter.seam import Code, Decision, LimiterError
from extproc.plan.action import Action
from extproc.plan.sight import ActionFailure


class Limits:
    """Runs the actions of an action set in order, some when the head is there and the others when the body is."""

    __slots__ = ("_next", "_record", "limited")

    def __init__(self, record: Record) -> None:
        self._record = record
        self._next = 0
        self.limited = False
        """Whether a limit applies, as far as that is known."""

    async def ask(self, last: int) -> Reply | None:
        """Run the actions before `last`. None to go on, or the reply that ends the exchange."""
        assert self._record.action_set is not None
        actions = self._record.action_set.request_actions
        while self._next < last:
            action = actions[self._next]
            self._next += 1
            outcome = await self._ask(action)
            if outcome is not None and (denial := self._judge(action, outcome)) is not None:
                return denial
        return None

    async def _ask(self, action: Action) -> Decision | LimiterError | ActionFailure | None:
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
            if action.service.call != "report":
                answer = action.service.ask(query, record.metadata)
                return answer if isinstance(answer, Decision) else await answer
        except (ActionFailure, LimiterError) as error:
            return error
        report(record, action, query)
        return None

    def _judge(self, action: Action, outcome: Decision | LimiterError | ActionFailure) -> Reply | None:
        """What a limiter's answer means for the request: None to go on, or the reply that ends it."""
        record = self._record
        if isinstance(outcome, Decision) and outcome.code is Code.OK:
            if not outcome.unlimited:
                self.limited = True
            if outcome.headers:
                record.shown += outcome.headers
            if outcome.quotas:
                record.quotas += outcome.quotas
            return None
        if isinstance(outcome, Decision) and outcome.code is Code.OVER_LIMIT:
            return denials.over_limit(record, outcome)
        reason = "the limiter answered UNKNOWN" if isinstance(outcome, Decision) else str(outcome)
        is_report = action.service.call == "report"  # never a guard (S0.15)
        self.limited = True  # as far as that is known
        denies = action.service.denies_on_failure and not is_report
        return denials.undecided(record, reason, action.service.name, denies=denies)
