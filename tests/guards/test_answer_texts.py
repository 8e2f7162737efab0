"""Which texts of an answer a guard looks at."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.guards.answer_texts import MAX_VALUES, texts_of


def said(document: Any) -> list[str]:
    """The texts of a document, without their places."""
    pieces = texts_of(document if isinstance(document, bytes) else orjson.dumps(document))
    assert pieces is not None
    return [text for _, text in pieces]


def place(event: dict[str, Any]) -> str:
    """Where the one text of an event stands."""
    pieces = texts_of(orjson.dumps(event))
    assert pieces is not None
    (piece,) = pieces
    return piece.place


TOLD = {
    "openai": {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "gpt-4o",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "one",
                    "refusal": "two",
                    "reasoning_content": "three",
                    "tool_calls": [{"id": "call_1", "type": "function", "function": {"arguments": '{"a":"four"}'}}],
                },
                "finish_reason": "stop",
            }
        ],
    },
    "legacy": {"object": "text_completion", "choices": [{"index": 0, "text": "one"}]},
    "responses": {
        "object": "response",
        "status": "completed",
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "one"}]},
            {"type": "message", "content": [{"type": "output_text", "text": "two"}]},
            {"type": "function_call", "call_id": "c", "arguments": '{"a":1}'},
        ],
    },
    "anthropic": {
        "type": "message",
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "one", "signature": "QUJD"},
            {"type": "text", "text": "two"},
            {"type": "tool_use", "id": "t", "name": "find", "input": {"who": "three"}},
        ],
        "stop_reason": "end_turn",
    },
    "gemini": {
        "candidates": [
            {
                "content": {"parts": [{"text": "one"}, {"functionCall": {"name": "f", "args": {"x": 1}}}]},
                "finishReason": "STOP",
            }
        ],
        "modelVersion": "gemini-2.5-pro",
    },
    "bedrock": {
        "output": {
            "message": {
                "role": "assistant",
                "content": [{"text": "one"}, {"toolUse": {"toolUseId": "u", "name": "f", "input": {"x": "two"}}}],
            }
        },
        "stopReason": "end_turn",
    },
    "ollama": {
        "model": "llama3",
        "created_at": "2026-01-02T03:04:05Z",
        "message": {"role": "assistant", "content": "one", "thinking": "two"},
        "done_reason": "stop",
    },
    "cohere": {
        "id": "00000000-0000-4000-8000-000000000000",
        "finish_reason": "COMPLETE",
        "message": {"role": "assistant", "tool_plan": "one", "content": [{"type": "text", "text": "two"}]},
    },
}

TEXTS = {
    "openai": {"one", "two", "three", '{"a":"four"}'},
    "legacy": {"one"},
    "responses": {"one", "two", '{"a":1}'},
    "anthropic": {"one", "two", "find", '{"who":"three"}'},
    "gemini": {"one", "f", '{"x":1}'},
    "bedrock": {"one", "f", '{"x":"two"}'},
    "ollama": {"one", "two"},
    "cohere": {"one", "two"},
}


@pytest.mark.parametrize("dialect", TOLD)
def test_all_that_a_model_wrote_and_nothing_else_is_text(dialect: str) -> None:
    assert set(said(TOLD[dialect])) == TEXTS[dialect]


def test_an_unknown_dialect_hides_nothing() -> None:
    assert said({"reply": {"lines": ["one", {"deep": [["two"]]}]}, "note": "three"}) == ["three", "one", "two"]


@pytest.mark.parametrize("key", ["id", "model", "finish_reason", "signature", "data", "delta", "obfuscation"])
def test_a_sentence_is_text_under_any_key(key: str) -> None:
    assert said({key: "my 账号 is here"}) == ["my 账号 is here"]
    assert said({key: "two words"}) == ["two words"]


def test_labels_and_encoded_data_are_no_text() -> None:
    """Digits in them would look like numbers of phones and cards."""
    encoded = "13800138000/" * 30
    document = {"id": "call-13800138000", "signature": encoded, "audio": {"data": encoded, "transcript": "hello"}}
    assert said(document) == ["hello"]
    assert said({"type": "response.audio.delta", "delta": encoded}) == []
    assert said({"type": "response.output_text.delta", "delta": encoded}) == [encoded]


def test_arguments_are_text_with_their_keys_and_whatever_they_are_called() -> None:
    assert said({"input": {"id": "secret", "账号": 1}}) == ['{"id":"secret","账号":1}']


def test_what_a_response_repeats_of_its_request_is_no_text_of_the_answer() -> None:
    echo = {"instructions": "Never say it.", "tools": [{"description": "It."}], "metadata": {"who": "It"}}
    assert said({"object": "response", **echo, "output": [{"text": "one"}]}) == ["one"]
    assert said({"type": "response.created", "response": {"object": "response", **echo}}) == []
    assert "Never say it." in said(echo), "of anybody else it may be the answer"


def test_log_probabilities_do_not_count_twice() -> None:
    tokens = {"content": [{"token": "one", "top_logprobs": [{"token": "two"}]}]}
    assert said({"choices": [{"logprobs": tokens, "text": "one"}]}) == ["one"]


@pytest.mark.parametrize(
    ("written", "texts"),
    [
        (b'{"content":"one","content":"two"}', ["one", "two"]),
        (b'{"content":"one","cont\\u0065nt":null}', ["one"]),
        (b'{"a":{"text":"one"},"a":{"text":"two"},"a":"three"}', ["three", "one", "two"]),
        (b'{"input":{"a":"one","a":"two"}}', ['{"a": ["one", "two"]}', '{"a":["one","two"]}']),
    ],
)
def test_of_duplicate_keys_every_value_counts(written: bytes, texts: list[str]) -> None:
    found = said(written)
    assert found == texts or found in [[text] for text in texts]


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (b'\xef\xbb\xbf{"a":"one"}', "one"),
        (b'{"a":"one","b":NaN}', "one"),
        (b'{"a":"one\ntwo"}', "one\ntwo"),
        (b'{"a":"\\ud83d"}', "\ud83d"),
        (b'{"a":"\xff"}', "�"),
        (b'"one"', "one"),
        (b"13800138000", "13800138000"),
    ],
)
def test_json_that_some_parser_reads_is_read(written: bytes, text: str) -> None:
    assert said(written) == [text]


@pytest.mark.parametrize(
    "written",
    [b"", b"no json", b'{"a":"one"', b'{"a":1}{"b":2}', b"[" * 100_000, b'{"a":' * 5000, b"[" + b"[]," * MAX_VALUES],
)
def test_what_cannot_be_read_is_not_taken_for_empty(written: bytes) -> None:
    assert texts_of(written) is None


def test_more_values_than_are_looked_at_are_not_half_read() -> None:
    assert texts_of(b"[" + b"[]," * MAX_VALUES + b"[]]") is None
    assert texts_of(orjson.dumps([[0.5] * 1000] * 1000)) == [], "numbers cost nothing"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (
            {"choices": [{"index": 0, "delta": {"content": "a"}}]},
            {"choices": [{"index": 0, "delta": {"content": "b"}}]},
            True,
        ),
        (
            {"choices": [{"index": 0, "delta": {"content": "a"}}]},
            {"choices": [{"index": 1, "delta": {"content": "b"}}]},
            False,
        ),
        (
            {"choices": [{"index": 0, "delta": {"content": "a"}}]},
            {"choices": [{"index": 0, "delta": {"reasoning_content": "b"}}]},
            False,
        ),
        (
            {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "a"}}]}}]},
            {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 1, "function": {"arguments": "b"}}]}}]},
            False,
        ),
        (
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "a"}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "b"}},
            True,
        ),
        (
            {"type": "content_block_delta", "index": 0, "delta": {"text": "a"}},
            {"type": "content_block_delta", "index": 1, "delta": {"text": "b"}},
            False,
        ),
        (
            {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "a"},
            {"type": "response.output_text.delta", "output_index": 1, "content_index": 0, "delta": "b"},
            False,
        ),
        # TGI numbers the tokens of one text.
        ({"index": 1, "token": {"text": "a"}}, {"index": 2, "token": {"text": "b"}}, True),
    ],
)
def test_texts_go_on_where_a_reader_sees_them_go_on(one: dict[str, Any], other: dict[str, Any], same: bool) -> None:
    assert (place(one) == place(other)) is same


def test_places_are_short_however_long_keys_are_and_deep_they_stand() -> None:
    document: dict[str, Any] = {"text": "one"}
    for _ in range(200):
        document = {"k" * 1000: document, "text": "two"}
    pieces = texts_of(orjson.dumps(document))
    assert pieces is not None
    assert max(len(piece.place) for piece in pieces) <= 256
    assert len({piece.place for piece in pieces}) == 201


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8).map("x{}".format), inner, max_size=4)
    ),
    max_leaves=12,
)


def strings_in(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set().union(*map(strings_in, value.values()))
    if isinstance(value, list):
        return set().union(*map(strings_in, value))
    return {value} - {""} if isinstance(value, str) else set()


@given(json_values)
def test_every_string_under_keys_that_nobody_knows_is_found(value: Any) -> None:
    document = {"of nobody": value}
    assert set(said(json.dumps(document).encode())) == strings_in(document)


@given(st.binary(max_size=200) | st.text(alphabet='{}[]":,\\u0 a', max_size=60).map(str.encode))
def test_no_bytes_raise(data: bytes) -> None:
    texts_of(data)
