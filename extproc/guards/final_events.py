"""What a client gets in place of an answer, or of the rest of it, in a form that its SDK takes for an error.

It says that something was withheld; never what, nor which rule.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal, NamedTuple

import orjson

Profile = Literal["asm", "openai", "anthropic"]
Framing = Literal["sse", "ndjson"]

MESSAGE: Final = "The answer was withheld by a content guard."
_TEXT: Final = b"response was denied by asm llm proxy"

_OPENAI: Final = {"error": {"message": MESSAGE, "type": "content_filter", "param": None, "code": "content_filter"}}
# The type that Anthropic's own filter of answers has.
_ANTHROPIC: Final = {"type": "error", "error": {"type": "invalid_request_error", "message": MESSAGE}}
_GEMINI: Final = {"error": {"code": 403, "message": MESSAGE, "status": "PERMISSION_DENIED"}}
_COHERE: Final = {"type": "message-end", "delta": {"finish_reason": "ERROR", "error": MESSAGE}}
_OLLAMA: Final = {"error": MESSAGE}
_LINES: Final[dict[str, dict[str, Any]]] = {"openai": _OPENAI, "anthropic": _ANTHROPIC, "gemini": _GEMINI}
_SEQUENCE = re.compile(rb'"sequence_number"\s*+:\s*+(\d{1,9})(?!\d)')


class Replacement(NamedTuple):
    """A body in the answer's place."""

    content_type: str
    body: bytes


def replacement(profile: Profile) -> Replacement:
    """In place of an answer that came as one document: JSON, or a line of text for `asm`."""
    if profile == "asm":
        return Replacement("text/plain", _TEXT)
    return Replacement("application/json", orjson.dumps(_ANTHROPIC if profile == "anthropic" else _OPENAI))


def final_events(framing: Framing, dialect: str, withheld: bytes) -> bytes:
    """The end of a stream of `dialect`, "" when it is not known, in place of the events `withheld`."""
    if framing == "ndjson":
        return orjson.dumps(_LINES.get(dialect, _OLLAMA)) + b"\n"
    if dialect == "anthropic":
        return _event(_ANTHROPIC, b"error")
    if dialect == "responses":
        return _event(_responses(withheld), b"error")
    if dialect == "gemini":
        return _event(_GEMINI)
    if dialect == "cohere":
        return _event(_COHERE, b"message-end")
    return _event(_OPENAI) + b"data: [DONE]\n\n"


def _responses(withheld: bytes) -> dict[str, Any]:
    """As the reference has it; the SDK raises for the member `error`, which gateways of this API send."""
    event: dict[str, Any] = {"type": "error", "code": "content_filter", "message": MESSAGE, "param": None}
    number = _SEQUENCE.search(withheld)
    if number is not None:
        event["sequence_number"] = int(number[1])
    return event | _OPENAI


def _event(data: dict[str, Any], name: bytes = b"") -> bytes:
    head = b"event: " + name + b"\n" if name else b""
    return b"".join((head, b"data: ", orjson.dumps(data), b"\n\n"))
