"""The floor asks Envoy for what metering asks for, or the comparison with it means nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import grpc
import pytest

from bench.floor import REPLIES, process, server
from extproc.wire.base_pb2 import HeaderMap
from extproc.wire.external_processor_pb2 import (
    HttpBody,
    HttpHeaders,
    HttpTrailers,
    ProcessingRequest,
    ProcessingResponse,
)
from extproc.wire.processing_mode_pb2 import ProcessingMode

HEADERS = HttpHeaders(headers=HeaderMap())
EXCHANGE = (
    ProcessingRequest(request_headers=HEADERS),
    ProcessingRequest(response_headers=HEADERS),
    ProcessingRequest(response_body=HttpBody(body=b"data: {}\n\n")),
    ProcessingRequest(response_body=HttpBody(end_of_stream=True)),
    ProcessingRequest(response_trailers=HttpTrailers()),
)


async def given(messages: Sequence[ProcessingRequest]) -> AsyncIterator[ProcessingRequest]:
    for message in messages:
        yield message


def kinds(replies: Sequence[ProcessingResponse]) -> list[str | None]:
    return [reply.WhichOneof("response") for reply in replies]


async def test_one_answer_of_the_same_kind_for_each_message() -> None:
    """G1: anything else would be a spurious message."""
    replies = [ProcessingResponse.FromString(reply) async for reply in process(given(EXCHANGE), None)]
    assert kinds(replies) == [message.WhichOneof("request") for message in EXCHANGE]


@pytest.mark.parametrize("kind", REPLIES)
def test_only_response_headers_change_what_is_sent(kind: str) -> None:
    reply = ProcessingResponse.FromString(REPLIES[kind])
    assert reply.WhichOneof("response") == kind
    asked = ProcessingMode(response_body_mode="STREAMED", response_trailer_mode="SEND")
    assert reply.mode_override == (asked if kind == "response_headers" else ProcessingMode())


async def test_the_floor_over_grpc() -> None:
    running = server()
    port = running.add_insecure_port("127.0.0.1:0")
    await running.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream(
            "/envoy.service.ext_proc.v3.ExternalProcessor/Process",
            request_serializer=ProcessingRequest.SerializeToString,
            response_deserializer=ProcessingResponse.FromString,
        )(given(EXCHANGE))
        replies = [reply async for reply in call]
    await running.stop(grace=None)
    assert kinds(replies) == [message.WhichOneof("request") for message in EXCHANGE]
