"""An Istio gateway with our filter in it.

The filter is `ext_proc_filter`, as everywhere; what differs is how it gets there and who knows the clusters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from extproc.config.address import Tcp
from extproc.config.origins import is_name
from extproc.gateway.bootstrap import HCM, PATH_SETTINGS
from extproc.gateway.fitted import Fitted
from extproc.gateway.kubernetes import GROUP, Json, Where, document, http_routes, in_cluster, labels, tcp
from extproc.gateway.processor import disabled, ext_proc_filter

Position = Literal["router", "authn"]

HEALTH_ROUTE = "health"
"""Name of the gateway's route, if it has one, that is not for extproc."""
NOTES = (
    "`workloadSelector` chooses the pods of a Gateway of the Gateway API; those of a classic gateway have a label of "
    "their own, such as `istio: ingressgateway`.",
    "The port of the Service needs a name such as `grpc` or `appProtocol: kubernetes.io/h2c`: without, Istio speaks "
    "HTTP/1.1 to it and every call fails.",
    "Pods with a sidecar or in ambient mode get mutual TLS by themselves; others may need "
    "`trafficPolicy.tls.mode: DISABLE` in the DestinationRule.",
    "A gateway knows the Service's cluster unless istiod runs with PILOT_FILTER_GATEWAY_CLUSTER_CONFIG, and waypoints "
    "only know what routes refer to: add a VirtualService that names the Service then.",
)
AUTHN_NOTE = "At --position authn expressions see nothing of RequestAuthentication and AuthorizationPolicy."
_NETWORKING = "networking.istio.io/v1"
_HCM_FILTER = "envoy.filters.network.http_connection_manager"


def istio(fitted: Fitted, where: Where, *, position: Position = "router") -> list[Json]:
    """Documents for `kubectl apply`. Raises Unfit for a provider that a gateway in Kubernetes cannot reach."""
    hosts = _hosts(fitted)
    return [
        _envoy_filter(fitted, where, position),
        _of_extproc(where),
        *(_service_entry(host, where) for host in hosts if not host.in_cluster),
        *(_destination_rule(host, where) for host in hosts if host.originated),
        *http_routes(fitted, where, _backends(fitted)),
    ]


@dataclass(slots=True)
class _Host:
    """A host outside, its ports, and those to which the gateway itself speaks TLS."""

    name: str
    label: str
    address: Tcp
    ports: dict[int, bool] = field(default_factory=dict)
    """Port -> whether it is TLS that is spoken there."""
    originated: list[int] = field(default_factory=list)

    @property
    def in_cluster(self) -> bool:
        return in_cluster(self.address)


def _envoy_filter(fitted: Fitted, where: Where, position: Position) -> Json:
    options = fitted.options
    options["cluster"] = f"outbound|{where.port}||{where.host}"
    return document(
        "networking.istio.io/v1alpha3",
        "EnvoyFilter",
        "extproc",
        where,
        {
            "workloadSelector": {"labels": _gateway_label(where)},
            "configPatches": [
                _insertion(position, ext_proc_filter(**options)),
                _patch("HTTP_ROUTE", _route(HEALTH_ROUTE), {"typed_per_filter_config": disabled()}),
                _patch(
                    "NETWORK_FILTER",
                    {"listener": {"filterChain": {"filter": {"name": _HCM_FILTER}}}},
                    {"name": _HCM_FILTER, "typed_config": {"@type": HCM, **PATH_SETTINGS, **fitted.buffers.manager}},
                ),
                _patch("LISTENER", {}, {"per_connection_buffer_limit_bytes": fitted.buffers.connection}),
            ],
        },
    )


def _insertion(position: Position, value: Mapping[str, Any]) -> Json:
    """Before the router, after authentication: what that refuses costs no check. Or before everything else."""
    manager: Json = {"name": _HCM_FILTER}
    if position == "router":
        manager["subFilter"] = {"name": "envoy.filters.http.router"}
    operation = "INSERT_BEFORE" if position == "router" else "INSERT_FIRST"
    return _patch("HTTP_FILTER", {"listener": {"filterChain": {"filter": manager}}}, value, operation)


