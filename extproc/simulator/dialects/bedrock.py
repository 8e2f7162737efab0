"""Bedrock: Converse with its own names, and InvokeModel with Anthropic's answers; streams are Amazon's event stream.

`inputTokens` excludes cached tokens, which the total includes; what is reasoning is not told. An invoked stream's
events are wrapped in base64, and the last has Bedrock's own count.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import orjson

from extproc.simulator.contents import TEXT, Content, Script, document, encoded, quoted, streamed
from extproc.simulator.dialects import anthropic
from extproc.simulator.dialects.dialect import Endpoint, Question
from extproc.simulator.frames import eventstream
from extproc.simulator.options import Options
from extproc.simulator.tally import tally

EVENT_STREAM = "application/vnd.amazon.eventstream"
_OBSCURED = "abcdefghijklmnop"
"""Bedrock pads its events, so that their sizes do not tell what the text is."""
_METRICS = {"metrics": {"latencyMs": 250}}


def _failure(_: int, message: str) -> Any:
    return {"message": message}


def _converse(question: Question, options: Options) -> Content:
    message = {"role": "assistant", "content": [{"text": TEXT}]}
    answer: dict[str, Any] = {"output": {"message": message}, "stopReason": "end_turn"}
    return document(answer | _usage(options) | _METRICS, options)


def _converse_stream(question: Question, options: Options) -> Content:
    def frame(event: str, **fields: Any) -> bytes:
        return eventstream(encoded({**fields, "p": _OBSCURED}, options), event)

    def piece(text: bytes, _: int) -> Sequence[bytes]:
        return (frame("contentBlockDelta", contentBlockIndex=0, delta={"text": quoted(text)}),)

    def closing(_: bytes) -> Sequence[bytes]:
        return (
            frame("contentBlockStop", contentBlockIndex=0),
            frame("messageStop", stopReason="end_turn"),
            frame("metadata", **_usage(options), **_METRICS),
        )

    script = Script(piece, closing, opening=(frame("messageStart", role="assistant"),))
    return streamed(EVENT_STREAM, script, options)


def _invoke_stream(question: Question, options: Options) -> Content:
    def frame(event: dict[str, Any]) -> bytes:
        wrapped = {"bytes": b64encode(orjson.dumps(event)).decode(), "p": _OBSCURED}
        return eventstream(encoded(wrapped, options), "chunk")

    script = anthropic.script(question, options, frame, last=_invocation(options), ping=False)
    return streamed(EVENT_STREAM, script, options)


def _usage(options: Options) -> dict[str, Any]:
    if options.usage == "none":
        return {}
    if options.usage == "null":
        return {"usage": None}
    tokens = tally(options)
    usage = {"inputTokens": tokens.uncached, "outputTokens": tokens.completion, "totalTokens": tokens.total}
    if tokens.cached or tokens.cache_write:
        usage |= {"cacheReadInputTokens": tokens.cached, "cacheWriteInputTokens": tokens.cache_write}
    return {"usage": usage}


def _invocation(options: Options) -> dict[str, Any]:
    if options.usage in ("none", "null"):
        return {}
    tokens = tally(options)
    metrics = {"inputTokenCount": tokens.uncached, "outputTokenCount": tokens.completion}
    metrics |= {"invocationLatency": 250, "firstByteLatency": 50}
    if tokens.cached or tokens.cache_write:
        metrics |= {"cacheReadInputTokenCount": tokens.cached, "cacheWriteInputTokenCount": tokens.cache_write}
    return {"amazon-bedrock-invocationMetrics": metrics}


ENDPOINTS = (
    Endpoint("/model/{model}/converse", _converse, _failure, streams="never"),
    Endpoint("/model/{model}/converse-stream", _converse_stream, _failure, streams="always"),
    Endpoint("/model/{model}/invoke", anthropic.message, _failure, streams="never"),
    Endpoint("/model/{model}/invoke-with-response-stream", _invoke_stream, _failure, streams="always"),
)
