"""Kuadrant's documents as the configuration that does the same: services, endpoints, action sets, limits, callers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from pydantic import TypeAdapter

from extproc.config.errors import ConfigError, Problem, first_problems, quoted
from extproc.policies.auth_configs import AuthConfigWriter
from extproc.policies.auth_policy import AUTH_POLICY
from extproc.policies.cel_text import Unsupported
from extproc.policies.documents import Document
from extproc.policies.gateway_api import GATEWAY, HTTP_ROUTE
from extproc.policies.limits import CHECK, RATE_LIMIT, REPORT, TOKENS, Limits, limit_problems
from extproc.policies.objects import model_of
from extproc.policies.policy import (
    Kind,
    Policy,
    RuleName,
    Rules,
    auth_policy,
    effective,
    limit_policy,
    named,
    section_problems,
    sources,
    when_problems,
)
from extproc.policies.rate_limits import RATE_LIMIT_POLICY, TOKEN_RATE_LIMIT_POLICY
from extproc.policies.routes import Rank, matches_of, predicates, rank
from extproc.policies.topology import Route, Served, Topology, gateway_problems, route_problems

AUTH = "auth-service"
MAX_ACTION_SETS = 10_000
"""Matches of routes beyond these are refused."""

_LIMITADOR = "limitador"
_AUTHORINO = "authorino"
_SERVICES: dict[str, dict[str, str]] = {
    AUTH: {"type": "auth", "endpoint": _AUTHORINO, "failureMode": "deny", "timeout": "200ms"},
    CHECK: {"type": "ratelimit-check", "endpoint": _LIMITADOR, "failureMode": "deny", "timeout": "100ms"},
    RATE_LIMIT: {"type": "ratelimit", "endpoint": _LIMITADOR, "failureMode": "deny", "timeout": "100ms"},
    REPORT: {"type": "ratelimit-report", "endpoint": _LIMITADOR, "failureMode": "deny", "timeout": "100ms"},
}

Data = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Compiled:
    """Plain data, as the fields of the same names are written in a configuration file; paths are absolute."""

    services: Data = field(default_factory=dict)
    endpoints: Data = field(default_factory=dict)
    action_sets: list[Data] = field(default_factory=list)
    limits: list[Data] = field(default_factory=list)
    auth_configs: Data = field(default_factory=dict)
    warnings: tuple[Problem, ...] = ()

    @property
    def data(self) -> Data:
        """All of it as a configuration."""
        found = {
            "services": self.services,
            "actionSets": self.action_sets,
            "endpoints": self.endpoints,
            "limits": self.limits,
            "authConfigs": self.auth_configs,
        }
        return {name: value for name, value in found.items() if value or name in ("services", "actionSets")}


def compile_policies(documents: Sequence[Document]) -> Compiled:
    """What the documents mean for requests. Raises ConfigError with everything that is wrong or not supported."""
    problems: list[Problem] = []
    routes = _models(documents, "HTTPRoute", HTTP_ROUTE, problems)
    gateways = _models(documents, "Gateway", GATEWAY, problems)
    for document, route in routes:
        problems += route_problems(document, route)
    for document, gateway in gateways:
        problems += gateway_problems(document, gateway)
    policies = list(_policies(documents, problems))
    topology = Topology(gateways, routes)
    problems += topology.attach(policies)
    _raise_for(problems)
    secrets = [document for document in documents if document.kind == "Secret"]
    return _Compiler(topology, policies, secrets).compiled()


def merged(config: Data, compiled: Compiled) -> Data:
    """A configuration's data with what was compiled added; what an operator wrote wins where both name a thing.

    But for `limits`, which may be the name of a file: they are added once that has been read. Fields that are not what
    they should be are left as they are, for validation to say so. Raises ConfigError for names of action sets and
    `authConfigs` that are taken.
    """
    _raise_for(_clashes(config, compiled), "plugin config")
    found = dict(config)
    maps = {"services": compiled.services, "endpoints": compiled.endpoints, "authConfigs": compiled.auth_configs}
    for name, added in maps.items():
        if added and isinstance(written := config.get(name, {}), dict):
            found[name] = {**added, **written}
    if compiled.action_sets and isinstance(listed := config.get("actionSets", []), list):
        found["actionSets"] = [*listed, *compiled.action_sets]
    return found


def _clashes(config: Data, compiled: Compiled) -> Iterator[Problem]:
    action_sets, auth_configs = config.get("actionSets"), config.get("authConfigs")
    for index, written in enumerate(action_sets if isinstance(action_sets, list) else ()):
        name = written.get("name") if isinstance(written, dict) else None
        if any(name == action_set["name"] for action_set in compiled.action_sets):
            yield Problem.at(("actionSets", index, "name"), "`policies` have an action set of that name")
    for name in auth_configs if isinstance(auth_configs, dict) else ():
        if name in compiled.auth_configs:
            yield Problem.at(("authConfigs", name), "`policies` have one of that name")


def _models(
    documents: Iterable[Document], kind: str, adapter: TypeAdapter[T], problems: list[Problem]
) -> list[tuple[Document, T]]:
    found = []
    for document in documents:
        if document.kind == kind:
            try:
                found.append((document, model_of(document, adapter)))
            except ConfigError as error:
                problems += error.problems
    return found


def _policies(documents: Sequence[Document], problems: list[Problem]) -> Iterator[Policy]:
    for document, requests in _models(documents, "RateLimitPolicy", RATE_LIMIT_POLICY, problems):
        policy = limit_policy(document, requests, "RateLimitPolicy")
        problems += section_problems(policy, requests.spec, ("when", "limits"))
        yield policy
    for document, tokens in _models(documents, "TokenRateLimitPolicy", TOKEN_RATE_LIMIT_POLICY, problems):
        policy = limit_policy(document, tokens, "TokenRateLimitPolicy")
        problems += section_problems(policy, tokens.spec, ("when", "limits"))
        yield policy
    for document, callers in _models(documents, "AuthPolicy", AUTH_POLICY, problems):
        policy = auth_policy(document, callers)
        problems += section_problems(policy, callers.spec, ("patterns", "when", "rules"))
        yield policy


def _raise_for(problems: Iterable[Problem], what: str = "policies") -> None:
    if found := first_problems(dict.fromkeys(problems)):
        raise ConfigError(found, what=what)


@dataclass(frozen=True, slots=True)
class _Ranked:
    """An action set, and where it stands among the others."""

    rank: Rank
    data: Data


@dataclass(slots=True)
class _Group:
    """Hosts of a rule for which the same is done."""

    actions: list[Data]
    served: Served
    hostnames: dict[str, None] = field(default_factory=dict)


class _Compiler:
    def __init__(self, topology: Topology, policies: Sequence[Policy], secrets: Sequence[Document]) -> None:
        self._topology = topology
        self._policies = policies
        self._secrets = secrets
        self._problems: list[Problem] = []
        self._warnings: list[Problem] = []
        self._limits: dict[str, Data] = {}
        self._auth_configs: dict[str, Data] = {}
        self._scopes: dict[frozenset[tuple[RuleName, str]], str] = {}
        self._considered: set[str] = set()
        self._effective: set[str] = set()

    def compiled(self) -> Compiled:
        for policy in self._policies:
            self._problems += when_problems(policy.rules)
            self._problems += limit_problems(policy.rules)
        _raise_for(self._problems)
        action_sets = self._action_sets()
        self._look_at_the_rest()
        _raise_for(self._problems)
        used = {action["service"] for action_set in action_sets for action in action_set["actions"]}
        services = {name: service for name, service in _SERVICES.items() if name in used}
        return Compiled(
            services={name: dict(service) for name, service in services.items()},
            endpoints={service["endpoint"]: "embedded" for service in services.values()},
            action_sets=action_sets if used else [],
            limits=list(self._limits.values()),
            auth_configs=self._auth_configs,
            warnings=tuple(dict.fromkeys(self._warnings)),
        )

    def _action_sets(self) -> list[Data]:
        ranked = list(islice(self._ranked(), MAX_ACTION_SETS + 1))
        if len(ranked) > MAX_ACTION_SETS:
            _raise_for([Problem("", f"the routes have more than {MAX_ACTION_SETS} matches")])
        return [entry.data for entry in sorted(ranked, key=lambda entry: entry.rank)]

    def _ranked(self) -> Iterator[_Ranked]:
        """Of every rule of every route; those that no policy is for keep their requests from wider rules."""
        for order, route in enumerate(self._topology.routes):
            for number, (rule_name, rule) in enumerate(route.rules):
                groups = self._groups(route, rule_name)
                for index, match in enumerate(matches_of(rule)):
                    try:
                        conditions = predicates(match)
                    except Unsupported as error:
                        steps = ("spec", "rules", number, "matches", index)
                        self._problems.append(route.document.problem(steps, str(error)))
                        continue
                    name = f"{route.domain}/{rule_name}" + (f"/match-{index + 1}" if len(rule.matches) > 1 else "")
                    for group in groups:
                        where = f"@{group.served.title}" if len(groups) > 1 else ""
                        data = _action_set(name + where, list(group.hostnames), conditions, group.actions)
                        yield _Ranked((*rank(match), order, number, index), data)

    def _groups(self, route: Route, rule_name: str) -> list[_Group]:
        """Listeners whose hosts are treated alike, together."""
        groups: dict[str, _Group] = {}
        for served in self._topology.served(route):
            if served.hostnames:
                actions = self._actions(served, route, rule_name)
                group = groups.setdefault(json.dumps(actions), _Group(actions, served))
                group.hostnames.update(dict.fromkeys(served.hostnames))
        claimed: dict[str, _Group] = {}
        for group in groups.values():
            for hostname in group.hostnames:
                if (other := claimed.setdefault(hostname, group)) is not group:
                    message = (
                        f"{quoted(hostname)} is served by {other.served.title} and {group.served.title}, for which "
                        "policies differ; requests do not say which one they came through: give each its own hostname"
                    )
                    self._problems.append(route.document.problem(("spec", "hostnames"), message))
        return list(groups.values())

    def _actions(self, served: Served, route: Route, rule_name: str) -> list[Data]:
        """In order: who calls, and tokens are checked before a request is counted, so that a denial uses none up.

        Kuadrant asks limits that need no caller before it asks who calls; here a stranger moves no counter.
        """
        tokens = Limits("tokenlimit", route.domain, self._rules("TokenRateLimitPolicy", served, route, rule_name))
        requests = Limits("limit", route.domain, self._rules("RateLimitPolicy", served, route, rule_name))
        self._limits.update(tokens.for_limiter())
        self._limits.update(requests.for_limiter())
        return [
            *self._auth_action(self._rules("AuthPolicy", served, route, rule_name)),
            *tokens.action(CHECK, "0"),
            *requests.action(RATE_LIMIT),
            *tokens.action(REPORT, TOKENS),
        ]

    def _rules(self, kind: Kind, served: Served, route: Route, rule_name: str) -> Rules:
        policies = self._topology.policies(kind, served, route, rule_name)
        rules = effective(policies)
        self._considered.update(policy.document.title for policy in policies)
        self._effective.update(document.title for document in sources(rules.values()))
        return rules

    def _auth_action(self, rules: Rules) -> Iterator[Data]:
        if not rules:
            return
        documents = sources(rules.values())
        action: Data = {
            "service": AUTH,
            "scope": self._scope(rules, documents),
            "sources": [document.locator for document in documents],
        }
        if (when := rules.get(("when", ""))) is not None:
            action["predicates"] = [predicate.predicate.strip() for predicate in when.value]
        yield action

    def _scope(self, rules: Rules, documents: Sequence[Document]) -> str:
        """The name of the entry of `authConfigs` for `rules`, which is that of the policies they come from."""
        origin = frozenset((name, rule.document.title) for name, rule in rules.items())
        if (known := self._scopes.get(origin)) is not None:
            return known
        writer = AuthConfigWriter(rules, self._secrets)
        data = writer.write()
        if not named(rules, "authentication"):
            needed = "expected at least one source, here or in a policy that this one is merged with"
            self._problems.append(documents[0].problem(("spec", "rules", "authentication"), needed))
        self._problems += writer.problems
        self._warnings += writer.warnings
        scope = "+".join("/".join(document.key) for document in documents)
        while self._auth_configs.setdefault(scope, data) != data:
            scope += "'"
        self._scopes[origin] = scope
        return scope

    def _look_at_the_rest(self) -> None:
        """Policies that count nowhere: what is wrong in them, and why they do not."""
        for policy in self._policies:
            if policy.document.title in self._effective:
                continue
            if policy.kind == "AuthPolicy":
                writer = AuthConfigWriter(policy.rules, self._secrets)
                writer.write()
                self._problems += writer.problems
            why = (
                "another policy has precedence wherever it could"
                if policy.document.title in self._considered
                else "its target serves no host of any HTTPRoute"
            )
            self._warnings.append(policy.document.problem(("spec", "targetRef"), f"counts nowhere: {why}"))


def _action_set(name: str, hostnames: list[str], conditions: list[str], actions: list[Data]) -> Data:
    route: Data = {"hostnames": hostnames}
    if conditions:
        route["predicates"] = conditions
    return {"name": name, "routeRuleConditions": route, "actions": actions}
