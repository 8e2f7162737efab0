"""How much of a request and of an answer Envoy may hold, and the settings that say so.

A body that extproc asks for is held up to these sizes and then sent as far as it got. Asked to hold one whole that
does not fit, Envoy waits for room that never comes, until its `stream_idle_timeout` of five minutes: so nobody may ask
for more than fits (`bodies.buffer`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

Json = dict[str, Any]

USUAL: Final = 1024 * 1024
"""Bytes of a connection that Envoy buffers unless told otherwise, which is how much of a body it holds in HTTP/1."""
WINDOW: Final = 16 * 1024 * 1024
"""Bytes of a stream of HTTP/2 that it has under way, and so holds, unless told otherwise (1.36 and later)."""


@dataclass(frozen=True, slots=True)
class Buffers:
    """Bytes. `request`: of a request, None where nothing depends on it; `answer`: of an answer, 0 for none."""

    request: int | None = None
    answer: int = 0

    @property
    def connection(self) -> int:
        """Of a connection, where nothing else can say how much of a request is held."""
        return max(self.request or USUAL, self.answer)

    @property
    def listener(self) -> Json:
        """Of a listener whose routes have `route`. Those can raise its limit for requests, and not lower it."""
        size = max(min(self.request or USUAL, USUAL), self.answer)
        return {} if size == USUAL else {"per_connection_buffer_limit_bytes": size}

    @property
    def route(self) -> Json:
        """Of every route: the one that matches first decides, before extproc has chosen another (Envoy 1.37)."""
        return {} if self.request is None else {"request_body_buffer_limit": self.request}

    @property
    def manager(self) -> Json:
        """Of a connection manager."""
        if self.connection <= WINDOW:
            return {}
        return {"http2_protocol_options": {"initial_stream_window_size": self.connection}}


USUAL_BUFFERS: Final = Buffers()
"""What Envoy does by itself."""
