"""From the attributes that expressions name to the variables they see.

Attributes are wasm-shim's (and so Envoy's). One that Envoy did not send is null. Only what some expression of
an action set names is gathered, and of `request.headers` only the headers that are named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import orjson

from extproc.expressions.lookup import Lookup, NotThere
from extproc.facts import RequestFacts

ROOTS = frozenset({"request", "source", "destination", "connection", "metadata", "auth", "xds"})
"""Variables that are there with the request."""

USAGE = "usage"
"""The variable that is there when the answer is over: the fields of extproc.usage.usage.Usage."""

BODY_ATTRIBUTES = frozenset({("request", "body"), ("request", "raw_body")})

_TREES = frozenset({"auth", "metadata"})
"""Variables whose structure is not known beforehand."""

Path = tuple[str, ...]
Variables = dict[str, Any]


def _url_path(facts: RequestFacts) -> str | None:
    path = facts.header(":path")
    return None if path is None else path.partition("?")[0]


def _query(facts: RequestFacts) -> str | None:
    path = facts.header(":path")
    return None if path is None else path.partition("?")[2]


def _request_id(facts: RequestFacts) -> Any:
    return facts.header("x-request-id") or facts.attribute("request.id")


def _time(facts: RequestFacts) -> datetime:
    return datetime.now(UTC)


def _grpc(facts: RequestFacts) -> dict[str, str] | None:
    parts = (_url_path(facts) or "").split("/")
    if not (facts.header("content-type") or "").startswith("application/grpc") or len(parts) != 3:
        return None
    return {"service": parts[1], "method": parts[2]}


def _remote_address(facts: RequestFacts) -> str | None:
    address = facts.attribute("source.address")
    return host_of(address) if isinstance(address, str) else None


Getter = Callable[[RequestFacts], Any]
_DERIVED: dict[Path, Getter] = {
    ("request", "context_extensions"): lambda facts: {},
    ("request", "grpc"): _grpc,
    ("request", "host"): lambda facts: facts.host or None,
    ("request", "id"): _request_id,
    ("request", "method"): lambda facts: facts.header(":method"),
    ("request", "path"): lambda facts: facts.header(":path"),
    ("request", "query"): _query,
    ("request", "referer"): lambda facts: facts.header("referer"),
    ("request", "scheme"): lambda facts: facts.header(":scheme"),
    ("request", "time"): _time,
    ("request", "url_path"): _url_path,
    ("request", "useragent"): lambda facts: facts.header("user-agent"),
    ("source", "remote_address"): _remote_address,
}
_SENT = {
    "request": ("duration", "protocol", "size", "total_size"),
    "source": ("address", "port", "service", "principal", "certificate", "labels"),
    "destination": ("address", "port", "service", "principal", "certificate", "labels"),
    "connection": (
        "dns_san_local_certificate",
        "dns_san_peer_certificate",
        "id",
        "mtls",
        "requested_server_name",
        "sha256_peer_certificate_digest",
        "subject_local_certificate",
        "subject_peer_certificate",
        "termination_details",
        "tls_version",
        "transport_failure_reason",
        "uri_san_local_certificate",
        "uri_san_peer_certificate",
    ),
    "xds": (
        "cluster_name",
        "filter_chain_name",
        "listener_direction",
        "listener_metadata",
        "route_metadata",
        "route_name",
        "upstream_host_metadata",
        "virtual_host_name",
    ),
}
KNOWN = frozenset(
    {*_DERIVED, *BODY_ATTRIBUTES, ("request", "headers")}
    | {(root, name) for root, names in _SENT.items() for name in names}
)
"""Attributes that are something; any other is null unless Envoy happens to send it by that name."""


_UNREPEATABLE = frozenset({("request", "id"), ("request", "time"), *BODY_ATTRIBUTES})
"""Attributes that are another for every request, or not there with the headers."""


class Attributes:
    """Gathers what a set of expressions names.

    `repeatable`: requests that look alike in a few plain attributes look alike in all that is named.
    """

    __slots__ = (
        "_all_headers",
        "_auth",
        "_deep",
        "_getters",
        "_headers",
        "_metadata",
        "_named",
        "needs_body",
        "repeatable",
    )

    def __init__(self, members: Iterable[Path]) -> None:
        named: set[Path] = set()
        headers: set[str] = set()
        deep: set[Path] = set()
        self._all_headers = False
        for member in members:
            root = member[0]
            if root in _TREES:
                deep.add(member)
            elif root not in ROOTS:
                continue
            elif member[:2] == ("request", "headers"):
                self._all_headers |= len(member) == 2
                headers.update(member[2:3])
            elif len(member) == 1:
                named.update(known for known in KNOWN - BODY_ATTRIBUTES if known[0] == root)
                self._all_headers |= root == "request"
            else:
                named.add(member[:2])
        self._auth = any(member[0] == "auth" for member in deep)
        self._metadata = any(member[0] == "metadata" for member in deep)
        self._headers = tuple(sorted(name.lower() for name in headers))
        self._named = tuple(sorted(named - {("request", "headers")}))
        self._getters = (*map(_getter, self._named), *map(_header_getter, self._headers))
        self._deep = tuple(key_of(Lookup(path[0], path[1:])) for path in sorted(deep))
        self.needs_body = bool(BODY_ATTRIBUTES & named)
        self.repeatable = not (self._all_headers or _UNREPEATABLE & named)

    def fingerprint(self, facts: RequestFacts) -> tuple[Any, ...]:
        """The values of all that is named, in a fixed order; for `repeatable` ones."""
        plain = [get(facts) for get in self._getters]
        return (*plain, *[get(facts) for get in self._deep]) if self._deep else tuple(plain)

    def bind(self, facts: RequestFacts, body: bytes | None = None) -> Variables:
        """The variables for one request; `body` where it is known by now."""
        variables: Variables = {}
        for path, get in zip(self._named, self._getters, strict=False):
            root, name = path
            if path in BODY_ATTRIBUTES:
                value = None if body is None else body if name == "raw_body" else body.decode("utf-8", "replace")
            else:
                value = get(facts)
            variables.setdefault(root, {})[name] = value
        if self._all_headers:
            headers = {name: value.decode("utf-8", "replace") for name, value in facts.headers.items()}
            variables.setdefault("request", {})["headers"] = headers
        elif self._headers:
            present = {name: facts.header(name) for name in self._headers if name in facts.headers}
            variables.setdefault("request", {})["headers"] = present
        if self._metadata:
            variables["metadata"] = {"filter_metadata": {name: facts.namespace(name) for name in facts.metadata}}
        if self._auth:
            variables["auth"] = facts.identity()
        return variables


def getter_of(lookup: Lookup) -> Getter | None:
    """What gives the value of an expression that is `lookup`; None for one that is better left to CEL.

    The getter raises NotThere where CEL would find no such key.
    """
    root, steps = lookup.root, lookup.steps
    if root == "auth":
        return _below_auth(lookup)
    if root == "metadata" and len(steps) > 2 and steps[0] == "filter_metadata":
        below = Lookup(root, steps[2:])
        return lambda facts: below.find(facts.namespace(str(steps[1])))
    if root == "request" and len(steps) == 2 and steps[0] == "headers":
        return _required_header(str(steps[1]))
    path = (root, *steps)
    if len(path) != 2 or path not in KNOWN - BODY_ATTRIBUTES - {("request", "headers")}:
        return None
    return _getter((root, str(steps[0])))


def _below_auth(lookup: Lookup) -> Getter:
    """What users are told apart by is looked up for every request, so it is worth a short way."""
    names = [step for step in lookup.steps if isinstance(step, str)]
    if not names or len(names) < len(lookup.steps):
        return lambda facts: lookup.find(facts.identity())

    def get(facts: RequestFacts) -> Any:
        value: Any = facts.auth
        try:
            for name in names:
                value = value[name]
        except (KeyError, TypeError):
            return lookup.find(facts.identity())
        return value

    return get


def key_of(lookup: Lookup) -> Getter:
    """What tells values at `lookup` apart: a text as it is, anything else as JSON; where there is none, how near."""
    get = getter_of(lookup) or _whole(lookup.root)

    def find(facts: RequestFacts) -> str | bytes | tuple[int, str]:
        try:
            value = get(facts)
        except NotThere as error:
            return error.where
        return value if isinstance(value, str) else orjson.dumps(value, default=str)

    return find


def _whole(root: str) -> Getter:
    """Of a structure as a whole."""
    if root == "auth":
        return lambda facts: facts.identity()
    return lambda facts: {name: facts.namespace(name) for name in facts.metadata}


def _required_header(name: str) -> Getter:
    def get(facts: RequestFacts) -> str:
        value = facts.headers.get(name)
        if value is None:
            raise NotThere(f"no such key '{name}'")
        return value.decode("utf-8", "replace")

    return get


def _getter(path: Path) -> Getter:
    name = ".".join(path)
    return _DERIVED.get(path) or (lambda facts: facts.attribute(name))


def _header_getter(name: str) -> Getter:
    return lambda facts: facts.header(name)


def host_of(address: str) -> str:
    """An address without its port: `10.0.0.1:80`, `[::1]:80` and bare hosts."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    host, colon, port = address.rpartition(":")
    return host if colon and port.isdecimal() and ":" not in host else address
