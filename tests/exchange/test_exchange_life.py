"""One exchange: one reply a message, settled once, whatever comes in whatever order."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Awaitable
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.harness import LIMITS, OK, OVER_LIMIT, S0, UNKNOWN, Gateway, RecordingLimiter, configured, kinds
from support.messages import (
    json_answer,
    request_body,
    request_headers,
    request_trailers,
    response_body,
    response_headers,
    response_trailers,
    sse_frames,
)

from extproc.limiter.seam import Code, Decision, LimiterError
from extproc.wire.external_processor_pb2 import BodyResponse, ProcessingRequest
from extproc.wire.processing_mode_pb2 import ProcessingMode

SSE = {"content-type": "text/event-stream"}


def reports(gateway: Gateway) -> list[int]:
    return [call.query.hits_addend for call in gateway.limiter.of("report")]


def with_body_action() -> dict[str, Any]:
    """S0 with an entry from the request body in the check."""
    config = configured(deepcopy(S0))
    data = config["actionSets"][0]["actions"][0]["conditionalData"][0]["data"]
    data.append({"expression": {"key": "model", "value": "requestBodyJSON('/model')"}})
    return config


bodies = st.sampled_from([b"", b"{", json_answer(24), b'{"model":"m"}', *sse_frames(24)])
messages = st.one_of(
    st.builds(
        request_headers,
        host=st.sampled_from(["trlp.example.com", "example.org", None]),
        ends=st.booleans(),
        modes=st.sampled_from([None, (0, 0), (1, 1), (4, 4)]),
    ),
    st.builds(request_body, bodies, ends=st.booleans()),
    st.builds(request_trailers),
    st.builds(
        response_headers,
        st.sampled_from([{}, SSE, {"content-encoding": "gzip"}, {":status": "x"}]),
        status=st.sampled_from([200, 204, 404, 500]),
        ends=st.booleans(),
    ),
    st.builds(response_body, bodies, ends=st.booleans()),
    st.builds(response_trailers),
    st.just(ProcessingRequest()),
)
outcomes = st.sampled_from([OK, OVER_LIMIT, UNKNOWN, LimiterError("unreachable", "down")])


@settings(max_examples=300, deadline=None)
@given(st.lists(messages, max_size=9), outcomes, st.booleans(), st.booleans())
def test_every_message_gets_one_reply_of_its_kind(
    sequence: list[ProcessingRequest], outcome: Any, waits: bool, reads_body: bool
) -> None:
    """G1, G6: any order, also illegal ones; nothing after an immediate response, none once the response has begun."""

    async def answer() -> Decision:
        await asyncio.sleep(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def drive() -> None:
        limiter = RecordingLimiter({"check": answer if waits else lambda: outcome})
        gateway = Gateway(with_body_action() if reads_body else configured(), limiter)
        exchange = gateway.open()
        answered = [message for message in sequence if message.WhichOneof("request")]
        replies = await gateway.send(exchange, *sequence)
        exchange.close()
        await gateway.reports.flush(5)
        for message, reply in zip(answered, replies, strict=False):
            kind = reply.WhichOneof("response")
            if kind == "immediate_response":
                assert str(message.WhichOneof("request")).startswith("request_")
                assert reply is replies[-1]
            else:
                assert kind == message.WhichOneof("request")
        if not any(reply.HasField("immediate_response") for reply in replies):
            assert len(replies) == len(answered)
        assert len(reports(gateway)) <= 1
        assert gateway.metrics.exchanges_open == 0
        assert gateway.metrics.ended == 1

    asyncio.run(drive())


@pytest.mark.parametrize("cut", range(7))
async def test_a_stream_that_ends_anywhere_is_settled_once(cut: int) -> None:
    """S0.D10, S0.D3: continuous usage up to where it ended, reported once."""
    frames = [b'data: {"usage":{"total_tokens":%d}}\n\n' % (12 + n) for n in range(1, 7)]
    gateway = Gateway()
    chunks = [response_body(frame, ends=False) for frame in frames[:cut]]
    await gateway.exchange(request_headers(ends=True), response_headers(SSE), *chunks)
    assert reports(gateway) == ([12 + cut] if cut else [])


async def test_the_last_chunk_counts_though_its_reply_was_never_read() -> None:
    """G12: Envoy may reset the stream between our reply and our reading."""
    gateway = Gateway()
    exchange = gateway.open()
    await gateway.send(exchange, request_headers(ends=True), response_headers(SSE))
    exchange.receive(response_body(b'data: {"usage":{"total_tokens":9}}\n\n', ends=False))
    exchange.close()
    assert reports(gateway) == [9]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("24", [24]),
        ("24.0", [24]),
        ("2.4e1", [24]),
        ("0", []),
        ("4294967295", [4294967295]),
        *(
            (bad, ["estimate"])
            for bad in ("-1", "1.5", "4294967296", '"24"', "null", "true", "{}", "[1]", "1e400", "NaN")
        ),
    ],
)
async def test_what_counts_as_a_number_of_tokens(value: str, expected: list[Any]) -> None:
    """S0.21, S0.D8: whole numbers that fit; 0 is not reported; anything else is "no usage", never an exception."""
    gateway = Gateway()
    answer = b'{"choices":[{"message":{"content":"12345678"}}],"usage":{"total_tokens":%s}}' % value.encode()
    await gateway.exchange(request_headers({"content-length": "40"}), response_headers(), response_body(answer))
    if expected == ["estimate"]:
        assert len(reports(gateway)) == 1
        assert 10 < reports(gateway)[0] < 100
        assert 'source="estimated"} 1.0' in gateway.metrics.render()[0].decode()
    else:
        assert reports(gateway) == expected


@pytest.mark.parametrize(
    ("policy", "expected"), [("skip", []), ({"fixed": 7}, [7]), ({"fixed": 0}, []), ("estimate", [10 + 3])]
)
async def test_an_answer_without_usage_is_charged_by_policy(policy: Any, expected: list[int]) -> None:
    """S0.D5: at four bytes a token, a prompt of 40 bytes and an answer of 12."""
    gateway = Gateway(configured(onMissingUsage=policy))
    frames = sse_frames(None)
    chunks = [response_body(frame, ends=frame is frames[-1]) for frame in frames]
    await gateway.exchange(request_headers({"content-length": "40"}), response_headers(SSE), *chunks)
    assert reports(gateway) == expected


async def test_a_prompt_without_content_length_is_estimated_too() -> None:
    """S0.D5: Envoy tells how long the request was; leaving the header out is no way around the estimate."""
    gateway = Gateway()
    response = response_headers(SSE)
    response.attributes["envoy.filters.http.ext_proc"].update({"request.size": 4000})
    await gateway.exchange(request_headers(), response, response_body(sse_frames(None)[0]))
    assert reports(gateway) == [1000 + 1]


@pytest.mark.parametrize(("usage", "source"), [(b'{"total_tokens":24}', "reported"), (b"null", "estimated")])
async def test_what_was_reported_is_told_to_the_gateway(usage: bytes, source: str) -> None:
    """G10: with the last reply, in our namespace of dynamic metadata, for access logs."""
    gateway = Gateway()
    answer = b'{"choices":[{"message":{"content":"12345678"}}],"usage":%s}' % usage
    replies = await gateway.exchange(request_headers(ends=True), response_headers(), response_body(answer))
    told = dict(replies[-1].dynamic_metadata["extproc"].items())
    assert (told["hits_addend"], told["source"], told["usage"]) == (reports(gateway)[0], source, source)
    assert (told["dialect"], told["ending"], told["streaming"]) == ("openai", "complete", False)
    assert kinds(replies)[-1] == "response_body"


@pytest.mark.parametrize("status", [301, 400, 404, 429, 500, 503])
async def test_errors_cost_nothing_unless_configured(status: int) -> None:
    """S0.D7: no report, no error counted, and the answer is not even read."""
    sequence = (request_headers(ends=True), response_headers(status=status), response_body(json_answer(24)))
    gateway = Gateway()
    replies = await gateway.exchange(*sequence)
    assert reports(gateway) == []
    assert gateway.metrics.errors == 0
    assert replies[1].mode_override.response_body_mode == ProcessingMode.NONE
    charging = Gateway(configured(chargeErrors=True))
    await charging.exchange(*sequence)
    assert reports(charging) == [24]


@pytest.mark.parametrize(
    "content_type",
    ["text/event-stream", "text/event-stream; charset=utf-8", "Text/Event-Stream", "application/json", "", "text/html"],
)
async def test_the_bytes_have_the_last_word_on_the_format(content_type: str) -> None:
    """S0.17: a stream is a stream and JSON is JSON, also under a content type that says otherwise."""
    for body in (sse_frames(24)[4], json_answer(24)):
        gateway = Gateway(configured(onMissingUsage="skip"))
        await gateway.exchange(
            request_headers(ends=True), response_headers({"content-type": content_type}), response_body(body)
        )
        assert reports(gateway) == [24]


async def test_modes_are_asked_for_as_needed() -> None:
    """G8, S0.D11: an unmatched request costs one message; a matched one turns on the response body only."""
    gateway = Gateway()
    replies = await gateway.exchange(request_headers(host="other.org"))
    assert replies[0].mode_override.response_header_mode == ProcessingMode.SKIP
    replies = await gateway.exchange(
        request_headers({"accept-encoding": "gzip"}, ends=True), response_headers(), response_body(json_answer())
    )
    assert not replies[0].HasField("mode_override")
    assert list(replies[0].request_headers.response.header_mutation.remove_headers) == ["accept-encoding"]
    assert replies[1].mode_override.response_body_mode == ProcessingMode.STREAMED
    assert replies[1].mode_override.response_trailer_mode == ProcessingMode.SEND
    assert kinds(replies)[2] == "response_body"
    assert replies[2].response_body == BodyResponse()
    kept = Gateway(configured(stripAcceptEncoding=False))
    replies = await kept.exchange(request_headers({"accept-encoding": "gzip"}, ends=True))
    assert not replies[0].request_headers.response.header_mutation.remove_headers


async def test_request_body_is_asked_for_only_where_it_is_read() -> None:
    """G8: and the check waits for it, also when trailers end the request."""
    for ending in (
        [request_body(b'{"model":"gpt"}')],
        [request_body(b'{"model":"gpt"}', ends=False), request_trailers()],
    ):
        gateway = Gateway(with_body_action())
        replies = await gateway.exchange(request_headers(), *ending)
        assert replies[0].mode_override.request_body_mode == ProcessingMode.BUFFERED_PARTIAL
        assert kinds(replies)[1:] == [message.WhichOneof("request") for message in ending]
        assert [call.entries for call in gateway.limiter.of("check")] == [{"a": "1", "model": "gpt"}]


async def test_of_a_part_of_the_request_body_nothing_is_decided() -> None:
    """G14: what did not fit into Envoy's buffer could name another model; a whole document with trailers could not."""
    gateway = Gateway(with_body_action())
    part = b'{"model":"cheap","messages":["' + b"x" * 100_000
    replies = await gateway.exchange(request_headers(), request_body(part, ends=False))
    assert replies[1].immediate_response.status.code == 413
    assert gateway.limiter.calls == []
    replies = await gateway.exchange(request_headers(), request_body(part + b'"]}', ends=False))
    assert kinds(replies) == ["request_headers", "request_body"]
    assert gateway.limiter.of("check")[0].entries["model"] == "cheap"


