"""From a configuration to a plan: every expression compiled, every need known, every mistake named by its field."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import cel

from extproc.bodies.reader import BodyLimits, ReaderFactory
from extproc.bodies.request_reader import RequestReaderFactory
from extproc.bodies.shapes import Shape
from extproc.bodies.wanted import Wanted
from extproc.config.errors import ConfigError, Problem
from extproc.config.fields import DialectName
from extproc.config.model import Action as ActionConfig
from extproc.config.model import ActionSet as ActionSetConfig
from extproc.config.model import Config, Data, DenyWith, Fixed, RouteRuleConditions
from extproc.config.model import Service as ServiceConfig
from extproc.config.prompts import Precharge as PrechargeConfig
from extproc.expressions import Expression, ExpressionError, PointerCall, text_of
from extproc.expressions.functions import LIBRARY
from extproc.expressions.lookup import NotThere
from extproc.facts import RequestFacts
from extproc.guards.guard import Guard
from extproc.identity.seam import Authenticator
from extproc.limiter.seam import MAX_HITS, Limiter, Refunding
from extproc.plan.action import Action, AuthAction, AuthService, Block, Call, Item, Phase, Precharge, Service, hits_of
from extproc.plan.bodies import BodyValues
from extproc.plan.compile_guards import compile_guards
from extproc.plan.compile_routing import compile_routing
from extproc.plan.hosts import HostTable
from extproc.plan.labels import Labels
from extproc.plan.memo import Memo
from extproc.plan.needs import expressions_of, names_body, phase_of, pointers_of, scope_of
from extproc.plan.outcomes import fingerprint, outcomes_memo
from extproc.plan.plan import ActionSet, Plan, Route
from extproc.plan.sight import ActionFailure, Condition, Sight, all_true
from extproc.plan.sources import Sources
from extproc.plan.usage_requests import UsageRequests
from extproc.providers.choice import Choice
from extproc.refusals import Refusals
from extproc.usage.dialects import DIALECTS
from extproc.usage.meter import Meter, MissingUsage
from extproc.usage.prices import Price, Prices

DOMAIN = "ratelimit.domain"
HITS_ADDEND = "ratelimit.hits_addend"
_CALLS: dict[str, Call] = {
    "ratelimit": "should_rate_limit",
    "ratelimit-check": "check",
    "ratelimit-report": "report",
}
_BARE = ActionSetConfig(name="", route_rule_conditions=RouteRuleConditions(hostnames=["*"]), actions=[])
_REQUEST_MODEL = Shape("request", opening=b"(?!)", needles=(), counts=(), models=("/model",))
"""Of a request the model that it names is wanted, whatever the dialect."""


_Compilable = AuthAction | Action | None


@dataclass(frozen=True, slots=True)
class Compiled:
    """A plan, and what an operator should know about it though it is valid."""

    plan: Plan
    warnings: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Peers:
    """Who answers for the services of a configuration."""

    limiter: Callable[[ServiceConfig], Limiter]
    authenticator: Callable[[ServiceConfig], Authenticator]
    guards: Sequence[Guard] = ()
    choice: Choice | None = None
    """None without providers."""


def compile_plan(config: Config, peers: Peers) -> Compiled:
    """Compile `config`. Raises ConfigError with every problem found."""
    return _Compiler(config, peers).run()


class _Compiler:
    def __init__(self, config: Config, peers: Peers) -> None:
        self._config = config
        self.sources = Sources(config.prices)
        self._limiters = {
            name: peers.limiter(service) for name, service in config.services.items() if service.type in _CALLS
        }
        self._services = {
            name: _service(name, config.services[name], limiter) for name, limiter in self._limiters.items()
        }
        self._auth_services = {
            name: AuthService(name, peers.authenticator(service).authenticate, service.failure_mode == "deny")
            for name, service in config.services.items()
            if service.type == "auth"
        }
        self._labels = self._request_data()
        self._peers = peers
        self._guards = compile_guards(config.guards, peers.guards, self._services, self.sources)

    def run(self) -> Compiled:
        by_host: dict[str, list[ActionSet]] = {}
        action_sets: list[ActionSet] = []
        for index, action_set in enumerate(self._config.action_sets):
            compiled = self._action_set(action_set, f"actionSets[{index}]")
            action_sets.append(compiled)
            for hostname in dict.fromkeys(name.lower() for name in action_set.route_rule_conditions.hostnames):
                by_host.setdefault(hostname, []).append(compiled)
        labels = self._metric_labels()
        choice = self._peers.choice
        routing = None if choice is None else compile_routing(self._config, choice, self.sources, self._prompt_service)
        bare = self._action_set(_BARE, "")
        if routing is not None and self._auth_services and self._config.on_no_match == "allow":
            self.sources.warn(
                "onNoMatch",
                "requests that no action set matches go to providers, and nobody asks who sent them; `deny`",
            )
        if self.sources.problems:
            raise ConfigError(self.sources.problems)
        plan = Plan(
            action_sets=tuple(action_sets),
            hosts=HostTable({host: _route(host, sets) for host, sets in by_host.items()}),
            meter=_meter(self._config),
            labels=labels,
            metadata_namespace=self._config.metadata_namespace,
            metered_methods=frozenset(method.upper().encode() for method in self._config.metered_methods),
            charge_errors=self._config.charge_errors,
            strip_accept_encoding=self._config.strip_accept_encoding,
            routing=routing,
            guards=self._guards,
            bare=bare,
            no_match=None
            if self._config.on_no_match == "allow"
            else _refusals(self._config.deny_with, tells_limits=False),
            shows_quotas=self._config.rate_limit_headers == "always",
            report_wait=self._config.report.wait,
            buffer=self._config.bodies.buffer,
            request_id_header=self._config.observability.http_header_identifier,
        )
        return Compiled(plan, tuple(self.sources.warnings))

    def _action_set(self, config: ActionSetConfig, path: str) -> ActionSet:
        conditions = config.route_rule_conditions
        predicates = self.sources.predicates(conditions.predicates, f"{path}.routeRuleConditions.predicates")
        if any(phase_of(predicate) is not Phase.REQUEST_HEADERS for predicate in predicates):
            self.sources.problem(f"{path}.routeRuleConditions.predicates", "a route is chosen before any body is known")
        self.sources.bypass(predicates, f"{path}.routeRuleConditions.predicates")
        actions = [self._any_action(i, action, f"{path}.actions[{i}]") for i, action in enumerate(config.actions)]
        precharge = config.precharge or self._config.precharge
        if precharge.charge == "prompt":
            actions = [self._precharging(action, precharge) for action in actions]
            self._uncharged(actions, path)
        known = _in_order(action for action in actions if action is not None)
        auth = tuple(action for action in known if isinstance(action, AuthAction))
        limits = [action for action in known if isinstance(action, Action)]
        request = [action for action in limits if action.phase is not Phase.RESPONSE]
        response = [action for action in limits if action.phase is Phase.RESPONSE]
        if auth and known[: len(auth)] != list(auth):
            self.sources.warn(f"{path}.actions", "who calls is found out first, whatever the order of the actions")
        expressions = [
            *(predicate.expression for action in auth for predicate in action.predicates),
            *(e for action in limits for e in expressions_of(action)),
        ]
        calls = [call for expression in expressions for call in expression.references.calls]
        raw_body = any(names_body(expression) for expression in expressions)
        checks_model = any(action.checks_model for action in auth)
        scope = scope_of(expressions)
        guards_answers = any(
            guard.answers is not None and (guard.hosts or name in config.guards)
            for name, guard in self._config.guards.items()
        )
        meters = bool(response) or guards_answers or (config.routed and bool(self._config.providers))
        charges_prompt = any(action.precharge is not None for action in request)
        needs_body = charges_prompt or checks_model or raw_body
        denies = (config.on_no_limit or self._config.on_no_limit) == "deny"
        return ActionSet(
            name=config.name,
            predicates=tuple(map(Condition.of, predicates)),
            scope=scope,
            memo=outcomes_memo(known, scope),
            actions=tuple(known),
            auth_actions=auth,
            request_actions=tuple(request),
            before_body=sum(action.phase is Phase.REQUEST_HEADERS for action in request),
            response_actions=tuple(response),
            request_reader=self._request_reader(calls, needed=needs_body, reports=meters),
            response_reader=self._response_reader(calls, config.dialect) if meters else None,
            response_readers=self._response_readers(calls) if meters else {},
            decides_on_body=needs_body or any(call.body == "request" for call in calls),
            checks_model=checks_model,
            charges_prompt=charges_prompt,
            denies_without_limit=denies and any(action.service.call != "report" for action in request),
            include_usage=self._usage_requests() if meters else None,
            guards=tuple(self._guards.by_name[name] for name in config.guards),
            routed=config.routed,
            reads_prompts=meters and self._estimates and self._config.estimates.prompt == "text",
            refusals=_refusals(
                config.deny_with or self._config.deny_with, tells_limits=self._config.rate_limit_headers != "none"
            ),
        )

    @property
    def _estimates(self) -> bool:
        return self._config.on_missing_usage == "estimate"

    def _request_reader(
        self, calls: Sequence[PointerCall], *, needed: bool, reports: bool
    ) -> RequestReaderFactory | None:
        pointers = pointers_of(calls, "request")
        looks = bool(self._config.guards or self._config.providers)
        if not (pointers or needed or looks or (reports and self._config.include_usage.enabled)):
            return None
        wanted = Wanted(pointers, (_REQUEST_MODEL,), count_text=False)
        return RequestReaderFactory(wanted, self._config.bodies.message)

    def _response_reader(self, calls: Sequence[PointerCall], dialect: DialectName | None) -> ReaderFactory:
        chosen = dialect or self._config.dialect
        dialects = DIALECTS.values() if chosen == "auto" else (DIALECTS[chosen],)
        shapes = [each.shape for each in dialects]
        keep_text = self._config.bodies.text if self._estimates else 0
        wanted = Wanted(pointers_of(calls, "response"), shapes, keep_text=keep_text)
        return ReaderFactory(wanted, self._limits())

    def _response_readers(self, calls: Sequence[PointerCall]) -> dict[DialectName, ReaderFactory]:
        """For providers whose dialect is known."""
        dialects = {each.dialect for each in self._config.providers if each.dialect is not None}
        return {dialect: self._response_reader(calls, dialect) for dialect in dialects}

    def _prompt_service(self, name: str | None) -> Service:
        if name is not None:
            return self._services[name]
        embedded = ServiceConfig(type="ratelimit", endpoint="embedded")
        return _service("embedded", embedded, self._peers.limiter(embedded))

    def _precharging(
        self, action: AuthAction | Action | None, precharge: PrechargeConfig
    ) -> AuthAction | Action | None:
        """A check that charges the prompt when the body is there."""
        if not isinstance(action, Action) or action.service.call != "check" or action.phase is Phase.RESPONSE:
            return action
        limiter = self._limiters[action.service.name]
        keeps = precharge.on_failure == "keep"
        refund = limiter.refund if isinstance(limiter, Refunding) else None
        if refund is None and not keeps:
            problem = f"`{action.service.name}` cannot give back: only the embedded limiter can"
            self.sources.problem("precharge.onFailure", problem)
        charging = Precharge(limiter.should_rate_limit, refund, keeps)
        return replace(action, phase=Phase.REQUEST_BODY, precharge=charging)

    def _uncharged(self, actions: Sequence[_Compilable], path: str) -> None:
        """A precharge that does nothing, or only half of what is meant."""
        charging = [action for action in actions if isinstance(action, Action) and action.precharge is not None]
        reporting = [action for action in actions if isinstance(action, Action) and action.phase is Phase.RESPONSE]
        if actions and not charging:
            self.sources.warn(f"{path}.actions", "`precharge` charges nothing: no action is a `ratelimit-check`")
        elif charging and not reporting:
            self.sources.warn(f"{path}.actions", "after `precharge` nothing charges the rest: no action reports usage")

    def _limits(self) -> BodyLimits:
        bodies = self._config.bodies
        return BodyLimits(bodies.json_buffer, bodies.sse_event, bodies.decoded)

    def _usage_requests(self) -> UsageRequests | None:
        asked = self._config.include_usage
        if not asked.enabled:
            return None
        return UsageRequests(asked.paths, asked.except_hosts, asked.except_models, strip=asked.strip)

    def _any_action(self, index: int, config: ActionConfig, path: str) -> _Compilable:
        service = self._auth_services.get(config.service)
        return self._action(index, config, path) if service is None else self._auth(index, service, config, path)

    def _auth(self, index: int, service: AuthService, config: ActionConfig, path: str) -> AuthAction:
        predicates = self.sources.predicates(config.predicates, f"{path}.predicates")
        self.sources.bypass(predicates, f"{path}.predicates")
        if any(phase_of(predicate) is not Phase.REQUEST_HEADERS for predicate in predicates):
            self.sources.problem(f"{path}.predicates", "who calls is found out before any body is known")
        if config.conditional_data:
            self.sources.problem(f"{path}.conditionalData", "an `auth` service is sent no descriptors")
        endpoint = self._config.endpoints[self._config.services[service.name].endpoint]
        rules = self._config.auth_configs.get(config.scope) if endpoint.embedded else None
        conditions = tuple(map(Condition.of, predicates))
        return AuthAction(index, service, config.scope, conditions, rules is not None and rules.models is not None)

    def _action(self, index: int, config: ActionConfig, path: str) -> Action | None:
        service = self._services.get(config.service)
        predicates = self.sources.predicates(config.predicates, f"{path}.predicates")
        blocks: list[Block] = []
        special: dict[str, str | Expression] = {}
        for i, block in enumerate(config.conditional_data):
            items: list[Item] = []
            for j, data in enumerate(block.data):
                key, at = data.item.key, f"{path}.conditionalData[{i}].data[{j}]"
                value = self._entry_value(data, at)
                if value is None:
                    continue
                if key in (DOMAIN, HITS_ADDEND):
                    if data.static is not None:
                        self._static(key, data.static.value, f"{at}.static.value")
                    special.setdefault(key, value)
                else:
                    items.append(Item.of(key, value))
            conditions = self.sources.predicates(block.predicates, f"{path}.conditionalData[{i}].predicates")
            self.sources.bypass(conditions, f"{path}.conditionalData[{i}].predicates")
            blocks.append(Block(tuple(map(Condition.of, conditions)), tuple(items)))
        if service is None:
            return None
        self.sources.bypass(predicates, f"{path}.predicates")
        domain, hits = special.get(DOMAIN), _hits(special.get(HITS_ADDEND, "1"))
        labels = tuple(
            item
            for item in self._labels
            if service.call == "report"
            or not (isinstance(item.value, Expression) and phase_of(item.value) is Phase.RESPONSE)
        )
        if domain is None and not config.scope:
            self.sources.problem(f"{path}.scope", "must not be empty: it is the domain of the call")
        action = Action(
            index,
            service,
            Phase.REQUEST_HEADERS,
            config.scope,
            tuple(map(Condition.of, predicates)),
            tuple(blocks),
            domain,
            hits,
            labels,
        )
        phase = max((phase_of(expression) for expression in expressions_of(action)), default=Phase.REQUEST_HEADERS)
        if phase is Phase.RESPONSE and service.call != "report":
            self.sources.warn(
                path, f"`{config.service}` needs the answer of the model, so it counts but can deny nothing"
            )
        return replace(action, phase=phase)

    def _entry_value(self, data: Data, path: str) -> str | Expression | None:
        """The value of an entry; an expression that depends on nothing is evaluated now."""
        if data.expression is None:
            return data.item.value
        expression = self.sources.value(data.item.value, f"{path}.expression.value")
        special = data.item.key in (DOMAIN, HITS_ADDEND)
        if expression is not None:
            self.sources.constants([expression], f"{path}.expression.value", predicate=False)
        return expression if expression is None or special else _folded(expression)

    def _static(self, key: str, value: str, path: str) -> None:
        if key == DOMAIN and not value:
            self.sources.problem(path, "`ratelimit.domain` must not be empty")
        if key == HITS_ADDEND and not (value.isascii() and value.isdecimal() and int(value) <= MAX_HITS):
            self.sources.problem(
                path, f"`ratelimit.hits_addend` is a whole number from 0 to {MAX_HITS}, found `{value}`"
            )

    def _request_data(self) -> tuple[Item, ...]:
        """The second descriptor: sorted, keys without the `metrics.labels.` prefix (wasm-shim)."""
        found: list[tuple[str, str, Item]] = []
        for key, source in self._config.request_data.items():
            value = self.sources.value(source, f"requestData.{key}")
            domain, _, field = key.rpartition(".")
            if value is not None:
                name = field if domain in ("", "metrics.labels") else key
                found.append((domain, field, Item.of(name, value)))
        return tuple(item for _, _, item in sorted(found, key=lambda entry: entry[:2]))

    def _metric_labels(self) -> Labels:
        """`metrics.labels`: expressions over the head of the request."""
        labels: dict[str, list[Expression]] = {}
        for name, candidates in self._config.metrics.labels.items():
            path = f"metrics.labels.{name}"
            found = [self.sources.value(source, f"{path}[{i}]") for i, source in enumerate(candidates)]
            labels[name] = [expression for expression in found if expression is not None]
            if any(phase_of(expression) is not Phase.REQUEST_HEADERS for expression in labels[name]):
                self.sources.problem(path, "a label is known before any body is")
        return Labels(labels, lambda expression: scope_of([expression]))


def _service(name: str, config: ServiceConfig, limiter: Limiter) -> Service:
    call = _CALLS[config.type]
    asks = {"check": limiter.check, "report": limiter.report, "should_rate_limit": limiter.should_rate_limit}
    return Service(name, config.endpoint, call, asks[call], config.failure_mode == "deny")


def _folded(expression: Expression) -> str | Expression:
    """The text of an expression that depends on nothing; one that has none keeps failing where it is used."""
    if expression.variables or expression.references.calls:
        return expression
    try:
        return text_of(expression.evaluate(cel.Context(functions=dict(LIBRARY))))
    except ExpressionError:
        return expression


def _hits(value: str | Expression) -> int | Expression:
    """An addend that depends on nothing as a number; one that is none was told as a problem."""
    if isinstance(value, Expression):
        if value.variables or value.references.calls:
            return value
        try:
            return hits_of(value.evaluate(cel.Context(functions=dict(LIBRARY))))
        except (ExpressionError, ValueError):
            return value
    return int(value) if value.isdecimal() else 0


def _route(pattern: str, action_sets: Sequence[ActionSet]) -> Route:
    predicates = [predicate for action_set in action_sets for predicate in action_set.predicates]
    scope = scope_of(predicate.expression for predicate in predicates)

    def choose(facts: RequestFacts) -> ActionSet | ActionFailure | None:
        sight = Sight(scope, facts, BodyValues())
        try:
            return next((each for each in action_sets if all_true(each.predicates, sight)), None)
        except (ActionFailure, ExpressionError, NotThere) as error:
            return ActionFailure(str(error))

    return Route(pattern, Memo(fingerprint(predicates), choose))


def _in_order(actions: Iterable[AuthAction | Action]) -> list[AuthAction | Action]:
    """Before the call of the model, an action behind one that waits for the body waits too."""
    ordered: list[AuthAction | Action] = []
    waiting = False
    for action in actions:
        if isinstance(action, Action):
            waiting |= action.phase is Phase.REQUEST_BODY
            delayed = waiting and action.phase is Phase.REQUEST_HEADERS
            action = replace(action, phase=Phase.REQUEST_BODY) if delayed else action
        ordered.append(action)
    return ordered


def _meter(config: Config) -> Meter:
    missing = config.on_missing_usage
    prices = {
        model: Price(price.input, price.output, price.cached, price.cache_write)
        for model, price in config.prices.items()
    }
    policy = MissingUsage("fixed", missing.fixed) if isinstance(missing, Fixed) else MissingUsage(missing)
    return Meter(policy, Prices(prices))


def _refusals(deny: DenyWith, *, tells_limits: bool) -> Refusals:
    body = None if deny.body is None else deny.body.encode()
    headers = tuple((name.lower(), value) for name, value in deny.headers.items())
    return Refusals(deny.profile, deny.status, headers, body, tells_limits)
