"""What the expressions of an action set come to for one exchange."""

from __future__ import annotations

from contextlib import suppress

import cel

from extproc.bodies.findings import Values
from extproc.expressions import Expression
from extproc.facts import RequestFacts
from extproc.limiter.seam import MAX_HITS, Query
from extproc.plan.action import Action, ActionFailure, all_true
from extproc.plan.attributes import USAGE
from extproc.plan.bodies import BodyValues
from extproc.plan.memo import Outcomes
from extproc.plan.plan import ActionSet, Route
from extproc.usage.usage import Source, Usage


class Evaluation:
    """Begins with the headers of the request; is told of bodies and usage as they become known."""

    __slots__ = ("_bodies", "_context", "_facts", "_outcomes", "action_set")

    def __init__(self, action_set: ActionSet, facts: RequestFacts, bodies: BodyValues) -> None:
        self.action_set = action_set
        self._bodies = bodies
        self._context: cel.Context | None = None
        self._outcomes: Outcomes | None = None
        self._facts: RequestFacts | None = None
        if action_set.memo is not None:
            self._outcomes = action_set.memo.outcomes(facts)
        else:
            self._context = action_set.scope.bind(facts, bodies)
            self._facts = facts if action_set.scope.attributes.needs_body else None

    @classmethod
    def of(cls, route: Route | None, facts: RequestFacts) -> Evaluation | None:
        """That of the first action set whose predicates hold; only the most specific host is asked (S0.9).

        Raises ActionFailure and ExpressionError for predicates without an answer.
        """
        if route is None:
            return None
        bodies = BodyValues()
        context: cel.Context | None = None
        for action_set in route.action_sets:
            if action_set.predicates:
                context = context or route.scope.bind(facts, bodies)
                if not all_true(action_set.predicates, context):
                    continue
            return cls(action_set, facts, bodies)
        return None

    @property
    def names_body(self) -> bool:
        """Whether an expression names the request body as a whole."""
        return self._facts is not None

    def request_is_there(self, values: Values, body: bytes) -> None:
        """The request body is over: what pointers found in it, and all of it where an expression names it."""
        self._bodies.request = values
        if self._facts is not None and self._context is not None:
            self._context.update(self.action_set.scope.attributes.bind(self._facts, body))

    def answer_is_there(self, values: Values) -> None:
        """The answer is over: what pointers found in it."""
        self._bodies.response = values

    def usage_is_there(self, usage: Usage) -> None:
        """The usage is known."""
        if self.action_set.scope.usage:
            self._any_context().update({USAGE: usage._asdict()})

    def query(self, action: Action) -> Query | None:
        """What `action` asks; None when it does not apply. Raises ActionFailure."""
        if self._outcomes is None:
            assert self._context is not None
            return action.query(self._context)
        outcome = self._outcomes[action.index]
        if isinstance(outcome, ActionFailure):
            raise outcome
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
        return action.count(hits, self._bodies, self._any_context)

    def _any_context(self) -> cel.Context:
        """The context of the request, or one without attributes where none was needed so far."""
        if self._context is None:
            self._context = self.action_set.scope.bind(None, self._bodies)
        return self._context
