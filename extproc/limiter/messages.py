"""Queries and decisions on the wire: the three RPCs, their messages, and both directions of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from math import inf, isfinite
from typing import Final

from google.protobuf.message import DecodeError

from extproc.limiter.seam import Code, Decision, Descriptor, Query, Quota
from extproc.wire.base_pb2 import HeaderValue
from extproc.wire.descriptor_pb2 import RateLimitDescriptor
from extproc.wire.rls_pb2 import RateLimitRequest, RateLimitResponse

KUADRANT_SERVICE = "kuadrant.service.ratelimit.v1.RateLimitService"
ENVOY_SERVICE = "envoy.service.ratelimit.v3.RateLimitService"
CHECK = f"/{KUADRANT_SERVICE}/CheckRateLimit"
REPORT = f"/{KUADRANT_SERVICE}/Report"
SHOULD_RATE_LIMIT = f"/{ENVOY_SERVICE}/ShouldRateLimit"

_CODES = {int(code): code for code in Code}
_UINT32 = 2**32 - 1
_UNITS: Final = {
    RateLimitResponse.RateLimit.SECOND: 1,
    RateLimitResponse.RateLimit.MINUTE: 60,
    RateLimitResponse.RateLimit.HOUR: 3_600,
    RateLimitResponse.RateLimit.DAY: 86_400,
    RateLimitResponse.RateLimit.WEEK: 604_800,
    RateLimitResponse.RateLimit.MONTH: 2_592_000,
    RateLimitResponse.RateLimit.YEAR: 31_536_000,
}
_UNIT_OF = {seconds: unit for unit, seconds in _UNITS.items()}
_LONGEST = 315_576_000_000
"""Seconds that a google.protobuf.Duration may have."""
MAX_HEADERS: Final = 32
"""Headers of one answer, and bytes of all of them; those beyond are left out."""
MAX_HEADER_BYTES: Final = 4096
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_FRAMING = frozenset(
    {"connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
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
    An addend of 0 is that of every descriptor as well: it is what makes Envoy's reference service only ask, while it
    takes a 0 of the whole request for a 1, as Limitador does.
    """
    hits = query.hits_addend
    return _encode_target(query.domain, query.descriptors, asks=hits == 0) + _encode_hits(hits)


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
    """A serialised RateLimitResponse, with a status for each quota."""
    if not decision.headers and not decision.quotas:
        return _PLAIN_BYTES[decision.code]
    response = RateLimitResponse.FromString(_PLAIN_BYTES[decision.code])
    for key, value in decision.headers:
        response.response_headers_to_add.add(key=key, value=encodable(value))
    for quota in decision.quotas:
        _write(quota, response.statuses.add(code=response.overall_code))
    return response.SerializeToString()


def decode_decision(message: bytes) -> Decision:
    """The decision in a serialised RateLimitResponse; raises Unreadable, also for a code that does not exist.

    Of its headers those that an answer can carry: with any other Envoy would refuse the answer as a whole.
    Its quotas are those of statuses that tell their limit; of a refusal those that refuse, and so its `limit`.
    """
    try:
        response = RateLimitResponse.FromString(message)
    except DecodeError:
        raise Unreadable("not a RateLimitResponse") from None
    code = _CODES.get(response.overall_code)
    if code is None:
        raise Unreadable(f"overall_code is {response.overall_code}")
    if not response.response_headers_to_add and not response.statuses:
        return _PLAIN[code]
    headers = tuple(_presentable(response.response_headers_to_add))
    telling = [status for status in response.statuses if status.HasField("current_limit")]
    if code is not Code.OVER_LIMIT:
        return Decision(code, headers, quotas=tuple(sorted(map(_read, telling), key=lambda quota: quota.remaining)))
    refusing = map(_read, (status for status in telling if status.code == RateLimitResponse.OVER_LIMIT))
    quotas = tuple(sorted(refusing, key=lambda quota: quota.resets_in, reverse=True))
    return Decision(code, headers, quotas[0].limit if quotas else "", quotas)


def _presentable(headers: Iterable[HeaderValue]) -> Iterator[tuple[str, str]]:
    """The first headers that do not break an answer: not those of its framing, and nothing that HTTP cannot carry."""
    left = MAX_HEADER_BYTES
    for header in islice(headers, MAX_HEADERS):
        value = header.raw_value.decode("utf-8", "replace") if header.raw_value else header.value
        left -= len(header.key) + len(value)
        carried = _TOKEN.fullmatch(header.key) and not _CONTROL.search(value)
        if carried and header.key.lower() not in _FRAMING and left >= 0:
            yield header.key, value


def _write(quota: Quota, status: RateLimitResponse.DescriptorStatus) -> None:
    """A window that has no unit is left out, and so is the end of what never ends."""
    status.current_limit.requests_per_unit = min(quota.maximum, _UINT32)
    status.current_limit.unit = _UNIT_OF.get(quota.window, RateLimitResponse.RateLimit.UNKNOWN)
    status.current_limit.name = encodable(quota.limit)
    status.limit_remaining = min(quota.remaining, _UINT32)
    if isfinite(quota.resets_in):
        seconds, rest = divmod(max(0.0, min(quota.resets_in, _LONGEST)), 1)
        status.duration_until_reset.seconds = int(seconds)
        status.duration_until_reset.nanos = int(rest * 1e9)


def _read(status: RateLimitResponse.DescriptorStatus) -> Quota:
    """Where it does not say when the limit starts anew, that is never."""
    limit, left = status.current_limit, status.duration_until_reset
    return Quota(
        limit=limit.name,
        maximum=limit.requests_per_unit,
        remaining=status.limit_remaining,
        resets_in=max(0.0, left.seconds + left.nanos / 1e9) if status.HasField("duration_until_reset") else inf,
        window=_UNITS.get(limit.unit, 0),
    )


def encodable(text: str) -> str:
    """`text` with `?` for what UTF-8 cannot encode: lone surrogates, from header bytes that are not UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


@lru_cache(maxsize=2048)
def _encode_target(domain: str, descriptors: tuple[Descriptor, ...], *, asks: bool) -> bytes:
    request = RateLimitRequest(domain=encodable(domain))
    for descriptor in descriptors:
        written = request.descriptors.add()
        for key, value in descriptor:
            written.entries.append(RateLimitDescriptor.Entry(key=encodable(key), value=encodable(value)))
        if asks:
            written.hits_addend.value = 0
    return request.SerializeToString()


@lru_cache(maxsize=1024)
def _encode_hits(hits: int) -> bytes:
    return RateLimitRequest(hits_addend=hits).SerializeToString()