async def test_an_answer_before_the_request_body_is_just_read() -> None:
    """Request and response may interleave: nothing is checked twice and nothing hangs."""
    gateway = Gateway(with_body_action())
    replies = await gateway.exchange(
        request_headers(), response_headers(), response_body(json_answer()), request_body(b'{"model":"gpt"}')
    )
    assert len(replies) == 4
    assert gateway.limiter.of("check") == []


async def test_a_first_message_of_the_response_is_a_reply_of_another_filter() -> None:
    """Envoy's own replies (RBAC, direct response) start with response headers: passed, never charged."""
    gateway = Gateway()
    replies = await gateway.exchange(response_headers(status=403), response_body(b"RBAC: access denied"))
    assert kinds(replies) == ["response_headers", "response_body"]
    assert gateway.limiter.calls == []


async def test_header_bytes_that_are_not_utf8() -> None:
    """G9."""
    config = configured(deepcopy(S0))
    config["actionSets"][0]["actions"][0]["conditionalData"][0]["data"].append(
        {"expression": {"key": "x", "value": "request.headers['x-odd']"}}
    )
    gateway = Gateway(config)
    replies = await gateway.exchange(request_headers({"x-odd": b"\xff\xfe", "x-request-id": b"\xc3"}, ends=True))
    assert kinds(replies) == ["request_headers"]
    assert gateway.limiter.of("check")[0].entries["x"] == "\ufffd\ufffd"


