"""The JSON Schema of a configuration file: for editors, and for saying what would have been right."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from extproc.config.duration import PATTERN, format_duration
from extproc.config.model import Config, Limit

Schema = dict[str, Any]

CONFIG: TypeAdapter[Config] = TypeAdapter(Config)
LIMITS: TypeAdapter[list[Limit]] = TypeAdapter(list[Limit])


def json_schema() -> Schema:
    """JSON Schema 2020-12 of a configuration file, as data for a JSON encoder."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:extproc:config",
        **copy.deepcopy(schema_of(CONFIG)),
        "title": "extproc configuration",
    }


@cache
def schema_of(adapter: TypeAdapter[Any]) -> Schema:
    """The schema of what `adapter` validates; not to be changed."""
    return adapter.json_schema(schema_generator=_Generator)


class _Generator(GenerateJsonSchema):
    """Writes defaults the way an operator would, and leaves out titles that only repeat names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        found = super().default_schema(schema)
        if found.get("pattern") == PATTERN and "default" in found:
            found["default"] = format_duration(found["default"])
        return found

    def encode_default(self, dft: Any) -> Any:
        if isinstance(dft, BaseModel):
            return dft.model_dump(mode="json", by_alias=True)
        return super().encode_default(dft)
