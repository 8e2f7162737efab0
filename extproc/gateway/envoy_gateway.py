"""Envoy Gateway with our filter in it, by its own policies."""

from __future__ import annotations

import re
from collections.abc import Iterator

from extproc.config.errors import Problem
from extproc.config.origins import is_name
from extproc.gateway.fitted import Fitted, Placed, Unfit
from extproc.gateway.kubernetes import GROUP, Json, Where, document, http_routes, labels, tcp
from extproc.gateway.processor import RESPONSE_ATTRIBUTES, ext_proc_filter

NOTES = (
    "The policy has no field for `mutation_rules`, so x-envoy-ratelimited is dropped from refusals (set other headers "
    "with `denyWith`), and none for retries of the processor.",
)
BACKEND_NOTE = (
    "A Backend needs `extensionApis.enableBackend: true` in the EnvoyGateway configuration; BackendTLSPolicy is that "
    "of Gateway API 1.4."
)
_API = "gateway.envoyproxy.io/v1alpha1"
_BACKEND_GROUP = "gateway.envoyproxy.io"
_SMALLEST_WINDOW = 64 * 1024
"""Bytes of HTTP/2's window of a stream, which has to have 65,535."""
_ATTRIBUTE = re.compile(r"(connection\.|source\.|destination\.|request\.|response\.|upstream\.|xds\.route_)[a-z_1-9]*")
"""Attributes that the policy admits."""


def envoy_gateway(fitted: Fitted, where: Where) -> list[Json]:
    """Documents for `kubectl apply`. Raises Unfit for what the policy has no words for."""
    if problems := [*_problems(fitted)]:
        raise Unfit(problems)
    return [
        _policy(fitted, where),
        _client_traffic(fitted, where),
        *(each for placed, label in _labelled(fitted) for each in _backend(placed, label, where)),
        *http_routes(
            fitted,
            where,
            {
                placed.name: {"group": _BACKEND_GROUP, "kind": "Backend", "name": label}
                for placed, label in _labelled(fitted)
            },
        ),
    ]


def _problems(fitted: Fitted) -> Iterator[Problem]:
    for attribute in fitted.attributes:
        if not _ATTRIBUTE.fullmatch(attribute):
            yield Problem("", f"an expression names `{attribute}`, which an EnvoyExtensionPolicy cannot send")
    for field in fitted.rewriters:
        yield Problem(field, "an EnvoyExtensionPolicy lets nobody set `host`")
    for placed in fitted.providers:
        if placed.origin.tls and not is_name(placed.origin.address):
            yield Problem(placed.field, "a BackendTLSPolicy verifies names, not addresses")


def _labelled(fitted: Fitted) -> Iterator[tuple[Placed, str]]:
    names = labels([placed.name for placed in fitted.providers])
    return ((placed, f"extproc-{names[placed.name]}") for placed in fitted.providers)


def _policy(fitted: Fitted, where: Where) -> Json:
    """What `ext_proc_filter` says, in the policy's words."""
    settings = ext_proc_filter(**fitted.options)["typed_config"]
    namespaces = settings["metadata_options"]
    name, namespace = where.service
    backend: Json = {"name": name, "port": where.port}
    if namespace != where.namespace:
        backend["namespace"] = namespace
    limits = {"maxConnections": 100_000, "maxPendingRequests": 100_000, "maxParallelRequests": 100_000}
    processor = {
        "backendRefs": [backend],
        "backendSettings": {"circuitBreaker": limits},
        "failOpen": settings["failure_mode_allow"],
        "messageTimeout": settings["message_timeout"],
        # That `request` and `response` are there has their headers sent; a `body` in them would be sent always.
        "processingMode": {
            "allowModeOverride": settings["allow_mode_override"],
            "request": {"attributes": settings["request_attributes"]},
            "response": {"attributes": [*RESPONSE_ATTRIBUTES]},
        },
        "metadata": {
            "accessibleNamespaces": namespaces["forwarding_namespaces"]["untyped"],
            "writableNamespaces": namespaces["receiving_namespaces"]["untyped"],
        },
    }
    return document(_API, "EnvoyExtensionPolicy", "extproc", where, {**_of_gateway(where), "extProc": [processor]})


def _client_traffic(fitted: Fitted, where: Where) -> Json:
    """Envoy Gateway's own limits are 32 KiB, and 64 KiB for HTTP/2; paths with escaped slashes are redirected."""
    held = fitted.buffers.connection
    spec = {
        **_of_gateway(where),
        "connection": {"bufferLimit": _quantity(held)},
        "http2": {"initialStreamWindowSize": _quantity(max(held, _SMALLEST_WINDOW))},
        "path": {"escapedSlashesAction": "RejectRequest", "disableMergeSlashes": False},
        "headers": {"withUnderscoresAction": "DropHeader"},
    }
    return document(_API, "ClientTrafficPolicy", "extproc", where, spec)


def _of_gateway(where: Where) -> Json:
    return {"targetRefs": [{"group": GROUP, "kind": "Gateway", "name": where.gateway}]}


def _quantity(size: int) -> str:
    """Bytes as Kubernetes writes them."""
    for unit, length in (("Mi", 1024 * 1024), ("Ki", 1024)):
        if size % length == 0:
            return f"{size // length}{unit}"
    return str(size)


def _backend(placed: Placed, label: str, where: Where) -> Iterator[Json]:
    address = tcp(placed)
    kind = {"fqdn": {"hostname": address.host, "port": address.port}}
    if not is_name(address):
        kind = {"ip": {"address": address.host, "port": address.port}}
    yield document(_API, "Backend", label, where, {"endpoints": [kind]})
    if placed.origin.tls:
        target = {"group": _BACKEND_GROUP, "kind": "Backend", "name": label}
        validation = {"wellKnownCACertificates": "System", "hostname": address.host}
        spec = {"targetRefs": [target], "validation": validation}
        yield document(f"{GROUP}/v1", "BackendTLSPolicy", label, where, spec)
