"""Cohere's API, version 2. Answers do not say which model gave them.

`usage.tokens` is what the model saw and made, `usage.billed_units` what is paid for: the same here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from extproc.simulator.contents import ITEMS, SSE, TEXT, Content, Script, document, encoded, listing, quoted, streamed
from extproc.simulator.dialects.dialect import Endpoint, Question
from extproc.simulator.frames import sse
from extproc.simulator.options import Options
from extproc.simulator.tally import tally
from extproc.simulator.vectors import vectors

_ID = "00000000-0000-4000-8000-000000000000"


def _failure(_: int, message: str) -> Any:
    return {"id": _ID, "message": message}


def _chat(question: Question, options: Options) -> Content:
    if not question.stream:
        message = {"role": "assistant", "content": [{"type": "text", "text": TEXT}]}
        return document({"id": _ID, "finish_reason": "COMPLETE", "message": message, **_usage(options)}, options)

    def frame(event: str, **fields: Any) -> bytes:
        return sse(encoded({"type": event, **fields}, options), event)

    def piece(text: bytes, _: int) -> Sequence[bytes]:
        return (frame("content-delta", index=0, delta={"message": {"content": {"text": quoted(text)}}}),)

    def closing(_: bytes) -> Sequence[bytes]:
        end = {"finish_reason": "COMPLETE", **_usage(options)}
        return frame("content-end", index=0), frame("message-end", id=_ID, delta=end)

    message = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
    opening = (
        frame("message-start", id=_ID, delta={"message": message}),
        frame("content-start", index=0, delta={"message": {"content": {"type": "text", "text": ""}}}),
    )
    return streamed(SSE, Script(piece, closing, opening), options)


def _usage(options: Options) -> dict[str, Any]:
    if options.usage == "none":
        return {}
    if options.usage == "null":
        return {"usage": None}
    tokens = tally(options)
    counts = {"input_tokens": tokens.prompt, "output_tokens": tokens.completion}
    usage: dict[str, Any] = {"billed_units": counts, "tokens": counts}
    if tokens.cached:
        usage["cached_tokens"] = tokens.cached
    return {"usage": usage}


def _embed(question: Question, options: Options) -> Content:
    kind = "base64" if question.base64 else "float"
    meta: dict[str, Any] = {"api_version": {"version": "2"}}
    if options.usage != "none":
        meta["billed_units"] = None if options.usage == "null" else {"input_tokens": options.prompt_tokens}
    answer = {"id": _ID, "embeddings": {kind: ITEMS}, "texts": [], "padding": TEXT, "meta": meta}
    answer["response_type"] = "embeddings_by_type"
    return listing(answer, options, lambda: vectors(options.vectors, options.dimensions, question.base64))


ENDPOINTS = (
    Endpoint("/v2/chat", _chat, _failure),
    Endpoint("/v2/embed", _embed, _failure, streams="never"),
)
