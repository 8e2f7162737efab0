"""Routes of Envoy: health, one per provider, and everything else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from extproc.config.origins import Origin
from extproc.gateway.buffers import Buffers
from extproc.gateway.processor import disabled

Json = dict[str, Any]

HEALTH_PATH = "/healthz"
"""Answered by Envoy itself, without the model and without us."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A cluster that routes lead to. `header`: only requests whose header of that name has that value get there."""

    cluster: str
    origin: Origin
    header: tuple[str, str] | None = None
    rewrites: tuple[tuple[str, str], ...] = ()
    """How a path begins -> what the model sees in place of that."""


def route_config(destinations: Iterable[Destination], *, with_extproc: bool, buffers: Buffers) -> Json:
    """All routes, the first that matches counts."""
    health: Json = {
        "match": {"path": HEALTH_PATH},
        "direct_response": {"status": 200, "body": {"inline_string": "ok\n"}},
    }
    if with_extproc:
        health["typed_per_filter_config"] = disabled()
    routes = [{**route, **buffers.route} for destination in destinations for route in _routes(destination)]
    return {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [health, *routes]}]}


def _routes(destination: Destination) -> Iterator[Mapping[str, Any]]:
    # Envoy would cut an answer after 15 s; a model may stream for minutes.
    action: Json = {"cluster": destination.cluster, "timeout": "0s"}
    if destination.origin.authority is not None:
        action["host_rewrite_literal"] = destination.origin.authority
    for prefix, path in destination.rewrites:
        yield {"match": _match(prefix, destination), "route": {**action, "prefix_rewrite": path}}
    yield {"match": _match("/", destination), "route": action}


def _match(prefix: str, destination: Destination) -> Json:
    if destination.header is None:
        return {"prefix": prefix}
    name, value = destination.header
    return {"prefix": prefix, "headers": [{"name": name, "string_match": {"exact": value}}]}
