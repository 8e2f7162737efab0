"""What an ext_authz server is asked, and what its answer means.

An allowance counts only when all that it asks for can be done, or it is no verdict. A denial stands whatever else
is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct

from extproc.facts import RequestFacts, plain
from extproc.identity.address import host_and_port
from extproc.identity.seam import Verdict
from extproc.wire.attribute_context_pb2 import AttributeContext
from extproc.wire.base_pb2 import HeaderValueOption
from extproc.wire.external_auth_pb2 import CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse

CHECK: Final = "/envoy.service.auth.v3.Authorization/Check"
MAX_BODY: Final = 64 * 1024
"""Bytes of a denial's body; of a larger one the status and the headers are passed on."""
MAX_HEADERS: Final = 64 * 1024
"""Bytes of all headers in an answer together."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\U0010ffff]*")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_FRAMING = frozenset({"connection", "content-length", "host", "transfer-encoding"})
"""Headers that belong to the gateway."""


class Unreadable(ValueError):
    """An answer that is none, or asks for what cannot be done."""


def encode_request(facts: RequestFacts, scope: str, now: float) -> bytes:
    """A serialised CheckRequest as wasm-shim sends it; `now` in seconds since 1970.

    Authorino finds its AuthConfig by `scope`, in the context extension `host`. Dynamic metadata is passed on as far
    as Envoy forwards it.
    """
    request = CheckRequest()
    attributes = request.attributes
    _add_peer(attributes.source, facts, "source")
    _add_peer(attributes.destination, facts, "destination")
    attributes.request.time.FromMicroseconds(int(now * 1e6))
    http = attributes.request.http
    http.id = facts.header("x-request-id") or ""
    http.method = facts.header(":method") or ""
    http.path = facts.header(":path") or ""
    http.host = facts.host
    http.scheme = facts.header(":scheme") or ""
    http.protocol = str(facts.attribute("request.protocol") or "HTTP/1.1")
    length = facts.headers.get("content-length", b"")
    http.size = int(length) if _LENGTH.fullmatch(length) else -1
    for name, value in facts.headers.items():
        http.headers[name] = value.decode("utf-8", "replace")
    attributes.context_extensions["host"] = scope
    attributes.metadata_context.SetInParent()
    for name, struct in facts.metadata.items():
        attributes.metadata_context.filter_metadata[name].CopyFrom(struct)
    return request.SerializeToString()


def decode_verdict(message: bytes, facts: RequestFacts) -> Verdict:
    """The verdict in a serialised CheckResponse to a question about `facts`. Raises Unreadable."""
    try:
        response = CheckResponse.FromString(message)
    except DecodeError:
        raise Unreadable("not a CheckResponse") from None
    kind = response.WhichOneof("http_response")
    if kind == "error_response":
        raise Unreadable("the server says that it failed to decide")
    if response.status.code or kind == "denied_response":
        return _denial(response.denied_response, response.status.code)
    answer = response.ok_response
    metadata = answer.dynamic_metadata if answer.HasField("dynamic_metadata") else response.dynamic_metadata
    return _allowance(answer, metadata, facts)


def _add_peer(peer: AttributeContext.Peer, facts: RequestFacts, side: str) -> None:
    """Servers expect an address, also where Envoy does not send the attribute."""
    host, port = host_and_port(str(facts.attribute(f"{side}.address") or ""))
    peer.address.socket_address.address = host
    peer.address.socket_address.port_value = port or 0


def _denial(answer: DeniedHttpResponse, code: int) -> Verdict:
    status = answer.status.code
    body = answer.body.encode()
    room = MAX_HEADERS
    headers = []
    for name, value in _pairs(answer.headers):
        room -= len(name) + len(value)
        if room >= 0 and _can_be_sent(name, value):
            headers.append((name, value))
    return Verdict(
        status if 200 <= status <= 599 else 403,
        f"the auth server refused it, code {code}",
        headers=tuple(headers),
        body=body if len(body) <= MAX_BODY else None,
    )


def _allowance(answer: OkHttpResponse, metadata: Struct, facts: RequestFacts) -> Verdict:
    if answer.response_headers_to_add:
        raise Unreadable("headers for the response to the client are not supported")
    if answer.query_parameters_to_set or answer.query_parameters_to_remove:
        raise Unreadable("changes of the query are not supported")
    removed = {name.lower() for name in answer.headers_to_remove} - _FRAMING
    changed = _changed(answer.headers, facts.headers)
    if sum(len(name) + len(value) for name, value in changed.items()) > MAX_HEADERS:
        raise Unreadable("the headers are too large")
    auth: dict[str, Any] = {name: plain(value) for name, value in metadata.fields.items()}
    return Verdict(
        auth=auth,
        set_headers=tuple(header for header in changed.items() if header[0] not in removed),
        remove_headers=tuple(name for name in facts.headers if name in removed and not name.startswith(":")),
    )


def _changed(options: Iterable[HeaderValueOption], present: Mapping[str, bytes]) -> dict[str, str]:
    """Headers of the request with their new values. Raises Unreadable for one that cannot be set."""
    changed: dict[str, str] = {}
    for option, (name, value) in zip(options, _pairs(options), strict=True):
        if not _can_be_sent(name, value):
            raise Unreadable("a header that cannot be set")
        earlier = changed.get(name)
        if earlier is None and name in present:
            earlier = present[name].decode("utf-8", "replace")
        if option.append.value and earlier is not None:
            changed[name] = f"{earlier},{value}"
        elif _replaces(option, earlier is not None):
            changed[name] = value
    return changed


def _replaces(option: HeaderValueOption, present: bool) -> bool:
    """Whether a header is set. The default of `append_action` cannot be told from its absence, which replaces."""
    if option.append_action == HeaderValueOption.ADD_IF_ABSENT:
        return not present
    return present or option.append_action != HeaderValueOption.OVERWRITE_IF_EXISTS


def _pairs(options: Iterable[HeaderValueOption]) -> Iterator[tuple[str, str]]:
    for option in options:
        header = option.header
        value = header.raw_value.decode("utf-8", "replace") if header.raw_value else header.value
        yield header.key.lower(), value


def _can_be_sent(name: str, value: str) -> bool:
    return name not in _FRAMING and bool(_NAME.fullmatch(name)) and bool(_VALUE.fullmatch(value))
