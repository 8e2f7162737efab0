"""Ollama's own API: streams of JSON lines unless the request says `"stream": false`.

The line that is `done` has the counts; of caches and reasoning they tell nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import orjson

from extproc.simulator.contents import ITEMS, TEXT, Content, Script, document, encoded, listing, quoted, streamed
from extproc.simulator.dialects.dialect import Endpoint, Question
from extproc.simulator.frames import ndjson
from extproc.simulator.options import Options
from extproc.simulator.tally import tally
from extproc.simulator.vectors import vectors

Kind = Literal["chat", "generate"]

NDJSON = "application/x-ndjson"
_CREATED = "2023-11-14T22:13:20.000000Z"


def _failure(_: int, message: str) -> Any:
    return {"error": message}


def _completion(kind: Kind, question: Question, options: Options) -> Content:
    if not question.stream:
        return document(_line(kind, question, TEXT, options), options)
    every = options.usage == "every"

    def piece(text: bytes, completed: int) -> Sequence[bytes]:
        line = _said(kind, question, quoted(text)) | {"done": False}
        return (ndjson(encoded(line | (_counts(options, completed) if every else {}), options)),)

    def closing(_: bytes) -> Sequence[bytes]:
        return (ndjson(encoded(_line(kind, question, quoted(b""), options), options)),)

    return streamed(NDJSON, Script(piece, closing, counting=every), options)


def _line(kind: Kind, question: Question, text: orjson.Fragment, options: Options) -> dict[str, Any]:
    """The last line of a stream, or the only one."""
    line = _said(kind, question, text) | {"done": True, "done_reason": "stop"}
    if kind == "generate":
        line["context"] = [1, 2, 3]
    durations = {"total_duration": 250_000_000, "load_duration": 1_000_000}
    return line | durations | _counts(options, None)


def _said(kind: Kind, question: Question, text: orjson.Fragment) -> dict[str, Any]:
    said: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
    if kind == "generate":
        said = {"response": text}
    return {"model": question.model, "created_at": _CREATED, **said}


def _counts(options: Options, completed: int | None) -> dict[str, Any]:
    if options.usage == "none":
        return {}
    if options.usage == "null":
        return {"prompt_eval_count": None, "eval_count": None}
    tokens = tally(options, completed)
    return {"prompt_eval_count": tokens.prompt, "eval_count": tokens.completion}


def _embed(question: Question, options: Options) -> Content:
    answer: dict[str, Any] = {"model": question.model, "embeddings": ITEMS, "padding": TEXT}
    if options.usage != "none":
        answer["prompt_eval_count"] = None if options.usage == "null" else options.prompt_tokens
    return listing(answer, options, lambda: vectors(options.vectors, options.dimensions, base64=False))


ENDPOINTS = (
    Endpoint("/api/chat", functools.partial(_completion, "chat"), _failure, streams="unless declined"),
    Endpoint("/api/generate", functools.partial(_completion, "generate"), _failure, streams="unless declined"),
    Endpoint("/api/embed", _embed, _failure, streams="never"),
)
