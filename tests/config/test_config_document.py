"""Text to plain data: what notation is accepted, and how faults are located."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from extproc.config import document
from extproc.config.document import MAX_DEPTH, parse_document
from extproc.config.errors import ConfigError


def nested(scalars: st.SearchStrategy[Any], text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | scalars | text,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
        max_leaves=20,
    )


JSON = nested(st.floats(allow_nan=False, allow_infinity=False), st.text())
# PyYAML writes YAML 1.1, where `1e5` is a string that needs no quotes: no digits in strings.
YAML = nested(st.nothing(), st.text(st.characters(exclude_characters="0123456789", codec="utf-8")))


@pytest.fixture(params=["libyaml", "python"])
def _loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML with and without its C extension, which not every platform has."""
    if request.param == "python":
        monkeypatch.setattr(document, "_LOADER", yaml.SafeLoader)
    elif not hasattr(yaml, "CSafeLoader"):
        pytest.skip("this PyYAML has no C extension")


def problem(text: str, name: str = "config.yaml") -> str:
    with pytest.raises(ConfigError) as caught:
        parse_document(text, name)
    assert len(caught.value.problems) == 1
    return str(caught.value.problems[0])


@pytest.mark.usefixtures("_loader")
@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("a: on", {"a": "on"}),
        ("a: OFF", {"a": "OFF"}),
        ("a: no", {"a": "no"}),
        ("a: True", {"a": True}),
        ("a: ~\nb:\nc: null", {"a": None, "b": None, "c": None}),
        ("a: 12:30", {"a": "12:30"}),
        ("a: 2026-01-31", {"a": "2026-01-31"}),
        ("a: 0x1f\nb: 0o17\nc: 010\nd: -7\ne: 1_000", {"a": 31, "b": 15, "c": "010", "d": -7, "e": "1_000"}),
        ("a: 1.5\nb: 1e3\nc: .inf", {"a": 1.5, "b": 1000.0, "c": ".inf"}),
        ("a: '1'\nb: \"true\"\nc: !!str 1", {"a": "1", "b": "true", "c": "1"}),
        ("1: a\ntrue: b\n2026-01-31: c", {"1": "a", "true": "b", "2026-01-31": "c"}),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: &x b\n*x : c", {"a": "b", "b": "c"}),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        ("a: {<<: [{b: 1}, {b: 2, c: 2}]}", {"a": {"b": 1, "c": 2}}),
        ("'<<': 1", {"<<": 1}),
        ("{a: 1,\n b: [2]}", {"a": 1, "b": [2]}),
        ("- 1\n- [2, {}]\n- ''", [1, [2, {}], ""]),
        ('{\n\t"a":\t1\n}', {"a": 1}),
        ("---\na: 1\n...\n", {"a": 1}),
    ],
)
def test_yaml_is_read_by_the_core_schema(text: str, data: Any) -> None:
    found = parse_document(text, "config.yaml")
    assert found == data
    assert json.dumps(found, sort_keys=True) == json.dumps(data, sort_keys=True), "1 is not True"


