"""Replies to Envoy, serialised. Most are constants: nothing changes, so nothing is built.

Header values go into `raw_value` because Envoy ignores `value`. In a mode override, body modes that are not
named mean NONE, header and trailer modes that are not named stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from struct import Struct

from extproc.wire.base_pb2 import HeaderValue
from extproc.wire.external_processor_pb2 import (
    CommonResponse,
    HeaderMutation,
    HeadersResponse,
    ImmediateResponse,
    ProcessingRequest,
    ProcessingResponse,
)
from extproc.wire.processing_mode_pb2 import ProcessingMode

Headers = Iterable[tuple[str, str]]
NAMESPACE = "extproc"
"""Of the dynamic metadata that access logs can show."""
_DOUBLE = Struct("<d")

CONTINUE: Mapping[str, bytes] = {
    "request_headers": b"\x0a\x00",
    "response_headers": b"\x12\x00",
    "request_body": b"\x1a\x00",
    "response_body": b"\x22\x00",
    "request_trailers": b"\x2a\x00",
    "response_trailers": b"\x32\x00",
}
"""For each kind of message: go on, nothing changes."""

READ_RESPONSE = ProcessingMode(response_body_mode=ProcessingMode.STREAMED, response_trailer_mode=ProcessingMode.SEND)
SKIP_BODIES = ProcessingMode()
SKIP_RESPONSE = ProcessingMode(response_header_mode=ProcessingMode.SKIP)
# Not BUFFERED: overridden to that, Envoy hangs on a body larger than its buffer (1.40), without a timeout or a 413.
READ_REQUEST = ProcessingMode(request_body_mode=ProcessingMode.BUFFERED_PARTIAL)


def request_headers(mode: ProcessingMode | None = None, *, remove: Iterable[str] = ()) -> bytes:
    """Go on with the request: ask for `mode`, take headers away from what the model sees."""
    response = CommonResponse(header_mutation=HeaderMutation(remove_headers=remove)) if remove else None
    headers = HeadersResponse(response=response)
    return ProcessingResponse(request_headers=headers, mode_override=mode).SerializeToString()


def response_headers(mode: ProcessingMode | None = None, *, add: Headers = ()) -> bytes:
    """Go on with the response: ask for `mode`, set headers for the client."""
    headers = HeadersResponse()
    mutation = _mutation(add)
    if mutation.set_headers:
        headers.response.header_mutation.CopyFrom(mutation)
    return ProcessingResponse(response_headers=headers, mode_override=mode).SerializeToString()


def immediate(status: int, body: bytes, headers: Headers = (), *, details: str = "") -> bytes:
    """Answer the client in the model's place. Only before the response headers have left."""
    response = ImmediateResponse(headers=_mutation(headers), body=body, details=details)
    response.status.code = status
    return ProcessingResponse(immediate_response=response).SerializeToString()


def with_headers(reply: bytes, headers: Headers) -> bytes:
    """A serialised immediate response with more headers; a later header of the same name wins."""
    response = ProcessingResponse.FromString(reply)
    response.immediate_response.headers.MergeFrom(_mutation(headers))
    return response.SerializeToString()


def usage(source: str, hits: int) -> bytes:
    """Dynamic metadata to put behind any reply: the hits that were reported and where they came from (G10).

    Protobuf messages merge when their bytes are joined, so a constant with eight bytes exchanged will do.
    """
    before, after = _usage_template(source)
    return before + _DOUBLE.pack(hits) + after


@lru_cache(maxsize=16)
def _usage_template(source: str) -> tuple[bytes, bytes]:
    mark = 1.25e-300
    reply = ProcessingResponse()
    reply.dynamic_metadata[NAMESPACE] = {"hits_addend": mark, "usage": source}
    before, _, after = reply.SerializeToString().partition(_DOUBLE.pack(mark))
    return before, after


def echo(kind: str, message: ProcessingRequest) -> bytes:
    """Hand a body chunk back: in FULL_DUPLEX_STREAMED mode what is not sent back is lost."""
    chunk = message.request_body if kind == "request_body" else message.response_body
    reply = ProcessingResponse()
    body = reply.request_body if kind == "request_body" else reply.response_body
    streamed = body.response.body_mutation.streamed_response
    streamed.body = chunk.body
    streamed.end_of_stream = chunk.end_of_stream
    streamed.end_of_stream_without_message = chunk.end_of_stream_without_message
    return reply.SerializeToString()


def _mutation(headers: Headers) -> HeaderMutation:
    mutation = HeaderMutation()
    for key, value in headers:
        mutation.set_headers.add().header.MergeFrom(_header(key, value))
    return mutation


def _header(key: str, value: str) -> HeaderValue:
    return HeaderValue(key=key.lower(), raw_value=value.encode())
