"""`extproc/wire` is what `proto/` says, and `proto/` is what Envoy says.

envoy-data-plane is generated from Envoy's own files by another compiler: the second opinion.
"""

from __future__ import annotations

import ast
import runpy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import betterproto2
import pytest
from envoy_data_plane.message_pool import default_message_pool
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

ROOT = Path(__file__).resolve().parents[2]
WIRE = ROOT / "extproc" / "wire"

LACKING = {
    "envoy.service.ext_proc.v3.ProcessingResponse.typed_dynamic_metadata": "newer than envoy-data-plane 2.2.0",
}
DIFFERENT = {
    "envoy.type.v3.HttpStatus.code": "an enum there; the same number on the wire, and every number is allowed here",
}


@dataclass(frozen=True)
class Shape:
    """All that the wire depends on, and the names."""

    name: str
    type: str
    repeated: bool = False
    oneof: str | None = None
    of: object = None
    """Message: its full name. Enum: its names and numbers. Map: the shapes of key and value."""


def generated() -> list[Path]:
    return [path for path in sorted(WIRE.iterdir()) if path.suffix in (".py", ".pyi") and path.stem != "__init__"]


def modules() -> list[Any]:
    return [import_module(f"extproc.wire.{path.stem}") for path in generated() if path.suffix == ".py"]


def with_nested(message: Descriptor) -> list[Descriptor]:
    nested = [inner for inner in message.nested_types if not inner.GetOptions().map_entry]
    return [message, *(each for inner in nested for each in with_nested(inner))]


MESSAGES = [
    each
    for module in modules()
    for message in module.DESCRIPTOR.message_types_by_name.values()
    for each in with_nested(message)
]
TYPES = {
    getattr(FieldDescriptor, f"TYPE_{name.upper()}"): name
    for name in "bool bytes double enum int32 int64 message string uint32 uint64".split()
}


def our_enum(enum: EnumDescriptor) -> dict[str, int]:
    return {value.name: value.number for value in enum.values}


def our_shape(field: FieldDescriptor) -> Shape:
    oneof = field.containing_oneof.name if field.containing_oneof else None
    if field.message_type and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name
        return Shape(field.name, "map", of=(our_shape(entry["key"]), our_shape(entry["value"])))
    of: object = None
    if field.message_type:
        of = field.message_type.full_name
    elif field.enum_type:
        of = our_enum(field.enum_type)
    return Shape(field.name, TYPES[field.type], field.is_repeated, oneof, of)


def their_shape(name: str, meta: betterproto2.FieldMetadata, found: dict[str, Any], key: str) -> Shape:
    if meta.map_meta:
        key_meta, value_meta = meta.map_meta
        return Shape(
            name, "map", of=(Shape("key", key_meta.proto_type), their_shape("value", value_meta, found, f"{key}.value"))
        )
    of: object = None
    if meta.proto_type == "message":
        of = default_message_pool.type_to_url[meta.unwrap() if meta.unwrap else found[key]].partition("/")[2]
    elif meta.proto_type == "enum":
        of = {value.name: value.value for value in found[key]}
    return Shape(name, meta.proto_type, bool(meta.repeated), meta.group, of)


def their_shapes(full_name: str) -> dict[int, Shape]:
    message: Any = default_message_pool.url_to_type[f"type.googleapis.com/{full_name}"]
    theirs = message._betterproto
    return {
        meta.number: their_shape(name, meta, theirs.cls_by_field, name)
        for name, meta in theirs.meta_by_field_name.items()
    }


def test_make_proto_is_reproducible(tmp_path: Path) -> None:
    runpy.run_path(str(ROOT / "tools" / "generate_wire.py"))["generate"](tmp_path)
    fresh = {path.name: path.read_text() for path in (tmp_path / "extproc" / "wire").iterdir()}
    assert fresh.keys() == {path.name for path in generated()}
    assert [path.name for path in generated() if fresh[path.name] != path.read_text()] == []


@pytest.mark.parametrize("path", generated(), ids=lambda path: path.name)
def test_no_generated_module_imports_a_top_level_envoy(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            imported.add((node.module or "").partition(".")[0])
    assert imported <= {"extproc", "google", "collections", "datetime", "typing"}


def test_all_messages_are_compared() -> None:
    assert len(MESSAGES) >= 26
    assert {message.file.name for message in MESSAGES} == {
        f"extproc/wire/{path.name}" for path in (ROOT / "proto").glob("*.proto") if path.name != "kuadrant.proto"
    }


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.full_name)
def test_fields_are_envoys(message: Descriptor) -> None:
    exempt = LACKING.keys() | DIFFERENT.keys()
    theirs = their_shapes(message.full_name)
    for field in message.fields:
        if field.full_name not in exempt:
            assert our_shape(field) == theirs[field.number]


def test_fields_that_envoy_data_plane_lacks_are_exactly_those_listed() -> None:
    lacking = {
        field.full_name
        for message in MESSAGES
        for field in message.fields
        if field.number not in their_shapes(message.full_name)
    }
    assert lacking == LACKING.keys()


@pytest.mark.parametrize("full_name", DIFFERENT)
def test_fields_that_differ_agree_on_number_and_wire_type(full_name: str) -> None:
    field = next(field for message in MESSAGES for field in message.fields if field.full_name == full_name)
    theirs = their_shapes(full_name.rpartition(".")[0])[field.number]
    assert (theirs.name, theirs.type, our_shape(field).type) == (field.name, "enum", "int32")
