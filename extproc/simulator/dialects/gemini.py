"""Gemini's generateContent, of Google AI and of Vertex AI; streams are a JSON array, or events with `?alt=sse`.

`promptTokenCount` includes cached tokens, `candidatesTokenCount` excludes thoughts, which the total includes. With
usage `auto` every chunk of a stream has the counts so far, as this API does; `last` is the last chunk alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from extproc.simulator.contents import JSON, SSE, TEXT, Content, Script, document, encoded, quoted, streamed
from extproc.simulator.dialects.dialect import Endpoint, Question
from extproc.simulator.frames import sse
from extproc.simulator.options import Options
from extproc.simulator.tally import Tally, tally

_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def _failure(status: int, message: str) -> Any:
    return {"error": {"code": status, "message": message, "status": _STATUSES.get(status, "UNKNOWN")}}


def _content(question: Question, options: Options) -> Content:
    return document(_answer(question, options, TEXT, tally(options), finished=True), options)


def _stream(question: Question, options: Options) -> Content:
    def chunk(text: bytes, completed: int | None) -> bytes:
        tokens = tally(options, completed)
        return encoded(_answer(question, options, quoted(text), tokens, finished=completed is None), options)

    def event(text: bytes, completed: int) -> Sequence[bytes]:
        return (_event(chunk(text, completed)),)

    def last_event(_: bytes) -> Sequence[bytes]:
        return (_event(chunk(b"", None)),)

    def element(text: bytes, completed: int) -> Sequence[bytes]:
        return (_element(chunk(text, completed), first=completed == 1),)

    def last_element(_: bytes) -> Sequence[bytes]:
        return _element(chunk(b"", None), first=not options.frames), b"\n]\n"

    counting = options.usage in ("auto", "every")
    if question.sse:
        return streamed(SSE, Script(event, last_event, counting=counting), options)
    return streamed(JSON, Script(element, last_element, counting=counting), options)


def _event(data: bytes) -> bytes:
    return sse(data, end=b"\r\n\r\n")


def _element(data: bytes, first: bool) -> bytes:
    return (b"[" if first else b",\r\n") + data


def _answer(
    question: Question, options: Options, text: orjson.Fragment, tokens: Tally, finished: bool
) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    if finished:
        candidate["finishReason"] = "STOP"
    answer: dict[str, Any] = {"candidates": [candidate]}
    if options.usage == "null":
        answer["usageMetadata"] = None
    elif options.usage != "none" and (finished or options.usage != "last"):
        answer["usageMetadata"] = _usage(tokens)
    return answer | {"modelVersion": question.model, "responseId": "sim"}


def _usage(tokens: Tally) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "promptTokenCount": tokens.prompt,
        "candidatesTokenCount": tokens.completion - tokens.reasoning,
        "totalTokenCount": tokens.total,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": tokens.prompt}],
    }
    if tokens.cached:
        usage["cachedContentTokenCount"] = tokens.cached
        usage["cacheTokensDetails"] = [{"modality": "TEXT", "tokenCount": tokens.cached}]
    if tokens.reasoning:
        usage["thoughtsTokenCount"] = tokens.reasoning
    return usage


_VERTEX = "/{version}/projects/{project}/locations/{location}/publishers/{publisher}/models/{model}"

ENDPOINTS = tuple(
    endpoint
    for path in ("/v1beta/models/{model}", "/v1/models/{model}", _VERTEX)
    for endpoint in (
        Endpoint(f"{path}:generateContent", _content, _failure, streams="never"),
        Endpoint(f"{path}:streamGenerateContent", _stream, _failure, streams="always"),
    )
)
