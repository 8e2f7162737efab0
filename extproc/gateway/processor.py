"""The filter that calls our server: the settings it is made for.

deploy/ repeats them for people, with the reason of each, and a test holds the two together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from extproc.gateway.clusters import EXTPROC, TYPES

Json = dict[str, Any]

FILTER = "extproc"
"""Name of the filter: per-route settings and %FILTER_STATE% are keyed by it."""
NAMESPACE = "extproc"
"""Dynamic metadata that the server writes lands here; access logs read it. `metadataNamespace` of the server."""
REQUEST_ATTRIBUTES = ("source.address", "source.port", "destination.address", "destination.port", "request.protocol")
RESPONSE_ATTRIBUTES = ("request.size",)
IDENTITIES = ("envoy.filters.http.jwt_authn", "envoy.filters.http.ext_authz")
"""Dynamic metadata of the filters before ours that tells who calls."""


class FilterOptions(TypedDict, total=False):
    """What `ext_proc_filter` lets a caller change."""

    message_timeout: str
    failure_mode_allow: bool
    allow_mode_override: bool
    processing_mode: Mapping[str, str]
    namespace: str
    cluster: str
    request_attributes: Sequence[str]
    response_attributes: Sequence[str]
    forwarded: Sequence[str]
    mutation_rules: Mapping[str, bool]


def ext_proc_filter(
    *,
    message_timeout: str = "1s",
    failure_mode_allow: bool = False,
    allow_mode_override: bool = True,
    processing_mode: Mapping[str, str] | None = None,
    namespace: str = NAMESPACE,
    cluster: str = EXTPROC,
    request_attributes: Sequence[str] = REQUEST_ATTRIBUTES,
    response_attributes: Sequence[str] = RESPONSE_ATTRIBUTES,
    forwarded: Sequence[str] = IDENTITIES,
    mutation_rules: Mapping[str, bool] | None = None,
) -> Json:
    """The HTTP filter. `processing_mode` and `mutation_rules` are merged over ours; `message_timeout` is a protobuf
    duration.

    The server may write dynamic metadata in `namespace`, and sees that in the namespaces `forwarded`. Raises
    ValueError when an access log could not name `namespace`.
    """
    return {
        "name": FILTER,
        "typed_config": {
            "@type": f"{TYPES}.filters.http.ext_proc.v3.ExternalProcessor",
            "grpc_service": {
                "envoy_grpc": {"cluster_name": cluster},
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
            "mutation_rules": {"allow_envoy": True, **(mutation_rules or {})},
            "request_attributes": list(request_attributes),
            "response_attributes": list(response_attributes),
            "metadata_options": {
                "forwarding_namespaces": {"untyped": list(forwarded)},
                "receiving_namespaces": {"untyped": [checked_namespace(namespace)]},
            },
        },
    }


def disabled() -> Json:
    """`typed_per_filter_config` of a route whose requests the server does not see."""
    return {FILTER: {"@type": f"{TYPES}.filters.http.ext_proc.v3.ExtProcPerRoute", "disabled": True}}


def checked_namespace(namespace: str) -> str:
    """`namespace` itself. Raises ValueError when an access log could not name it."""
    if not re.fullmatch(r"[^\s:()%]+", namespace):
        raise ValueError(f"namespace: {namespace!r} is empty or has a space or one of :()%")
    return namespace


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
                "typed_config": {"@type": f"{TYPES}.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
            }
        ],
        "host_selection_retry_max_attempts": 3,
    }
