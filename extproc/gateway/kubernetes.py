"""What documents for Istio and for Envoy Gateway have in common."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from extproc.config.address import Address, Tcp, Unix
from extproc.config.errors import Problem
from extproc.config.origins import is_name
from extproc.gateway.fitted import Fitted, Placed, Unfit

Json = dict[str, Any]
BackendRef = Mapping[str, Any]

GROUP = "gateway.networking.k8s.io"
OTHERS = "default"
"""In the name of the route for requests that name no provider."""
_LONGEST_NAME = 50
_EVERY_PATH = {"type": "PathPrefix", "value": "/"}


@dataclass(frozen=True, slots=True)
class Where:
    """The gateway that gets the filter, its namespace, and the Service of extproc."""

    gateway: str
    namespace: str
    host: str
    port: int

    @property
    def service(self) -> tuple[str, str]:
        """Name and namespace of the Service `name`, `name.namespace` or `name.namespace.svc...`."""
        name, _, rest = self.host.partition(".")
        return name, rest.partition(".")[0] or self.namespace


def document(api: str, kind: str, name: str, where: Where, spec: Mapping[str, Any]) -> Json:
    return {
        "apiVersion": api,
        "kind": kind,
        "metadata": {"name": name, "namespace": where.namespace},
        "spec": dict(spec),
    }


def labels(names: Sequence[str]) -> dict[str, str]:
    """Names that Kubernetes accepts, another for each; none is OTHERS."""
    found: dict[str, str] = {"": OTHERS}
    for name in names:
        base = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST_NAME].strip("-") or "x"
        label = base
        number = 1
        while label in found.values():
            number += 1
            label = f"{base}-{number}"
        found[name] = label
    del found[""]
    return found


def tcp(placed: Placed) -> Tcp:
    """Where a provider is. Raises Unfit for a socket."""
    if isinstance(placed.origin.address, Unix):
        raise Unfit([Problem(placed.field, "a socket of this machine; a gateway in Kubernetes needs `https://host`")])
    return placed.origin.address


def in_cluster(address: Address) -> bool:
    """Whether it is a Service, which gateways know by themselves."""
    if isinstance(address, Unix) or not is_name(address):
        return False
    return "." not in address.host or address.host.removesuffix(".cluster.local").endswith(".svc")


def http_routes(fitted: Fitted, where: Where, backends: Mapping[str, BackendRef]) -> Iterator[Json]:
    """One for each provider, and one for the requests that name none."""
    names = labels([placed.name for placed in fitted.providers])
    for placed in fitted.providers:
        header = {"type": "Exact", "name": fitted.routing_header, "value": placed.name}
        matches = [{"path": _EVERY_PATH, "headers": [header]}]
        yield _http_route(f"extproc-{names[placed.name]}", fitted, where, placed, matches, backends)
    if fitted.default is not None:
        yield _http_route(f"extproc-{OTHERS}", fitted, where, fitted.default, [{"path": _EVERY_PATH}], backends)


def _http_route(
    name: str,
    fitted: Fitted,
    where: Where,
    placed: Placed,
    matches: Sequence[Json],
    backends: Mapping[str, BackendRef],
) -> Json:
    rule: Json = {
        "matches": list(matches),
        # Answers stream for minutes.
        "timeouts": {"request": "0s"},
        "backendRefs": [dict(backends[placed.name])],
    }
    address = placed.origin.address
    if placed.origin.authority is not None and isinstance(address, Tcp) and is_name(address):
        rule["filters"] = [{"type": "URLRewrite", "urlRewrite": {"hostname": address.host}}]
    hostnames = {"hostnames": list(fitted.hosts)} if fitted.hosts else {}
    spec = {"parentRefs": [{"name": where.gateway}], **hostnames, "rules": [rule]}
    return document(f"{GROUP}/v1", "HTTPRoute", name, where, spec)
