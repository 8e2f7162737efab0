"""Callers with keys and tiers: Kuadrant documents as an operator would have them, with limits that no run reaches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

from bench.load import HOST

TIERS = ("free", "premium", "enterprise")
REQUESTS = ("1m",)
TOKENS = ("1m", "1h", "24h")
"""Windows of a user's limits: one for requests, three for tokens."""
SERIES = 2000
"""Users that metrics tell apart by default."""
_MANY = 10**15
_GATEWAY_API = "gateway.networking.k8s.io/v1"
_KUADRANT = "kuadrant.io/v1"
_TARGET = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gateway"}
_USER, _GROUPS = "secret.kuadrant.io/user-id", "kuadrant.io/groups"
_REGO = 'groups := split(object.get(input.auth.identity.metadata.annotations, "kuadrant.io/groups", ""), ",")\n'


def credential(number: int) -> str:
    """The header of the `number`th user."""
    return f"authorization: APIKEY {_key(number)}"


def documents(users: int) -> dict[str, Any]:
    """A Kubernetes list: a gateway, its route, a Secret for each user, and what they may do."""
    items = [
        _document(_GATEWAY_API, "Gateway", "gateway", {"gatewayClassName": "envoy", "listeners": [_LISTENER]}),
        _document(_GATEWAY_API, "HTTPRoute", "route", {"parentRefs": [{"name": "gateway"}], **_ROUTE}),
        _document(_KUADRANT, "AuthPolicy", "auth", {"targetRef": _TARGET, "rules": _RULES}),
        _document(_KUADRANT, "RateLimitPolicy", "requests", {"targetRef": _TARGET, "limits": _limits(REQUESTS)}),
        _document(_KUADRANT, "TokenRateLimitPolicy", "tokens", {"targetRef": _TARGET, "limits": _limits(TOKENS)}),
    ]
    return {"apiVersion": "v1", "kind": "List", "items": [*items, *_secrets(users)]}


_LISTENER = {"name": "http", "port": 80, "protocol": "HTTP"}
_ROUTE = {
    "hostnames": [HOST],
    "rules": [
        {"matches": [{"path": {"type": "PathPrefix", "value": "/"}}], "backendRefs": [{"name": "model", "port": 80}]}
    ],
}
_PROPERTIES = {
    "userid": {"selector": "auth.identity.metadata.annotations." + _USER.replace(".", "\\.")},
    "groups": {"selector": "auth.identity.metadata.annotations." + _GROUPS.replace(".", "\\.")},
}
_RULES = {
    "authentication": {
        "keys": {
            "apiKey": {"allNamespaces": True, "selector": {"matchLabels": {"app": "bench"}}},
            "credentials": {"authorizationHeader": {"prefix": "APIKEY"}},
        }
    },
    "authorization": {
        "tiers": {"opa": {"rego": _REGO + "".join(f'allow {{ groups[_] == "{tier}" }}\n' for tier in TIERS)}}
    },
    "response": {"success": {"filters": {"identity": {"json": {"properties": _PROPERTIES}}}}},
}


def _limits(windows: tuple[str, ...]) -> Mapping[str, Any]:
    """For each tier the same windows; a longer one allows more, as it would in earnest."""
    return {
        tier: {
            "rates": [{"limit": _MANY * number, "window": window} for number, window in enumerate(windows, 1)],
            "when": [{"predicate": f'auth.identity.groups.split(",").exists(g, g == "{tier}")'}],
            "counters": [{"expression": "auth.identity.userid"}],
        }
        for tier in TIERS
    }


def _secrets(users: int) -> Iterator[Mapping[str, Any]]:
    for number in range(users):
        yield {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": f"key-{number}",
                "namespace": "bench",
                "labels": {"app": "bench"},
                "annotations": {_USER: f"user-{number:05}", _GROUPS: TIERS[number % len(TIERS)]},
            },
            "stringData": {"api_key": "sha256:" + sha256(_key(number).encode()).hexdigest()},
        }


def _key(number: int) -> str:
    return f"sk-bench-{number:05}-0123456789abcdef"


def _document(api_version: str, kind: str, name: str, spec: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": name, "namespace": "bench"},
        "spec": spec,
    }
