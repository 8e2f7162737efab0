"""One stream, one exchange: what may come over the wire, and what a defect of ours may cost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any
from unittest.mock import AsyncMock, Mock

import grpc
import pytest
from support.grpc_client import PROCESS, Stream, connected, converse
from support.harness import S0, Gateway, configured, kinds
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
from support.waiting import until

from extproc.bodies.reader import ReaderFactory
from extproc.exchange import Exchange
from extproc.exchange.settlement import Settlement
from extproc.limiter.seam import Code, Decision
from extproc.transport.process import SERVICE, add_external_processor
from extproc.wire.external_processor_pb2 import ProcessingRequest, ProcessingResponse

KINDS = ["request_headers", "response_headers", "response_body"]
SSE = {"content-type": "text/event-stream"}
UNREADABLE = [b"\xff", b"\x12\x7f\x00", b"not a protobuf message", b"\x12\x05\x0a\x03\x0a\x01\xff"]


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def grpc_noise(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What grpc.aio logs when a handler fails.

    Calls of an earlier test may end in this one's event loop, when their own is closed: gRPC has one queue for all.
    """
    records = [record for record in caplog.records if not record.name.startswith("extproc")]
    return [record.getMessage() for record in records if not _of_another_loop(record)]


def _of_another_loop(record: logging.LogRecord) -> bool:
    error = None if record.exc_info is None else record.exc_info[1]
    return "PollerCompletionQueue._handle_events" in record.getMessage() and str(error) == "Event loop is closed"


@pytest.mark.parametrize("data", UNREADABLE)
async def test_bytes_that_are_no_message(servers, caplog, data: bytes) -> None:
    """That stream ends with a status of its own; the others, on the same connection, go on."""
    async with connected((await servers.start()).addresses[0]) as channel, Stream(channel) as other:
        await other.send(request_headers())
        async with Stream(channel) as stream:
            await stream.send(request_headers())
            await stream.post(data)
            assert await stream.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert await stream.details() == "not a ProcessingRequest"
        await other.send(response_headers())
        await other.send(response_body(json_answer()))
    assert servers.reported == [24]
    [line] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.fields == {"bytes": len(data)}
    assert grpc_noise(caplog) == []


async def test_a_message_of_no_kind_is_passed_over(servers) -> None:
    """There is no reply that Envoy would not take for a violation; a later version may well send some."""
    later = b"\xa2\x06\x03new"
    async with connected((await servers.start()).addresses[0]) as channel, Stream(channel) as stream:
        for unknown in (b"", later):
            await stream.post(unknown)
        replies = [await stream.send(message) for message in (request_headers(), response_headers())]
    assert kinds(replies) == KINDS[:2]


async def test_a_large_body_fits_and_a_larger_one_hurts_nobody_else(servers) -> None:
    """gRPC's own limit is 4 MiB; Envoy sends a buffered body in one message."""
    padded = json_answer()[:-1] + b',"x":"' + b"x" * 5_000_000 + b'"}'
    async with connected((await servers.start()).addresses[0]) as channel:
        assert await converse(channel, request_headers(), response_headers(), response_body(padded)) == KINDS
        assert servers.reported == [24]
        async with Stream(channel) as other, Stream(channel) as flooding:
            await other.send(request_headers())
            await flooding.send(request_headers())
            await flooding.post(request_body(b"x" * 17_000_000))
            assert await flooding.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert kinds([await other.send(response_headers())]) == ["response_headers"]


async def test_a_stream_may_begin_and_end_with_anything(servers, caplog) -> None:
    """Local replies of earlier filters begin with the response; every end but the last byte is an abort."""
    async with connected((await servers.start()).addresses[0]) as channel:
        for message in (response_headers(), response_body(b"x"), request_body(b"x"), request_trailers()):
            async with Stream(channel) as stream:
                assert await stream.send(message) is not None
                await stream.half_close()
                assert await stream.code() is grpc.StatusCode.OK
        async with Stream(channel) as stream:
            await stream.half_close()
            assert await stream.code() is grpc.StatusCode.OK
        async with Stream(channel) as stream:
            await stream.send(request_headers())
    await until(lambda: servers.gateway.metrics.exchanges_open == 0)
    assert servers.reported == []
    assert grpc_noise(caplog) == []


