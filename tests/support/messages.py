"""Messages as Envoy sends them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from extproc.wire.external_processor_pb2 import ProcessingRequest

ATTRIBUTES = "envoy.filters.http.ext_proc"


def request_headers(
    headers: Mapping[str, str | bytes] | None = None,
    *,
    host: str | None = "trlp.example.com",
    path: str = "/v1/chat/completions",
    method: str = "POST",
    ends: bool = False,
    attributes: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    modes: tuple[int, int] | None = None,
) -> ProcessingRequest:
    """The first message of most exchanges; `modes` are the configured request and response body modes."""
    message = ProcessingRequest()
    pseudo = {":method": method, ":path": path, ":scheme": "http", "x-request-id": "rid-1"}
    if host is not None:
        pseudo[":authority"] = host
    for key, value in {**pseudo, **(headers or {})}.items():
        message.request_headers.headers.headers.add(
            key=key, raw_value=value if isinstance(value, bytes) else value.encode()
        )
    message.request_headers.end_of_stream = ends
    if attributes is not None:
        message.attributes[ATTRIBUTES].CopyFrom(ParseDict(dict(attributes), Struct()))
    for namespace, content in (metadata or {}).items():
        message.metadata_context.filter_metadata[namespace].CopyFrom(ParseDict(content, Struct()))
    if modes is not None:
        message.protocol_config.request_body_mode, message.protocol_config.response_body_mode = modes
    return message


def request_body(body: bytes, *, ends: bool = True) -> ProcessingRequest:
    message = ProcessingRequest()
    message.request_body.body = body
    message.request_body.end_of_stream = ends
    return message


def response_headers(
    headers: Mapping[str, str] | None = None, *, status: int = 200, ends: bool = False
) -> ProcessingRequest:
    message = ProcessingRequest()
    for key, value in {":status": str(status), "content-type": "application/json", **(headers or {})}.items():
        message.response_headers.headers.headers.add(key=key, raw_value=value.encode())
    message.response_headers.end_of_stream = ends
    return message


def response_body(body: bytes, *, ends: bool = True) -> ProcessingRequest:
    message = ProcessingRequest()
    message.response_body.body = body
    message.response_body.end_of_stream = ends
    return message


def request_trailers() -> ProcessingRequest:
    message = ProcessingRequest()
    message.request_trailers.trailers.headers.add(key="x-t", raw_value=b"1")
    return message


def response_trailers() -> ProcessingRequest:
    message = ProcessingRequest()
    message.response_trailers.trailers.headers.add(key="x-t", raw_value=b"1")
    return message


def json_answer(total: int = 24) -> bytes:
    """F1: a chat completion that used `total` tokens."""
    return (
        b'{"id":"x","model":"meta-llama/Llama-3.1-8B-Instruct","choices":[{"index":0,"message":{"role":"assistant",'
        b'"content":"Once upon a time"},"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":12,"completion_tokens":%d,"total_tokens":%d}}' % (total - 12, total)
    )


def sse_frames(total: int | None = 24) -> list[bytes]:
    """F2b: a streamed completion; without a usage frame when `total` is None."""
    words = ["To", " be", " or", " not"]
    frames = [
        b'data: {"id":"c","usage":null,"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % word.encode()
        for word in words
    ]
    if total is not None:
        frames.append(b'data: {"id":"c","usage":{"prompt_tokens":0,"total_tokens":%d},"choices":[]}\n\n' % total)
    return [*frames, b"data: [DONE]\n\n"]
