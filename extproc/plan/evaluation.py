"""What the expressions of an action set come to for one exchange."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from extproc.bodies.findings import Values
from extproc.expressions import Expression
from extproc.facts import RequestFacts
from extproc.limiter.seam import MAX_HITS, Descriptor, Query
from extproc.plan.action import Action, AuthAction, Form
from extproc.plan.attributes import USAGE
from extproc.plan.bodies import BodyValues
from extproc.plan.plan import ActionSet, Outcome, Outcomes, Route
from extproc.plan.sight import ActionFailure, Sight
from extproc.usage.usage import Source, Usage


class Evaluation:
    """Begins with the headers of the request; is told of the caller, of bodies and usage as they become known.

    Nothing is evaluated before `begin`: what is found out about the caller may change what the headers say.
    """

    __slots__ = ("_bodies", "_outcomes", "_sight", "action_set")

    def __init__(self, action_set: ActionSet, facts: RequestFacts, bodies: BodyValues) -> None:
        self.action_set = action_set
        self._bodies = bodies
        self._sight = Sight(action_set.scope, facts, bodies)
        self._outcomes: Sequence[Outcome] | None = None

    @classmethod
    def of(cls, route: Route | None, facts: RequestFacts) -> Evaluation | None:
        """That of the first action set whose predicates hold; only the most specific host is asked (S0.9).

        Raises ActionFailure for predicates without an answer.
        """
        if route is None:
            return None
        found = route.choice.of(facts)
        if isinstance(found, ActionFailure):
            raise found.again()
        return None if found is None else cls(found, facts, BodyValues())

    def applies(self, action: AuthAction) -> bool:
        """Whether the caller is to be told by `action`. Raises ActionFailure."""
        if not action.predicates:
            return True
        # What another action has found out meanwhile counts.
        return action.applies(Sight(self.action_set.scope, self._sight.facts, self._bodies))

    def begin(self, facts: RequestFacts | None = None) -> None:
        """All that is to be known of the request's head is known; or, with `facts`, something else than before."""
        facts, memo = facts or self._sight.facts, self.action_set.memo
        sight = Sight(self.action_set.scope, facts, self._bodies)
        if memo is None or facts is None:
            self._sight = sight
            _ = sight.context  # now, while times are those of the request
            return
        outcomes = memo.of(facts)
        if Form in map(type, outcomes):
            outcomes = _filled(outcomes, sight)
        self._outcomes = outcomes
        self._sight = Sight(self.action_set.scope, None, self._bodies)

    @property
    def names_body(self) -> bool:
        """Whether an expression names the request body as a whole."""
        return self.action_set.scope.attributes.needs_body

    def request_is_there(self, values: Values, body: bytes) -> None:
        """The request body is over: what pointers found in it, and all of it where an expression names it."""
        self._bodies.request = values
        if self.names_body and self._sight.facts is not None:
            self._sight.context.update(self.action_set.scope.attributes.bind(self._sight.facts, body))

    def answer_is_there(self, values: Values) -> None:
        """The answer is over: what pointers found in it."""
        self._bodies.response = values

    def usage_is_there(self, usage: Usage) -> None:
        """The usage is known."""
        if self.action_set.scope.usage:
            self._sight.context.update({USAGE: usage._asdict()})

    def query(self, action: Action) -> Query | None:
        """What `action` asks; None when it does not apply. Raises ActionFailure."""
        if self._outcomes is None:
            return action.query(self._sight)
        outcome = self._outcomes[action.index]
        if isinstance(outcome, ActionFailure):
            raise outcome.again()
        assert not isinstance(outcome, Form)
        return outcome

    def count(self, action: Action) -> int:
        """The hits of an action before the call of the model. Raises ActionFailure."""
        hits = action.hits
        return hits if isinstance(hits, int) else self._count(action, hits)

    def hits(self, action: Action, usage: Usage) -> tuple[int, Source]:
        """What an action charges when the answer is over, and who says so. Raises ActionFailure.

        An answer that lacks the number which an expression looks for is charged by the usage that was found: that of
        another dialect, or an estimate. A charge that the configuration fixes is the charge, whatever is asked for.
        """
        hits = action.hits
        if isinstance(hits, int):
            return hits, "fixed"
        names_usage = USAGE in hits.variables
        if not (names_usage or hits.looks_into_answer):
            return self._count(action, hits), "fixed"
        if usage.source == "fixed":
            return min(usage.total_tokens, MAX_HITS), "fixed"
        if names_usage:
            return self._count(action, hits), usage.source
        with suppress(ActionFailure):
            found = self._count(action, hits)
            # A count of nothing for an answer that has to be estimated says nothing.
            if found or usage.source != "estimated":
                return found, "reported"
        if usage.source == "none":
            return 0, "none"
        self._bodies.usage = usage
        try:
            return self._count(action, hits), usage.source
        except ActionFailure:
            return min(usage.total_tokens, MAX_HITS), usage.source
        finally:
            self._bodies.usage = None

    def _count(self, action: Action, hits: Expression) -> int:
        """Raises ActionFailure."""
        return action.count(hits, self._bodies, lambda: self._sight.context)


def _filled(outcomes: Outcomes, sight: Sight) -> Outcomes:
    """The same with the values of one request."""
    known: dict[int, tuple[Descriptor, ...]] = {}
    filled: list[Outcome] = []
    for outcome in outcomes:
        if isinstance(outcome, Form):
            try:
                outcome = outcome.fill(sight, known)
            except ActionFailure as failure:
                outcome = failure
        filled.append(outcome)
    return tuple(filled)
