"""Whatever is written, the answer is a configuration or a ConfigError."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from extproc.config.document import parse_document
from extproc.config.errors import ConfigError
from extproc.config.fields import Written
from extproc.config.load import parse_config
from extproc.config.masking import masked
from extproc.config.schema import CONFIG, json_schema
from extproc.config.validate import validate

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
WORDS = st.sampled_from(
    ["", "\0", "embedded", "unix:/", "[", "[]:1", "*", "*.", "@", "static", "1h", "../x", "http://"]
)
JSON = st.recursive(
    SCALARS | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | WORDS, inner, max_size=4),
    max_leaves=12,
)
VALID = [parse_document(path.read_text(), path.name) for path in sorted((Path(__file__).parent / "valid").iterdir())]
SCHEMA = Draft202012Validator(json_schema())
NOWHERE = Path("/nonexistent")


def load(data: Any) -> ConfigError | None:
    """Loads `data`; None when it is valid. Whatever comes out can be shown."""
    try:
        loaded = parse_config(json.dumps(data), name="config.json", base=NOWHERE)
    except ConfigError as failure:
        error = failure
    else:
        assert json.dumps(masked(loaded.config))
        return None
    assert error.problems
    assert all(problem.message for problem in error.problems)
    assert len(str(error).split("\n")) == len(error.problems)
    return error


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in `data`."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def mutated(document: Any, choices: st.DataObject) -> Any:
    """`document` with one value replaced or removed, or one added."""
    changed = copy.deepcopy(document)
    path = choices.draw(st.sampled_from(places(document)[1:]))
    parent = changed
    for step in path[:-1]:
        parent = parent[step]
    match choices.draw(st.sampled_from(["replace", "remove", "add"])):
        case "replace":
            parent[path[-1]] = choices.draw(JSON)
        case "remove":
            del parent[path[-1]]
        case "add" if isinstance(parent, dict):
            parent[choices.draw(st.text() | WORDS)] = choices.draw(JSON)
        case _:
            parent.append(choices.draw(JSON))
    return changed


@given(JSON)
def test_any_document(data: Any) -> None:
    load(data)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(VALID[1], JSON)))
def test_any_document_with_the_right_sections(data: Any) -> None:
    load(data)


@pytest.mark.parametrize("document", VALID)
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(choices=st.data())
def test_any_value_in_place_of_a_right_one(document: Any, choices: st.DataObject) -> None:
    """A fault is reported at the place where it is, or around it."""
    load(mutated(document, choices))


@pytest.mark.parametrize("document", VALID)
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(choices=st.data())
def test_sentences_schema_and_models_agree(document: Any, choices: st.DataObject) -> None:
    """What we say of a document, what JSON Schema says and what the models accept is one and the same."""
    changed = mutated(document, choices)
    try:
        validate(CONFIG, changed, base=NOWHERE)
        accepted = True
    except ConfigError:
        accepted = False
    try:
        CONFIG.validate_python(changed, context=Written(NOWHERE), by_alias=True, by_name=False)
        built = True
    except ValidationError:
        built = False
    assert accepted == built
    # One way only: JSON Schema counts 1.0 among the integers, and says nothing of the length of a duration.
    assert SCHEMA.is_valid(changed) or not accepted


def test_a_problem_of_a_deep_value_does_not_recurse() -> None:
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    error = load({"services": deep, "actionSets": deep})
    assert isinstance(error, ConfigError)
