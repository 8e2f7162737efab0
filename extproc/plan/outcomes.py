"""What actions come to, remembered for requests that look alike but for plain values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from extproc.expressions import Expression
from extproc.facts import RequestFacts
from extproc.plan.action import Action, AuthAction, Form, Item
from extproc.plan.attributes import USAGE
from extproc.plan.bodies import BodyValues
from extproc.plan.memo import Memo
from extproc.plan.needs import conditions_of, expressions_of, items_of, scope_of
from extproc.plan.plan import Outcome, Outcomes
from extproc.plan.sight import ActionFailure, Condition, Fingerprint, Scope, Sight, fingerprint_of


def outcomes_memo(actions: Sequence[AuthAction | Action], scope: Scope) -> Memo[Outcomes] | None:
    """A memo of what `actions` come to; None where that depends on more than a few plain attributes of a request."""
    limits = [action for action in actions if isinstance(action, Action)]
    queries = [expression for action in limits for expression in expressions_of(replace(action, hits=1))]
    hits = [action.hits for action in limits if isinstance(action.hits, Expression)]
    if any(e.references.calls or USAGE in e.variables for e in queries) or any(e.variables - {USAGE} for e in hits):
        return None
    conditions = [condition for action in limits for condition in conditions_of(action)]
    items = [item for action in limits for item in items_of(action)]
    by_cel = [item.value for item in items if item.native is None and isinstance(item.value, Expression)]
    domains = [action.domain for action in limits if isinstance(action.domain, Expression)]
    if (compared := fingerprint(conditions, [*by_cel, *domains])) is None:
        return None

    def compute(facts: RequestFacts) -> Outcomes:
        sight = Sight(scope, facts, BodyValues())
        return _sharing([_outcome(action, sight) if isinstance(action, Action) else None for action in actions])

    return Memo(compared, compute)


def fingerprint(conditions: Sequence[Condition], others: Iterable[Expression] = ()) -> Fingerprint | None:
    """What tells requests apart in all that is evaluated; None where too much is."""
    equalities = [condition.equality for condition in conditions if condition.equality is not None]
    by_cel = [*(condition.expression for condition in conditions if condition.equality is None), *others]
    attributes = scope_of(by_cel).attributes
    return fingerprint_of(equalities, attributes) if attributes.repeatable else None


def _sharing(outcomes: Iterable[Outcome]) -> Outcomes:
    """The same, but what is filled in alike is one object: a check and its report then take one filling."""
    known: dict[tuple[tuple[tuple[str, str], ...], ...], tuple[tuple[Item, ...], ...]] = {}
    shared: list[Outcome] = []
    for outcome in outcomes:
        if isinstance(outcome, Form):
            alike = tuple(tuple((item.key, item.source) for item in items) for items in outcome.descriptors)
            outcome = replace(outcome, descriptors=known.setdefault(alike, outcome.descriptors))
        shared.append(outcome)
    return tuple(shared)


def _outcome(action: Action, sight: Sight) -> Outcome:
    try:
        form = action.form(sight)
        return None if form is None else form.settled(sight)
    except ActionFailure as failure:
        return failure.again()
