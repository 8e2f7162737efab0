"""What a provider gets of a request's body: another model, no metadata, and all else as the client wrote it."""

from __future__ import annotations

import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.json_trees import Object, documents, put, remove, tokens, write

from extproc.bodies.json_edit import Uneditable
from extproc.providers.rewrite import Rewrite

DEFAULT = Rewrite(["/metadata", "/messages/*/model"])
UNTOUCHED = Rewrite([])

CHAT = rb"""{
  "temperature": 1.0e0, "seed": 12345678901234567890, "top_p": 1e400, "n": -0.0,
  "model": "gpt-4o",
  "metadata": {"user": "u", "model": "\"}"},
  "messages": [
    {"role": "system", "content": "caf\u00e9 \/ \"model\": 1", "model": "gpt-4o"},
    {"model": null, "role": "user", "content": [{"type": "text", "text": "\ud83d\ude00"}], "name": "a", "name": "b"},
    {"role": "assistant", "content": null, "tool_calls": [{"function": {"arguments": "{\"model\": 1}"}}]},
    {"role": "nobody", "model": {"a": [1]}}
  ],
  "tools": [{"function": {"parameters": {"properties": {"model": {"type": "string"}}, "metadata": 0}}}]
}"""


def test_model_and_metadata_of_a_chat() -> None:
    """S2.9, S2.D12, S2.D13."""
    expected = (
        CHAT.replace(b'"model": "gpt-4o",\n', b'"model": "llama",\n')
        .replace(b'  "metadata": {"user": "u", "model": "\\"}"},\n', b"")
        .replace(b', "model": "gpt-4o"}', b"}")
        .replace(b'"model": null, ', b"")
        .replace(b', "model": {"a": [1]}', b"")
    )
    assert DEFAULT.apply(CHAT, "llama") == expected
    assert DEFAULT.apply(expected, "llama") is None


@pytest.mark.parametrize(
    ("body", "rewritten"),
    [
        (b"{}", b'{"model":"m"}'),
        (b'{ "stream": true }', b'{ "stream": true,"model":"m" }'),
        (b'{"metadata":{}}', b'{"model":"m"}'),
        (b'{"a":1,"metadata":{}}', b'{"a":1,"model":"m"}'),
        (b'{"model":null}', b'{"model":"m"}'),
        (b'{"model" : ["a", {"model": 1}]}', b'{"model" : "m"}'),
        (b'{"model":"a","model":1}', b'{"model":"m","model":"m"}'),
        (rb'{"\u006dodel":"a"}', rb'{"\u006dodel":"m"}'),
        (rb'{"model":"a","\u006Dode\u006c":"b"}', rb'{"model":"m","\u006Dode\u006c":"m"}'),
        (b'{"x\\"model":1}', b'{"x\\"model":1,"model":"m"}'),
        (b'{"a":"model"}', b'{"a":"model","model":"m"}'),
        (b'{"messages":null,"model":"m"}', None),
        (b'{"messages":{"model":1},"model":"m"}', None),
        (b'{"messages":["model",[],null,1],"model":"m"}', None),
        (b'\xef\xbb\xbf{"model":"a"}\n', b'\xef\xbb\xbf{"model":"m"}\n'),
        (b'{"model":NaN,"a":"\xed\xa0\x80"}', b'{"model":"m","a":"\xed\xa0\x80"}'),
    ],
)
def test_the_model_is_put_whatever_there_was(body: bytes, rewritten: bytes | None) -> None:
    """S4.1: also where there was none."""
    assert DEFAULT.apply(body, "m") == rewritten


def test_without_a_model_it_stays() -> None:
    assert DEFAULT.apply(b'{"model":"a"}', None) is None
    assert DEFAULT.apply(b'{"metadata":1,"model":"a"}', None) == b'{"model":"a"}'
    assert Rewrite(["/model"]).apply(b'{"model":"a"}', None) == b"{}"
    assert Rewrite(["/model"]).apply(b'{"model":"a"}', "m") == b'{"model":"m"}'


@pytest.mark.parametrize("model", ['a"b\\', "é\U0001f600", "\ud800", "a\nb", ""])
def test_any_name_of_a_model_is_written_as_json(model: str) -> None:
    body = DEFAULT.apply(b"{}", model)
    assert body is not None
    assert json.loads(body) == {"model": model}


