"""What the fields of a configuration are made of: immutable models, and values as an operator writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema

from extproc.config.duration import DURATION, PATTERN, format_duration, parse_duration


@dataclass(frozen=True, slots=True)
class Written:
    """Validation context of what an operator wrote: a bare number is no duration, paths are relative to `base`."""

    base: Path


def _duration(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, float) and not isinstance(info.context, Written):
        return value
    raise ValueError(f"expected {DURATION}")


def _anchored(path: str, info: ValidationInfo) -> str:
    return str(info.context.base / path) if isinstance(info.context, Written) else path


def _folded(hostname: str) -> str:
    """Lower case, without one trailing dot; `*.` stays what it is and never becomes `*`."""
    return hostname.lower() if hostname == "*." else hostname.lower().removesuffix(".")


def _without_port(authority: str) -> str:
    """A host with its port, as a Host header has it, is that host: what is for a host is for all of its ports."""
    return re.sub(r":\d{1,5}$", "", authority) if authority.count(":") == 1 or "]" in authority else authority


def _namespace(name: str) -> str:
    if not re.fullmatch(r"[^\s:()%]+", name):
        raise ValueError(f"expected a name that an access log can show, without spaces and :()%, found `{name}`")
    return name


def _path_ending(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"expected the end of a path, beginning with `/`, found `{path}`")
    return path


def _header_name(name: str) -> str:
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
        raise ValueError(f"expected the name of a header, found `{name}`")
    return name.lower()


Namespace = Annotated[str, AfterValidator(_namespace)]
PathEnding = Annotated[str, AfterValidator(_path_ending)]
HeaderName = Annotated[str, AfterValidator(_header_name)]
Duration = Annotated[
    float,
    BeforeValidator(_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": PATTERN}),
]
PemFile = Annotated[str, AfterValidator(_anchored), Field(description="Relative to the configuration file.")]
FilePath = Annotated[str, AfterValidator(_anchored)]
Hostname = Annotated[str, AfterValidator(_folded)]
Host = Annotated[str, AfterValidator(_without_port), AfterValidator(_folded)]
DialectName = Literal["auto", "openai", "responses", "anthropic", "gemini", "bedrock", "ollama", "cohere"]
Size = Annotated[int, Field(gt=0)]


class Model(BaseModel):
    """Immutable; unknown fields are errors, because a misspelt limit is no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, alias_generator=to_camel, populate_by_name=True)


class InShort(Model):
    """An object for which the bare value of one field, `in_short`, may be written."""

    in_short: ClassVar[str]
    choices: ClassVar[tuple[str, ...]] = ()
    """What that value is one of, where it is."""

    @model_validator(mode="before")
    @classmethod
    def short_form(cls, data: Any) -> Any:
        return {cls.in_short: data} if isinstance(data, str) else data

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        written_out = handler(core_schema)
        short: dict[str, Any] = {"type": "string", "description": f"Just the {cls.in_short}."}
        if cls.choices:
            short["enum"] = list(cls.choices)
        return {"anyOf": [short, written_out]}


class ClientTls(Model):
    """TLS towards another server. Files hold PEM."""

    ca: PemFile | None = Field(default=None, description="Trusted roots; the system's when absent.")
    cert: PemFile | None = Field(default=None, description="Client certificate, together with `key`.")
    key: PemFile | None = None
    server_name: str | None = Field(default=None, description="Expected name in the server's certificate.")


class Addressed(InShort):
    """An object with an `address`, for which the bare address may be written."""

    in_short = "address"
    address: str


def arm(**types: type | tuple[type, ...]) -> Discriminator:
    """Chooses the arm of a union by the type of the value, so that only that arm tells what is wrong."""

    def choose(value: Any) -> str | None:
        return next((tag for tag, kind in types.items() if isinstance(value, kind)), None)

    return Discriminator(choose)
