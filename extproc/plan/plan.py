"""A configuration compiled into immutable decisions; an exchange keeps the plan it began with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from extproc.bodies.reader import ReaderFactory
from extproc.bodies.request_reader import RequestReaderFactory
from extproc.config.fields import DialectName
from extproc.limiter.seam import Query
from extproc.plan.action import Action, AuthAction, Form
from extproc.plan.guarding import Guards, PlannedGuard
from extproc.plan.hosts import HostTable
from extproc.plan.labels import Labels
from extproc.plan.memo import Memo
from extproc.plan.routing import Routing
from extproc.plan.sight import ActionFailure, Condition, Scope
from extproc.plan.usage_requests import UsageRequests
from extproc.providers.provider import Provider
from extproc.refusals import Refusals
from extproc.usage.meter import Meter

Outcome = Query | Form | ActionFailure | None
Outcomes = tuple[Outcome, ...]
"""What each action of a set comes to, in their order; None where it does not apply, or asks no limiter."""


@dataclass(frozen=True, slots=True)
class ActionSet:
    """What happens to the requests of one route.

    `actions` are all of them, in the order of the configuration. `auth_actions` run first: whatever the others ask
    depends on who calls. `request_actions` run before the model is called:
    those up to `before_body` at the request headers, the others when the body is there. `response_actions` run when
    the answer is over. `request_reader` and `response_reader` are None where that body is not needed.
    """

    name: str
    predicates: tuple[Condition, ...]
    scope: Scope
    memo: Memo[Outcomes] | None
    """None where a query depends on more than a few plain attributes of the request."""
    actions: tuple[AuthAction | Action, ...]
    auth_actions: tuple[AuthAction, ...]
    request_actions: tuple[Action, ...]
    before_body: int
    response_actions: tuple[Action, ...]
    request_reader: RequestReaderFactory | None
    response_reader: ReaderFactory | None
    response_readers: Mapping[DialectName, ReaderFactory]
    """Those of providers whose dialect is known."""
    decides_on_body: bool
    """Whether a decision may depend on the request body, so that a part of it is not enough."""
    checks_model: bool
    """Whether who calls may decide which models may be asked."""
    charges_prompt: bool
    """Whether the prompt is charged before the call."""
    denies_without_limit: bool
    """Whether a request is refused to which none of the limits applies (S1.D1)."""
    include_usage: UsageRequests | None
    """None where requests are not asked to report usage."""
    reads_prompts: bool
    """Whether prompts are read while they pass, for estimates."""
    refusals: Refusals
    guards: tuple[PlannedGuard, ...]
    """Those that it names."""
    routed: bool
    """Whether providers are chosen for its requests."""

    def reader_for(self, provider: Provider | None) -> ReaderFactory:
        """What reads answers of `provider`."""
        assert self.response_reader is not None
        if provider is None or provider.dialect is None:
            return self.response_reader
        return self.response_readers.get(provider.dialect, self.response_reader)

    @property
    def denies_on_failure(self) -> bool:
        """Whether a decision that is not reached may be a refusal."""
        return any(action.service.denies_on_failure for action in self.auth_actions) or any(
            action.service.denies_on_failure for action in self.request_actions
        )


@dataclass(frozen=True, slots=True)
class Route:
    """The action sets of one hostname pattern: `choice` is the first whose predicates hold."""

    pattern: str
    choice: Memo[ActionSet | ActionFailure | None]


@dataclass(frozen=True, slots=True)
class Plan:
    """All decisions of one configuration."""

    action_sets: tuple[ActionSet, ...]
    hosts: HostTable[Route]
    meter: Meter
    labels: Labels
    metadata_namespace: str
    metered_methods: frozenset[bytes]
    charge_errors: bool
    strip_accept_encoding: bool
    routing: Routing | None
    """None where the gateway alone decides where requests go."""
    guards: Guards
    bare: ActionSet
    """Of requests that no action set matches, but that are guarded or routed."""
    no_match: Refusals | None
    """How requests are refused that no action set matches; None where they pass."""
    shows_quotas: bool
    """Whether answers that pass tell what is left of limits."""
    report_wait: float
    buffer: int
    """Bytes of a request that Envoy surely holds."""
    request_id_header: str | None

    @property
    def directs(self) -> bool:
        """Whether requests may be guarded, or are given a provider."""
        return self.routing is not None or bool(self.guards.by_name)

    @property
    def denies_on_failure(self) -> bool:
        """Whether a decision that is not reached may be a refusal, of whatever request."""
        denies = any(action_set.denies_on_failure for action_set in self.action_sets)
        guards = any(planned.guard.enforces for planned in self.guards.by_name.values())
        return denies or guards or self.routing is not None
