"""The least that an ext_proc server in Python can do: every other server is compared with this one.

grpc.aio on uvloop, each message parsed by upb, every answer constant. It asks Envoy for the messages that
metering asks for, so the two differ in nothing but the work between a message and its answer. With `--request-body`
it asks for the whole request body as well, as editing and guarding do, and lets it pass.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from functools import partial

import grpc
import uvloop

from extproc.wire.external_processor_pb2 import (
    BodyResponse,
    HeadersResponse,
    ProcessingRequest,
    ProcessingResponse,
    TrailersResponse,
)
from extproc.wire.processing_mode_pb2 import ProcessingMode

_STREAMED = ProcessingMode(response_body_mode=ProcessingMode.STREAMED, response_trailer_mode=ProcessingMode.SEND)
REPLIES: dict[str, bytes] = {
    kind: reply.SerializeToString()
    for kind, reply in {
        "request_headers": ProcessingResponse(request_headers=HeadersResponse()),
        "request_body": ProcessingResponse(request_body=BodyResponse()),
        "request_trailers": ProcessingResponse(request_trailers=TrailersResponse()),
        "response_headers": ProcessingResponse(response_headers=HeadersResponse(), mode_override=_STREAMED),
        "response_body": ProcessingResponse(response_body=BodyResponse()),
        "response_trailers": ProcessingResponse(response_trailers=TrailersResponse()),
    }.items()
}
"""Kind of request -> the encoded answer."""
_BUFFERED = ProcessingMode(request_body_mode=ProcessingMode.BUFFERED)
READING = {
    **REPLIES,
    "request_headers": ProcessingResponse(
        request_headers=HeadersResponse(), mode_override=_BUFFERED
    ).SerializeToString(),
}
"""The same for a server that has the request body sent to it."""


async def process(
    requests: AsyncIterator[ProcessingRequest], _: object, replies: Mapping[str, bytes] = REPLIES
) -> AsyncIterator[bytes]:
    """One answer for each message, in order."""
    async for request in requests:
        kind = request.WhichOneof("request")
        assert kind is not None
        yield replies[kind]


def server(replies: Mapping[str, bytes] = REPLIES) -> grpc.aio.Server:
    """Not started, without a port."""
    created = grpc.aio.server()
    handler: grpc.RpcMethodHandler[ProcessingRequest, bytes] = grpc.stream_stream_rpc_method_handler(
        partial(process, replies=replies), request_deserializer=ProcessingRequest.FromString
    )
    created.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("envoy.service.ext_proc.v3.ExternalProcessor", {"Process": handler}),)
    )
    return created


async def _serve(address: str, replies: Mapping[str, bytes]) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    running = server(replies)
    port = running.add_insecure_port(address)
    await running.start()
    print(f"listening on {address.rpartition(':')[0]}:{port}", flush=True)
    await stopped.wait()
    await running.stop(grace=None)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.floor", description=__doc__)
    parser.add_argument("--listen", metavar="HOST:PORT", default="127.0.0.1:0")
    parser.add_argument("--request-body", action="store_true", help="ask for the request body too")
    args = parser.parse_args()
    uvloop.run(_serve(args.listen, READING if args.request_body else REPLIES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
