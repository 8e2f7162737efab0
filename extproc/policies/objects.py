"""What the models of all kinds share, and how a document becomes one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter
from typing_extensions import TypeAliasType

from extproc.config.errors import ConfigError, Problem, Step
from extproc.config.fields import Model
from extproc.config.schema import Schema, schema_of
from extproc.config.validate import validate
from extproc.policies.documents import Document

T = TypeVar("T")

Anything = TypeAliasType(
    "Anything",
    "str | int | float | bool | list[Anything] | dict[str, Anything] | None",
)
"""Whatever may be written: it is of no importance for what happens to a request, or refused altogether."""

_REFUSED = "refused"
_MAY_BE_EMPTY = "mayBeEmpty"


def refused(why: str, *, may_be_empty: bool = False) -> Any:
    """A field that Kuadrant knows and we do not do; `why` says what to do instead."""
    return Field(default=None, json_schema_extra={_REFUSED: why, _MAY_BE_EMPTY: may_be_empty})


class Metadata(Model):
    """An object's; what the API server adds is of no importance."""

    name: str
    namespace: str = "default"
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    creation_timestamp: str | None = None
    deletion_grace_period_seconds: Anything = None
    deletion_timestamp: Anything = None
    finalizers: Anything = None
    generate_name: Anything = None
    generation: Anything = None
    managed_fields: Anything = None
    owner_references: Anything = None
    resource_version: Anything = None
    self_link: Anything = None
    uid: Anything = None


class KubernetesObject(Model):
    """The fields that every kind has."""

    api_version: str
    kind: str
    metadata: Metadata
    status: Anything = None


class TargetRef(Model):
    """What a policy is for; in its own namespace."""

    group: Literal["gateway.networking.k8s.io"]
    kind: Literal["Gateway", "HTTPRoute"]
    name: str
    section_name: str | None = Field(default=None, description="A listener of the Gateway, or a rule of the route.")


class Predicate(Model):
    """A CEL expression that must be true."""

    predicate: Annotated[str, Field(min_length=1)]
    selector: Anything = refused("an older form; write `predicate` with a CEL expression")
    operator: Anything = refused("an older form; write `predicate` with a CEL expression")
    value: Anything = refused("an older form; write `predicate` with a CEL expression")


Strategy = Literal["atomic", "merge"]


def model_of(document: Document, adapter: TypeAdapter[T]) -> T:
    """The document as a model. Raises ConfigError for unknown, refused and wrong fields, all of them."""
    schema = schema_of(adapter)
    problems = [
        document.problem(steps, f"not supported: {why}") for steps, why in _refusals(document.data, schema, schema, ())
    ]
    try:
        model = validate(adapter, document.data, base=Path(), file=document.file)
    except ConfigError as error:
        problems += (_within(document, problem) for problem in error.problems)
    if problems:
        raise ConfigError(problems)
    return model


def _within(document: Document, problem: Problem) -> Problem:
    return replace(document.problem_at(problem.path, problem.message), file=problem.file or document.file)


def _refusals(
    value: Any, schema: Schema, root: Schema, steps: tuple[Step, ...]
) -> Iterator[tuple[tuple[Step, ...], str]]:
    """The refused fields that are there, each with what to do instead."""
    for arm in _arms(schema, root):
        if isinstance(value, dict) and arm.get("type") == "object":
            others = arm.get("additionalProperties")
            for name, item in value.items():
                field = arm.get("properties", {}).get(name, others)
                if not isinstance(field, dict):
                    continue
                if _REFUSED in field:
                    if item is not None and (item or not field[_MAY_BE_EMPTY]):
                        yield (*steps, name), field[_REFUSED]
                else:
                    yield from _refusals(item, field, root, (*steps, name))
        elif isinstance(value, list) and arm.get("type") == "array":
            for index, item in enumerate(value):
                yield from _refusals(item, arm["items"], root, (*steps, index))


def _arms(schema: Schema, root: Schema) -> Iterator[Schema]:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name != "Anything":
            yield from _arms(root["$defs"][name], root)
    elif "anyOf" in schema:
        for arm in schema["anyOf"]:
            yield from _arms(arm, root)
    else:
        yield schema
