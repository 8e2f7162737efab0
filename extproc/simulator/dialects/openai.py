"""OpenAI's chat completions, legacy completions and embeddings, and those who answer nearly like it.

`prompt_tokens` includes cached tokens, `completion_tokens` includes reasoning.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from extproc.simulator.contents import HOLE, ITEMS, SSE, TEXT, Content, Script, document, encoded, listing, streamed
from extproc.simulator.dialects.dialect import Endpoint, Question
from extproc.simulator.frames import sse, sse_comment
from extproc.simulator.options import Options
from extproc.simulator.options import Variant as VariantName
from extproc.simulator.tally import Tally, tally
from extproc.simulator.vectors import vectors

Kind = Literal["chat", "text"]

_CREATED = 1_700_000_000
_DONE = sse(b"[DONE]")
_HARMLESS = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}
_PROMPT_FILTER = {"prompt_filter_results": [{"prompt_index": 0, "content_filter_results": _HARMLESS}]}


@dataclass(frozen=True, slots=True)
class Variant:
    """How a server that answers like OpenAI differs from it."""

    comments: tuple[str, ...] = ()
    """Comments before the first frame."""
    opening: Mapping[str, Any] | None = None
    """Fields of a first frame without choices; a document has them, too."""
    role_first: bool = False
    """The first frame has a role and no text."""
    nulls: Literal["asked", "always", "never"] = "asked"
    """Whether frames without usage say so."""
    asked: bool = True
    """Streams have usage when `include_usage` is asked for, and not without."""
    place: Literal["alone", "finish", "second finish"] = "alone"
    """The frame of a stream that has the usage: one without choices, the last, or another like the last."""
    continuous: bool = False
    """Knows `continuous_usage_stats`."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    choice: Mapping[str, Any] = field(default_factory=dict)
    counts: Callable[[Tally], dict[str, Any]] = lambda _: {}
    """More fields of the usage."""


def _openrouter_counts(tokens: Tally) -> dict[str, Any]:
    details = {"cached_tokens": tokens.cached, "cache_write_tokens": tokens.cache_write}
    return {"cost": 0.00014, "is_byok": False, "prompt_tokens_details": details}


VARIANTS: dict[VariantName, Variant] = {
    "openai": Variant(),
    "vllm": Variant(
        role_first=True,
        nulls="never",
        continuous=True,
        choice={"stop_reason": None},
        counts=lambda tokens: {} if tokens.cached else {"prompt_tokens_details": None},
    ),
    "deepseek": Variant(
        comments=("keep-alive",),
        role_first=True,
        nulls="always",
        asked=False,
        place="finish",
        fields={"system_fingerprint": "fp_sim"},
        counts=lambda tokens: {
            "prompt_cache_hit_tokens": tokens.cached,
            "prompt_cache_miss_tokens": tokens.prompt - tokens.cached,
        },
    ),
    "mistral": Variant(role_first=True, nulls="never", asked=False, place="finish"),
    "openrouter": Variant(
        comments=("OPENROUTER PROCESSING", "OPENROUTER PROCESSING"),
        role_first=True,
        nulls="never",
        asked=False,
        place="second finish",
        fields={"provider": "Simulator"},
        choice={"logprobs": None},
        counts=_openrouter_counts,
    ),
}
_AZURE = Variant(opening=_PROMPT_FILTER, choice={"content_filter_results": _HARMLESS})


def failure(status: int, message: str) -> Any:
    """An error in OpenAI's shape."""
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
    return {"error": {"message": message, "type": kind, "param": None, "code": str(status)}}


def _completion(kind: Kind, variant: Variant | None, question: Question, options: Options) -> Content:
    chosen = variant or VARIANTS[options.variant]
    if not question.stream:
        return _document(kind, chosen, question, options)
    chunks = _Chunks(kind, chosen, question, options)
    script = Script(chunks.piece, chunks.closing, chunks.opening(), counting=chunks.counting)
    return streamed(SSE, script, options)


def _document(kind: Kind, variant: Variant, question: Question, options: Options) -> Content:
    answer: dict[str, Any] = {"model": question.model}
    if kind == "chat":
        answer |= {"id": "chatcmpl-sim", "object": "chat.completion"}
        said: dict[str, Any] = {"message": {"role": "assistant", "content": TEXT}}
    else:
        answer |= {"id": "cmpl-sim", "object": "text_completion"}
        said = {"text": TEXT}
    answer |= {"created": _CREATED, **variant.fields, **(variant.opening or {})}
    answer["choices"] = [{"index": 0, **said, "finish_reason": "stop", **variant.choice}]
    if options.usage == "null":
        answer["usage"] = None
    elif options.usage != "none":
        answer["usage"] = _usage(tally(options), variant)
    return document(answer, options)