async def test_calls_carry_the_request_id_and_the_trace() -> None:
    """S0.19: on the check and on the report; a request without an id gets one."""
    trace = {
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "tracestate": "a=b",
        "baggage": "k=v",
    }
    gateway = Gateway()
    await gateway.exchange(request_headers(trace, ends=True), response_headers(), response_body(json_answer()))
    assert [dict(call.metadata) for call in gateway.limiter.calls] == [{"x-request-id": "rid-1", **trace}] * 2
    anonymous = Gateway()
    await anonymous.exchange(request_headers({"x-request-id": ""}, ends=True))
    assert len(dict(anonymous.limiter.calls[0].metadata)["x-request-id"]) == 36


async def test_the_request_id_header_is_on_answers_and_denials() -> None:
    """`observability.httpHeaderIdentifier`."""
    config = configured(observability={"httpHeaderIdentifier": "x-rid"})
    allowed = await Gateway(config).exchange(request_headers(ends=True), response_headers())
    denied = await Gateway(config, RecordingLimiter({"check": lambda: OVER_LIMIT})).exchange(request_headers(ends=True))
    failed = await Gateway(config, RecordingLimiter({"check": lambda: UNKNOWN})).exchange(request_headers(ends=True))
    mutations = [
        allowed[1].response_headers.response.header_mutation,
        denied[0].immediate_response.headers,
        failed[0].immediate_response.headers,
    ]
    for mutation in mutations:
        assert ("x-rid", b"rid-1") in [(option.header.key, option.header.raw_value) for option in mutation.set_headers]