def _patch(kind: str, match: Mapping[str, Any], value: Mapping[str, Any], operation: str = "MERGE") -> Json:
    return {
        "applyTo": kind,
        "match": {"context": "GATEWAY", **match},
        "patch": {"operation": operation, "value": dict(value)},
    }


def _route(name: str) -> Json:
    return {"routeConfiguration": {"vhost": {"route": {"name": name}}}}


def _gateway_label(where: Where) -> Json:
    return {f"{GROUP}/gateway-name": where.gateway}


def _of_extproc(where: Where) -> Json:
    """Every request in flight is a stream there, and a mesh-wide rule made for Services must not cap them."""
    http = {"http2MaxRequests": 100_000, "http1MaxPendingRequests": 100_000, "maxRetries": 1000}
    pool = {"http": http, "tcp": {"tcpKeepalive": {"time": "30s", "interval": "5s"}}}
    spec = {"host": where.host, "trafficPolicy": {"connectionPool": pool}}
    return document(_NETWORKING, "DestinationRule", "extproc", where, spec)


def _hosts(fitted: Fitted) -> list[_Host]:
    """Of the providers, and of the guards' models and webhooks, which extproc asks itself."""
    places = [(tcp(placed), placed.origin.tls, placed.origin.tls) for placed in fitted.providers]
    places += [(origin.address, origin.tls, False) for origin in fitted.outside if isinstance(origin.address, Tcp)]
    names = labels(list(dict.fromkeys(address.host for address, _, _ in places)))
    hosts: dict[str, _Host] = {}
    for address, tls, originated in places:
        label = names[address.host]
        host = hosts.setdefault(address.host, _Host(_name(address, label), label, address))
        host.ports[address.port] = tls
        if originated and address.port not in host.originated:
            host.originated.append(address.port)
    return list(hosts.values())


def _name(address: Tcp, label: str) -> str:
    """What the mesh calls it: an address needs a name."""
    return address.host if is_name(address) else f"address-{label}.extproc.internal"


def _service_entry(host: _Host, where: Where) -> Json:
    ports = [
        {"number": port, "name": f"{'https' if tls else 'http'}-{port}", "protocol": "HTTPS" if tls else "HTTP"}
        for port, tls in sorted(host.ports.items())
    ]
    spec: Json = {"hosts": [host.name], "location": "MESH_EXTERNAL", "ports": ports, "resolution": "DNS"}
    if not is_name(host.address):
        spec.update(resolution="STATIC", endpoints=[{"address": host.address.host}])
    return document(_NETWORKING, "ServiceEntry", f"extproc-{host.label}", where, spec)


def _destination_rule(host: _Host, where: Where) -> Json:
    """TLS from the gateway alone: extproc, which may ask the same host, speaks TLS itself."""
    tls: Json = {"mode": "SIMPLE", "subjectAltNames": [host.address.host]}
    if is_name(host.address):
        tls["sni"] = host.address.host
    settings = [{"port": {"number": port}, "tls": tls} for port in sorted(host.originated)]
    spec = {
        "host": host.name,
        "workloadSelector": {"matchLabels": _gateway_label(where)},
        "trafficPolicy": {"portLevelSettings": settings},
    }
    return document(_NETWORKING, "DestinationRule", f"extproc-{host.label}", where, spec)


def _backends(fitted: Fitted) -> dict[str, Json]:
    names = {host.address.host: host.name for host in _hosts(fitted)}
    return {
        placed.name: {
            "group": "networking.istio.io",
            "kind": "Hostname",
            "name": names[tcp(placed).host],
            "port": tcp(placed).port,
        }
        for placed in fitted.providers
    }
