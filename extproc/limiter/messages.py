"""Queries and decisions on the wire: the three RPCs, their messages, and both directions of each."""

from __future__ import annotations

from functools import lru_cache

from google.protobuf.message import DecodeError

from extproc.limiter.seam import Code, Decision, Descriptor, Query
from extproc.wire.descriptor_pb2 import RateLimitDescriptor
from extproc.wire.rls_pb2 import RateLimitRequest, RateLimitResponse

KUADRANT_SERVICE = "kuadrant.service.ratelimit.v1.RateLimitService"
ENVOY_SERVICE = "envoy.service.ratelimit.v3.RateLimitService"
CHECK = f"/{KUADRANT_SERVICE}/CheckRateLimit"
REPORT = f"/{KUADRANT_SERVICE}/Report"
SHOULD_RATE_LIMIT = f"/{ENVOY_SERVICE}/ShouldRateLimit"

_CODES = {int(code): code for code in Code}
_PLAIN = {code: Decision(code) for code in Code}
_PLAIN_BYTES = {
    code: RateLimitResponse(overall_code=RateLimitResponse.Code.Name(code)).SerializeToString() for code in Code
}


class Unreadable(ValueError):
    """Bytes that are not the message they should be."""


def encode_query(query: Query) -> bytes:
    """A serialised RateLimitRequest.

    An exchange asks and reports with the same descriptors, so their part is remembered; serialised
    messages may be concatenated, which merges them (protobuf encoding guide).
    """
    return _encode_target(query.domain, query.descriptors) + _encode_hits(query.hits_addend)


def decode_query(message: bytes) -> Query:
    """The query in a serialised RateLimitRequest; raises Unreadable.

    Per-descriptor `limit` and `hits_addend` are not read, as in Limitador.
    """
    try:
        request = RateLimitRequest.FromString(message)
    except DecodeError:
        raise Unreadable("not a RateLimitRequest") from None
    return Query(
        domain=request.domain,
        descriptors=tuple(
            tuple((entry.key, entry.value) for entry in descriptor.entries) for descriptor in request.descriptors
        ),
        hits_addend=request.hits_addend,
    )


def encode_decision(decision: Decision) -> bytes:
    """A serialised RateLimitResponse."""
    if not decision.headers:
        return _PLAIN_BYTES[decision.code]
    response = RateLimitResponse.FromString(_PLAIN_BYTES[decision.code])
    for key, value in decision.headers:
        response.response_headers_to_add.add(key=key, value=encodable(value))
    return response.SerializeToString()


def decode_decision(message: bytes) -> Decision:
    """The decision in a serialised RateLimitResponse; raises Unreadable, also for a code that does not exist."""
    try:
        response = RateLimitResponse.FromString(message)
    except DecodeError:
        raise Unreadable("not a RateLimitResponse") from None
    code = _CODES.get(response.overall_code)
    if code is None:
        raise Unreadable(f"overall_code is {response.overall_code}")
    if not response.response_headers_to_add:
        return _PLAIN[code]
    headers = (
        (header.key, header.raw_value.decode("utf-8", "replace") if header.raw_value else header.value)
        for header in response.response_headers_to_add
    )
    return Decision(code, tuple(headers))


def encodable(text: str) -> str:
    """`text` with `?` for what UTF-8 cannot encode: lone surrogates, from header bytes that are not UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


@lru_cache(maxsize=2048)
def _encode_target(domain: str, descriptors: tuple[Descriptor, ...]) -> bytes:
    request = RateLimitRequest(domain=encodable(domain))
    for descriptor in descriptors:
        entries = request.descriptors.add().entries
        for key, value in descriptor:
            entries.append(RateLimitDescriptor.Entry(key=encodable(key), value=encodable(value)))
    return request.SerializeToString()


@lru_cache(maxsize=1024)
def _encode_hits(hits: int) -> bytes:
    return RateLimitRequest(hits_addend=hits).SerializeToString()
