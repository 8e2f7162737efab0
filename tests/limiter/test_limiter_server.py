"""The embedded limiter offered over gRPC."""

from __future__ import annotations

import asyncio
import logging

import grpc
import pytest

from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.messages import CHECK, REPORT, SHOULD_RATE_LIMIT
from extproc.limiter.remote import RemoteLimiter
from extproc.limiter.seam import Code, Decision, LimiterError, Query
from extproc.limiter.server import add_limiter_service
from extproc.wire.rls_pb2 import RateLimitRequest, RateLimitResponse

LONG = 30.0


async def serve(net, limiter) -> str:
    return await net.serve(lambda server: add_limiter_service(server, limiter))


async def test_limits_hold_over_the_wire(net, make, clock) -> None:
    """S0.7 through real messages, and the empty domain that Limitador answers with UNKNOWN."""
    limits = make.limits(make.limit(100, name="name_a", conditions=["descriptors[0]['a'] == '1'"]))
    address = await serve(net, EmbeddedLimiter(limits, clock))
    remote = RemoteLimiter(net.channel(address), LONG)
    codes = []
    for _ in range(6):
        codes.append((await remote.check(make.query(a="1"))).code)
        await remote.report(make.query(24, a="1"))
    assert codes == [Code.OK] * 5 + [Code.OVER_LIMIT]
    assert await remote.should_rate_limit(make.query(a="1")) == Decision(Code.OVER_LIMIT)
    assert await remote.should_rate_limit(make.query(a="2")) == Decision(Code.OK)
    assert await remote.check(make.query(domain="")) == Decision(Code.UNKNOWN)
    clock.now += 60
    assert await remote.check(make.query(a="1")) == Decision(Code.OK)


async def test_concurrent_callers_on_several_connections_are_counted_exactly(net, make) -> None:
    limiter = EmbeddedLimiter(make.limits(make.limit(150, 3600)))
    address = await serve(net, limiter)
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        grpc.aio.insecure_channel(address, options) as first,
        grpc.aio.insecure_channel(address, options) as second,
    ):
        remotes = [RemoteLimiter(channel, LONG) for channel in (first, second)]
        calls = (remotes[number % 2].should_rate_limit(make.query()) for number in range(400))
        codes = [decision.code for decision in await asyncio.gather(*calls)]
    assert (codes.count(Code.OK), codes.count(Code.OVER_LIMIT)) == (150, 250)
    assert [counter.used for counter in limiter.snapshot()] == [150]


async def test_a_report_leaves_a_line_that_people_search_for(net, make, caplog) -> None:
    """S0.1: `hits_addend: 24` in the log; a check is only worth DEBUG."""
    limiter = EmbeddedLimiter(make.limits(make.limit(1, name="one")))
    remote = RemoteLimiter(net.channel(await serve(net, limiter)), LONG)
    with caplog.at_level(logging.DEBUG, "extproc.limiter.server"):
        await remote.report(make.query(24))
        await remote.check(make.query(0))
        await remote.should_rate_limit(make.query(3))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "Report domain: 'domain-a', hits_addend: 24, code: OK"),
        ("DEBUG", "CheckRateLimit domain: 'domain-a', hits_addend: 0, code: OVER_LIMIT, limit: 'one'"),
        ("INFO", "ShouldRateLimit domain: 'domain-a', hits_addend: 3, code: OVER_LIMIT, limit: 'one'"),
    ]


async def test_a_domain_cannot_forge_log_lines(net, make, caplog) -> None:
    remote = RemoteLimiter(net.channel(await serve(net, EmbeddedLimiter(make.limits()))), LONG)
    with caplog.at_level(logging.INFO, "extproc.limiter.server"):
        await remote.report(make.query(domain="a\nReport domain: 'b'"))
    assert "\n" not in caplog.records[0].getMessage()


@pytest.mark.parametrize("path", [CHECK, REPORT, SHOULD_RATE_LIMIT])
async def test_bytes_that_are_no_request_are_refused_without_noise(net, make, caplog, path: str) -> None:
    channel = net.channel(await serve(net, EmbeddedLimiter(make.limits())))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(path)(b"\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caplog.records == []


async def test_fields_that_limitador_ignores_are_ignored(net, make) -> None:
    channel = net.channel(await serve(net, EmbeddedLimiter(make.limits(make.limit(1)))))
    request = RateLimitRequest(domain="domain-a", hits_addend=1)
    descriptor = request.descriptors.add()
    descriptor.limit.requests_per_unit = 0
    descriptor.hits_addend.value = 50
    answer = await channel.unary_unary(SHOULD_RATE_LIMIT)(request.SerializeToString())
    assert RateLimitResponse.FromString(answer) == RateLimitResponse(overall_code=RateLimitResponse.OK)


class Behind:
    """A limiter that is itself remote: it must wait, and may fail."""

    def __init__(self, answer: Decision | LimiterError) -> None:
        self._answer = answer

    async def check(self, query: Query, metadata: object = ()) -> Decision:
        if isinstance(self._answer, LimiterError):
            raise self._answer
        return self._answer

    report = should_rate_limit = check


async def test_headers_of_a_decision_are_sent(net, make) -> None:
    decision = Decision(Code.OVER_LIMIT, (("x-ratelimit-limit", "100"), ("x-name", "café")))
    remote = RemoteLimiter(net.channel(await serve(net, Behind(decision))), LONG)
    assert await remote.should_rate_limit(make.query()) == decision


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("unreachable", grpc.StatusCode.UNAVAILABLE),
        ("refused", grpc.StatusCode.UNAVAILABLE),
        ("nonsense", grpc.StatusCode.UNAVAILABLE),
        ("deadline", grpc.StatusCode.DEADLINE_EXCEEDED),
    ],
)
async def test_a_failing_limiter_is_an_error_of_the_call(net, make, reason, code) -> None:
    channel = net.channel(await serve(net, Behind(LimiterError(reason, "the address of the limiter"))))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(REPORT)(b"")
    assert caught.value.code() is code
    assert "address" not in (caught.value.details() or "")
