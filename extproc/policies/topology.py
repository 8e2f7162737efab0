"""Which requests a Gateway's listeners, routes and their rules stand for, and which policies are for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from extproc.config.address import valid_hostname
from extproc.config.errors import Problem, listed, quoted
from extproc.policies.documents import GATEWAY_API, Document
from extproc.policies.gateway_api import Gateway, HttpRoute, ParentRef, RouteRule
from extproc.policies.policy import KINDS, Kind, Policy, Target
from extproc.policies.routes import host_in_common

ANY_HOST = "*"


@dataclass(frozen=True, slots=True)
class Route:
    """An HTTPRoute with its document. `domain` is what Kuadrant calls its limits' namespace."""

    document: Document
    model: HttpRoute

    @property
    def domain(self) -> str:
        return f"{self.document.namespace}/{self.document.name}"

    @property
    def rules(self) -> list[tuple[str, RouteRule]]:
        """Each with its name, which is `rule-1` and so on where it has none."""
        rules = self.model.spec.rules or [RouteRule()]
        return [(rule.name or f"rule-{number}", rule) for number, rule in enumerate(rules, 1)]


@dataclass(frozen=True, slots=True)
class Served:
    """A listener that serves a route, with the hosts they have in common."""

    gateway: tuple[str, str]
    listener: str
    hostnames: tuple[str, ...]

    @property
    def title(self) -> str:
        namespace, name = self.gateway
        return f"{namespace}/{name}" + (f"/{self.listener}" if self.listener else "")


class Topology:
    """Routes, the listeners that serve them, and policies by what they are for."""

    def __init__(self, gateways: Sequence[tuple[Document, Gateway]], routes: Sequence[tuple[Document, HttpRoute]]):
        self.routes = sorted((Route(*route) for route in routes), key=_age)
        self._gateways = {document.key: gateway for document, gateway in gateways}
        self._policies: dict[tuple[Kind, Target], list[Policy]] = {}

    def attach(self, policies: Sequence[Policy]) -> Iterator[Problem]:
        """Adds policies, and says which are for nothing that is there."""
        for policy in policies:
            if problem := self._unknown_target(policy):
                yield problem
            else:
                self._policies.setdefault((policy.kind, policy.target), []).append(policy)
        for together in self._policies.values():
            together.sort(key=lambda policy: policy.age)
            if len(together) > 1 and not all(policy.document.created for policy in together):
                first, second = together[:2]
                yield second.document.problem(
                    ("spec", "targetRef"),
                    f"{first.document.title} has the same target, and which one counts depends on their age: make them "
                    "one, or give both `metadata.creationTimestamp`",
                )

    def served(self, route: Route) -> Iterator[Served]:
        """The listeners that serve `route`. One whose Gateway is not among the documents has any host."""
        namespace = route.document.namespace
        refs = route.model.spec.parent_refs
        if not refs:
            yield Served((namespace, ""), "", tuple(route.model.spec.hostnames) or (ANY_HOST,))
        for ref in refs:
            if ref.kind != "Gateway" or ref.group != GATEWAY_API:
                continue
            key = (ref.namespace or namespace, ref.name)
            for name, hostname in self._listeners(key, ref):
                yield Served(key, name, tuple(_in_common(hostname, route.model.spec.hostnames)))

    def policies(self, kind: Kind, served: Served, route: Route, rule: str) -> list[Policy]:
        """Those of `kind` for one rule of a route behind a listener, the least specific first."""
        gateway, document = ("Gateway", *served.gateway), ("HTTPRoute", *route.document.key)
        targets: list[Target] = [(*gateway, ""), (*document, ""), (*document, rule)]
        if served.listener:
            targets.insert(1, (*gateway, served.listener))
        return [policy for target in targets for policy in self._policies.get((kind, target), ())]

    @property
    def all_policies(self) -> list[Policy]:
        return [policy for kind in KINDS for (of, _), found in self._policies.items() if of == kind for policy in found]

    def _listeners(self, key: tuple[str, str], ref: ParentRef) -> Iterator[tuple[str, str]]:
        """Names and hostnames."""
        if (gateway := self._gateways.get(key)) is None:
            yield ref.section_name or "", ANY_HOST
            return
        for listener in gateway.spec.listeners:
            if ref.section_name in (None, listener.name) and ref.port in (None, listener.port):
                yield listener.name, listener.hostname or ANY_HOST

    def _unknown_target(self, policy: Policy) -> Problem | None:
        kind, namespace, name, section = policy.target
        find = self._route_sections if kind == "HTTPRoute" else self._gateway_sections
        sections = find((namespace, name))
        where = ("spec", "targetRef", "name")
        if sections is None:
            known = self._known(kind)
            needed = "; an HTTPRoute with it among its `parentRefs` is enough" if kind == "Gateway" else ""
            return policy.document.problem(
                where, f"no {kind} {quoted(f'{namespace}/{name}')} is among the documents (known: {known}){needed}"
            )
        if section and section not in sections:
            what = "rule" if kind == "HTTPRoute" else "listener"
            return policy.document.problem(
                (*where[:2], "sectionName"), f"no {what} is named {quoted(section)}, known: {listed(sections)}"
            )
        return None

    def _known(self, kind: str) -> str:
        if kind == "HTTPRoute":
            return listed(route.domain for route in self.routes)
        return listed("/".join(key) for key in dict.fromkeys([*self._gateways, *self._parents()]))

    def _parents(self) -> Mapping[tuple[str, str], list[str]]:
        """The Gateways that routes name, with the listeners they name."""
        found: dict[tuple[str, str], list[str]] = {}
        for route in self.routes:
            for ref in route.model.spec.parent_refs:
                if ref.kind == "Gateway":
                    sections = found.setdefault((ref.namespace or route.document.namespace, ref.name), [])
                    sections += [ref.section_name] if ref.section_name else []
        return found

    def _gateway_sections(self, key: tuple[str, str]) -> list[str] | None:
        if (gateway := self._gateways.get(key)) is not None:
            return [listener.name for listener in gateway.spec.listeners]
        return self._parents().get(key)

    def _route_sections(self, key: tuple[str, str]) -> list[str] | None:
        found = next((route for route in self.routes if route.document.key == key), None)
        return None if found is None else [name for name, _ in found.rules]


