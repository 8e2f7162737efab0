"""How the protocols frame one JSON text of a stream."""

from __future__ import annotations

from struct import Struct
from zlib import crc32

_PRELUDE = Struct(">II")
_CHECKSUM = Struct(">I")
_HEADER = Struct(">B")
_STRING = Struct(">BH")
_STRING_TYPE = 7


def sse(data: bytes, event: str = "", end: bytes = b"\n\n") -> bytes:
    """A server-sent event, named where `event` is not empty."""
    name = f"event: {event}\n".encode() if event else b""
    return b"%bdata: %b%b" % (name, data, end)


def sse_comment(text: str) -> bytes:
    """What servers send to keep a connection open."""
    return f": {text}\n\n".encode()


def ndjson(data: bytes) -> bytes:
    """A line of newline-delimited JSON."""
    return data + b"\n"


def eventstream(data: bytes, event: str) -> bytes:
    """A message of application/vnd.amazon.eventstream: prelude and its CRC-32, headers, payload, CRC-32 of it all."""
    headers = b"".join(
        _header(name, value)
        for name, value in ((":event-type", event), (":content-type", "application/json"), (":message-type", "event"))
    )
    total = _PRELUDE.size + _CHECKSUM.size + len(headers) + len(data) + _CHECKSUM.size
    prelude = _PRELUDE.pack(total, len(headers))
    message = prelude + _CHECKSUM.pack(crc32(prelude)) + headers + data
    return message + _CHECKSUM.pack(crc32(message))


def _header(name: str, value: str) -> bytes:
    return _HEADER.pack(len(name)) + name.encode() + _STRING.pack(_STRING_TYPE, len(value)) + value.encode()
