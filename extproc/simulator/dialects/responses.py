"""OpenAI's Responses API: typed events that repeat the whole text when it is done.

`input_tokens` includes cached tokens, `output_tokens` includes reasoning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from extproc.simulator.contents import SSE, TEXT, Content, Script, document, encoded, quoted, streamed
from extproc.simulator.dialects import openai
from extproc.simulator.dialects.dialect import Endpoint, Question
from extproc.simulator.frames import sse
from extproc.simulator.options import Options
from extproc.simulator.tally import tally

_CREATED = 1_700_000_000
_ITEM = "msg_sim"
_PLACE = {"item_id": _ITEM, "output_index": 0, "content_index": 0}


def _content(question: Question, options: Options) -> Content:
    if not question.stream:
        answer = _response(question, "completed", [_item("completed", TEXT)])
        return document(answer | _usage(options), options)
    events = _Events(question, options)
    script = Script(events.piece, events.closing, events.opening(), counting=True, repeats=True)
    return streamed(SSE, script, options)


def _response(question: Question, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    head = {"id": "resp_sim", "object": "response", "created_at": _CREATED, "status": status, "error": None}
    return head | {"model": question.model, "output": output}


def _item(status: str, text: orjson.Fragment | None) -> dict[str, Any]:
    content = [] if text is None else [_part(text)]
    return {"id": _ITEM, "type": "message", "status": status, "role": "assistant", "content": content}


def _part(text: object) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def _usage(options: Options) -> dict[str, Any]:
    if options.usage == "none":
        return {}
    if options.usage == "null":
        return {"usage": None}
    tokens = tally(options)
    return {
        "usage": {
            "input_tokens": tokens.prompt,
            "input_tokens_details": {"cached_tokens": tokens.cached},
            "output_tokens": tokens.completion,
            "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
            "total_tokens": tokens.total,
        }
    }


class _Events:
    """The events of one stream, numbered."""

    def __init__(self, question: Question, options: Options) -> None:
        self._question = question
        self._options = options

    def opening(self) -> Sequence[bytes]:
        response = _response(self._question, "in_progress", []) | {"usage": None}
        return (
            self._event(0, "response.created", response=response),
            self._event(1, "response.in_progress", response=response),
            self._event(2, "response.output_item.added", output_index=0, item=_item("in_progress", None)),
            self._event(3, "response.content_part.added", **_PLACE, part=_part("")),
        )

    def piece(self, text: bytes, completed: int) -> Sequence[bytes]:
        delta = {**_PLACE, "delta": quoted(text), "logprobs": []}
        return (self._event(3 + completed, "response.output_text.delta", **delta),)

    def closing(self, text: bytes) -> Sequence[bytes]:
        number, whole = 4 + self._options.frames, quoted(text)
        item = _item("completed", whole)
        response = _response(self._question, "completed", [item]) | _usage(self._options)
        return (
            self._event(number, "response.output_text.done", **_PLACE, text=whole, logprobs=[]),
            self._event(number + 1, "response.content_part.done", **_PLACE, part=_part(whole)),
            self._event(number + 2, "response.output_item.done", output_index=0, item=item),
            self._event(number + 3, "response.completed", response=response),
        )

    def _event(self, number: int, kind: str, **fields: Any) -> bytes:
        return sse(encoded({"type": kind, "sequence_number": number, **fields}, self._options), kind)


ENDPOINTS = (Endpoint("/v1/responses", _content, openai.failure),)
