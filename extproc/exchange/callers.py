"""Finding out who calls, before anything else: whatever the other actions ask depends on it."""

from __future__ import annotations

from extproc.exchange import denials
from extproc.exchange.record import Record
from extproc.facts import RequestFacts
from extproc.identity.seam import AuthError, Verdict
from extproc.plan.action import AuthAction
from extproc.plan.sight import ActionFailure
from extproc.replies import Reply
from extproc.telemetry.spending import Rejection


class Caller:
    """What authenticators say of a caller."""

    __slots__ = ("models",)

    def __init__(self) -> None:
        self.models: frozenset[str] | None = None
        """Those it may ask for; None for any."""

    async def identify(self, record: Record, facts: RequestFacts) -> Reply | None:
        """Ask all authenticators that apply, in order. None to go on, or the reply that ends the exchange."""
        assert record.action_set is not None
        for action in record.action_set.auth_actions:
            outcome = await _ask(record, action, facts)
            if outcome is not None and (refusal := self._admit(record, action, outcome, facts)) is not None:
                return refusal
        return None

    def _admit(
        self, record: Record, action: AuthAction, outcome: Verdict | AuthError | ActionFailure, facts: RequestFacts
    ) -> Reply | None:
        if not isinstance(outcome, Verdict):
            return denials.undecided(record, str(outcome), action.service.name, denies=action.service.denies_on_failure)
        if outcome.status:
            kind: Rejection = "unauthenticated" if outcome.status == 401 else "unauthorized"
            return denials.rejected(record, kind, outcome.status, outcome.reason, outcome.headers, outcome.body)
        facts.auth = outcome.auth
        facts.change_headers(outcome.set_headers, outcome.remove_headers)
        record.change_headers(outcome.set_headers, outcome.remove_headers)
        if outcome.models is not None:
            self.models = outcome.models if self.models is None else self.models & outcome.models
        return None


async def _ask(record: Record, action: AuthAction, facts: RequestFacts) -> Verdict | AuthError | ActionFailure | None:
    """None when the action does not apply."""
    assert record.evaluation is not None
    try:
        if not record.evaluation.applies(action):
            return None
        answer = action.service.authenticate(facts, action.scope, record.metadata)
        return answer if isinstance(answer, Verdict) else await answer
    except (ActionFailure, AuthError) as error:
        return error
