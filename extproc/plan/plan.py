"""A configuration compiled into immutable decisions; an exchange keeps the plan it began with."""

from __future__ import annotations

from dataclasses import dataclass

import cel

from extproc.bodies.reader import ReaderFactory
from extproc.expressions import Expression
from extproc.expressions.functions import LIBRARY
from extproc.facts import RequestFacts
from extproc.plan.action import Action
from extproc.plan.attributes import Attributes
from extproc.plan.bodies import BodyValues
from extproc.plan.hosts import HostTable
from extproc.plan.memo import QueryMemo
from extproc.plan.usage_requests import UsageRequests
from extproc.usage.meter import Meter


@dataclass(frozen=True, slots=True)
class Scope:
    """What a set of expressions sees: attributes, and the functions they call."""

    attributes: Attributes
    functions: frozenset[str]
    """Names of functions beyond CEL's own."""
    usage: bool
    """Whether they name `usage`."""

    def bind(self, facts: RequestFacts | None, bodies: BodyValues) -> cel.Context:
        """A context for one exchange; the body functions look into `bodies` whenever they are called.

        Without `facts` for expressions that name no attribute.
        """
        context = cel.Context() if facts is None else cel.Context(variables=self.attributes.bind(facts))
        for name in self.functions:
            context.add_function(name, LIBRARY.get(name) or bodies.function(name))
        return context


@dataclass(frozen=True, slots=True)
class ActionSet:
    """What happens to the requests of one route.

    `actions` are all of them, in the order of the configuration. `request_actions` run before the model is called:
    those up to `before_body` at the request headers, the others when the body is there. `response_actions` run when
    the answer is over. `request_reader` and `response_reader` are None where that body is not needed.
    """

    name: str
    predicates: tuple[Expression, ...]
    scope: Scope
    memo: QueryMemo | None
    """None where a query depends on more than a few plain attributes of the request."""
    actions: tuple[Action, ...]
    request_actions: tuple[Action, ...]
    before_body: int
    response_actions: tuple[Action, ...]
    request_reader: ReaderFactory | None
    response_reader: ReaderFactory | None
    decides_on_body: bool
    """Whether a decision depends on the request body, so that a part of it is not enough."""
    include_usage: UsageRequests | None
    """None where requests are not asked to report usage."""
    reads_prompts: bool
    """Whether prompts are read while they pass, for estimates."""
    over_limit: bytes
    """The serialised reply to a request over its limit, without headers of the limiter."""


@dataclass(frozen=True, slots=True)
class Route:
    """The action sets of one hostname pattern, in the order of the configuration."""

    pattern: str
    scope: Scope
    action_sets: tuple[ActionSet, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All decisions of one configuration."""

    action_sets: tuple[ActionSet, ...]
    hosts: HostTable[Route]
    meter: Meter
    metadata_namespace: str
    metered_methods: frozenset[bytes]
    charge_errors: bool
    strip_accept_encoding: bool
    report_wait: float
    request_id_header: str | None