@pytest.mark.parametrize("frames", range(1, 6))
async def test_a_reset_stream_is_charged_what_was_delivered(servers, caplog, frames: int) -> None:
    """G12, S0.D10: a reset is everyday life, no error; it is settled exactly once."""
    async with connected((await servers.start()).addresses[0]) as channel:
        async with Stream(channel) as stream:
            await stream.send(request_headers())
            await stream.send(response_headers(SSE))
            for data in sse_frames()[:frames]:
                await stream.send(response_body(data, ends=False))
        await until(lambda: servers.gateway.metrics.exchanges_open == 0)
    [reported] = servers.reported
    assert reported == 24 if frames == 5 else 0 < reported < 24
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def test_a_reset_while_the_limiter_is_asked(servers, caplog) -> None:
    """G12: the client went away during the check; there is nothing to report and nothing to complain of."""
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def never() -> Decision:
        asked.set()
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()
        return Decision(Code.OK)

    servers.gateway.limiter.answers["check"] = never
    async with connected((await servers.start()).addresses[0]) as channel:
        async with Stream(channel) as stream:
            await stream.post(request_headers())
            await asyncio.wait_for(asked.wait(), 5)
        await asyncio.wait_for(cancelled.wait(), 5)
    await until(lambda: servers.gateway.metrics.exchanges_open == 0)
    assert servers.reported == []
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def test_a_client_that_sends_ahead_gets_every_reply_in_order(servers) -> None:
    """G1: Envoy does not wait for one reply before it sends the next chunk."""
    messages = [request_headers(), response_headers(SSE), *(response_body(f, ends=False) for f in sse_frames() * 20)]
    async with connected((await servers.start()).addresses[0]) as channel, Stream(channel) as stream:
        for message in messages:
            await stream.post(message)
        replies = [await stream.reply() for _ in messages]
    assert kinds(replies) == [message.WhichOneof("request") for message in messages]


async def test_only_process_is_served(servers) -> None:
    async with connected((await servers.start()).addresses[0]) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(PROCESS + "ing")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# --- defects of ours