async def test_the_denial_is_the_operators_choice() -> None:
    """S4.10, S0.D15."""
    config = configured(denyWith={"status": 503, "headers": {"Retry-After": "9"}, "body": ""})
    limiter = RecordingLimiter({"check": lambda: OVER_LIMIT})
    denial = (await Gateway(config, limiter).exchange(request_headers(ends=True)))[0].immediate_response
    assert (denial.status.code, denial.body) == (503, b"")
    assert [(option.header.key, option.header.raw_value) for option in denial.headers.set_headers] == [
        ("retry-after", b"9")
    ]


async def test_the_last_reply_waits_for_the_report_but_not_for_long() -> None:
    """S0.D18: handed over before the last reply is sent; released when it is answered, or after report.wait."""
    answered = asyncio.Event()

    async def late() -> Decision:
        await answered.wait()
        return OK

    gateway = Gateway(configured(report={"wait": "10s"}), RecordingLimiter({"report": late}))
    exchange = gateway.open()
    await gateway.send(exchange, request_headers(ends=True), response_headers())
    reply = exchange.receive(response_body(json_answer()))
    assert isinstance(reply, Awaitable)
    assert reports(gateway) == [24]
    waiting = asyncio.ensure_future(reply)
    await asyncio.sleep(0)
    assert not waiting.done()
    answered.set()
    assert (await waiting).startswith(b"\x22\x00")
    exchange.close()

    impatient = Gateway(configured(report={"wait": "1ms"}), RecordingLimiter({"report": asyncio.Event().wait}))
    exchange = impatient.open()
    replies = await impatient.send(
        exchange, request_headers(ends=True), response_headers(), response_body(json_answer())
    )
    assert kinds(replies)[-1] == "response_body"
    exchange.close()
    assert len(impatient.reports) == 1
    assert await impatient.reports.flush(0) == 1


