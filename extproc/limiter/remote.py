"""A limiter behind gRPC: Limitador, Envoy's reference service, or another of ours."""

from __future__ import annotations

import grpc

from extproc.limiter.calls import CallError, UnaryCall
from extproc.limiter.messages import (
    CHECK,
    REPORT,
    SHOULD_RATE_LIMIT,
    Unreadable,
    decode_decision,
    encode_query,
)
from extproc.limiter.seam import Decision, LimiterError, Metadata, Query


class RemoteLimiter:
    """Asks over `channel`, `timeout` seconds a call, and never repeats a call by itself.

    Methods raise LimiterError when awaited; how its reason is found is told at `calls.reason_of`.
    """

    def __init__(self, channel: grpc.aio.Channel, timeout: float) -> None:
        self._check = UnaryCall(channel, CHECK, timeout)
        self._report = UnaryCall(channel, REPORT, timeout)
        self._should_rate_limit = UnaryCall(channel, SHOULD_RATE_LIMIT, timeout)

    async def check(self, query: Query, metadata: Metadata = ()) -> Decision:
        """CheckRateLimit of Kuadrant."""
        return await _ask(self._check, query, metadata)

    async def report(self, query: Query, metadata: Metadata = ()) -> Decision:
        """Report of Kuadrant."""
        return await _ask(self._report, query, metadata)

    async def should_rate_limit(self, query: Query, metadata: Metadata = ()) -> Decision:
        """ShouldRateLimit of Envoy."""
        return await _ask(self._should_rate_limit, query, metadata)


async def _ask(call: UnaryCall, query: Query, metadata: Metadata) -> Decision:
    try:
        return decode_decision(await call(encode_query(query), metadata))
    except CallError as error:
        raise LimiterError(error.reason, error.detail) from None
    except Unreadable as error:
        raise LimiterError("nonsense", str(error)) from None
