"""Replies to Envoy, serialised. Most are constants: nothing changes, so nothing is built.

Header values go into `raw_value` because Envoy ignores `value`. In a mode override, body modes that are not
named mean NONE, header and trailer modes that are not named stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from struct import Struct

from extproc.telemetry.names import printable
from extproc.usage.usage import Usage
from extproc.wire.base_pb2 import HeaderValue
from extproc.wire.external_processor_pb2 import (
    BodyResponse,
    CommonResponse,
    HeaderMutation,
    HeadersResponse,
    HttpBody,
    ImmediateResponse,
    ProcessingRequest,
    ProcessingResponse,
)
from extproc.wire.processing_mode_pb2 import ProcessingMode

Reply = bytes
"""A serialised ProcessingResponse."""
Headers = Iterable[tuple[str, str]]
_DOUBLE = Struct("<d")
_exchange = _DOUBLE.pack_into
_SHORT = 512
"""Characters of headers that a reply is remembered with: clients may choose them."""
_OPTIONAL = ("cached_tokens", "cache_write_tokens", "reasoning_tokens")
"""Mostly 0, and then constant."""

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
HOLD_RESPONSE = ProcessingMode(response_body_mode=ProcessingMode.BUFFERED_PARTIAL)
"""The headers are held as well, so that another answer may still be given (1.40: also after the body)."""
SKIP_BODIES = ProcessingMode()
SKIP_RESPONSE = ProcessingMode(response_header_mode=ProcessingMode.SKIP)
# Not BUFFERED: overridden to that, Envoy hangs on a body larger than its buffer (1.40), without a timeout or a 413.
READ_REQUEST = ProcessingMode(request_body_mode=ProcessingMode.BUFFERED_PARTIAL)
EDIT_REQUEST = ProcessingMode(request_body_mode=ProcessingMode.BUFFERED)
"""Only for a body that surely fits, see above. Its length may change, see `request_body`."""
WATCH_REQUEST = ProcessingMode(request_body_mode=ProcessingMode.STREAMED)


def request_headers(mode: ProcessingMode | None = None, *, remove: Iterable[str] = ()) -> bytes:
    """Go on with the request: ask for `mode`, take headers away from what the model sees."""
    response = CommonResponse(header_mutation=HeaderMutation(remove_headers=remove)) if remove else None
    headers = HeadersResponse(response=response)
    return ProcessingResponse(request_headers=headers, mode_override=mode).SerializeToString()


def request_changes(change: tuple[tuple[str, str], ...], remove: tuple[str, ...], *, reroute: bool = False) -> bytes:
    """More to put behind a `request_headers` reply: headers that the model is to see, and not to see.

    With `reroute` the gateway chooses its route anew, by these headers (G13). Protobuf messages merge when their bytes
    are joined. Short ones, which most are, are remembered.
    """
    size = sum(len(key) + len(value) for key, value in change) + sum(map(len, remove))
    return (_short_changes if size <= _SHORT else _changes)(change, remove, reroute)


def body_changes(change: tuple[tuple[str, str], ...], remove: tuple[str, ...]) -> bytes:
    """The same to put behind a `request_body` reply, for a body that came whole; the route is chosen anew (G4, G13)."""
    response = _common(change, remove, reroute=True)
    return ProcessingResponse(request_body=BodyResponse(response=response)).SerializeToString()


@lru_cache(maxsize=1024)
def _short_changes(change: tuple[tuple[str, str], ...], remove: tuple[str, ...], reroute: bool) -> bytes:
    return _changes(change, remove, reroute)


def _changes(change: tuple[tuple[str, str], ...], remove: tuple[str, ...], reroute: bool) -> bytes:
    response = _common(change, remove, reroute=reroute)
    return ProcessingResponse(request_headers=HeadersResponse(response=response)).SerializeToString()


def _common(change: Headers, remove: Iterable[str], *, reroute: bool) -> CommonResponse:
    return CommonResponse(header_mutation=_mutation(change, remove), clear_route_cache=reroute)


def response_headers(mode: ProcessingMode | None = None, *, add: Headers = (), remove: Iterable[str] = ()) -> bytes:
    """Go on with the response: ask for `mode`, set headers for the client, take others away from it."""
    headers = HeadersResponse()
    mutation = _mutation(add, remove)
    if mutation.set_headers or mutation.remove_headers:
        headers.response.header_mutation.CopyFrom(mutation)
    return ProcessingResponse(response_headers=headers, mode_override=mode).SerializeToString()


def immediate(status: int, body: bytes, headers: Headers = (), *, details: str = "") -> bytes:
    """Answer the client in the model's place. Only before the response headers have left.

    A name that is repeated in `headers` becomes several headers.
    """
    mutation = HeaderMutation()
    seen: set[str] = set()
    for key, value in headers:
        option = mutation.set_headers.add()
        option.header.MergeFrom(_header(key, value))
        if key in seen:
            option.append.value = True
        seen.add(key)
    response = ImmediateResponse(headers=mutation, body=body, details=details)
    response.status.code = status
    return ProcessingResponse(immediate_response=response).SerializeToString()


def with_headers(reply: bytes, headers: Headers) -> bytes:
    """A serialised immediate response with more headers; a later header of the same name wins."""
    response = ProcessingResponse.FromString(reply)
    response.immediate_response.headers.MergeFrom(_mutation(headers))
    return response.SerializeToString()


def usage(namespace: str, usage: Usage, hits: int | None, *, streaming: bool) -> bytes:
    """Dynamic metadata to put behind any reply, for access logs: what was used and `hits` of it reported (G10, S4.13).

    `cost` and `hits_addend` are there when they are known; `usage` is an older name of `source`. Protobuf messages
    merge when their bytes are joined, so a copy of a constant with the numbers exchanged will do.
    """
    prompt, completion, total, cached, written, reasoning, model, source, ending, dialect, cost = usage
    numbers = [total, prompt, completion]
    numbers += [number for number in (cached, written, reasoning) if number]
    if hits is not None:
        numbers.append(hits)
    if cost is not None:
        numbers.append(cost)
    zeros = (not cached, not written, not reasoning)
    named = (hits is not None, cost is not None)
    template, places = _template(namespace, zeros, named, model, source, ending, dialect, streaming)
    reply = bytearray(template)
    for place, number in zip(places, numbers, strict=True):
        _exchange(reply, place, number)
    return bytes(reply)


@lru_cache(maxsize=512)
def _template(
    namespace: str,
    zeros: tuple[bool, bool, bool],
    named: tuple[bool, bool],
    model: str,
    source: str,
    ending: str,
    dialect: str,
    streaming: bool,
) -> tuple[bytes, list[int]]:
    """A reply with some double in the place of each number that is not 0, in the order of `usage`, and the places."""
    names = ["total_tokens", "prompt_tokens", "completion_tokens"]
    names += [name for name, zero in zip(_OPTIONAL, zeros, strict=True) if not zero]
    names += [name for name, there in zip(("hits_addend", "cost"), named, strict=True) if there]
    # Text has no 0xff in UTF-8, and lengths no six of them.
    marks = [bytes([index]) + b"\xff" * 6 + b"\0" for index in range(len(names))]
    reply = ProcessingResponse()
    reply.dynamic_metadata[namespace] = {
        **{name: 0 for name, zero in zip(_OPTIONAL, zeros, strict=True) if zero},
        **{name: _DOUBLE.unpack(mark)[0] for name, mark in zip(names, marks, strict=True)},
        "model": printable(model),
        "source": source,
        "usage": source,
        "ending": ending,
        "dialect": dialect,
        "streaming": streaming,
    }
    template = reply.SerializeToString()
    return template, [template.index(mark) for mark in marks]


def request_body(data: bytes | None, *, keeps_length: bool = True, changes: bytes = b"") -> bytes:
    """Go on with `data` in place of the request body; None for the body as it came.

    Where all of it was held (EDIT_REQUEST) it is given its new length. Elsewhere Envoy heeds no other length but ends
    a body of another one with a 500, so `content-length` is taken away and it goes on in chunks. `changes` are joined
    to it.
    """
    if data is None:
        return CONTINUE["request_body"] + changes
    reply = ProcessingResponse()
    common = reply.request_body.response
    _put(common, data)
    if keeps_length:
        common.header_mutation.set_headers.add().header.MergeFrom(_header("content-length", str(len(data))))
    else:
        common.header_mutation.remove_headers.append("content-length")
    return reply.SerializeToString() + changes


def response_body(data: bytes) -> bytes:
    """Go on with `data` in place of a piece of the answer, whose `content-length` was taken away with its headers."""
    reply = ProcessingResponse()
    _put(reply.response_body.response, data)
    return reply.SerializeToString()


def _put(common: CommonResponse, data: bytes) -> None:
    if data:
        common.body_mutation.body = data
    else:
        common.body_mutation.clear_body = True


def echo(kind: str, message: ProcessingRequest) -> bytes:
    """Hand a body chunk back: in FULL_DUPLEX_STREAMED mode what is not sent back is lost."""
    return streamed_body(kind, message, _chunk(kind, message).body)


def streamed_body(kind: str, message: ProcessingRequest, data: bytes) -> bytes:
    """Hand a body chunk back as `data`, in FULL_DUPLEX_STREAMED mode."""
    chunk = _chunk(kind, message)
    reply = ProcessingResponse()
    body = reply.request_body if kind == "request_body" else reply.response_body
    streamed = body.response.body_mutation.streamed_response
    streamed.body = data
    streamed.end_of_stream = chunk.end_of_stream
    streamed.end_of_stream_without_message = chunk.end_of_stream_without_message
    return reply.SerializeToString()


def _chunk(kind: str, message: ProcessingRequest) -> HttpBody:
    return message.request_body if kind == "request_body" else message.response_body


def _mutation(add: Headers, remove: Iterable[str] = ()) -> HeaderMutation:
    mutation = HeaderMutation(remove_headers=remove)
    for key, value in add:
        mutation.set_headers.add().header.MergeFrom(_header(key, value))
    return mutation


def _header(key: str, value: str) -> HeaderValue:
    return HeaderValue(key=key.lower(), raw_value=value.encode())
