"""A client that speaks HTTP/2 to the gateway without asking first, and may end its requests with trailers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection

Fields = list[tuple[str, str]]
_PATIENCE = 10.0


@dataclass
class H2Answer:
    """What came back; `status` is 0 where the stream was reset."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


async def ask(
    address: str,
    pieces: Iterable[bytes],
    *,
    host: str,
    path: str = "/v1/chat/completions",
    headers: Fields | None = None,
    trailers: Fields | None = None,
) -> H2Answer:
    """One POST on a connection of its own; pieces are small enough for the first window."""
    reader, writer = await asyncio.open_connection(*address.rsplit(":", 1))
    connection = H2Connection(H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    head = [(":method", "POST"), (":scheme", "http"), (":authority", host), (":path", path)]
    connection.send_headers(1, [*head, ("content-type", "application/json"), *(headers or [])])
    for piece in pieces:
        connection.send_data(1, piece)
    if trailers is None:
        connection.end_stream(1)
    else:
        connection.send_headers(1, trailers, end_stream=True)
    answer = H2Answer()
    try:
        async with asyncio.timeout(_PATIENCE):
            await _converse(connection, reader, writer, answer)
    finally:
        writer.close()
    return answer


async def _converse(
    connection: H2Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: H2Answer
) -> None:
    while True:
        writer.write(connection.data_to_send())
        received = await reader.read(65536)
        for event in connection.receive_data(received):
            match event:
                case events.ResponseReceived():
                    answer.headers = {str(name): str(value) for name, value in event.headers}
                    answer.status = int(answer.headers[":status"])
                case events.DataReceived():
                    answer.body += event.data
                    connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case events.StreamEnded() | events.StreamReset():
                    return
        if not received:
            return