def broken(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("SECRET")


async def broken_later(*_: Any, **__: Any) -> Any:
    await asyncio.sleep(0)
    raise ZeroDivisionError("SECRET")


class BrokenReader:
    """A reader with a defect."""

    unread = None
    text_bytes = 0
    values: dict[str, object] = {}  # noqa: RUF012 - never written

    feed = close = broken


READS_REQUEST = {
    "conditionalData": [
        {"predicates": [], "data": [{"expression": {"key": "m", "value": "requestBodyJSON('/model')"}}]},
    ],
}


def failing(mode: str, *, reads_request: bool = False) -> dict[str, Any]:
    config = configured(S0)
    for service in config["services"].values():
        service["failureMode"] = mode
    if reads_request:
        config["actionSets"][0]["actions"][0].update(READS_REQUEST)
    return config


BEFORE_THE_CALL: dict[str, tuple[str, list[ProcessingRequest], bool]] = {
    "headers": ("_request_headers", [request_headers()], False),
    "body": ("_request_body", [request_headers(), request_body(b'{"model":"m"}')], True),
    "trailers": ("_request_trailers", [request_headers(), request_trailers()], True),
}


@pytest.mark.parametrize("defect", [broken, broken_later], ids=["at once", "later"])
@pytest.mark.parametrize(("method", "messages", "reads"), BEFORE_THE_CALL.values(), ids=BEFORE_THE_CALL)
@pytest.mark.parametrize("mode", ["deny", "allow"])
async def test_a_defect_before_the_call_is_a_missing_decision(
    servers, caplog, monkeypatch, mode: str, method: str, messages: list[ProcessingRequest], reads: bool, defect: Any
) -> None:
    """G3: the failure mode answers. No exception leaves the handler, and none of its text."""
    servers.gateway = Gateway(failing(mode, reads_request=reads))
    monkeypatch.setattr(Exchange, method, defect)
    async with connected((await servers.start()).addresses[0]) as channel, Stream(channel) as stream:
        *_, reply = [await stream.send(message) for message in messages]
        assert reply is not None
        if mode == "deny":
            assert reply.immediate_response.status.code == 500
            assert reply.immediate_response.body == b"Internal Server Error.\n"
        else:
            assert kinds([reply]) == [messages[-1].WhichOneof("request")]
        assert b"SECRET" not in reply.SerializeToString()
        await stream.half_close()
        assert await stream.code() is grpc.StatusCode.OK
    assert next(record.getMessage() for record in caplog.records if record.exc_info) == "internal error"
    assert servers.gateway.metrics.errors == 1
    assert grpc_noise(caplog) == []


Break = Callable[[pytest.MonkeyPatch], None]
AFTER_THE_CALL: dict[str, Break] = {
    "headers": lambda patch: patch.setattr(Exchange, "_response_headers", broken),
    "reader cannot be opened": lambda patch: patch.setattr(ReaderFactory, "open", broken),
    "chunk": lambda patch: patch.setattr(Exchange, "_response_body", broken),
    "reading": lambda patch: patch.setattr(ReaderFactory, "open", lambda *_: BrokenReader()),
    "settling": lambda patch: patch.setattr(Settlement, "_settle_action", broken),
    "holding": lambda patch: patch.setattr(Exchange, "_response_complete", broken_later),
}


@pytest.mark.parametrize("defect", AFTER_THE_CALL.values(), ids=AFTER_THE_CALL)
@pytest.mark.parametrize("mode", ["deny", "allow"])
async def test_a_defect_after_the_call_never_touches_the_answer(
    servers, caplog, monkeypatch, mode: str, defect: Break
) -> None:
    """G3, G6: whatever breaks, every message of the response gets its CONTINUE."""
    servers.gateway = Gateway(failing(mode))
    defect(monkeypatch)
    answer = json_answer()
    messages = [
        request_headers(),
        response_headers(),
        response_body(answer[:20], ends=False),
        response_body(answer[20:], ends=False),
        response_body(b""),
    ]
    async with connected((await servers.start()).addresses[0]) as channel, Stream(channel) as stream:
        replies = [await stream.send(message) for message in messages]
        assert kinds([reply or ProcessingResponse() for reply in replies]) == [
            message.WhichOneof("request") for message in messages
        ]
        for reply in replies[2:]:
            assert reply == ProcessingResponse.FromString(b"\x22\x00")
        await stream.half_close()
        assert await stream.code() is grpc.StatusCode.OK
    assert "internal error" in [record.getMessage() for record in caplog.records]
    assert grpc_noise(caplog) == []
    assert servers.gateway.metrics.exchanges_open == 0


@pytest.mark.parametrize("defect", ["reading", "settling"])
async def test_a_defect_after_the_stream_stays_inside(servers, caplog, monkeypatch, defect: str) -> None:
    """A reset stream is settled when nobody listens any more; that may fail as well."""
    AFTER_THE_CALL[defect](monkeypatch)
    async with connected((await servers.start()).addresses[0]) as channel:
        async with Stream(channel) as stream:
            for message in (request_headers(), response_headers(), response_body(json_answer(), ends=False)):
                await stream.send(message)
        await until(lambda: servers.gateway.metrics.exchanges_open == 0)
        monkeypatch.undo()
        assert await converse(channel) == KINDS
    assert "internal error" in [record.getMessage() for record in caplog.records]
    assert grpc_noise(caplog) == []


async def test_trailers_of_both_sides_are_answered(servers) -> None:
    """G11."""
    async with connected((await servers.start()).addresses[0]) as channel:
        messages = [
            request_headers(),
            request_trailers(),
            response_headers(SSE),
            *(response_body(data, ends=False) for data in sse_frames()),
            response_trailers(),
        ]
        assert await converse(channel, *messages) == [message.WhichOneof("request") for message in messages]
    assert servers.reported == [24]


async def test_a_stream_that_is_reset_while_it_is_answered_ends_without_a_word() -> None:
    """gRPC has errors of its own for that; none of them leaves the handler, and the exchange is closed."""
    gateway = Gateway(configured(S0))
    handlers: list[Any] = []
    server = Mock(add_generic_rpc_handlers=lambda added: handlers.extend(added))
    add_external_processor(server, gateway.open)
    handler = handlers[0].service(Mock(method=f"/{SERVICE}/Process", invocation_metadata=()))
    context = AsyncMock()
    context.read.return_value = request_headers(ends=True).SerializeToString()
    context.write.side_effect = RuntimeError("the batch failed")
    await handler.stream_stream(None, context)
    assert (context.write.await_count, gateway.metrics.exchanges_open) == (1, 0)
