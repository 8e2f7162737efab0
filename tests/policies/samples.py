"""Documents for tests: a route behind a gateway, and policies for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from extproc.policies import Compiled

Data = dict[str, Any]
Compile = Callable[..., Compiled]
Refused = Callable[..., list[str]]

GATEWAY: Data = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "Gateway",
    "metadata": {"name": "gw", "namespace": "llm"},
    "spec": {"gatewayClassName": "istio", "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]},
}
TARGET = {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "chat"}
TO_GATEWAY = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gw"}


def route(name: str = "chat", *hostnames: str, matches: Any = None, **spec: Any) -> Data:
    rules = spec.pop("rules", [{"matches": matches} if matches else {}])
    spec = {"parentRefs": [{"name": "gw"}], "hostnames": list(hostnames or ("a.example.com",)), "rules": rules} | spec
    metadata = {"name": name, "namespace": "llm"}
    return {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": metadata, "spec": spec}


def limit(number: int = 5, window: str = "1m", *counters: str, when: tuple[str, ...] = ()) -> Data:
    found: Data = {"rates": [{"limit": number, "window": window}]}
    if counters:
        found["counters"] = [{"expression": counter} for counter in counters]
    if when:
        found["when"] = [{"predicate": predicate} for predicate in when]
    return found


def policy(kind: str = "RateLimitPolicy", name: str = "p", target: Mapping[str, str] = TARGET, **spec: Any) -> Data:
    metadata: Data = {"name": name, "namespace": "llm"}
    if created := spec.pop("created", None):
        metadata["creationTimestamp"] = created
    spec = {"targetRef": dict(target), **spec}
    return {"apiVersion": "kuadrant.io/v1", "kind": kind, "metadata": metadata, "spec": spec}


def auth(name: str = "who", target: Mapping[str, str] = TARGET, **rules: Any) -> Data:
    """Callers with API keys, unless `rules` say otherwise."""
    keys = {"keys": {"apiKey": {"allNamespaces": True, "selector": {"matchLabels": {"app": "llm"}}}}}
    return policy("AuthPolicy", name, target, rules={"authentication": keys, **rules})


SECRET: Data = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "alice", "namespace": "llm", "labels": {"app": "llm"}},
    "stringData": {"api_key": "a-very-secret-key"},
}
