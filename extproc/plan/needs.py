"""What expressions need: which attributes, which parts of which body, and how early they can be evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from extproc.expressions import Expression, PointerCall
from extproc.expressions.functions import LIBRARY
from extproc.plan.action import Action, Item, Phase
from extproc.plan.attributes import BODY_ATTRIBUTES, USAGE, Attributes
from extproc.plan.sight import Condition, Scope


def scope_of(expressions: Iterable[Expression]) -> Scope:
    """What they see together."""
    members: set[tuple[str, ...]] = set()
    functions: set[str] = set()
    usage = False
    for expression in expressions:
        members |= expression.references.members
        usage |= USAGE in expression.variables
        functions |= expression.functions
    bodies = {"requestBodyJSON", "responseBodyJSON"}
    return Scope(Attributes(members), frozenset(functions & (LIBRARY.keys() | bodies)), usage)


def phase_of(expression: Expression) -> Phase:
    """When all of it is there."""
    bodies = {call.body for call in expression.references.calls}
    if "response" in bodies or USAGE in expression.variables - expression.references.locals:
        return Phase.RESPONSE
    return Phase.REQUEST_BODY if "request" in bodies or names_body(expression) else Phase.REQUEST_HEADERS


def names_body(expression: Expression) -> bool:
    """Whether it names the request body as a whole."""
    return any(member[:2] in BODY_ATTRIBUTES for member in expression.references.members)


def pointers_of(calls: Sequence[PointerCall], body: str) -> frozenset[tuple[str, ...]]:
    """Where in `body`, `request` or `response`, the calls look."""
    return frozenset(pointer for call in calls if call.body == body for pointer in call.pointers)


def conditions_of(action: Action) -> list[Condition]:
    """Its own, and those of its blocks."""
    return [*action.predicates, *(condition for block in action.blocks for condition in block.predicates)]


def items_of(action: Action) -> list[Item]:
    """Of both descriptors."""
    return [*(item for block in action.blocks for item in block.items), *action.labels]


def expressions_of(action: Action) -> list[Expression]:
    """All that it evaluates."""
    values = [action.domain, action.hits, *(item.value for item in items_of(action))]
    predicates = [condition.expression for condition in conditions_of(action)]
    return [*predicates, *(value for value in values if isinstance(value, Expression))]
