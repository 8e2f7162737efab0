"""Reading Amazon's event stream encoding (application/vnd.amazon.eventstream), in which Bedrock streams.

A message is a prelude of 12 bytes (length of the message, length of its headers, CRC-32 of the two), the headers, the
payload, and a CRC-32 of all before it; numbers are big-endian. The payload of one event is one JSON text.
InvokeModelWithResponseStream wraps the model's own event once more: `{"bytes": "<base64>", "p": "<padding>"}`.
"""

from __future__ import annotations

import re
from binascii import a2b_base64
from struct import Struct
from typing import Literal
from zlib import crc32

import orjson

from extproc.bodies.events import EventSink
from extproc.bodies.findings import Findings
from extproc.bodies.wanted import Wanted

_PRELUDE = Struct(">III")
_CHECKSUM = Struct(">I")
_LEAST = _PRELUDE.size + _CHECKSUM.size
"""Bytes of a message without headers and payload."""
_NO_EVENT = re.compile(rb"\x0d:message-type\x07\x00(?:\x09exception|\x05error)")
"""The header (length, name, type "string", length, value) of messages that tell why the stream ends."""
_WRAPPER = {"bytes", "p"}


METRICS = b'"amazon-bedrock-invocationMetrics"'
"""In the last event of Bedrock's InvokeModelWithResponseStream, whatever the model's own events look like."""


class EventStreamReader:
    """Holds at most one unfinished message of `limit` bytes; a longer one is skipped by its length.

    A message whose checksum is wrong is not believed. When that of a prelude is wrong, nothing tells where the next
    message begins, and the rest is not read.
    """

    __slots__ = ("_buffer", "_limit", "_lost", "_needed", "_sink", "_skip", "mid_event", "unread")

    def __init__(self, wanted: Wanted, findings: Findings, limit: int) -> None:
        self.unread: Literal["too_large", "corrupt"] | None = None
        self.mid_event = False
        """After `close`: the stream ended inside a message."""
        self._sink = EventSink(wanted, findings, (METRICS,))
        self._limit = limit
        self._buffer = bytearray()
        self._needed = _PRELUDE.size
        self._skip = 0
        self._lost = False

    @property
    def complete(self) -> bool:
        """A stream has no end of its own."""
        return True

    def feed(self, data: bytes) -> None:
        """Read the next piece."""
        if self._lost:
            return
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        buffer = self._buffer
        if buffer:
            buffer += data
            if len(buffer) < self._needed:
                return
            data = bytes(buffer)
            buffer.clear()
        buffer += data[self._read(data) :]

    def close(self) -> None:
        """An unfinished message has no checksum to trust it by: it is not read."""
        self.mid_event = bool(self._buffer or self._skip)
        self._buffer.clear()

    def _read(self, data: bytes) -> int:
        """Read the complete messages at the beginning of `data`; how many bytes are done with."""
        position, end = 0, len(data)
        while end - position >= _PRELUDE.size:
            length, headers, checksum = _PRELUDE.unpack_from(data, position)
            if crc32(data[position : position + 8]) != checksum or length - headers < _LEAST:
                self._lost = True
                self.unread = "corrupt"
                return end
            following = position + length
            if length > self._limit:
                self.unread = self.unread or "too_large"
                self._skip = max(0, following - end)
            elif following > end:
                self._needed = length
                return position
            else:
                self._read_message(data[position:following], _PRELUDE.size + headers)
            position = following
        self._needed = _PRELUDE.size
        return position

    def _read_message(self, message: bytes, payload: int) -> None:
        """Read a whole message whose payload begins at `payload`."""
        end = len(message) - _CHECKSUM.size
        if crc32(memoryview(message)[:end]) != _CHECKSUM.unpack_from(message, end)[0]:
            self.unread = "corrupt"
            return
        if payload == end or _NO_EVENT.search(message, _PRELUDE.size, payload):
            return
        event = _unwrapped(message[payload:end])
        if event and self._sink.scan(event):
            self._sink.parse(event)


def _unwrapped(payload: bytes) -> bytes:
    """The event inside of a payload that wraps one, empty when it cannot be decoded; any other payload as it is."""
    if b'"bytes"' not in payload:
        return payload
    try:
        wrapper = orjson.loads(payload)
        inner = wrapper.get("bytes") if isinstance(wrapper, dict) and wrapper.keys() <= _WRAPPER else None
        return a2b_base64(inner, strict_mode=True) if isinstance(inner, str) else payload
    except ValueError:
        return b""
