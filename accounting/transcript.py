"""Transcripts as they are written; README.md describes every field."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from accounting.events import Event, EventError, expanded

SUFFIXES = (".json", ".yaml", ".yml")
_STREAMS = {
    "text/event-stream": "SSE",
    "application/x-ndjson": "NDJSON",
    "application/vnd.amazon.eventstream": "event stream",
}

Encoding = Literal["gzip", "deflate", "br", "zstd"]
Ending = Literal["complete", "client_gone", "upstream_cut"]
Source = Literal["reported", "estimated", "none"]
Count = Annotated[int, Field(ge=0)]


class TranscriptError(Exception):
    """A transcript cannot be used; the message names its file, the transcript, and the field."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Request(_Model):
    """What the client sends."""

    path: str
    headers: dict[str, str] = {}
    body: Any = None


class Body(_Model):
    """What the model answers, before its encoding: exactly one of the fields."""

    text: str | None = None
    value: Any = Field(default=None, alias="json")
    events: list[Any] | None = None
    base64: str | None = None

    @field_validator("events")
    @classmethod
    def _every_event_is_one(cls, events: list[Any] | None) -> list[Any] | None:
        try:
            for _ in expanded(events or ()):
                pass
        except EventError as error:
            raise ValueError(str(error)) from None
        return events

    @field_validator("base64")
    @classmethod
    def _decodes(cls, text: str | None) -> str | None:
        try:
            base64.b64decode(text or "", validate=True)
        except binascii.Error:
            raise ValueError("is not base64") from None
        return text

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("expected exactly one of `text`, `json`, `events`, `base64`")
        return self

    @property
    def all_events(self) -> list[Event]:
        """With every `pieces` spelt out."""
        return list(expanded(self.events or ()))


class Response(_Model):
    """The model's answer."""

    status: int = 200
    headers: dict[str, str] = {}
    body: Body

    @property
    def content_type(self) -> str:
        """Lower case, without parameters."""
        said = next((value for key, value in self.headers.items() if key.lower() == "content-type"), "application/json")
        return said.partition(";")[0].strip().lower()


class After(_Model):
    """How much was delivered: so many events, and so many bytes of what comes next."""

    events: Count = 0
    bytes: Count = 0


class Counts(_Model):
    """The true usage, in the terms of docs/usage.md."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    cached_tokens: Count = 0
    cache_write_tokens: Count = 0
    reasoning_tokens: Count = 0


class CountedFrom(_Model):
    """The texts that an estimated transcript's true usage was counted in, and with which vocabulary."""

    encoding: Literal["o200k_base", "cl100k_base"] = "o200k_base"
    prompt: list[str] | Literal["reported"] = "reported"
    messages: Count = 0
    completion: list[str] | Literal["reported", "pieces"] = "pieces"
    """`pieces`: all that were delivered."""


class Transcript(_Model):
    """One exchange."""

    name: Annotated[str, Field(min_length=1)]
    dialect: str
    request: Request
    response: Response
    encoding: Encoding | None = None
    ending: Ending = "complete"
    after: After | None = None
    chunks: Annotated[int, Field(gt=0)] | None = None
    usage: Counts
    source: Source
    counted_from: CountedFrom | None = None

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        if (self.ending == "complete") != (self.after is None):
            raise ValueError("`after` belongs to a cut answer: `ending: client_gone` or `ending: upstream_cut`")
        if self.source == "none" and self.usage.total_tokens:
            raise ValueError("`source: none` has a usage of 0 tokens")
        return self

    @property
    def form(self) -> str:
        """How the answer is written."""
        document = "JSON" if self.response.body.events is None else "JSON array"
        return _STREAMS.get(self.response.content_type, document)


class _File(_Model):
    texts: Any = None
    transcripts: list[Any]


_TRANSCRIPT: TypeAdapter[Transcript] = TypeAdapter(Transcript)


def load(folder: Path) -> list[Transcript]:
    """All transcripts of a folder, or of one file, in the order of the files' names. Raises TranscriptError."""
    files = [folder] if folder.is_file() else sorted(path for path in _files(folder) if path.suffix in SUFFIXES)
    transcripts: dict[str, Transcript] = {}
    for file in files:
        for transcript in _read(file):
            if transcript.name in transcripts:
                raise TranscriptError(f"{file.name}: {transcript.name}: `name`: another transcript has it already")
            transcripts[transcript.name] = transcript
    if not transcripts:
        raise TranscriptError(f"{folder}: no transcripts")
    return list(transcripts.values())


def _files(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise TranscriptError(f"{folder}: {error.strerror}") from None


def _read(file: Path) -> Iterator[Transcript]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TranscriptError(f"{file.name}: {error}") from None
    try:
        written = _File.model_validate(content)
    except ValidationError as error:
        raise TranscriptError(f"{file.name}: {_told(error)}") from None
    for number, item in enumerate(written.transcripts, 1):
        named = item.get("name") if isinstance(item, dict) else None
        try:
            yield _TRANSCRIPT.validate_python(item)
        except ValidationError as error:
            raise TranscriptError(f"{file.name}: {named or f'transcript {number}'}: {_told(error)}") from None


def _told(error: ValidationError) -> str:
    """The first problem: the field and what is wrong with it."""
    problem = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(map(str, problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ")
    return f"`{field}`: {message}" if field else message
