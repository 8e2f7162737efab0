"""A gRPC client where Envoy's would be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import grpc
from grpc.aio import EOF

from extproc.transport.process import SERVICE
from extproc.wire.external_processor_pb2 import ProcessingRequest, ProcessingResponse
from support.messages import json_answer, request_headers, response_body, response_headers

PROCESS = f"/{SERVICE}/Process"
EXCHANGE = (request_headers(), response_headers(), response_body(json_answer()))
"""A request and its answer, 24 tokens."""


class Stream:
    """One call of Process: `async with Stream(channel) as stream: reply = await stream.send(message)`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call: Any = channel.stream_stream(PROCESS)(timeout=20)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.cancel()

    async def post(self, message: ProcessingRequest | bytes) -> None:
        await self._call.write(message if isinstance(message, bytes) else message.SerializeToString())

    async def reply(self) -> ProcessingResponse | None:
        """The next reply, None when the server has ended the stream."""
        data = await self._call.read()
        return None if data is EOF else ProcessingResponse.FromString(data)

    async def send(self, message: ProcessingRequest | bytes) -> ProcessingResponse | None:
        await self.post(message)
        return await self.reply()

    async def half_close(self) -> None:
        await self._call.done_writing()

    async def code(self) -> grpc.StatusCode:
        """How the server ended the stream."""
        code: grpc.StatusCode = await self._call.code()
        return code

    async def details(self) -> str:
        return str(await self._call.details() or "")


async def converse(channel: grpc.aio.Channel, *messages: ProcessingRequest) -> list[str | None]:
    """The kinds of the replies to a whole exchange."""
    async with Stream(channel) as stream:
        return [(await _some(stream, message)).WhichOneof("response") for message in messages or EXCHANGE]


async def _some(stream: Stream, message: ProcessingRequest) -> ProcessingResponse:
    reply = await stream.send(message)
    assert reply is not None
    return reply


@asynccontextmanager
async def connected(
    address: str, credentials: grpc.ChannelCredentials | None = None, **options: Any
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel with a connection of its own."""
    chosen = [("grpc.use_local_subchannel_pool", 1), *options.items()]
    if credentials is None:
        channel = grpc.aio.insecure_channel(address, chosen)
    else:
        channel = grpc.aio.secure_channel(address, credentials, chosen)
    async with channel:
        yield channel
