"""A limiter offered to other gateways over gRPC."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

import grpc

from extproc.limiter.messages import (
    ENVOY_SERVICE,
    KUADRANT_SERVICE,
    Unreadable,
    decode_query,
    encode_decision,
)
from extproc.limiter.quotas import ratelimit_headers
from extproc.limiter.seam import Answer, Decision, Limiter, LimiterError, Metadata, Query

logger = logging.getLogger(__name__)

SERVICES = (KUADRANT_SERVICE, ENVOY_SERVICE)
"""Full names, for health and reflection."""

_Ask = Callable[[Query, Metadata], Answer]
_Context = grpc.aio.ServicerContext[bytes, bytes]
_Handler = Callable[[bytes, _Context], Awaitable[bytes]]


def add_limiter_service(server: grpc.aio.Server, limiter: Limiter, *, headers: bool = False) -> None:
    """Serve CheckRateLimit, Report and ShouldRateLimit from `limiter`.

    With `headers`, answers to ShouldRateLimit bring x-ratelimit headers for the client, made of their quotas.
    A request that cannot be read is answered INVALID_ARGUMENT, and a LimiterError (only a limiter that is
    itself remote has them) DEADLINE_EXCEEDED or UNAVAILABLE.
    """
    kuadrant = {
        "CheckRateLimit": _handler("CheckRateLimit", limiter.check, logging.DEBUG),
        "Report": _handler("Report", limiter.report, logging.INFO),
    }
    ask = _with_headers(limiter.should_rate_limit) if headers else limiter.should_rate_limit
    envoy = {"ShouldRateLimit": _handler("ShouldRateLimit", ask, logging.INFO)}
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(KUADRANT_SERVICE, kuadrant),
            grpc.method_handlers_generic_handler(ENVOY_SERVICE, envoy),
        )
    )


def _with_headers(ask: _Ask) -> _Ask:
    async def answer(query: Query, metadata: Metadata) -> Decision:
        found = ask(query, metadata)
        decision = found if isinstance(found, Decision) else await found
        return replace(decision, headers=(*decision.headers, *ratelimit_headers(decision.quotas)))

    return answer


def _handler(name: str, ask: _Ask, level: int) -> grpc.RpcMethodHandler[bytes, bytes]:
    async def handle(message: bytes, context: _Context) -> bytes:
        try:
            query = decode_query(message)
            answer = ask(query, ())
            decision = answer if isinstance(answer, Decision) else await answer
        except Unreadable as error:
            return _fail(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except LimiterError as error:
            logger.warning("%s domain: %r failed: %s", name, query.domain, error)
            late = error.reason == "deadline"
            code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.UNAVAILABLE
            return _fail(context, code, f"the limiter behind this one: {error.reason}")
        if logger.isEnabledFor(level):
            _log(level, name, query, decision)
        return encode_decision(decision)

    return grpc.unary_unary_rpc_method_handler(handle)


def _log(level: int, name: str, query: Query, decision: Decision) -> None:
    logger.log(
        level,
        "%s domain: %r, hits_addend: %d, code: %s%s",
        name,
        query.domain,
        query.hits_addend,
        decision.code.name,
        f", limit: {decision.limit!r}" if decision.limit else "",
    )


def _fail(context: _Context, code: grpc.StatusCode, details: str) -> bytes:
    context.set_code(code)
    context.set_details(details)
    return b""
