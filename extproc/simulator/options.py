"""What the simulated model can be told.

It answers as the path asks, in JSON or as a stream:

    OpenAI      POST /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/responses
    DashScope   POST /compatible-mode/v1/chat/completions
    Azure       POST /openai/deployments/MODEL/chat/completions, .../completions, .../embeddings
    Anthropic   POST /v1/messages
    Gemini      POST /v1beta/models/MODEL:generateContent, ...:streamGenerateContent, also with ?alt=sse,
                and below /v1/models/ and /v1/projects/PROJECT/locations/LOCATION/publishers/google/models/
    Bedrock     POST /model/MODEL/converse, .../converse-stream, .../invoke, .../invoke-with-response-stream
    Ollama      POST /api/chat, /api/generate, /api/embed
    Cohere      POST /v2/chat, /v2/embed

Every option is a request header (`x-sim-frames: 200`), a query parameter (`?frames=200`, the header wins) and a
command line option (`--frames 200`, the default of all requests). An unknown `x-sim-` header is an error.

    variant            openai|vllm|deepseek|mistral|    whose chat and legacy completions, in /v1
                       openrouter
    prompt-tokens      N                                usage of the whole prompt, whatever the dialect counts in it
    completion-tokens  N                                usage of the whole completion
    total-tokens       N                                usage in total; the sum of both unless given
    cached-tokens      N                                of the prompt: read from a cache
    cache-write-tokens N                                of the prompt: written to a cache
    reasoning-tokens   N                                of the completion: reasoning
    usage              auto|last|every|none|null        auto: as the provider does: OpenAI in JSON, and in
                                                        streams that ask for it; last: always, at the end;
                                                        every: counting up in each frame of dialects that
                                                        have a place for it, else last
    frames             N                                content frames of a stream
    text               TEXT                             content of a frame; JSON holds all frames' text
    size               BYTES                            pads the content: the decoded body has this size, a
                                                        few bytes less or more where a stream repeats or
                                                        wraps the text
    vectors            N                                embeddings in the answer
    dimensions         N                                numbers in each embedding
    stamp              true|false                       a frame's text is the monotonic time in ns
    first-byte-ms      MS                               delay before the answer begins
    frame-ms           MS                               delay between two writes
    encoding           identity|gzip|deflate|br|zstd    used where the request's accept-encoding allows it
    force-encoding     true|false                       ...or whatever the request accepts
    framing            auto|length|chunked|close        auto: JSON has a length, streams are chunked
    chunk              BYTES                            bytes per write, and per HTTP chunk
    trailers           NAME:VALUE,...                   sent after the body, which is then chunked
    status             CODE                             from 400 on with an error in the dialect's shape
    invalid            true|false                       the JSON, also inside of frames, is broken
    echo               true|false                       the answer's body is the request's body
    body               TEXT                             the answer's body, whatever was asked
    judge              WORD,...                         answers as a model that guards others: its text is
                                                        {"result":"deny",...} where the user's messages have
                                                        one of the words, else {"result":"allow"}
    judge-as           plain|fenced|quoting             that alone; in a Markdown fence; after a quotation of
                                                        what the user said
    name               NAME                             in the header x-sim-name of the answer
    content-type       TYPE                             instead of the fitting one
    cut-frames         N                                the connection ends after so many frames
    cut-bytes          BYTES                            the connection ends after so many body bytes
    hold               ID                               after the first write waits for
                                                        POST /sim/release?id=ID; JSON is written in halves
    require-length     true|false                       411 to a request without content-length
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import field
from typing import Any, Literal, get_args

Usage = Literal["auto", "last", "every", "none", "null"]
Variant = Literal["openai", "vllm", "deepseek", "mistral", "openrouter"]
Encoding = Literal["identity", "gzip", "deflate", "br", "zstd"]
Framing = Literal["auto", "length", "chunked", "close"]
JudgeAs = Literal["plain", "fenced", "quoting"]
Parse = Callable[[str], Any]

HEADER_PREFIX = "x-sim-"
MAX_SIZE = 2**30
MAX_FRAMES = 10_000_000
MAX_FRAME_SIZE = 16 * 2**20
"""A frame is one write, so this bounds what a stream holds in memory."""
MAX_VECTORS = 10_000_000
MAX_DIMENSIONS = 16_384
MAX_DELAY_MS = 600_000.0
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


class OptionError(ValueError):
    """A value that an option does not take; the text names the option."""


def _integer(lowest: int, highest: int) -> Parse:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and lowest <= int(text[:20]) <= highest):
            raise ValueError(f"expected a whole number from {lowest} to {highest}")
        return int(text)

    return parse


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= MAX_DELAY_MS:
        raise ValueError(f"expected milliseconds from 0 to {MAX_DELAY_MS:.0f}")
    return value


def _one_of(*values: str) -> Parse:
    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(f"expected one of {', '.join(values)}")
        return text

    return parse


def _truth(text: str) -> bool:
    if text not in _TRUTH:
        raise ValueError("expected true or false")
    return _TRUTH[text]


def _line(text: str) -> str:
    """Text that may stand in a header: a line break would let a request write the answer's head."""
    if any(ord(character) < 32 for character in text):
        raise ValueError("expected text without control characters")
    return text


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _trailers(text: str) -> tuple[tuple[str, str], ...]:
    fields = []
    for item in _line(text).split(","):
        name, colon, value = item.partition(":")
        if not colon or not name.strip():
            raise ValueError("expected NAME:VALUE,...")
        fields.append((name.strip().lower(), value.strip()))
    return tuple(fields)


