"""Edits of JSON bytes: what is found where, and that nothing else changes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.bodies.json_edit import append_member, append_to_root, find_member, members, parse_object

SPACE = st.sampled_from(["", "", " ", "\n\t", "\r\n  "])
STRINGS = st.one_of(
    st.text(max_size=6).map(json.dumps),
    st.text(max_size=6).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.sampled_from([r'"\\"', r'"\""', r'"\\\""', r'"}]{[\\\\"', r'"\u0022,\/"', '"a\\\\"']),
)
SCALARS = st.one_of(
    STRINGS, st.sampled_from(["null", "true", "false", "0", "-1.50e+2", "1E5", "123456789012345678901"])
)


def joined(opening: str, items: list[str], closing: str, space: str) -> str:
    return opening + space + f"{space},{space}".join(items) + space + closing


def objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    keys = st.one_of(st.sampled_from(['"a"', r'"\u0061"', '"b"', '""']), STRINGS)
    pairs = st.lists(
        st.tuples(keys, SPACE, values).map(lambda pair: f"{pair[0]}{pair[1]}:{pair[1]}{pair[2]}"), max_size=5
    )
    return st.builds(lambda items, space: joined("{", items, "}", space), pairs, SPACE)


def containers(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    arrays = st.builds(lambda items, space: joined("[", items, "]", space), st.lists(values, max_size=4), SPACE)
    return st.one_of(arrays, objects(values))


DOCUMENTS = st.builds(
    lambda before, text, after: (before + text + after).encode(),
    SPACE,
    objects(st.recursive(SCALARS, containers, max_leaves=20)),
    SPACE,
)


@given(DOCUMENTS)
def test_members_are_those_a_parser_sees(document: bytes) -> None:
    """Keys, order, duplicates and each value's very bytes."""
    pairs: list[tuple[str, object]] = json.loads(document, object_pairs_hook=list)
    found = list(members(document))
    assert [member.key for member in found] == [key for key, _ in pairs]
    for member, (_, value) in zip(found, pairs, strict=True):
        raw = document[member.start : member.end]
        assert raw == raw.strip()
        assert json.loads(raw, object_pairs_hook=list) == value


@given(DOCUMENTS)
def test_an_appended_member_is_the_last_and_all_else_stays(document: bytes) -> None:
    edited = append_to_root(document, b'"new":[1]')
    assert json.loads(edited, object_pairs_hook=list) == [*json.loads(document, object_pairs_hook=list), ("new", [1])]
    at = edited.rindex(b'"new":[1]')
    comma = int(edited[at - 1 : at] == b"," and any(members(document)))
    assert edited[: at - comma] + edited[at + len(b'"new":[1]') :] == document


def test_the_last_of_duplicates_counts() -> None:
    document = rb'{"a":1,"\u0061": {"x":[]} ,"b":{"a":3}}'
    found = find_member(document, "a")
    assert found is not None
    assert document[found.start : found.end] == b'{"x":[]}'
    assert find_member(document, "x") is None
    inner = find_member(document, "x", found.start)
    assert inner is not None
    assert document[inner.start : inner.end] == b"[]"
    assert append_member(document, found.end, b'"y":0') == rb'{"a":1,"\u0061": {"x":[],"y":0} ,"b":{"a":3}}'


@pytest.mark.parametrize(
    ("document", "edited"),
    [
        (b"{}", b'{"n":0}'),
        (b"{ \n}", b'{"n":0 \n}'),
        (b'{\n  "a": 1\n}\n', b'{\n  "a": 1,"n":0\n}\n'),
        (b'\xef\xbb\xbf{"a":"}"}', b'\xef\xbb\xbf{"a":"}","n":0}'),
    ],
)
def test_an_appended_member_stands_where_the_last_one_ended(document: bytes, edited: bytes) -> None:
    assert parse_object(document) is not None
    assert append_to_root(document, b'"n":0') == edited


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"null",
        b'"{}"',
        b"{",
        b'{"a":1',
        b'{"a":1}}',
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":NaN}',
        b'{"a":01}',
        b'{"a":1}\x00',
        b'{"a":"\xff"}',
        b'{"a":"\n"}',
        b'{"a":1} // ',
        b'\xef\xbb\xbf\xef\xbb\xbf{"a":1}',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 100_000,
    ],
)
def test_what_is_no_strict_object_is_none(document: bytes) -> None:
    assert parse_object(document) is None


def test_values_nested_as_deep_as_the_parser_bears_are_skipped() -> None:
    deep = b"[" * 1000 + b'"]"' + b"]" * 1000
    document = b'{"deep":' + deep + b',"a":1}'
    assert parse_object(document) is not None
    assert [document[member.start : member.end] for member in members(document)] == [deep, b"1"]