@pytest.mark.parametrize("body", [b"", b" ", b"\r\n"])
def test_an_empty_body_stays(body: bytes) -> None:
    """S2.11."""
    assert DEFAULT.apply(body, "m") is None


@pytest.mark.parametrize("remove", [[], ["/metadata"]])
@pytest.mark.parametrize("body", [b"[]", b"[{}]", b'{"role":"system",}', b'{"mess', b"\x1f\x8b\x08", b"x", b"null"])
def test_what_is_no_object_is_told_from_what_needs_no_change(remove: list[str], body: bytes) -> None:
    """S2.10: the parser's message, and where."""
    with pytest.raises(Uneditable, match=re.compile(r"char \d+|byte \d+")):
        Rewrite(remove).apply(body, None)


def test_an_error_tells_nothing_of_the_body() -> None:
    for body in (b'{"a":secret}', b'{"secret":1 secret}', b'{"secret\xff', b'["secret"]', b'{"a":"secret'):
        with pytest.raises(Uneditable) as raised:
            DEFAULT.apply(body, "m")
        assert "secret" not in str(raised.value)
        assert raised.value.__cause__ is None


@pytest.mark.parametrize("parsed", [[], "{}", 0, False])
def test_a_parsed_document_that_is_no_object_is_refused(parsed: object) -> None:
    with pytest.raises(Uneditable, match="expected an object"):
        DEFAULT.apply(json.dumps(parsed).encode(), "m", parsed)


@pytest.mark.parametrize("pointer", ["", "metadata", "/*", "/messages/*"])
def test_a_bad_pointer_is_named(pointer: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"`{pointer}`")):
        Rewrite(["/metadata", pointer])


def test_pointers_are_unescaped() -> None:
    assert Rewrite(["/a~1b~0", "/"]).apply(b'{"a/b~":1,"":2,"c":3}', None) == b'{"c":3}'


@given(documents(), st.sampled_from([None, "m", "é"]))
def test_everything_else_is_equal(tree: Object, model: str | None) -> None:
    """S2.D12, with the parsed document or without; and once is enough."""
    body = write(tree).encode("utf-8", "surrogatepass")
    rewritten = DEFAULT.apply(body, model)
    assert DEFAULT.apply(body, model, json.loads(body, strict=False)) == rewritten
    remove(tree, ("metadata",))
    remove(tree, ("messages", "*", "model"))
    if model is not None:
        put(tree, "model", json.dumps(model, ensure_ascii=False))
    expected = write(tree).encode("utf-8", "surrogatepass")
    assert rewritten == (None if expected == body else expected)
    assert DEFAULT.apply(expected, model) is None


@given(documents())
def test_one_step_equals_two(tree: Object) -> None:
    """To the byte when the model comes last; the other way around, space may differ where all other members go."""
    body = write(tree).encode("utf-8", "surrogatepass")
    at_once = DEFAULT.apply(body, "m") or body
    removed = DEFAULT.apply(body, None) or body
    put_first = UNTOUCHED.apply(body, "m") or body
    assert at_once == (UNTOUCHED.apply(removed, "m") or removed)
    assert tokens(at_once) == tokens(DEFAULT.apply(put_first, None) or put_first)


def test_broken_bodies_raise_nothing_else() -> None:
    chance = random.Random(5)
    for _ in range(3000):
        body = bytearray(CHAT)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(body))
            body[at : at + chance.randint(0, 2)] = chance.choice([b'"', b"\\", b"{", b"]", b",", b"", b"\x00", b"\xff"])
        try:
            rewritten = DEFAULT.apply(bytes(body[: chance.choice([None, chance.randrange(1, len(body))])]), "m")
        except Uneditable:
            continue
        assert rewritten is not None
        assert json.loads(rewritten, strict=False)["model"] == "m"


@pytest.mark.parametrize("key", ["Model", "MODEL", "\\u004dodel", "mOdel"])
def test_a_model_in_another_spelling_is_no_way_around(key: str) -> None:
    """Ollama, as all that is written in Go, takes `Model` for the model, and the last one counts."""
    body = f'{{"model":"a","{key}":"b"}}'.encode()
    with pytest.raises(Uneditable, match="another spelling"):
        Rewrite(()).apply(body, "gpt-4")
    assert Rewrite(()).apply(body, None) is None
