"""HTTPRoute and Gateway: the parts that say which request is whose. What a proxy does besides is not looked at."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from extproc.config.fields import Model
from extproc.policies.objects import Anything, KubernetesObject, refused

MatchType = Literal["Exact", "RegularExpression"]
Method = Literal["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"]


class PathMatch(Model):
    type: Literal["Exact", "PathPrefix", "RegularExpression"] = "PathPrefix"
    value: str = "/"


class NamedMatch(Model):
    """Of a header or a query parameter."""

    type: MatchType = "Exact"
    name: Annotated[str, Field(min_length=1)]
    value: str


class Match(Model):
    """All that is given must match."""

    path: PathMatch = PathMatch()
    method: Method | None = None
    headers: list[NamedMatch] = Field(default_factory=list)
    query_params: list[NamedMatch] = Field(default_factory=list)


class RouteRule(Model):
    """One of several matches is enough."""

    name: str | None = None
    matches: list[Match] = Field(default_factory=list)
    backend_refs: Anything = None
    filters: Anything = None
    retry: Anything = None
    session_persistence: Anything = None
    timeouts: Anything = None


class ParentRef(Model):
    """The Gateway, or one of its listeners, that serves a route."""

    group: str = "gateway.networking.k8s.io"
    kind: str = "Gateway"
    namespace: str | None = None
    name: str
    section_name: str | None = None
    port: int | None = None


class RouteSpec(Model):
    parent_refs: list[ParentRef] = Field(default_factory=list)
    hostnames: list[str] = Field(default_factory=list)
    rules: list[RouteRule] = Field(default_factory=list)
    use_default_gateways: Anything = refused("write `parentRefs`")


class HttpRoute(KubernetesObject):
    spec: RouteSpec


class Listener(Model):
    name: str
    hostname: str | None = None
    port: int | None = None
    protocol: Anything = None
    tls: Anything = None
    allowed_routes: Anything = None


class GatewaySpec(Model):
    listeners: list[Listener] = Field(default_factory=list)
    gateway_class_name: Anything = None
    addresses: Anything = None
    allowed_listeners: Anything = None
    backend_tls: Anything = Field(default=None, alias="backendTLS")
    default_scope: Anything = None
    infrastructure: Anything = None
    tls: Anything = None


class Gateway(KubernetesObject):
    spec: GatewaySpec


HTTP_ROUTE: TypeAdapter[HttpRoute] = TypeAdapter(HttpRoute)
GATEWAY: TypeAdapter[Gateway] = TypeAdapter(Gateway)
