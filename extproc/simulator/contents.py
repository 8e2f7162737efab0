"""The bodies of the simulated endpoints, as frames: a JSON answer is one frame, or many when it is large."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from extproc.simulator.options import MAX_FRAME_SIZE, OptionError, Options

Kind = Literal["chat", "text", "embeddings"]
Frames = Callable[[], Iterator[bytes]]

JSON = "application/json"
SSE = "text/event-stream"
BLOCK = 64 * 1024
_PADDING_CHARACTER = b"x"
_PADDING = _PADDING_CHARACTER * BLOCK
_CREATED = 1_700_000_000
_MARK = "\x00"
"""Stands for the content until the rest of a document is encoded; nothing that a client sends comes after it."""
_ENCODED_MARK = b"\\u0000"


@dataclass(frozen=True, slots=True)
class Content:
    """A body before compression and framing; `frames()` begins it anew."""

    type: str
    frames: Frames
    streamed: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """What a client asked of the model."""

    kind: Kind
    model: str
    stream: bool = False
    include_usage: bool = False

    def content(self, options: Options) -> Content:
        """Raises OptionError where `size` or `text` would make a frame that is too large."""
        if self.stream and self.kind != "embeddings":
            return _stream(self, options)
        return _document(self, options)


def fixed(document: Any) -> Content:
    """A JSON document as it is."""
    body = orjson.dumps(document)
    return Content(JSON, lambda: iter((body,)))


def failure(status: int, message: str) -> Content:
    """An error in OpenAI's shape."""
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
    return fixed({"error": {"message": message, "type": kind, "param": None, "code": str(status)}})


def _usage(completion: Completion, options: Options, completed: int | None = None) -> dict[str, int]:
    """`completed`: completion tokens so far, in a stream that counts up."""
    if completion.kind == "embeddings":
        total = options.prompt_tokens if options.total_tokens is None else options.total_tokens
        return {"prompt_tokens": options.prompt_tokens, "total_tokens": total}
    if completed is None:
        completed, total = options.completion_tokens, options.total
    else:
        total = options.prompt_tokens + completed
    return {"prompt_tokens": options.prompt_tokens, "completion_tokens": completed, "total_tokens": total}


def _document(completion: Completion, options: Options) -> Content:
    document: dict[str, Any] = {"model": completion.model}
    if completion.kind == "chat":
        message = {"role": "assistant", "content": _MARK}
        document |= {"id": "chatcmpl-sim", "object": "chat.completion", "created": _CREATED}
        document["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
    elif completion.kind == "text":
        document |= {"id": "cmpl-sim", "object": "text_completion", "created": _CREATED}
        document["choices"] = [{"index": 0, "text": _MARK, "finish_reason": "stop"}]
    else:
        document["object"] = "list"
        document["data"] = [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5, 0.125]}]
        document["padding"] = _MARK
    if options.usage == "null":
        document["usage"] = None
    elif options.usage != "none":
        document["usage"] = _usage(completion, options)
    before, _, after = orjson.dumps(document).rpartition(_ENCODED_MARK)
    if completion.kind != "embeddings":
        before += _whole_text(options)
    if options.invalid:
        after = after[:-1]
    padding = max(0, options.size - len(before) - len(after))
    return Content(JSON, lambda: _padded(before, padding, after))


def _whole_text(options: Options) -> bytes:
    text = _escaped(options.text)
    if len(text) * options.frames > MAX_FRAME_SIZE:
        raise OptionError(f"text: more than {MAX_FRAME_SIZE} bytes, use size instead")
    return text * options.frames


def _padded(before: bytes, padding: int, after: bytes) -> Iterator[bytes]:
    if padding <= BLOCK:
        yield before + _PADDING[:padding] + after
        return
    yield before
    blocks, rest = divmod(padding, BLOCK)
    for _ in range(blocks):
        yield _PADDING
    yield _PADDING[:rest] + after


def _stream(completion: Completion, options: Options) -> Content:
    chunk = _chunk_template(completion, options)
    done = b"data: [DONE]\n\n"
    with_usage = options.usage in ("last", "every") or (options.usage == "auto" and completion.include_usage)
    tail = [chunk(b"", options.completion_tokens, finish=True)]
    if with_usage:
        tail.append(_usage_frame(completion, options))
    tail.append(done)

    plain = chunk(_escaped(options.text), 1)
    padding = max(0, options.size - len(plain) * options.frames - sum(map(len, tail)))
    each, rest = divmod(padding, options.frames) if options.frames else (0, 0)
    if each + len(plain) > MAX_FRAME_SIZE:
        raise OptionError(f"size: more than {MAX_FRAME_SIZE} bytes a frame, ask for more frames")

    text = _escaped(options.text) + _PADDING_CHARACTER * each
    first, other = chunk(text + _PADDING_CHARACTER * rest, 1), chunk(text, 1)

    def frames() -> Iterator[bytes]:
        for completed in range(1, options.frames + 1):
            if options.stamp:
                yield chunk(b"%d" % time.monotonic_ns(), completed)
            elif options.usage == "every":
                yield chunk(text, completed)
            else:
                yield first if completed == 1 else other
        yield from tail

    return Content(SSE, frames, streamed=True)


def _chunk_template(completion: Completion, options: Options) -> Callable[..., bytes]:
    """A function (escaped text, completion tokens so far, finish) -> one `data:` event."""
    nulls = options.usage in ("last", "null") or (options.usage == "auto" and completion.include_usage)
    end = b"\n\n" if not options.invalid else b"{\n\n"

    def encoded(finish: bool) -> tuple[bytes, bytes]:
        document = _chunk_head(completion)
        reason = "stop" if finish else None
        if completion.kind == "chat":
            choice: dict[str, Any] = {"index": 0, "delta": {"content": _MARK}, "finish_reason": reason}
        else:
            choice = {"index": 0, "text": _MARK, "finish_reason": reason}
        document["choices"] = [choice]
        if nulls:
            document["usage"] = None
        before, _, after = orjson.dumps(document).rpartition(_ENCODED_MARK)
        return b"data: " + before, after

    templates = {finish: encoded(finish) for finish in (False, True)}

    def chunk(text: bytes, completed: int, finish: bool = False) -> bytes:
        before, after = templates[finish]
        if options.usage == "every":
            after = after[:-1] + b',"usage":' + orjson.dumps(_usage(completion, options, completed)) + b"}"
        return before + text + after + end

    return chunk


def _usage_frame(completion: Completion, options: Options) -> bytes:
    document = _chunk_head(completion)
    document["choices"] = []
    document["usage"] = _usage(completion, options)
    return b"data: " + orjson.dumps(document) + (b"{\n\n" if options.invalid else b"\n\n")


def _chunk_head(completion: Completion) -> dict[str, Any]:
    chat = completion.kind == "chat"
    return {
        "id": "chatcmpl-sim" if chat else "cmpl-sim",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": _CREATED,
        "model": completion.model,
    }


def _escaped(text: str) -> bytes:
    """`text` as it stands between the quotes of a JSON string."""
    return orjson.dumps(text)[1:-1]
