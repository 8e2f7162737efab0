"""Edits of several places: each lands where a parser sees it, and every other byte stays (S2.D12)."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.json_trees import documents, put, remove, replace, tokens, write

from extproc.bodies.edits import MAX_DEPTH, MAX_STEPS, Edits, Path, replace_texts
from extproc.bodies.json_edit import MAX_LENIENT, Uneditable, parse_object, read_object

DEFAULT = [("metadata",), ("messages", "*", "model")]
WAYS = [
    *DEFAULT,
    ("x",),
    ("",),
    ("é",),
    ('a"b\\',),
    ("messages", "0", "x"),
    ("messages", "model"),
    ("x", "*", "*", "0"),
    ("metadata", "x", "model"),
]


def edited(document: bytes, ways: list[tuple[str, ...]], **members: str) -> bytes:
    edits = Edits(ways)
    return edits.apply(document, read_object(document), {key: text.encode() for key, text in members.items()})


@given(
    st.data(),
    st.lists(st.sampled_from(WAYS), max_size=4),
    st.none() | st.just('"new"'),
    st.sampled_from(["", "\ufeff", " \n"]),
)
def test_edits_change_their_places_and_no_other_byte(
    data: st.DataObject, ways: list[tuple[str, ...]], model: str | None, before: str
) -> None:
    tree = data.draw(documents())
    document = (before + write(tree)).encode("utf-8", "surrogatepass")
    members = {} if model is None else {"model": model}
    once = edited(document, ways, **members)
    for way in ways:
        remove(tree, way)
    if model is not None:
        put(tree, "model", model)
    assert once == (before + write(tree)).encode("utf-8", "surrogatepass")
    assert edited(once, ways, **members) == once
    assert edited(edited(document, ways), [], **members) == once
    assert tokens(edited(edited(document, [], **members), ways)) == tokens(once)


@given(documents(lenient=False), st.sampled_from(["new", 'q"\\\n', "é\U0001f600", "\ud800"]), st.data())
def test_texts_are_exchanged_where_a_parser_sees_them(tree: Any, text: str, data: st.DataObject) -> None:
    document = write(tree).encode()
    paths = list(strings(json.loads(document)))
    chosen = data.draw(st.lists(st.sampled_from(paths), unique=True)) if paths else []
    exchanged = replace_texts(document, [(path, text) for path in chosen])
    for path in chosen:
        replace(tree, path, json.dumps(text, ensure_ascii=text == "\ud800"))
    assert exchanged == write(tree).encode()


def strings(value: Any, path: Path = ()) -> list[Path]:
    if isinstance(value, str):
        return [path]
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, one in inner for found in strings(one, (*path, key))]


@pytest.mark.parametrize(
    ("document", "left"),
    [
        (b'{"a":1, "b":2, "c":3}', b'{"c":3}'),
        (b'{"c":3, "a":1 , "b":2 }', b'{"c":3 }'),
        (b'{"a":1, "c":3, "b":2}', b'{"c":3}'),
        (b'{\n  "a": 1\n}', b"{\n}"),
        (b'{\n  "a": 1,\n  "b": 2\n}\n', b"{\n}\n"),
        (b'{\n  "a": {"a": 1, "b": []},\n  "c": "\\"a\\":1"\n}', b'{\n  "c": "\\"a\\":1"\n}'),
        (b'{"c":{"a":1},"d":["a","b"]}', b'{"c":{"a":1},"d":["a","b"]}'),
        (rb'{"\u0061":1,"c":3,"a":[{"]":"}"}],"\u0062":"\\"}', b'{"c":3}'),
        (b'{"c":3' + b" " * 1000 + b',"a":1}', b'{"c":3}'),
    ],
)
def test_a_removed_member_takes_one_comma(document: bytes, left: bytes) -> None:
    assert edited(document, [("a",), ("b",)]) == left


@pytest.mark.parametrize("document", [b"{}", b'{"c":"a"}', b'{"c":[{"a":1}],"messages":"model"}'])
def test_without_anything_to_edit_it_is_the_same_object(document: bytes) -> None:
    assert edited(document, [("a",), *DEFAULT]) is document


def test_several_members_go_at_once_wherever_they_are() -> None:
    kept = ",".join(f'"k{key}":{key}' for key in range(12))
    document = "{" + ",".join(f'"k{key}":{key},"r{key}":[{key}]' for key in range(12)) + "}"
    assert edited(document.encode(), [(f"r{key}",) for key in reversed(range(12))]) == f"{{{kept}}}".encode()


def test_ways_that_meet_remove_a_member_once() -> None:
    document = b'{"a":[{"b":{"c":1},"d":2},{"d":3,"b":4}]}'
    ways = [("a", "*", "b"), ("a", "0", "b", "c"), ("a", "0", "b"), ("a", "1", "b")]
    assert edited(document, ways) == b'{"a":[{"d":2},{"d":3}]}'
    assert edited(document, [("a", "*", "b"), ("a", "0", "b", "c")]) == b'{"a":[{"d":2},{"d":3}]}'


@pytest.mark.parametrize(
    ("key", "document"),
    [
        ("a/b", rb'{"a/b":1,"a\/b":2}'),
        ("é", b'{"\xc3\xa9":1,"\\u00E9":2}'),
        ("\ud800", b'{"\xed\xa0\x80":1,"\\uD800":2}'),
    ],
)
def test_a_key_that_has_other_spellings_goes_by_each(key: str, document: bytes) -> None:
    assert edited(document, [(key,)]) == b"{}"


def test_a_member_that_says_it_already_stays() -> None:
    document = b'{"model" : "m", "model":"m"}'
    assert edited(document, [], model='"m"') is document


def test_no_item_of_a_list_goes() -> None:
    document = b'{"a":[{"0":1},2],"b":{"0":1,"1":2}}'
    assert edited(document, [("a", "0"), ("b", "0")]) == b'{"a":[{"0":1},2],"b":{"1":2}}'
    assert edited(document, [("a", "0", "0")]) == b'{"a":[{},2],"b":{"0":1,"1":2}}'


@pytest.mark.parametrize("way", [(), ("*",), ("messages", "*")])
def test_a_way_to_no_member_is_refused(way: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="member of an object"):
        Edits([way])


@pytest.mark.parametrize("hidden", [b'"messages":[{"model":1}],', rb'"m\u0065ssages":[{"mod\u0065l":1}],'])
def test_what_a_duplicate_hides_from_our_parser_is_edited(hidden: bytes) -> None:
    """Another parser takes the first of two: nothing gets by that way."""
    document = b'{"model":"a",' + hidden + b'"messages":[]}'
    assert b"1" not in edited(document, DEFAULT, model='"m"')
    assert b"1" not in edited(document.replace(b'"model":"a",', b""), DEFAULT)


@pytest.mark.parametrize(
    "path",
    [(), ("a", 2), ("a", "0"), ("b",), ("a", 0, "x"), ("a",), ("c", "d"), (0,), ("a", -1), ("d",)],
)
def test_a_place_without_a_string_is_none(path: Path) -> None:
    document = b'{"a":["s","t"],"c":{"d":1},"d":"old","d":null}'
    assert replace_texts(document, [(path, "new")]) is None
    assert replace_texts(document, [(("a", 1), "new"), (path, "new")]) is None


def test_one_text_inside_of_another_is_none() -> None:
    assert replace_texts(b'{"a":{"b":"c"}}', [(("a", "b"), "x"), (("a",), "y")]) is None


def test_a_text_too_deep_is_none() -> None:
    for depth, found in ((MAX_DEPTH - 1, True), (MAX_DEPTH, False)):
        document = b'{"a":' + b"[" * depth + b'"s"' + b"]" * depth + b"}"
        assert (replace_texts(document, [(("a", *[0] * depth), "t")]) is not None) is found


def test_only_so_much_is_looked_at() -> None:
    """By number and not by size: a thread is held up by no more."""
    document = b'{"model":1,' + b'"model":1,' * (MAX_STEPS - 2) + b'"c":"' + b"x" * 100_000 + b'"}'
    assert edited(document, [], model="2").count(b":2") == MAX_STEPS - 1
    with pytest.raises(Uneditable, match="more than 20000 members"):
        edited(document.replace(b"{", b'{"d":1,'), [], model="2")
    with pytest.raises(Uneditable, match="more than 20000 members"):
        replace_texts(b'{"a":[' + b'"s",' * MAX_STEPS + b'"s"]}', [(("a", 0), "t")])


@pytest.mark.parametrize("depth", [10, 11, 12, 13, 900])
def test_depth_is_no_matter(depth: int) -> None:
    nested = b'[{"]":' * (depth // 2) + b'"}\\""' + b"}]" * (depth // 2)
    document = b'{"model":' + nested + b',"a":' + nested + b',"model":' + nested + b"}"
    assert edited(document, [], model="1") == b'{"model":1,"a":' + nested + b',"model":1}'
    assert edited(b'{"model":' + nested + b"}", [], model="1") == b'{"model":1}'


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (b"", "line 1 column 1 (char 0)"),
        (b"[]", "expected an object: line 1 column 1 (char 0)"),
        (b'"{}"', "expected an object"),
        (b"null", "expected an object"),
        (b'{"role":"system",}', "double quotes: line 1 column 18 (char 17)"),
        (b'{"a":NaN,\n"b":01}', "line 2 column 6 (char 15)"),
        (b'{"messages":[{"role":"us', "Unterminated string starting at: line 1 column 22 (char 21)"),
        (b"\x1f\x8b\x08\x00\x00", "not UTF-8: byte 1"),
        ('{"a":1}'.encode("utf-16"), "not UTF-8: byte 0"),
        ('{"a":1}'.encode("utf-16-le"), "line 1 column 2 (char 1)"),
        (b'{"a":' + b"1" * 5000 + b"}", "a number has too many digits"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a":[' + b"[]," * 300_000 + b"0]}", "more than 300000 values"),
        (b'{"a":NaN,"b":"' + b"x" * MAX_LENIENT + b'"}', "line 1 column 6 (char 5)"),
    ],
)
def test_what_is_no_object_says_where(document: bytes, problem: str) -> None:
    """S2.10."""
    with pytest.raises(Uneditable) as raised:
        read_object(document)
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    "document",
    [
        b'{"a":NaN}',
        b'{"a":[-Infinity,1e400]}',
        rb'{"a":"\ud800"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\n"}',
        b'\xef\xbb\xbf{"a":NaN}',
    ],
)
def test_what_models_take_is_edited(document: bytes) -> None:
    assert parse_object(document) is None
    assert edited(document, [], model='"m"') == document[:-1] + b',"model":"m"}'
    assert edited(document, [("a",)]) == document[: document.index(b'"')] + b"}"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_a_parsed_document_in_another_encoding_is_not_edited(encoding: str) -> None:
    document = '{"model":1}'.encode(encoding)
    with pytest.raises(Uneditable, match="not UTF-8"):
        read_object(document, json.loads(document))


@pytest.mark.parametrize("filling", [b"x", b'\\"', b"\\\\", b"\\n"])
@pytest.mark.parametrize("other", [b"", b'"x":{"model":1},'])
def test_fifty_megabytes_take_less_than_a_second(filling: bytes, other: bytes) -> None:
    size = 50 * 1024 * 1024
    document = b'{"model":"a",%b"messages":[{"content":"%b"}]}' % (other, filling * (size // len(filling)))
    value = {"model": "a", "messages": [{"content": ""}], **({"x": {"model": 1}} if other else {})}
    began = time.process_time()
    changed = Edits(DEFAULT).apply(document, value, {"model": b'"b"'})
    assert time.process_time() - began < 1
    assert changed.startswith(b'{"model":"b",')
    assert changed[13:] == document[13:]
