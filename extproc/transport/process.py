"""The ext_proc service on grpc.aio: one stream, one exchange."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import EOF

from extproc.exchange import Exchange
from extproc.wire.external_processor_pb2 import DESCRIPTOR, ProcessingRequest

_LOG = logging.getLogger("extproc.transport")
SERVICE = DESCRIPTOR.services_by_name["ExternalProcessor"].full_name

_Context = grpc.aio.ServicerContext[bytes, bytes]


def add_external_processor(server: grpc.aio.Server, open_exchange: Callable[[], Exchange]) -> None:
    """Serve envoy.service.ext_proc.v3.ExternalProcessor; `open_exchange` is called once a stream."""

    parse = ProcessingRequest.FromString

    async def process(_: AsyncIterator[bytes], context: _Context) -> None:
        """Answer every message of a stream, in order. Nothing is awaited between a body chunk and its reply."""
        exchange = open_exchange()
        try:
            while True:
                data: Any = await context.read()
                if data is EOF:
                    return
                try:
                    message = parse(data)
                except DecodeError:
                    _LOG.warning("a message could not be parsed", extra={"fields": {"bytes": len(data)}})
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a ProcessingRequest")
                reply = exchange.receive(message)
                if reply is None:
                    continue
                if not isinstance(reply, bytes):
                    reply = await reply
                try:
                    await context.write(reply)
                except Exception:  # noqa: BLE001 - gRPC has several for a stream that was reset meanwhile
                    return
                if exchange.digest():
                    return
        finally:
            # Envoy resets every stream that it has finished with, so this is where most of them end.
            exchange.close()

    # Bytes in, bytes out: most replies are constants, and a message that cannot be parsed gets an answer of ours.
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(process)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Process": handler}),))
