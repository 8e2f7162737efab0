"""Generate `docs/configuration.md` from the JSON Schema of the configuration, so that it cannot drift."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from extproc.config.fields import Model
from extproc.config.schema import json_schema

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "configuration.md"
_LONGEST_DEFAULT = 80
"""Characters."""

_INTRODUCTION = """\
# Configuration

One file, YAML or JSON. `services`, `actionSets`, `requestData` and `observability` are wasm-shim's and mean the same
([compatibility.md](compatibility.md) lists the few differences); the other sections are extproc's own. One of
`actionSets`, `providers`, `guards` and `policies` has to be there. Unknown fields are errors. Durations are written
`20ms`, `1.5s`, `1h30m`. Paths are relative to the file. `extproc check FILE` says what a configuration will do;
`extproc schema` prints the JSON Schema that this page is made from.

Changes of the file, and of the limits, keys, credentials, policies and TLS files that it names, are noticed and taken
at once; `listeners`, `admin`, `storage`, `bodies.message` and all of `estimates` but `prompt` are taken at the next
start. [identity.md](identity.md) explains `authConfigs`, [providers.md](providers.md) `providers`, `routing`,
`promptLimits` and `precharge`, [guards.md](guards.md) `guards`.
"""


def page() -> str:
    """The whole document."""
    schema = json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    sections = [_INTRODUCTION, _section("Config", schema, "", title="The file")]
    reached = _reachable(schema, definitions)
    for name in reached:
        written_out, short = _written_out(definitions[name])
        about = " ".join(filter(None, (written_out.get("description", ""), short)))
        sections.append(_section(name, written_out, about))
    return "\n".join(sections)


def _section(name: str, schema: dict[str, Any], about: str, *, title: str = "") -> str:
    made = _made_defaults().get(name, {})
    rows = [
        f"## {title or name}",
        "",
        *([about, ""] if about else []),
        "| field | value | default | |",
        "|---|---|---|---|",
    ]
    required = schema.get("required", [])
    for key, field in schema["properties"].items():
        default = "required" if key in required else _default(field) or made.get(key, "")
        rows.append(f"| `{key}` | {_value(field)} | {default} | {field.get('description', '')} |")
    return "\n".join([*rows, ""])


def _written_out(definition: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The arm of a definition that has fields, and what may be written in its place."""
    arms = definition.get("anyOf", [])
    short = next((arm for arm in arms if arm.get("type") == "string"), None)
    written_out = next((arm for arm in arms if "properties" in arm), definition)
    if short is None or written_out is definition:
        return definition, ""
    return written_out, f"Or in short: {short['description'][0].lower()}{short['description'][1:]}"


def _default(field: dict[str, Any]) -> str:
    if "default" not in field or field["default"] is None:
        return ""
    value = field["default"]
    if isinstance(value, str) and len(value) > _LONGEST_DEFAULT:
        return "a text of its own"
    return "see below" if isinstance(value, dict) and value else f"`{json.dumps(value)}`"


def _made_defaults() -> dict[str, dict[str, str]]:
    """Lists of texts that are made when they are not given, by definition and field; a schema leaves them out."""
    found: dict[str, dict[str, str]] = {}
    for model in _models(Model):
        for field in model.model_fields.values():
            made = field.get_default(call_default_factory=True) if field.default_factory is not None else None
            if isinstance(made, list) and made and all(isinstance(item, str) for item in made):
                found.setdefault(model.__name__, {})[str(field.alias)] = f"`{json.dumps(made)}`"
    return found


def _models(parent: type[Model]) -> Iterator[type[Model]]:
    for model in parent.__subclasses__():
        yield model
        yield from _models(model)


def _value(field: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in field:
        return ", ".join(f"`{item}`" for item in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    for union in ("anyOf", "oneOf", "allOf"):
        if union in field:
            return " or ".join(dict.fromkeys(_value(arm) for arm in field[union] if arm.get("type") != "null"))
    kind = field.get("type", "any")
    if kind == "array":
        return f"list of {_value(field['items'])}"
    if kind == "object" and isinstance(field.get("additionalProperties"), dict):
        return f"map to {_value(field['additionalProperties'])}"
    return "duration" if kind == "string" and "pattern" in field and "ms" in field["pattern"] else str(kind)


def _reachable(schema: dict[str, Any], definitions: dict[str, Any]) -> list[str]:
    """Definitions with fields, in the order in which the file leads to them."""
    found: list[str] = []
    for name in _references(schema["properties"]):
        _follow(name, definitions, found)
    return found


def _follow(name: str, definitions: dict[str, Any], found: list[str]) -> None:
    if name in found:
        return
    definition = definitions[name]
    if "properties" in _written_out(definition)[0]:
        found.append(name)
    for inner in _references({key: value for key, value in definition.items() if key != "$defs"}):
        _follow(inner, definitions, found)


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"].rpartition("/")[2]
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


def main() -> int:
    TARGET.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