def _read_by(parse: Parse) -> dict[str, Parse]:
    return {"parse": parse}


_COUNT = _read_by(_integer(0, 2**63 - 1))
_FRAMES = _read_by(_integer(0, MAX_FRAMES))
_SIZE = _read_by(_integer(0, MAX_SIZE))
_VECTORS = _read_by(_integer(0, MAX_VECTORS))
_DIMENSIONS = _read_by(_integer(1, MAX_DIMENSIONS))
_STATUS = _read_by(_integer(200, 599))
_DELAY = _read_by(_milliseconds)
_FLAG = _read_by(_truth)
_TEXT = _read_by(str)
_LINE = _read_by(_line)
_TRAILERS = _read_by(_trailers)
_WORDS = _read_by(_words)
_USAGE = _read_by(_one_of(*get_args(Usage)))
_VARIANT = _read_by(_one_of(*get_args(Variant)))
_ENCODING = _read_by(_one_of(*get_args(Encoding)))
_FRAMING = _read_by(_one_of(*get_args(Framing)))
_JUDGE_AS = _read_by(_one_of(*get_args(JudgeAs)))


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """One request's options. What each means stands in the module's docstring."""

    variant: Variant = field(default="openai", metadata=_VARIANT)
    prompt_tokens: int = field(default=12, metadata=_COUNT)
    completion_tokens: int = field(default=12, metadata=_COUNT)
    total_tokens: int | None = field(default=None, metadata=_COUNT)
    cached_tokens: int = field(default=0, metadata=_COUNT)
    cache_write_tokens: int = field(default=0, metadata=_COUNT)
    reasoning_tokens: int = field(default=0, metadata=_COUNT)
    usage: Usage = field(default="auto", metadata=_USAGE)
    frames: int = field(default=12, metadata=_FRAMES)
    text: str = field(default=" token", metadata=_TEXT)
    size: int = field(default=0, metadata=_SIZE)
    vectors: int = field(default=1, metadata=_VECTORS)
    dimensions: int = field(default=3, metadata=_DIMENSIONS)
    stamp: bool = field(default=False, metadata=_FLAG)
    first_byte_ms: float = field(default=0.0, metadata=_DELAY)
    frame_ms: float = field(default=0.0, metadata=_DELAY)
    encoding: Encoding = field(default="identity", metadata=_ENCODING)
    force_encoding: bool = field(default=False, metadata=_FLAG)
    framing: Framing = field(default="auto", metadata=_FRAMING)
    chunk: int = field(default=0, metadata=_SIZE)
    trailers: tuple[tuple[str, str], ...] = field(default=(), metadata=_TRAILERS)
    status: int = field(default=200, metadata=_STATUS)
    invalid: bool = field(default=False, metadata=_FLAG)
    echo: bool = field(default=False, metadata=_FLAG)
    body: str = field(default="", metadata=_TEXT)
    judge: tuple[str, ...] = field(default=(), metadata=_WORDS)
    judge_as: JudgeAs = field(default="plain", metadata=_JUDGE_AS)
    name: str = field(default="", metadata=_LINE)
    content_type: str = field(default="", metadata=_LINE)
    cut_frames: int | None = field(default=None, metadata=_COUNT)
    cut_bytes: int | None = field(default=None, metadata=_COUNT)
    hold: str = field(default="", metadata=_LINE)
    require_length: bool = field(default=False, metadata=_FLAG)

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.completion_tokens if self.total_tokens is None else self.total_tokens

    @property
    def is_particular(self) -> bool:
        """Whether an answer depends on more of its request than the question."""
        reads_body = self.echo or bool(self.body) or bool(self.judge)
        return reads_body or self.require_length or self.encoding != "identity"

    def updated(self, query: Iterable[tuple[str, str]], headers: Iterable[tuple[str, str]]) -> Options:
        """These options with a request's own; raises OptionError. `headers` are the `x-sim-` ones."""
        found = {}
        for name, text in query:
            option = name.replace("-", "_")
            if option in PARSERS:
                found[option] = parse(option, text, name)
        for name, text in headers:
            option = name.removeprefix(HEADER_PREFIX).replace("-", "_")
            if option not in PARSERS:
                raise OptionError(f"{name}: no such option")
            found[option] = parse(option, text, name)
        return dataclasses.replace(self, **found)


PARSERS: dict[str, Parse] = {each.name: each.metadata["parse"] for each in dataclasses.fields(Options)}
"""Attribute name -> parser of its text."""


def parse(option: str, text: str, shown_as: str) -> Any:
    """The value of `option` in `text`; raises OptionError that names it as the caller wrote it."""
    try:
        return PARSERS[option](text)
    except ValueError as error:
        raise OptionError(f"{shown_as}: {error}") from None
