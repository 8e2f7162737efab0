"""The embedded limiter offered over gRPC."""

from __future__ import annotations

import asyncio
import logging
from math import inf

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.cli import main
from extproc.config.load import load_limits
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.limits import LimitSet
from extproc.limiter.messages import CHECK, REPORT, SHOULD_RATE_LIMIT, decode_decision, encode_decision
from extproc.limiter.quotas import retry_after
from extproc.limiter.remote import RemoteLimiter
from extproc.limiter.seam import Code, Decision, LimiterError, Query, Quota
from extproc.limiter.server import add_limiter_service
from extproc.limiter_server import LimiterServer
from extproc.wire.rls_pb2 import RateLimitRequest, RateLimitResponse

LONG = 30.0


async def serve(net, limiter, **options: bool) -> str:
    return await net.serve(lambda server: add_limiter_service(server, limiter, **options))


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
    refusing = Quota("name_a", 100, 0, 60.0, 60)
    refusal = Decision(Code.OVER_LIMIT, limit="name_a", quotas=(refusing,))
    assert await remote.should_rate_limit(make.query(a="1")) == refusal
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


async def test_clients_of_a_gateway_are_told_what_remains(net, make, clock) -> None:
    """As Limitador with --rate-limit-headers DRAFT_VERSION_03: on answers to ShouldRateLimit, refusals too."""
    limiter = EmbeddedLimiter(make.limits(make.limit(2, 60, name="minute"), make.limit(9, 3600, name="hour")), clock)
    limiter.tells_quotas = True
    remote = RemoteLimiter(net.channel(await serve(net, limiter, headers=True)), LONG)
    told = [dict((await remote.should_rate_limit(make.query())).headers) for _ in range(3)]
    assert [headers["x-ratelimit-remaining"] for headers in told] == ["1", "0", "0"]
    assert told[0]["x-ratelimit-limit"] == '2, 2;w=60;name="minute", 9;w=3600;name="hour"'
    assert told[2] == {
        "x-ratelimit-limit": '2, 2;w=60;name="minute"',
        "x-ratelimit-remaining": "0",
        "x-ratelimit-reset": "60",
    }
    assert (await remote.check(make.query())).headers == ()
    assert (await remote.should_rate_limit(make.query(domain="unlimited"))).headers == ()


async def test_buckets_of_a_limits_file(net, make, clock, tmp_path) -> None:
    """S2.20 as another gateway sees it: a wait that is until its hits fit, and a refund that it cannot ask for."""
    path = tmp_path / "limits.yaml"
    path.write_text("- {namespace: domain-a, name: minute, max_value: 50, seconds: 60, algorithm: gcra}")
    limiter = EmbeddedLimiter(LimitSet(load_limits(path)), clock)
    remote = RemoteLimiter(net.channel(await serve(net, limiter, headers=True)), LONG)
    assert (await remote.should_rate_limit(make.query(47))).code is Code.OK
    refusal = await remote.should_rate_limit(make.query(47))
    assert refusal.headers == (
        ("x-ratelimit-limit", '50, 50;w=60;name="minute"'),
        ("x-ratelimit-remaining", "3"),
        ("x-ratelimit-reset", "53"),
    )
    assert retry_after(refusal.quotas) == 53
    clock.now += 53
    assert (await remote.should_rate_limit(make.query(47))).code is Code.OK


async def test_headers_are_made_of_what_a_limiter_behind_tells(net, make) -> None:
    behind = Behind(Decision(Code.OK, (("x-own", "1"),), quotas=(Quota("", 5, 4, 1.5, 60),)))
    remote = RemoteLimiter(net.channel(await serve(net, behind, headers=True)), LONG)
    assert (await remote.should_rate_limit(make.query())).headers == (
        ("x-own", "1"),
        ("x-ratelimit-limit", "5, 5;w=60"),
        ("x-ratelimit-remaining", "4"),
        ("x-ratelimit-reset", "2"),
    )


OTHERS = [
    # as a server of envoy.service.ratelimit.v3 writes them: code, maximum, unit, name, remaining, seconds to reset
    ([(2, 150, 2, "minute", 0, 41.5)], (Quota("minute", 150, 0, 41.5, 60),)),
    ([(2, 5, 1, "", 0, 0.25), (1, 9, 4, "day", 3, 9.0)], (Quota("", 5, 0, 0.25, 1),)),
    (
        [(2, 150, 2, "minute", 0, 41), (1, 800, 4, "day", 9, 9_000), (2, 300, 3, "hour", 0, 3_000)],
        (Quota("hour", 300, 0, 3_000.0, 3_600), Quota("minute", 150, 0, 41.0, 60)),
    ),
    ([(2, 1, 5, "month", 0, 1)], (Quota("month", 1, 0, 1.0, 2_592_000),)),
    ([(2, 1, 7, "week", 0, 2)], (Quota("week", 1, 0, 2.0, 604_800),)),
    ([(2, 1, 6, "year", 0, 1)], (Quota("year", 1, 0, 1.0, 31_536_000),)),
    ([(2, 1, 99, "later", 0, 0)], (Quota("later", 1, 0, 0.0, 0),)),
    ([(2, 0, 2, "none", 0, None), (2, 1, 2, "one", 0, 5)], (Quota("none", 0, 0, inf, 60), Quota("one", 1, 0, 5.0, 60))),
    ([(2, 1, 2, "past", 0, -5)], (Quota("past", 1, 0, 0.0, 60),)),
    ([(2, None, 0, "", 0, 30)], ()),
    ([(1, 9, 2, "", 3, 30)], ()),
    ([], ()),
]  # fmt: skip