@pytest.mark.usefixtures("_loader")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "config.yaml: line 3, column 1: key `a` is given twice"),
        ("x:\n  - {a: 1, a: 2}", "config.yaml: line 2, column 12: key `a` is given twice"),
        ("a:\n\tb: 1", "config.yaml: line 2, column 1: a tab: YAML is indented with spaces"),
        ("a: 1\n---\nb: 1", "config.yaml: line 2, column 1: a second YAML document; only one is read"),
        (
            "a: !!python/object:os.system x",
            "config.yaml: line 1, column 4: tag `tag:yaml.org,2002:python/object:os.system`",
        ),
        ("a: !x {}", "config.yaml: line 1, column 4: tag `!x` is not supported"),
        ("a: *b", "alias `b` has nothing complete to stand for"),
        ("a: &b [*b]", "config.yaml: line 1, column 8: alias `b` has nothing complete to stand for"),
        ("? [a]\n: b", "config.yaml: line 1, column 3: a list or mapping cannot be a key"),
        ("a: {<<: 5}", "config.yaml: line 1, column 9: `<<` takes a mapping or a list of mappings"),
        ("a: [1", "config.yaml: line "),
        ("a: b: c", "config.yaml: line 1, column "),
        ("a: \x01", "config.yaml: not YAML: it contains control characters"),
        ('a: "\\U00110000"', "config.yaml: "),
        ("", "config.yaml: the file is empty"),
        (" \n\t\n", "config.yaml: the file is empty"),
        ("# nothing yet\n", "config.yaml: the file is empty"),
    ],
)
def test_yaml_faults_have_a_line(text: str, message: str) -> None:
    assert problem(text).startswith(message) or message in problem(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "config.json: key `a` is given twice in one object"),
        ('{"x": [{"b": 1, "b": 1}]}', "config.json: key `b` is given twice in one object"),
        ('{"a": 1,\n "b": nope}', "config.json: line 2, column "),
        ('{"a": NaN}', "config.json: line 1, column "),
        ("a: 1", "config.json: line 1, column 1: not JSON"),
        ('{"a": "\\ud800"}', "config.json: line 1, column "),
        ('{"a": ' + "1" * 5000 + "}", "config.json: line 1, column 7: not JSON: number"),
        ("[" * 900 + "]" * 900, ""),
        ("[" * 1000 + "]" * 1000, "config.json: nested too deeply"),
        ("[" * 100_000, "config.json: line 1, column "),
        ("", "config.json: the file is empty"),
    ],
)
def test_json_faults(text: str, message: str) -> None:
    if message:
        assert problem(text, "config.json").startswith(message)
    else:
        assert parse_document(text, "config.json")


def test_json_is_recognised_by_its_content() -> None:
    """A key given twice is reported as JSON, not read again as YAML."""
    assert problem('{"a": 1, "a": 2}', "plugin-config") == "plugin-config: key `a` is given twice in one object"


def test_lone_surrogates_are_refused() -> None:
    assert problem("a: \ud800") == "config.yaml: not valid Unicode"


@pytest.mark.usefixtures("_loader")
def test_an_escaped_surrogate_is_refused() -> None:
    assert "config.yaml: " in problem('a: "\\ud800"')


@pytest.mark.parametrize("text", ["a" * 10_000_001, "é" * 5_000_001])
def test_more_than_10_mb_is_refused(text: str) -> None:
    assert problem(text) == "config.yaml: larger than 10 MB"


@pytest.mark.usefixtures("_loader")
def test_deep_nesting_is_refused() -> None:
    assert parse_document("[" * MAX_DEPTH + "]" * MAX_DEPTH + " # not JSON", "config.yaml")
    assert (
        problem("[" * 5000 + " # not JSON") == f"config.yaml: line 1, column {MAX_DEPTH + 1}: nested more than 64 deep"
    )


@pytest.mark.usefixtures("_loader")
@pytest.mark.parametrize(
    "level",
    [
        "&a{n} [*a{m}, *a{m}, *a{m}, *a{m}, *a{m}, *a{m}, *a{m}, *a{m}]",
        "&a{n} {{<<: [*a{m}, *a{m}, *a{m}, *a{m}, *a{m}, *a{m}]}}",
    ],
    ids=["lists", "merges"],
)
def test_a_bomb_of_aliases_is_refused(level: str) -> None:
    text = "k0: &a0 {x: lol}\n" + "".join(f"k{n}: {level.format(n=n, m=n - 1)}\n" for n in range(1, 40))
    assert "larger than 10 MB with its aliases written out" in problem(text)


@pytest.mark.usefixtures("_loader")
def test_an_alias_of_a_long_text_is_counted_by_its_length() -> None:
    text = f"a: &x {'y' * 1_000_000}\nb: [{', '.join(['*x'] * 20)}]"
    assert "larger than 10 MB" in problem(text)


@given(JSON)
def test_json_comes_back_as_it_went_in(data: Any) -> None:
    assert parse_document(json.dumps(data), "config.json") == data


@given(YAML)
def test_what_pyyaml_writes_is_read_back(data: Any) -> None:
    assert parse_document(yaml.safe_dump(data), "config.yaml") == data


@given(st.text())
def test_any_text_is_data_or_a_config_error(text: str) -> None:
    for name in ("config.yaml", "config.json"):
        with suppress(ConfigError):
            parse_document(text, name)
