"""What is wrong with an object as a whole, where naming its fields one by one would not help."""

from __future__ import annotations

from typing import Any

_TYPED_ACTIONS = frozenset({"grpc", "deny", "headers", "store", "fail"})
_TYPED_SERVICES = {
    "dynamic": "write `ratelimit`, `ratelimit-check` or `ratelimit-report`, without `grpcService` and `grpcMethod`",
    "tracing": "spans are not exported, so remove this service; `observability.tracing` may stay",
}


def fault_of(model: str, data: dict[str, Any]) -> str:
    """A sentence about data for the model of that name, "" when its fields can be looked at."""
    kind = data.get("type")
    if model == "Action" and isinstance(kind, str) and kind in _TYPED_ACTIONS:
        return (
            f"typed actions (`type: {kind}`) are a newer dialect that is not supported; "
            "write the legacy form: `service`, `scope`, `conditionalData`"
        )
    if model == "Service" and isinstance(kind, str) and kind in _TYPED_SERVICES:
        return f"services of type `{kind}` are not supported: {_TYPED_SERVICES[kind]}"
    given = [name for name in ("static", "expression") if data.get(name) is not None]
    if model == "Data" and len(given) != 1 and not data.keys() - {"static", "expression"}:
        return "expected exactly one of `static`, `expression`"
    return ""