def _usage(tokens: Tally, variant: Variant) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_tokens": tokens.total,
    }
    if tokens.cached:
        usage["prompt_tokens_details"] = {"cached_tokens": tokens.cached}
    if tokens.reasoning:
        usage["completion_tokens_details"] = {"reasoning_tokens": tokens.reasoning}
    return usage | variant.counts(tokens)


class _Chunks:
    """The frames of one stream."""

    def __init__(self, kind: Kind, variant: Variant, question: Question, options: Options) -> None:
        self._chat = kind == "chat"
        self._variant = variant
        self._options = options
        auto = options.usage == "auto"
        asked = auto and question.include_usage
        self.counting = options.usage == "every" or (asked and variant.continuous and question.continuous)
        self._tells = options.usage in ("last", "every") or asked or (auto and not variant.asked)
        self._nulls = options.usage == "null" or (
            not self.counting
            and options.usage != "none"
            and (variant.nulls == "always" or (variant.nulls == "asked" and self._tells))
        )
        self._head = {
            "id": "chatcmpl-sim" if self._chat else "cmpl-sim",
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": _CREATED,
            "model": question.model,
            **variant.fields,
        }
        self._before, self._after = self._frame([self._choice(TEXT, None)]).split(HOLE)
        self._usage_at = self._after.rindex(b"}")

    def opening(self) -> Sequence[bytes]:
        frames = [sse_comment(comment) for comment in self._variant.comments]
        if self._variant.opening is not None:
            event = {"id": "", "object": "", "created": 0, "model": "", "choices": [], **self._variant.opening}
            frames.append(sse(encoded(event, self._options)))
        if self._variant.role_first:
            choice = self._choice("", None)
            if self._chat:
                choice["delta"] = {"role": "assistant", "content": ""}
            frames.append(self._frame([choice], self._so_far(0)))
        return frames

    def piece(self, text: bytes, completed: int) -> Sequence[bytes]:
        if not self.counting:
            return (self._before + text + self._after,)
        usage = orjson.dumps(self._so_far(completed))
        head, end = self._after[: self._usage_at], self._after[self._usage_at :]
        return (b'%b%b%b,"usage":%b%b' % (self._before, text, head, usage, end),)

    def closing(self, _: bytes) -> Sequence[bytes]:
        finish = [self._choice("", "stop")]
        if not self._tells:
            return self._frame(finish), _DONE
        usage = _usage(tally(self._options), self._variant)
        if self._variant.place == "finish":
            return self._frame(finish, usage), _DONE
        first = self._frame(finish, self._so_far(self._options.completion_tokens))
        return first, self._frame([] if self._variant.place == "alone" else finish, usage), _DONE

    def _so_far(self, completed: int) -> dict[str, Any] | None:
        return _usage(tally(self._options, completed), self._variant) if self.counting else None

    def _frame(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        event = {**self._head, "choices": choices}
        if usage is not None or self._nulls:
            event["usage"] = usage
        return sse(encoded(event, self._options))

    def _choice(self, text: object, reason: str | None) -> dict[str, Any]:
        said = {"delta": {"content": text}} if self._chat else {"text": text}
        return {"index": 0, **said, "finish_reason": reason, **self._variant.choice}


def _embeddings(question: Question, options: Options) -> Content:
    answer: dict[str, Any] = {"model": question.model, "object": "list", "data": ITEMS, "padding": TEXT}
    if options.usage == "null":
        answer["usage"] = None
    elif options.usage != "none":
        total = options.prompt_tokens if options.total_tokens is None else options.total_tokens
        answer["usage"] = {"prompt_tokens": options.prompt_tokens, "total_tokens": total}

    def items() -> Iterator[bytes]:
        for index, vector in enumerate(vectors(options.vectors, options.dimensions, question.base64)):
            yield b'{"object":"embedding","index":%d,"embedding":%b}' % (index, vector)

    return listing(answer, options, items)


_DEPLOYMENT = "/openai/deployments/{model}"

ENDPOINTS = (
    Endpoint("/v1/chat/completions", functools.partial(_completion, "chat", None), failure),
    Endpoint("/compatible-mode/v1/chat/completions", functools.partial(_completion, "chat", None), failure),
    Endpoint("/v1/completions", functools.partial(_completion, "text", None), failure),
    Endpoint("/v1/embeddings", _embeddings, failure, streams="never"),
    Endpoint(f"{_DEPLOYMENT}/chat/completions", functools.partial(_completion, "chat", _AZURE), failure),
    Endpoint(f"{_DEPLOYMENT}/completions", functools.partial(_completion, "text", _AZURE), failure),
    Endpoint(f"{_DEPLOYMENT}/embeddings", _embeddings, failure, streams="never"),
)
