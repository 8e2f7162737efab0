"""The seam between an exchange and whatever counts for it.

A limiter answers at once when it can (the embedded one does) and hands back an awaitable when it
must wait (a remote one). Callers test the answer with `isinstance(answer, Decision)`.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, NamedTuple, Protocol, runtime_checkable

Entry = tuple[str, str]
Descriptor = tuple[Entry, ...]
Metadata = tuple[tuple[str, str], ...]
"""gRPC metadata passed on with a call: x-request-id, traceparent, tracestate, baggage."""

MAX_HITS = 2**32 - 1
"""`hits_addend` is a uint32 on the wire."""


class Code(IntEnum):
    """Overall code of envoy.service.ratelimit.v3.RateLimitResponse; the numbers are the wire's."""

    UNKNOWN = 0
    OK = 1
    OVER_LIMIT = 2


class Query(NamedTuple):
    """What a limiter is asked: envoy.service.ratelimit.v3.RateLimitRequest without its transport.

    A tuple because one is made for every call, and a frozen dataclass takes five times as long.
    """

    domain: str
    descriptors: tuple[Descriptor, ...]
    hits_addend: int = 1


class Quota(NamedTuple):
    """One limit as a call found it.

    `remaining` hits until `resets_in` seconds from now; `window` is its length in seconds, of a calendar window its
    usual one. `limit` is its name, "" when it has none. A bucket does not start anew: `resets_in` is until it has what
    a refused call asked for, else until it is full, and `window` is how long it takes to fill.
    """

    limit: str
    maximum: int
    remaining: int
    resets_in: float
    window: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What a limiter answers.

    `headers` are for the client's response. `limit` names the limit that refused, where known. `quotas` of a refusal
    are the limits that refuse, the one that lasts longest first; of another answer, where the limiter was told to
    tell, all that apply, the one with the least remaining first.
    """

    code: Code
    headers: tuple[tuple[str, str], ...] = ()
    limit: str = ""
    quotas: tuple[Quota, ...] = ()
    unlimited: bool = False
    """Whether it is known that no limit is for the call. Most limiters do not tell."""


Reason = Literal["unreachable", "deadline", "refused", "nonsense"]


class LimiterError(Exception):
    """No decision was reached.

    `reason` is one of
    - unreachable: no connection was made, so nothing can have been counted: safe to retry
    - deadline: no answer in time; it may have been counted
    - refused: the server answered with a gRPC error other than the two above
    - nonsense: the answer could not be read
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


Answer = Decision | Awaitable[Decision]


class Limiter(Protocol):
    """Counts hits. Every method may raise LimiterError, at once or when awaited."""

    def check(self, query: Query, metadata: Metadata = ()) -> Answer:
        """Would one more hit be allowed by every matching limit? Changes nothing."""

    def report(self, query: Query, metadata: Metadata = ()) -> Answer:
        """Add `query.hits_addend` to every matching counter, also beyond its maximum."""

    def should_rate_limit(self, query: Query, metadata: Metadata = ()) -> Answer:
        """Check for `query.hits_addend` hits and add them unless a limit would be exceeded."""


@runtime_checkable
class Refunding(Limiter, Protocol):
    """A limiter that can give back what it has counted. Those behind gRPC cannot: there hits are unsigned."""

    def refund(self, query: Query, metadata: Metadata = (), age: float = 0.0) -> Answer:
        """Take `query.hits_addend` hits off every matching counter, of which none falls below 0; 0 are none.

        `age` is for how many seconds the answer to the call that counted them has been there: a window that began
        since then keeps what it has, for it never had those hits. Only one that began between that call and its answer,
        or on the way of this call, is taken for the one that counted.
        """
