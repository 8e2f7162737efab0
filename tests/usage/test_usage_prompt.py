"""What of a request becomes prompt tokens, in every dialect."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.usage.prompt import (
    ANSWER_TOKENS,
    ATTACHMENT_TOKENS,
    MAX_BODY,
    MESSAGE_TOKENS,
    NAME_TOKENS,
    Prompt,
    read_prompt,
)

BASE64 = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


DIALECTS: dict[str, tuple[dict[str, Any], Prompt]] = {
    "OpenAI chat": (
        {
            "model": "gpt-4o",
            "temperature": 0.5,
            "user": "someone",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "name": "ann", "content": [{"type": "text", "text": "Hello"}]},
            ],
        },
        Prompt(("Be brief.", "Hello", "ann"), messages=2, names=1),
    ),
    "OpenAI chat, a tool was called": (
        {
            "messages": [
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "call_1", "type": "function", "function": {"name": "sum", "arguments": '{"a":1}'}}
                    ],
                },
                {"role": "tool", "tool_call_id": "call_1", "content": "2"},
            ]
        },
        Prompt(("sum", '{"a":1}', "2"), messages=2),
    ),
    "OpenAI chat, tools": (
        {**user("x"), "tools": [{"type": "function", "function": {"name": "sum"}}]},
        Prompt(("x", '[{"type":"function","function":{"name":"sum"}}]'), messages=1),
    ),
    "OpenAI chat, media": (
        user(
            [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{BASE64}"}},
                {"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}},
                {"type": "file", "file": {"file_data": BASE64, "filename": "a.pdf"}},
            ]
        ),
        Prompt(("What is this?",), messages=1, attachments=3),
    ),
    "legacy prompt": ({"prompt": "Once upon", "suffix": "a time"}, Prompt(("Once upon", "a time"))),
    "legacy prompts": ({"prompt": ["one", "two"]}, Prompt(("one", "two"))),
    "token ids": ({"prompt": [1, 2, 3]}, Prompt(ids=3)),
    "lists of token ids": ({"input": [[1, 2, 3], [4]]}, Prompt(ids=4)),
    "embeddings": ({"model": "text-embedding-3-small", "input": "abc"}, Prompt(("abc",))),
    "embeddings of a list": ({"model": "m", "input": ["abc", "def"]}, Prompt(("abc", "def"))),
    "Responses": (
        {"model": "gpt-4o", "instructions": "Be brief.", "input": "Hello"},
        Prompt(("Be brief.", "Hello"), messages=2),
    ),
    "Responses, items": (
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
                {"type": "function_call", "call_id": "c", "name": "sum", "arguments": '{"a":1}'},
                {"type": "function_call_output", "call_id": "c", "output": "2"},
                {"type": "reasoning", "encrypted_content": BASE64, "summary": [{"type": "summary_text", "text": "Hm"}]},
                {"role": "user", "content": [{"type": "input_image", "image_url": f"data:image/png;base64,{BASE64}"}]},
            ]
        },
        Prompt(("Hello", "sum", '{"a":1}', "2", "Hm"), messages=5, attachments=1),
    ),
    "Anthropic": (
        {
            "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            "tools": [{"name": "sum", "input_schema": {"type": "object"}}],
            "messages": [
                {"role": "user", "content": "Hello"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hm", "signature": BASE64},
                        {"type": "redacted_thinking", "data": BASE64},
                        {"type": "tool_use", "id": "toolu_1", "name": "sum", "input": {"a": 1}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "2"}]},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}},
                        {"type": "document", "source": {"type": "text", "data": "A page."}, "title": "Book"},
                    ],
                },
            ],
        },
        Prompt(
            (
                "Be brief.",
                '[{"name":"sum","input_schema":{"type":"object"}}]',
                "Hello",
                "Hm",
                "sum",
                '{"a":1}',
                "2",
                "A page.",
                "Book",
            ),
            messages=4,
            attachments=1,
        ),
    ),
    "Gemini": (
        {
            "systemInstruction": {"parts": [{"text": "Be brief."}]},
            "generationConfig": {"temperature": 1},
            "contents": [
                {
                    "role": "user",
                    "parts": [{"text": "Hello"}, {"inlineData": {"mimeType": "image/png", "data": BASE64}}],
                },
                {"role": "model", "parts": [{"functionCall": {"name": "sum", "args": {"a": 1}}}]},
                {"role": "user", "parts": [{"functionResponse": {"name": "sum", "response": {"b": 2}}}]},
            ],
        },
        Prompt(("Be brief.", "Hello", "sum", '{"a":1}', "sum", '{"b":2}'), messages=4, attachments=1),
    ),
    "Gemini embedContent": ({"content": {"parts": [{"text": "abc"}]}}, Prompt(("abc",))),
    "Bedrock Converse": (
        {
            "system": [{"text": "Be brief."}, {"cachePoint": {"type": "default"}}],
            "toolConfig": {"tools": [{"toolSpec": {"name": "sum"}}]},
            "inferenceConfig": {"maxTokens": 5},
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"text": "Hello"},
                        {"image": {"format": "png", "source": {"bytes": BASE64}}},
                        {"document": {"format": "pdf", "name": "a", "source": {"bytes": BASE64}}},
                        {"document": {"format": "txt", "name": "b", "source": {"text": "A page."}}},
                    ],
                },
                {"role": "assistant", "content": [{"toolUse": {"toolUseId": "t", "name": "sum", "input": {"a": 1}}}]},
                {"role": "user", "content": [{"toolResult": {"toolUseId": "t", "content": [{"json": {"b": 2}}]}}]},
            ],
        },
        Prompt(
            ("Be brief.", '[{"toolSpec":{"name":"sum"}}]', "Hello", "A page.", "sum", '{"a":1}', '{"b":2}'),
            messages=4,
            attachments=2,
        ),
    ),
    "Bedrock Titan": ({"inputText": "Hello", "textGenerationConfig": {}}, Prompt(("Hello",))),
    "Ollama chat": (
        {
            "messages": [
                {"role": "user", "content": "Hello", "images": [BASE64, BASE64]},
                {"role": "assistant", "tool_calls": [{"function": {"name": "sum", "arguments": {"a": 1}}}]},
            ],
            "options": {"seed": 1},
        },
        Prompt(("Hello", "sum", '{"a":1}'), messages=2, attachments=2),
    ),
    "Ollama generate": (
        {"prompt": "Hello", "images": [BASE64], "system": "Be brief."},
        Prompt(("Hello", "Be brief."), messages=1, attachments=1),
    ),
    "Cohere v2": (
        {
            "messages": [
                {"role": "user", "content": "Hello"},
                {"role": "tool", "content": [{"type": "document", "document": {"data": {"b": 2}}}]},
            ],
            "documents": ["A page.", {"id": "1", "data": {"text": "Another."}}],
        },
        Prompt(("Hello", '{"b":2}', "A page.", '{"text":"Another."}'), messages=2),
    ),
    "Cohere v1": (
        {"message": "Hello", "preamble": "Be brief.", "chat_history": [{"role": "USER", "message": "Hi"}]},
        Prompt(("Hello", "Be brief.", "Hi"), messages=3),
    ),
    "Cohere embeddings": ({"texts": ["abc", "def"], "input_type": "search_query"}, Prompt(("abc", "def"))),
    "Vertex embeddings": ({"instances": [{"content": "abc"}]}, Prompt(("abc",))),
}


@pytest.mark.parametrize(("request_", "expected"), DIALECTS.values(), ids=DIALECTS)
def test_contents_and_not_keys_of_every_dialect(request_: dict[str, Any], expected: Prompt) -> None:
    prompt = read_prompt(json.dumps(request_).encode())
    assert prompt is not None
    assert sorted(prompt.texts) == sorted(expected.texts)
    assert prompt._replace(texts=()) == expected._replace(texts=())


def test_overhead_of_messages_names_ids_and_attachments() -> None:
    prompt = Prompt(messages=2, names=1, ids=10, attachments=3)
    assert prompt.overhead == 2 * MESSAGE_TOKENS + NAME_TOKENS + ANSWER_TOKENS + 10 + 3 * ATTACHMENT_TOKENS
    assert Prompt(("text",), ids=10).overhead == 10


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"\x1f\x8b\x00\x00",
        b'"messages"',
        b"[1]",
        b"{}",
        b'{"model": "m", "stream": true}',
        b'{"messages": [{"role": "user", "content": "Hel',
        b'{"messages": ' + b"[" * 100_000,
        b'{"messages": [' + b"{}," * 100_000 + b"{}]}",
        b'{"input": [' + b'"a",' * 50_000 + b'"a"]}',
        b'{"input": [' + b"1," * 400_000 + b"1]}",
        json.dumps(user([{"type": "text"} for _ in range(30_000)])).encode(),
        b'{"tools": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"prompt": "' + b"a" * MAX_BODY + b'"}',
        b'{"prompt": NaN}',
    ],
    ids=lambda body: body[:20] + b"..." + str(len(body)).encode(),
)
def test_what_cannot_be_read_is_left_to_its_size(body: bytes) -> None:
    assert read_prompt(body) is None


def test_many_token_ids_are_read() -> None:
    assert read_prompt(json.dumps({"input": [list(range(8_000))] * 30}).encode()) == Prompt(ids=240_000)


def test_a_recording_to_transcribe_is_one_attachment() -> None:
    body = b'--boundary\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + bytes(range(256)) * 4000
    assert read_prompt(body) == Prompt(attachments=1)


@pytest.mark.parametrize("odd", [None, True, 1, 1.5, "text", [], {}, [None, 1, "x"], [[[]]], {"content": {}}])
@pytest.mark.parametrize(
    "field", ["messages", "input", "prompt", "system", "tools", "toolConfig", "documents", "images", "contents"]
)
def test_a_field_of_another_type_does_no_harm(field: str, odd: Any) -> None:
    assert isinstance(read_prompt(json.dumps({field: odd}).encode()), Prompt)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from("content text source document data image_url input tool_calls name type role".split()),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.sampled_from(["messages", "input", "contents", "prompt", "documents", "system", "toolConfig"]), _VALUES)
def test_any_json_is_read_without_an_error(field: str, value: Any) -> None:
    read_prompt(json.dumps({field: value}).encode("utf-8", "surrogatepass"))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_an_error(body: bytes) -> None:
    read_prompt(body)


@given(
    st.lists(st.text(string.ascii_letters + "äß中😀 ", min_size=1), min_size=1, max_size=5),
    st.integers(0, 10_000),
)
def test_a_cut_body_is_no_prompt_and_a_whole_one_loses_nothing(contents: list[str], cut: int) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": content} for content in contents]}).encode()
    prompt = read_prompt(body)
    assert prompt is not None
    assert sorted(prompt.texts) == sorted(contents)
    assert read_prompt(body[: cut % len(body)]) is None
