"""Envoy's configuration with our filter in it, as the dict that Envoy reads as JSON.

`ext_proc_filter` and `extproc_cluster` are the settings this server is made for; deploy/ repeats them for
people, with the reason of each, and a test holds the two together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypedDict, Unpack

from extproc.config.address import Address, Unix, parse_address

Json = dict[str, Any]

FILTER = "extproc"
"""Name of the filter (per-route settings and %FILTER_STATE% are keyed by it) and of its cluster."""
NAMESPACE = "extproc"
"""Dynamic metadata that the server writes lands here; access logs read it. `metadataNamespace` of the server."""
HEALTH_PATH = "/healthz"
"""Answered by Envoy itself, without the model and without us."""

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
_TYPES = "type.googleapis.com/envoy.extensions"
_HCM = f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


class FilterOptions(TypedDict, total=False):
    """What `ext_proc_filter` lets a caller change."""

    message_timeout: str
    failure_mode_allow: bool
    allow_mode_override: bool
    processing_mode: Mapping[str, str]
    namespace: str


def ext_proc_filter(
    *,
    message_timeout: str = "1s",
    failure_mode_allow: bool = False,
    allow_mode_override: bool = True,
    processing_mode: Mapping[str, str] | None = None,
    namespace: str = NAMESPACE,
) -> Json:
    """The HTTP filter. `processing_mode` is merged over ours; `message_timeout` is a protobuf duration.

    The server may write dynamic metadata in `namespace`. Raises ValueError when an access log could not name it.
    """
    return {
        "name": FILTER,
        "typed_config": {
            "@type": f"{_TYPES}.filters.http.ext_proc.v3.ExternalProcessor",
            "grpc_service": {
                "envoy_grpc": {"cluster_name": FILTER},
                "retry_policy": _retries(),
            },
            "failure_mode_allow": failure_mode_allow,
            "message_timeout": message_timeout,
            "allow_mode_override": allow_mode_override,
            "processing_mode": {
                "request_header_mode": "SEND",
                "response_header_mode": "SEND",
                "request_body_mode": "NONE",
                "response_body_mode": "NONE",
                "request_trailer_mode": "SKIP",
                "response_trailer_mode": "SKIP",
                **(processing_mode or {}),
            },
            "mutation_rules": {"allow_envoy": True},
            "request_attributes": [
                "source.address",
                "source.port",
                "destination.address",
                "destination.port",
                "request.protocol",
            ],
            "response_attributes": ["request.size"],
            "metadata_options": {
                "forwarding_namespaces": {"untyped": ["envoy.filters.http.jwt_authn", "envoy.filters.http.ext_authz"]},
                "receiving_namespaces": {"untyped": [_namespace(namespace)]},
            },
        },
    }


def _retries() -> Json:
    """Another endpoint is tried when one cannot be reached.

    Without a back-off of ours, Envoy's is so long that `message_timeout` ends the request first.
    """
    return {
        "retry_on": "connect-failure,refused-stream,reset",
        "num_retries": 2,
        "retry_back_off": {"base_interval": "0.01s", "max_interval": "0.05s"},
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {"@type": f"{_TYPES}.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
            }
        ],
        "host_selection_retry_max_attempts": 3,
    }


def extproc_cluster(addresses: Sequence[str]) -> Json:
    """The cluster of our server: HTTP/2, one endpoint per worker. Raises ValueError like `bootstrap`."""
    return {
        **_cluster(FILTER, [_address("extproc", address) for address in addresses]),
        "typed_extension_protocol_options": {
            _HTTP_OPTIONS: {
                "@type": f"type.googleapis.com/{_HTTP_OPTIONS}",
                "explicit_http_config": {
                    "http2_protocol_options": {
                        "max_concurrent_streams": 1000,
                        "connection_keepalive": {"interval": "30s", "timeout": "5s"},
                    }
                },
            }
        },
    }


def access_log_format(namespace: str = NAMESPACE) -> Json:
    """Fields of one access log line: request and answer, the decision, the usage, and what the server cost in time.

    Counts are JSON numbers; what the server did not write in `namespace` is null (S4.13, S4.14). Raises ValueError
    like `ext_proc_filter`.
    """
    _namespace(namespace)
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


def _namespace(namespace: str) -> str:
    if not re.fullmatch(r"[^\s:()%]+", namespace):
        raise ValueError(f"namespace: {namespace!r} is empty or has a space or one of :()%")
    return namespace


def bootstrap(
    *,
    upstream: str,
    extproc: str | Sequence[str] | None,
    listen: str = "127.0.0.1:0",
    admin: str = "127.0.0.1:0",
    filters_before: Sequence[Mapping[str, Any]] = (),
    rewrites: Mapping[str, str] | None = None,
    access_log: Path | None = None,
    **options: Unpack[FilterOptions],
) -> Json:
    """A whole Envoy: `listen` -> the filter -> `upstream`; every request but HEALTH_PATH passes the filter.

    Addresses are `host:port` or, but for `listen` and `admin`, `unix:/path`; port 0 lets the kernel choose.
    `extproc` may be several addresses, one per worker; None leaves the filter out. `filters_before` run first
    (jwt_authn, rbac ...), `access_log` gets one JSON line a request. `rewrites`: how a path begins -> what `upstream`
    sees in place of that; the filters see the client's path.
    Raises ValueError that names the option whose address, or namespace, cannot be read.
    """
    addresses = [extproc] if isinstance(extproc, str) else list(extproc or ())
    # Of a large answer ext_proc gets pieces of this size; the default of 1 MiB costs memory and saves nothing.
    model = _cluster("upstream", [_address("upstream", upstream)])
    clusters = [{**model, "per_connection_buffer_limit_bytes": 262_144}]
    filters: list[Mapping[str, Any]] = list(filters_before)
    if addresses:
        clusters.append(extproc_cluster(addresses))
        filters.append(ext_proc_filter(**options))
    return {
        "admin": {"address": _written(_address("admin", admin, bind=True))},
        "static_resources": {
            "listeners": [
                _listener(
                    _address("listen", listen, bind=True),
                    [*filters, _router()],
                    _routes(bool(addresses), rewrites or {}),
                    None if access_log is None else _file_access_log(access_log, options.get("namespace", NAMESPACE)),
                )
            ],
            "clusters": clusters,
        },
    }


def _listener(address: Address, filters: Sequence[Mapping[str, Any]], routes: Json, access_log: Json | None) -> Json:
    manager: Json = {
        "@type": _HCM,
        "stat_prefix": "gateway",
        "use_remote_address": True,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "common_http_protocol_options": {"headers_with_underscores_action": "DROP_HEADER"},
        "route_config": routes,
        "http_filters": filters,
    }
    if access_log is not None:
        manager["access_log"] = [access_log]
    return {
        "name": "gateway",
        "address": _written(address),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _routes(with_extproc: bool, rewrites: Mapping[str, str]) -> Json:
    health: Json = {
        "match": {"path": HEALTH_PATH},
        "direct_response": {"status": 200, "body": {"inline_string": "ok\n"}},
    }
    if with_extproc:
        health["typed_per_filter_config"] = {
            FILTER: {"@type": f"{_TYPES}.filters.http.ext_proc.v3.ExtProcPerRoute", "disabled": True}
        }
    to_model = {"cluster": "upstream", "timeout": "0s"}
    rewritten = [
        {"match": {"prefix": prefix}, "route": {**to_model, "prefix_rewrite": path}}
        for prefix, path in rewrites.items()
    ]
    everything = {"match": {"prefix": "/"}, "route": to_model}
    return {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [health, *rewritten, everything]}]}


def _router() -> Json:
    return {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"},
    }


def _file_access_log(path: Path, namespace: str) -> Json:
    return {
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": f"{_TYPES}.access_loggers.file.v3.FileAccessLog",
            "path": str(path),
            "log_format": {"json_format": access_log_format(namespace)},
        },
    }


def _cluster(name: str, addresses: Sequence[Address]) -> Json:
    """Envoy's own circuit breakers stop at 1024 requests, which streams that last minutes soon reach."""
    return {
        "name": name,
        "type": "STRICT_DNS" if any(map(_is_name, addresses)) else "STATIC",
        "connect_timeout": "0.25s",
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": 100_000,
                    "max_pending_requests": 100_000,
                    "max_requests": 100_000,
                    "max_retries": 1000,
                }
            ]
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _written(address)}} for address in addresses]}],
        },
    }


def _is_name(address: Address) -> bool:
    """Whether DNS has to be asked where it is."""
    if isinstance(address, Unix):
        return False
    try:
        ip_address(address.host)
    except ValueError:
        return True
    return False


def _address(option: str, text: str, *, bind: bool = False) -> Address:
    try:
        return parse_address(text, bind=bind)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def _written(address: Address) -> Json:
    if isinstance(address, Unix):
        return {"pipe": {"path": address.path}}
    return {"socket_address": {"address": address.host, "port_value": address.port}}
