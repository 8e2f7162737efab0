"""Anthropic's messages, also as they travel inside of Bedrock's.

`input_tokens` excludes what a cache was read for or written with; `output_tokens` includes thinking. A stream's usage
begins in message_start and is cumulative in message_delta. `usage` of the options means there:

    auto  as documented: the input in message_start, the output in message_delta
    last  zeros in message_start and everything in message_delta, as gateways do that translate to this dialect
    every a message_delta with the output so far after each piece of text
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from extproc.simulator.contents import SSE, TEXT, Content, Script, document, encoded, quoted, streamed
from extproc.simulator.dialects.dialect import Endpoint, Question
from extproc.simulator.frames import sse
from extproc.simulator.options import Options
from extproc.simulator.tally import tally

Frame = Callable[[dict[str, Any]], bytes]
"""Frames one event."""

_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


def failure(status: int, message: str) -> Any:
    """An error in Anthropic's shape."""
    kind = _ERRORS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_sim"}


def message(question: Question, options: Options) -> Content:
    """The answer as one document."""
    usage = _input(options) | _output(options, options.completion_tokens)
    answer = _message(question, [{"type": "text", "text": TEXT}], "end_turn")
    return document(answer | _told(options, usage), options)


def script(
    question: Question, options: Options, frame: Frame, last: dict[str, Any] | None = None, ping: bool = True
) -> Script:
    """The answer as events; `last` are more fields of the last one."""
    every = options.usage == "every"

    def opening() -> Sequence[bytes]:
        started = {"input_tokens": 0, "output_tokens": 0}
        if options.usage != "last":
            started = _input(options) | _output(options, min(1, options.completion_tokens))
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        begun = _message(question, [], None) | _told(options, started)
        frames = [frame({"type": "message_start", "message": begun}), frame(block)]
        return [*frames, frame({"type": "ping"})] if ping else frames

    def piece(text: bytes, completed: int) -> Sequence[bytes]:
        delta = {"type": "text_delta", "text": quoted(text)}
        content = frame({"type": "content_block_delta", "index": 0, "delta": delta})
        return (content, frame(_delta(options, None, _output(options, completed)))) if every else (content,)

    def closing(_: bytes) -> Sequence[bytes]:
        usage = _output(options, options.completion_tokens)
        if options.usage == "last":
            usage = _input(options) | usage
        return (
            frame({"type": "content_block_stop", "index": 0}),
            frame(_delta(options, "end_turn", usage)),
            frame({"type": "message_stop", **(last or {})}),
        )

    return Script(piece, closing, opening(), counting=every)


def _content(question: Question, options: Options) -> Content:
    if not question.stream:
        return message(question, options)
    return streamed(SSE, script(question, options, lambda event: sse(encoded(event, options), event["type"])), options)


def _message(question: Question, content: list[dict[str, Any]], reason: str | None) -> dict[str, Any]:
    head = {"id": "msg_sim", "type": "message", "role": "assistant", "model": question.model, "content": content}
    return head | {"stop_reason": reason, "stop_sequence": None}


def _delta(options: Options, reason: str | None, usage: dict[str, int]) -> dict[str, Any]:
    delta = {"stop_reason": reason, "stop_sequence": None}
    return {"type": "message_delta", "delta": delta, **_told(options, usage)}


def _told(options: Options, usage: dict[str, int]) -> dict[str, Any]:
    if options.usage == "none":
        return {}
    return {"usage": None if options.usage == "null" else usage}


def _input(options: Options) -> dict[str, int]:
    tokens = tally(options)
    return {
        "input_tokens": tokens.uncached,
        "cache_creation_input_tokens": tokens.cache_write,
        "cache_read_input_tokens": tokens.cached,
    }


def _output(options: Options, completed: int) -> dict[str, int]:
    return {"output_tokens": tally(options, completed).completion}


ENDPOINTS = (Endpoint("/v1/messages", _content, failure),)