async def test_a_body_as_long_as_announced_is_over() -> None:
    """S0.D18: a client that knows the length does not wait for the end of the stream, so neither does the report."""
    gateway = Gateway()
    body = json_answer()
    exchange = gateway.open()
    await gateway.send(
        exchange,
        request_headers(ends=True),
        response_headers({"content-length": str(len(body))}),
        response_body(body[:50], ends=False),
    )
    assert reports(gateway) == []
    await gateway.send(exchange, response_body(body[50:], ends=False))
    assert reports(gateway) == [24]
    await gateway.send(exchange, response_body(b"", ends=True))
    exchange.close()
    assert reports(gateway) == [24]


async def test_a_report_that_fails_changes_nothing_for_the_client(caplog: pytest.LogCaptureFixture) -> None:
    """S0.15: one warning with the request id, one more failed report."""
    gateway = Gateway(limiter=RecordingLimiter({"report": lambda: LimiterError("refused", "status 13")}))
    replies = await gateway.exchange(request_headers(ends=True), response_headers(), response_body(json_answer()))
    assert kinds(replies) == ["request_headers", "response_headers", "response_body"]
    warnings = [record for record in caplog.records if record.name == "extproc.report"]
    assert len(warnings) == 1
    assert warnings[0].fields["request_id"] == "rid-1"  # type: ignore[attr-defined]
    assert 'extproc_reports_total{result="failed"} 1.0' in gateway.metrics.render()[0].decode()


async def test_full_duplex_chunks_are_handed_back() -> None:
    """In FULL_DUPLEX_STREAMED mode a plain ack would lose the chunk."""
    gateway = Gateway()
    full = ProcessingMode.FULL_DUPLEX_STREAMED
    replies = await gateway.exchange(
        request_headers(modes=(full, full)),
        request_body(b"question"),
        response_headers(),
        response_body(json_answer()),
    )
    sent_back = replies[3].response_body.response.body_mutation.streamed_response
    assert (sent_back.body, sent_back.end_of_stream) == (json_answer(), True)
    assert replies[1].request_body.response.body_mutation.streamed_response.body == b"question"
    assert reports(gateway) == [24]


async def test_memory_of_a_large_answer_is_bounded() -> None:
    """S0.D12: 100 MB of JSON with the usage at its end."""
    gateway = Gateway()
    exchange = gateway.open()
    await gateway.send(
        exchange, request_headers(ends=True), response_headers(), response_body(b'{"data":"', ends=False)
    )
    chunk = response_body(b"x" * 65_536, ends=False)
    tracemalloc.start()
    for _ in range(1600):
        await gateway.send(exchange, chunk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    await gateway.send(exchange, response_body(b'","usage":{"total_tokens":24}}'))
    exchange.close()
    assert reports(gateway) == [24]
    assert peak < 1_000_000


async def test_decision_lines_have_the_words_operators_look_for(caplog: pytest.LogCaptureFixture) -> None:
    """S1.23: allowed, consumed, denied, OVER_LIMIT, with the numbers; and no secret."""
    caplog.set_level("INFO", "extproc")
    secret = {"authorization": "Bearer sk-very-secret"}
    await Gateway(configured(**LIMITS)).exchange(
        request_headers(secret, ends=True), response_headers(), response_body(json_answer())
    )
    over = RecordingLimiter({"check": lambda: Decision(Code.OVER_LIMIT, limit="name_a")})
    await Gateway(limiter=over).exchange(request_headers(secret, ends=True))
    lines = [f"{record.getMessage()} {record.fields}" for record in caplog.records if hasattr(record, "fields")]
    assert "consumed" in lines[0]
    assert "'decision': 'allowed'" in lines[0]
    assert "'hits_addend': 24" in lines[0]
    assert "denied" in lines[1]
    assert "OVER_LIMIT" in lines[1]
    assert "name_a" in lines[1]
    assert not any("secret" in line for line in lines)


async def test_an_exchange_leaves_no_garbage() -> None:
    """What is in a cycle stays until the collector comes by, with the body of a client that has hung up."""
    gateway = Gateway()
    exchange = (request_headers(ends=True), response_headers(), response_body(json_answer()))
    await gateway.exchange(*exchange)
    gc.collect()
    gc.disable()
    try:
        for _ in range(100):
            await gateway.exchange(*exchange)
        assert gc.collect() < 100
    finally:
        gc.enable()
