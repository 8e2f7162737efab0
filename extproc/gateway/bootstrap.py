"""Envoy's configuration with our filter in it, as the dict that Envoy reads as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

from extproc.config.address import Address
from extproc.gateway.buffers import USUAL_BUFFERS, Buffers
from extproc.gateway.clusters import (
    EXTPROC,
    SYSTEM_ROOTS,
    TYPES,
    UPSTREAM,
    TlsFiles,
    extproc_cluster,
    model_cluster,
    read_address,
    read_origin,
    written,
)
from extproc.gateway.processor import FILTER, NAMESPACE, FilterOptions, checked_namespace, ext_proc_filter
from extproc.gateway.routes import HEALTH_PATH, Destination, route_config

__all__ = [
    "FILTER",
    "HCM",
    "HEALTH_PATH",
    "NAMESPACE",
    "PATH_SETTINGS",
    "FilterOptions",
    "access_log_format",
    "bootstrap",
    "ext_proc_filter",
    "extproc_cluster",
]

Json = dict[str, Any]

ROUTING_HEADER = "x-arch-llm-provider"
"""`routing.header` of the server."""

_USAGE_FIELDS = {
    "model": "model",
    "promptTokens": "prompt_tokens",
    "completionTokens": "completion_tokens",
    "totalTokens": "total_tokens",
    "cachedTokens": "cached_tokens",
    "cacheWriteTokens": "cache_write_tokens",
    "reasoningTokens": "reasoning_tokens",
    "hitsAddend": "hits_addend",
    "cost": "cost",
    "usageSource": "source",
    "ending": "ending",
    "streaming": "streaming",
    "dialect": "dialect",
}
"""Of the access log, by what the server calls them."""
HCM = f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"
PATH_SETTINGS: Json = {
    "normalize_path": True,
    "merge_slashes": True,
    "path_with_escaped_slashes_action": "REJECT_REQUEST",
    "common_http_protocol_options": {"headers_with_underscores_action": "DROP_HEADER"},
}
"""Of the connection manager: expressions see the path and the headers that the model will see."""


def access_log_format(namespace: str = NAMESPACE) -> Json:
    """Fields of one access log line: request and answer, the decision, the usage, and what the server cost in time.

    Counts are JSON numbers; what the server did not write in `namespace` is null (S4.13, S4.14). Raises ValueError
    like `ext_proc_filter`.
    """
    checked_namespace(namespace)
    return {
        "systemTime": "%START_TIME%",
        "requestId": "%REQ(X-REQUEST-ID)%",
        "host": "%REQ(:AUTHORITY)%",
        "httpMethod": "%REQ(:METHOD)%",
        "path": "%PATH(NQ:ORIG_OR_PATH)%",
        "responseCode": "%RESPONSE_CODE%",
        "responseCodeDetails": "%RESPONSE_CODE_DETAILS%",
        "responseFlags": "%RESPONSE_FLAGS%",
        "duration": "%DURATION%",
        "targetDuration": "%RESPONSE_DURATION%",
        "upstreamName": "%UPSTREAM_CLUSTER%",
        **{field: f"%DYNAMIC_METADATA({namespace}:{key})%" for field, key in _USAGE_FIELDS.items()},
        "extprocTimes": f"%FILTER_STATE({FILTER}:PLAIN)%",
    }


def bootstrap(
    *,
    upstream: str | None,
    extproc: str | Sequence[str] | None,
    listen: str = "127.0.0.1:0",
    admin: str = "127.0.0.1:0",
    filters_before: Sequence[Mapping[str, Any]] = (),
    rewrites: Mapping[str, str] | None = None,
    providers: Mapping[str, str] | None = None,
    routing_header: str = ROUTING_HEADER,
    default_provider: str | None = None,
    request_body_mode: str | None = None,
    buffers: Buffers = USUAL_BUFFERS,
    ca: str = SYSTEM_ROOTS,
    extproc_tls: TlsFiles | None = None,
    access_log: Path | Literal["stdout"] | None = None,
    **options: Unpack[FilterOptions],
) -> Json:
    """A whole Envoy: `listen` -> the filter -> `upstream`; every request but HEALTH_PATH passes the filter.

    Addresses are `host:port` or, but for `listen` and `admin`, `unix:/path`; port 0 lets the kernel choose.
    `extproc` may be several addresses, one per worker, with `extproc_tls` where it serves TLS; None leaves the filter
    out. `filters_before` run first (jwt_authn, rbac ...), `access_log` gets one JSON line a request. `rewrites`: how a
    path begins -> what `upstream` sees in place of that; the filters see the client's path.

    `providers`: value of `routing_header` -> where its requests go, an address or `https://host[:port]`, which is
    verified with the roots in the file `ca`. Others go to `upstream`; where that is None, to `default_provider`, or
    the first. `request_body_mode` is short for that entry of `processing_mode`; `buffers`: how much of bodies may be
    held.
    Raises ValueError that names the option whose address, or namespace, cannot be read.
    """
    if request_body_mode is not None:
        options["processing_mode"] = {**options.get("processing_mode", {}), "request_body_mode": request_body_mode}
    addresses = [extproc] if isinstance(extproc, str) else list(extproc or ())
    destinations = [*_providers(providers or {}, routing_header)]
    destinations.append(_everything_else(upstream, destinations, default_provider, rewrites or {}))
    models = {destination.cluster: destination.origin for destination in destinations}
    clusters = [model_cluster(name, origin, ca=ca) for name, origin in models.items()]
    filters: list[Mapping[str, Any]] = list(filters_before)
    if addresses:
        clusters.append(extproc_cluster(addresses, extproc_tls))
        filters.append(ext_proc_filter(**options))
    listener = _listener(
        read_address("listen", listen, bind=True),
        [*filters, _router()],
        route_config(destinations, with_extproc=bool(addresses), buffers=buffers),
        buffers,
        None if access_log is None else _access_log(access_log, options.get("namespace", NAMESPACE)),
    )
    return {
        "admin": {"address": written(read_address("admin", admin, bind=True))},
        "static_resources": {"listeners": [listener], "clusters": clusters},
    }


def _providers(providers: Mapping[str, str], routing_header: str) -> Iterator[Destination]:
    for name, address in providers.items():
        if name in (EXTPROC, UPSTREAM):
            raise ValueError(f"providers: `{name}` is the name of another cluster")
        yield Destination(name, read_origin(f"providers: {name}", address), (routing_header, name))


def _everything_else(
    upstream: str | None, providers: Sequence[Destination], default: str | None, rewrites: Mapping[str, str]
) -> Destination:
    """Where requests go that name no provider."""
    paths = tuple(rewrites.items())
    if upstream is not None:
        return Destination(UPSTREAM, read_origin("upstream", upstream), rewrites=paths)
    known = {provider.cluster: provider for provider in providers}
    if not known:
        raise ValueError("upstream: without one there have to be providers")
    if default is None:
        default = next(iter(known))
    if default not in known:
        raise ValueError(f"default_provider: `{default}` is none of the providers")
    return Destination(default, known[default].origin, rewrites=paths)


def _listener(
    address: Address, filters: Sequence[Mapping[str, Any]], routes: Json, buffers: Buffers, access_log: Json | None
) -> Json:
    manager: Json = {
        "@type": HCM,
        "stat_prefix": "gateway",
        "use_remote_address": True,
        **PATH_SETTINGS,
        **buffers.manager,
        "route_config": routes,
        "http_filters": filters,
    }
    if access_log is not None:
        manager["access_log"] = [access_log]
    return {
        "name": "gateway",
        "address": written(address),
        **buffers.listener,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _router() -> Json:
    return {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"},
    }


def _access_log(path: Path | Literal["stdout"], namespace: str) -> Json:
    log_format = {"log_format": {"json_format": access_log_format(namespace)}}
    if path == "stdout":
        kind = f"{TYPES}.access_loggers.stream.v3.StdoutAccessLog"
        return {"name": "envoy.access_loggers.stdout", "typed_config": {"@type": kind, **log_format}}
    kind = f"{TYPES}.access_loggers.file.v3.FileAccessLog"
    return {"name": "envoy.access_loggers.file", "typed_config": {"@type": kind, "path": str(path), **log_format}}