def response(code: int, statuses: list[tuple]) -> bytes:
    message = RateLimitResponse(overall_code=code)
    for code_, maximum, unit, name, remaining, seconds in statuses:
        status = message.statuses.add(code=code_, limit_remaining=remaining)
        if maximum is not None:
            status.current_limit.MergeFrom(RateLimitResponse.RateLimit(requests_per_unit=maximum, unit=unit, name=name))
        if seconds is not None:
            status.duration_until_reset.FromMicroseconds(int(seconds * 1e6))
    return message.SerializeToString()


@pytest.mark.parametrize(("statuses", "quotas"), OTHERS)
def test_the_statuses_of_any_rate_limit_service_say_when_to_try_again(statuses: list, quotas: tuple) -> None:
    """Of a refusal only those that refuse and tell their limit; the one that lasts longest is the one named."""
    decision = decode_decision(response(Code.OVER_LIMIT, statuses))
    assert decision == Decision(Code.OVER_LIMIT, limit=quotas[0].limit if quotas else "", quotas=quotas)


def test_the_statuses_of_what_is_allowed_say_what_remains() -> None:
    statuses = [(1, 800, 4, "day", 700, 9_000), (1, 150, 2, "minute", 3, 41), (1, None, 0, "", 0, None)]
    assert decode_decision(response(Code.OK, statuses)) == Decision(
        Code.OK, quotas=(Quota("minute", 150, 3, 41.0, 60), Quota("day", 800, 700, 9_000.0, 86_400))
    )


WIRE = [
    (Quota("minute", 150, 3, 41.5, 60), Quota("minute", 150, 3, 41.5, 60)),
    (Quota("", 2**64 - 1, 2**64 - 1, inf, 120), Quota("", 2**32 - 1, 2**32 - 1, inf, 0)),
    (Quota("é\ud800", 1, 1, 1e300, 604_800), Quota("é?", 1, 1, 315_576_000_000.0, 604_800)),
]


@pytest.mark.parametrize(("quota", "arrives"), WIRE)
def test_quotas_on_the_wire(quota: Quota, arrives: Quota) -> None:
    """What the messages have no room for is cut; a window without a unit is left out."""
    sent = Decision(Code.OVER_LIMIT, limit=quota.limit, quotas=(quota,))
    assert decode_decision(encode_decision(sent)) == Decision(Code.OVER_LIMIT, limit=arrives.limit, quotas=(arrives,))


quotas = st.builds(
    Quota,
    st.text(),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.floats(0, allow_nan=False),
    st.integers(1, 2**62),
)


@given(st.sampled_from(Code), st.lists(quotas, max_size=5).map(tuple))
def test_any_quotas_can_be_sent(code: Code, sent: tuple[Quota, ...]) -> None:
    decision = decode_decision(encode_decision(Decision(code, quotas=sent)))
    assert len(decision.quotas) == len(sent)
    waiting = retry_after(decision.quotas)
    assert waiting is None or waiting <= max(1.0, *(quota.resets_in for quota in sent)) + 1


@pytest.mark.parametrize(
    ("words", "headers"),
    [([], False), (["--rate-limit-headers", "NONE"], False), (["--rate-limit-headers", "DRAFT_VERSION_03"], True)],
)
def test_the_command_takes_limitadors_option(monkeypatch, tmp_path, words: list[str], headers: bool) -> None:
    asked: list[bool] = []

    class Server(LimiterServer):
        def __init__(self, *arguments, ratelimit_headers: bool, **options) -> None:
            asked.append(ratelimit_headers)
            super().__init__(*arguments, ratelimit_headers=ratelimit_headers, **options)

    monkeypatch.setattr("extproc.limiter_server.LimiterServer", Server)
    monkeypatch.setattr("extproc.telemetry.logs.configure", lambda *_: None)
    assert main(["limiter", str(tmp_path / "absent.yaml"), *words]) == 2
    assert asked == [headers]


def test_an_option_that_limitador_does_not_have_is_refused() -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["limiter", "limits.yaml", "--rate-limit-headers", "DRAFT_VERSION_04"])