def route_problems(document: Document, model: HttpRoute) -> Iterator[Problem]:
    """What the model of a route does not tell: hostnames that are none, names of rules given twice."""
    for index, hostname in enumerate(model.spec.hostnames):
        if not _is_pattern(hostname):
            yield document.problem(("spec", "hostnames", index), _NO_HOSTNAME)
    first: dict[str, int] = {}
    for index, (name, _) in enumerate(Route(document, model).rules):
        if (earlier := first.setdefault(name, index)) != index:
            yield document.problem(("spec", "rules", index, "name"), f"{quoted(name)} is the name of rules[{earlier}]")


def gateway_problems(document: Document, model: Gateway) -> Iterator[Problem]:
    """Hostnames of listeners that are none."""
    for index, listener in enumerate(model.spec.listeners):
        if listener.hostname and not _is_pattern(listener.hostname):
            yield document.problem(("spec", "listeners", index, "hostname"), _NO_HOSTNAME)


_NO_HOSTNAME = "expected a name such as `api.example.com` or `*.example.com`"


def _is_pattern(hostname: str) -> bool:
    return hostname == hostname.lower() and valid_hostname(hostname.removeprefix("*."))


def _in_common(listener: str, hostnames: Sequence[str]) -> Iterator[str]:
    """The hosts of a route that a listener serves; all of the listener's when the route names none."""
    for hostname in hostnames or (ANY_HOST,):
        if (both := host_in_common(listener, hostname)) is not None:
            yield both


def _age(route: Route) -> tuple[str, str, str]:
    return (route.document.created, *route.document.key)
