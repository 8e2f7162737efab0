"""What workers and the one that counts say to each other over a socket.

Neither the protocol of `extproc limiter` nor gRPC. An answer has to be all that the first worker itself would get, and
a limit's name and its quotas, which become headers and bodies of refusals, have no place in a RateLimitResponse. And
gRPC would cost the worker that counts almost as much for a call as the whole request costs elsewhere, so that
more workers would hardly serve more.

A frame is a header (length of the body, number, kind: 4, 4 and 1 bytes, the largest byte first) and a body. An answer
has its question's number.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

import orjson

from extproc.limiter.messages import Unreadable, decode_query, encodable, encode_query
from extproc.limiter.seam import Code, Decision, Query, Quota

MAX_BODY = 1024 * 1024
"""Bytes. A query holds values of request headers, of which Envoy takes 60 KiB unless told otherwise."""
NUMBERS = 2**32
"""A number is used again after so many questions."""

_HEADER = Struct(">IIB")
_AGE = Struct(">d")
_OK = Decision(Code.OK)


class Kind(IntEnum):
    """Of a frame: the limiter's calls, and their answer."""

    CHECK = 0
    REPORT = 1
    SHOULD_RATE_LIMIT = 2
    DECISION = 3
    UNREADABLE = 4
    REFUND = 5


class Frame(NamedTuple):
    """`kind` is one of Kind, or what another program says."""

    number: int
    kind: int
    body: bytes


def encode_frame(number: int, kind: Kind, body: bytes) -> bytes:
    """A frame with its header."""
    return _HEADER.pack(len(body), number, kind) + body


class Frames:
    """Cuts what arrives into frames; holds at most an unfinished one."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that `data` completes; raises Unreadable for one larger than MAX_BODY."""
        data = self._rest + data
        start = 0
        while len(data) - start >= _HEADER.size:
            size, number, kind = _HEADER.unpack_from(data, start)
            if size > MAX_BODY:
                raise Unreadable(f"a frame of {size} bytes")
            end = start + _HEADER.size + size
            if end > len(data):
                break
            yield Frame(number, kind, data[start + _HEADER.size : end])
            start = end
        self._rest = data[start:]


def encode_refund(query: Query, age: float) -> bytes:
    """The body of a refund: a query, and how many seconds ago it was counted."""
    return _AGE.pack(age) + encode_query(query)


def decode_refund(body: bytes) -> tuple[Query, float]:
    """What `encode_refund` was given; raises Unreadable."""
    if len(body) < _AGE.size:
        raise Unreadable("not a refund")
    (age,) = _AGE.unpack_from(body)
    return decode_query(body[_AGE.size :]), age


def encode_decision(decision: Decision) -> bytes:
    """`decision` with everything it says; the plain OK, which most answers are, is no bytes at all."""
    if decision == _OK:
        return b""
    headers = [(encodable(name), encodable(value)) for name, value in decision.headers]
    quotas = [(encodable(quota.limit), *quota[1:]) for quota in decision.quotas]
    return orjson.dumps((int(decision.code), headers, encodable(decision.limit), quotas, decision.unlimited))


def decode_decision(data: bytes) -> Decision:
    """What `encode_decision` was given; raises Unreadable."""
    if not data:
        return _OK
    try:
        code, headers, limit, quotas, unlimited = orjson.loads(data)
        pairs = tuple((name, value) for name, value in headers)
        return Decision(Code(code), pairs, limit, tuple(Quota(*quota) for quota in quotas), unlimited)
    except (ValueError, TypeError):
        raise Unreadable("not a decision") from None
