"""Writes the framings that the readers read; independent of their code."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

EVENT_STREAM = "application/vnd.amazon.eventstream"
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
JSON = "application/json"


def compact(value: Any) -> bytes:
    """`value` as JSON without spaces, in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def message(payload: bytes, headers: dict[str, str] | None = None) -> bytes:
    """One message of an Amazon event stream; headers are strings. The default is what Bedrock sends with a chunk."""
    if headers is None:
        headers = {":event-type": "chunk", ":content-type": "application/json", ":message-type": "event"}
    head = b"".join(map(_header, headers.items()))
    prelude = (16 + len(head) + len(payload)).to_bytes(4, "big") + len(head).to_bytes(4, "big")
    checked = prelude + zlib.crc32(prelude).to_bytes(4, "big") + head + payload
    return checked + zlib.crc32(checked).to_bytes(4, "big")


def wrapped(event: bytes) -> bytes:
    """The payload in which InvokeModelWithResponseStream puts an event of the model."""
    return compact({"bytes": base64.b64encode(event).decode(), "p": "abcdefgh"})


def event_stream(events: Sequence[bytes], *, wrap: bool = False) -> bytes:
    """A whole Amazon event stream."""
    return b"".join(message(wrapped(event) if wrap else event) for event in events)


def ndjson(events: Sequence[bytes], newline: bytes = b"\n") -> bytes:
    """One event a line."""
    return b"".join(event + newline for event in events)


def sse(events: Sequence[bytes], newline: bytes = b"\n") -> bytes:
    """One event each, in `data:` lines, with the terminator that OpenAI sends."""
    return b"".join(b"data: " + event + newline * 2 for event in (*events, b"[DONE]"))


def _header(header: tuple[str, str]) -> bytes:
    name, value = (text.encode() for text in header)
    string = b"\x07"
    return bytes([len(name)]) + name + string + len(value).to_bytes(2, "big") + value
