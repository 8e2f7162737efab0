"""Which texts a guard finds in a request, whose they are, and what it does not dare to read."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.guards.seam import Path, Text
from extproc.guards.texts import has_repeated_names, read_texts, role_of, select, statements

X = "what is looked for"


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def item(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "input": [fields]}


PLACES: dict[str, tuple[dict[str, Any], str]] = {
    "OpenAI string": (user(X), "user"),
    "OpenAI part (S3.D1)": (
        user([{"type": "image_url", "image_url": {"url": "u"}}, {"type": "text", "text": X}]),
        "user",
    ),
    "OpenAI strings as parts": (user(["a", X]), "user"),
    "OpenAI refusal": (
        {"messages": [{"role": "assistant", "content": [{"type": "refusal", "refusal": X}]}]},
        "assistant",
    ),
    "OpenAI arguments (S3.D2)": (
        {
            "messages": [
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"arguments": X}}]}
            ]
        },
        "assistant",
    ),
    "OpenAI custom tool": (
        {"messages": [{"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"name": "n", "input": X}}]}]},
        "assistant",
    ),
    "OpenAI function_call": (
        {"messages": [{"role": "assistant", "function_call": {"name": "n", "arguments": X}}]},
        "assistant",
    ),
    "OpenAI tool result": ({"messages": [{"role": "tool", "tool_call_id": "1", "content": X}]}, "tool"),
    "OpenAI function result": ({"messages": [{"role": "function", "name": "f", "content": X}]}, "tool"),
    "OpenAI developer": ({"messages": [{"role": "developer", "content": X}]}, "developer"),
    "OpenAI definition": ({"messages": [], "tools": [{"function": {"description": X}}]}, "tools"),
    "legacy prompt (S3.D2)": ({"prompt": X}, "user"),
    "legacy prompts": ({"prompt": ["a", X]}, "user"),
    "legacy suffix": ({"prompt": "a", "suffix": X}, "user"),
    "Responses string": ({"input": X}, "user"),
    "Responses instructions": ({"input": "a", "instructions": X}, "system"),
    "Responses part": (item(role="user", content=[{"type": "input_text", "text": X}]), "user"),
    "Responses output": (item(type="function_call_output", call_id="1", output=X), "tool"),
    "Responses output parts": (item(type="function_call_output", output=[{"type": "input_text", "text": X}]), "tool"),
    "Responses call": (item(type="function_call", name="f", arguments=X), "assistant"),
    "Responses reasoning": (item(type="reasoning", id="r", summary=[{"type": "summary_text", "text": X}]), "assistant"),
    "Responses item without a role": (item(type="message", content=X), "user"),
    "Responses item of a role and a type": (item(type="function_call_output", role="user", content=X), "user"),
    "Responses stored prompt": ({"prompt": {"id": "p", "variables": {"topic": X}}}, "user"),
    "embeddings": ({"input": ["a", X]}, "user"),
    "Anthropic system": ({"system": X, "messages": []}, "system"),
    "Anthropic system blocks": ({"system": [{"type": "text", "text": X}], "messages": []}, "system"),
    "Anthropic tool_use": (
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "n", "input": {"a": [X]}}]}]},
        "assistant",
    ),
    "Anthropic tool_result": (user([{"type": "tool_result", "tool_use_id": "1", "content": X}]), "user"),
    "Anthropic tool_result blocks": (
        user([{"type": "tool_result", "content": [{"type": "text", "text": X}]}]),
        "user",
    ),
    "Anthropic document": (user([{"type": "document", "source": {"type": "text", "data": X}}]), "user"),
    "Anthropic batch": ({"requests": [{"custom_id": "1", "params": user(X)}]}, "user"),
    "Gemini": ({"contents": [{"parts": [{"text": X}]}]}, "user"),
    "Gemini model": ({"contents": [{"role": "model", "parts": [{"text": X}]}]}, "assistant"),
    "Gemini system": ({"contents": [], "systemInstruction": {"parts": [{"text": X}]}}, "system"),
    "Gemini system_instruction": ({"contents": [], "system_instruction": {"parts": [{"text": X}]}}, "system"),
    "Gemini call": (
        {"contents": [{"role": "model", "parts": [{"functionCall": {"name": "n", "args": {"a": {"b": X}}}}]}]},
        "assistant",
    ),
    "Gemini response": (
        {"contents": [{"role": "user", "parts": [{"functionResponse": {"name": "n", "response": {"a": X}}}]}]},
        "user",
    ),
    "Gemini embedding": ({"content": {"parts": [{"text": X}]}}, "user"),
    "Gemini embeddings": ({"requests": [{"content": {"parts": [{"text": X}]}}]}, "user"),
    "Vertex": ({"instances": [{"content": X}], "parameters": {}}, "user"),
    "Converse": (user([{"text": X}]), "user"),
    "Converse system": ({"system": [{"text": X}, {"cachePoint": {"type": "default"}}], "messages": []}, "system"),
    "Converse tool": (user([{"toolResult": {"toolUseId": "1", "content": [{"json": {"a": X}}]}}]), "user"),
    "Converse document": (user([{"document": {"format": "txt", "name": "d", "source": {"text": X}}}]), "user"),
    "Titan": ({"inputText": X}, "user"),
    "Ollama generate": ({"model": "m", "prompt": "a", "system": X}, "system"),
    "Ollama call": (
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": {"a": X}}}]}]},
        "assistant",
    ),
    "Cohere v1": ({"message": X, "chat_history": []}, "user"),
    "Cohere v1 preamble": ({"message": "a", "preamble": X}, "system"),
    "Cohere v1 history": ({"message": "a", "chat_history": [{"role": "CHATBOT", "message": X}]}, "assistant"),
    "Cohere v2 document": (user([{"type": "document", "document": {"id": "1", "data": {"a": X}}}]), "user"),
    "rerank query": ({"query": X, "documents": ["a"]}, "user"),
    "rerank document": ({"query": "a", "documents": [{"text": X}]}, "user"),
    "DashScope": ({"model": "m", "input": user(X), "parameters": {}}, "user"),
    "DashScope prompt": ({"input": {"prompt": X}}, "user"),
    "TGI": ({"inputs": X, "parameters": {}}, "user"),
    "name of who speaks": ({"messages": [{"role": "system", "name": X, "content": "a"}]}, "system"),
    "name of a call": (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": X, "arguments": "{}"}}]}]},
        "assistant",
    ),
    "name of a function_call": ({"messages": [{"role": "assistant", "function_call": {"name": X}}]}, "assistant"),
    "name of a tool_use": (
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": X, "input": {}}]}]},
        "assistant",
    ),
    "name of a Gemini call": ({"contents": [{"role": "model", "parts": [{"functionCall": {"name": X}}]}]}, "assistant"),
    "name of a Converse call": (
        {"messages": [{"role": "assistant", "content": [{"toolUse": {"toolUseId": "1", "name": X}}]}]},
        "assistant",
    ),
    "Ollama tool_name": ({"messages": [{"role": "tool", "tool_name": X, "content": "a"}]}, "tool"),
    "response_format": ({**user("a"), "response_format": {"json_schema": {"schema": {"description": X}}}}, "tools"),
    "text.format": ({"input": "a", "text": {"format": {"schema": {"enum": ["b", X]}}}}, "tools"),
    "Ollama format": ({**user("a"), "format": {"properties": {"p": {"description": X}}}}, "tools"),
    "Anthropic output_format": ({**user("a"), "output_format": {"schema": {"title": X}}}, "tools"),
    "Gemini responseSchema": ({"contents": [], "generationConfig": {"responseSchema": {"title": X}}}, "tools"),
    "vLLM guided_json": ({**user("a"), "guided_json": {"title": X}}, "tools"),
    "vLLM guided_choice": ({**user("a"), "guided_choice": ["b", X]}, "tools"),
    "vLLM guided_regex": ({**user("a"), "guided_regex": X}, "tools"),
    "vLLM guided_grammar": ({**user("a"), "guided_grammar": X}, "tools"),
    "vLLM structured_outputs": ({**user("a"), "structured_outputs": {"choice": [X]}}, "tools"),
    "vLLM chat_template": ({**user("a"), "chat_template": X}, "system"),
    "vLLM chat_template_kwargs": ({**user("a"), "chat_template_kwargs": {"persona": X}}, "system"),
    "stop": ({**user("a"), "stop": X}, "user"),
    "stops": ({**user("a"), "stop": ["b", X]}, "user"),
    "Anthropic stop_sequences": ({**user("a"), "stop_sequences": [X]}, "user"),
    "Ollama stop": ({**user("a"), "options": {"temperature": 0, "stop": [X]}}, "user"),
    "Converse stopSequences": ({**user("a"), "inferenceConfig": {"stopSequences": [X]}}, "user"),
}


@pytest.mark.parametrize(("body", "role"), PLACES.values(), ids=PLACES)
def test_each_place_of_a_prompt_is_found_with_its_role(body: dict[str, Any], role: str) -> None:
    texts = read_texts(body)
    assert texts is not None
    found = [text for text in texts if text.text == X]
    assert [text.role for text in found] == [role]
    assert _at(body, found[0].path) == X


@pytest.mark.parametrize("body", [body for body, _ in PLACES.values()], ids=PLACES)
@given(spell=st.sampled_from([str.upper, str.title, str.swapcase]))
def test_names_in_another_case_hide_nothing(body: dict[str, Any], spell: Any) -> None:
    texts = read_texts(_respelled(body, spell))
    assert texts is not None
    assert X in [text.text for text in texts]


@pytest.mark.parametrize("name", ["meſſages", "MESSAGES"])
def test_letters_that_some_servers_fold_hide_nothing(name: str) -> None:
    assert read_texts({name: [{"role": "user", "content": X}]}) is not None
    texts = read_texts({"messages": [], name: [{"role": "user", "content": X}]})
    assert texts is not None
    assert texts[0].text == X


ROLES = ["user", "USER", "User ", "customer", "", "ｕｓｅｒ", " system", "ſystem", "tools", None, 7, ["system"], {}]


@pytest.mark.parametrize("role", ROLES)
def test_who_is_not_known_to_be_another_is_a_user(role: object) -> None:
    """S3.4: in any case; a role that servers would not know is no way around."""
    assert read_texts({"messages": [{"role": role, "content": X}]}) == (Text("user", X, ("messages", 0, "content"), 0),)
    assert role_of(role) == "user"


def test_a_message_without_a_role_or_with_two_is_a_users() -> None:
    for roles in ({}, {"role": "system", "Role": "user"}, {"ROLE": "user", "role": "system"}):
        texts = read_texts({"messages": [{**roles, "content": X}]})
        assert texts is not None
        assert texts[0].role == "user"
    assert [text.role for text in read_texts(item(type="reasoning", Type="message", content=X)) or ()] == ["user"]


def test_texts_come_in_order_with_their_messages() -> None:
    body = {
        "system": "s",
        "messages": [
            {"role": "user", "content": [{"text": "a"}, {"text": "b"}]},
            {"role": "assistant", "content": "c", "tool_calls": [{"function": {"arguments": "d"}}]},
        ],
        "tools": [],
    }
    texts = read_texts(body) or ()
    assert [(text.text, text.message) for text in texts] == [("s", -1), ("a", 0), ("b", 0), ("c", 1), ("d", 1)]


def test_of_structured_arguments_names_strings_and_numbers_are_texts() -> None:
    body = {
        "messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": {"qq": 1234123, "b": [True]}}]}]
    }
    assert [text.text for text in read_texts(body) or ()] == ["qq", "b", "1234123"]


def test_definitions_of_tools_are_left_out_where_nobody_asks_for_them() -> None:
    body = {"messages": [], "tools": [{"function": {"name": "f", "description": X}}]}
    assert read_texts(body, definitions=False) == ()
    assert {text.role for text in read_texts(body) or ()} == {"tools"}


@pytest.mark.parametrize("body", [body for body, role in PLACES.values() if role == "tools"])
def test_nothing_that_tools_say_is_read_for_nobody(body: dict[str, Any]) -> None:
    assert X not in [text.text for text in read_texts(body, definitions=False) or ()]


UNREADABLE: list[Any] = [
    None,
    [],
    "text",
    7,
    {},
    {"foo": "bar"},
    {"model": "m"},
    {"messages": {"role": "user", "content": X}},
    {"messages": X},
    {"messages": [X]},
    {"messages": [[{"role": "user", "content": X}]]},
    {"messages": [{"role": "user", "body": X}]},
    {"messages": [{"role": "user", "name": "n", "body": X}]},
    {"stop": "a", "body": X},
    {"response_format": {"type": "json_object"}, "body": X},
    {"generationConfig": {}, "chat_template_kwargs": {}, "body": X},
    {"contents": X},
    user(7),
    user(True),
    user([7]),
    user({"type": "new", "payload": X}),
    user([{"type": "text", "text": 7}]),
    user([{"type": "new", "payload": X}]),
    {"prompt": [1, 2, 3]},
    {"prompt": [[1, 2], [3]]},
    {"prompt": "a", "context": [1, 2]},
    {"input": [1, 2]},
    {"input": [[1]]},
    {"input": [{"role": "user", "content": X}, 7]},
    {"input": 7},
    {"prompt_embeds": "AAAA"},
    {"system": 7, "messages": []},
    {"inputs": [7]},
    {"requests": [{"foo": X}]},
    {"messages": [{"role": "user", "tool_calls": X}]},
    {"messages": [{"role": "user", "tool_calls": [{"function": X}]}]},
    {"prompt": ["a"] * 30_000},
    {"messages": [{}] * 30_000},
    {"messages": [{"role": "user", "content": "hi"}] * 30_000},
    user([{"type": "text", "text": "hi"}] * 30_000),
    user([{"type": "tool_use", "input": dict.fromkeys(map(str, range(30_000)), "a")}]),
    {"input": [{}] * 30_000},
    {"messages": [{"content": "hi", **dict.fromkeys(map(str, range(5000)))}] * 5},
    {"messages": [], **dict.fromkeys(map(str, range(30_000)))},
]


@pytest.mark.parametrize("document", UNREADABLE, ids=lambda document: repr(document)[:60])
def test_what_cannot_be_read_for_certain_is_not_skipped(document: Any) -> None:
    """S3.D1: who asks denies these by default."""
    assert read_texts(document) is None


def test_what_is_too_much_is_refused_before_anything_is_made_of_it() -> None:
    body = {"messages": [{}] * 1_000_000, "input": [{}] * 1_000_000, "prompt": [""] * 1_000_000}
    tracemalloc.start()
    try:
        assert all(read_texts({name: value}) is None for name, value in body.items())
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_nesting_ends_a_search_not_a_process() -> None:
    deep: Any = X
    for _ in range(100_000):
        deep = [deep]
    assert read_texts(user(deep)) is None
    assert read_texts({"prompt": deep}) is None
    while isinstance(deep, list):
        deep = deep.pop()


NOTHING_SAID: list[dict[str, Any]] = [
    {"messages": []},
    {"messages": [{"role": "assistant", "content": None}]},
    {"messages": [{"role": "model"}]},
    {"prompt": None, "messages": []},
    user([{"type": "image_url", "image_url": {"url": "u"}}]),
    user([{"type": "image", "source": {"type": "base64", "data": "AAAA"}}]),
    item(type="item_reference", id="msg_1"),
    {"contents": [{"role": "model", "parts": [{"functionCall": {"id": "n"}}]}]},
]


@pytest.mark.parametrize("body", NOTHING_SAID, ids=repr)
def test_requests_that_say_nothing_have_no_texts(body: dict[str, Any]) -> None:
    assert read_texts(body) == ()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["messages", "role", "content", "type", "text", "input", "prompt", "parts", "tool_calls", "source"]
            )
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=25,
)


@given(json_values)
def test_no_document_raises(document: Any) -> None:
    texts = read_texts(document)
    for text in texts or ():
        assert text.role in {"user", "system", "developer", "assistant", "tool", "tools"}
    select(texts or (), frozenset({"user"}), True)
    list(statements(texts or ()))


CONVERSATION = {
    "system": "s",
    "messages": [
        {"role": "user", "content": "old"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": [{"text": "new"}, {"text": "er"}]},
    ],
    "prompt": "p",
}


class TestSelect:
    def texts(self, body: dict[str, Any], *roles: str, last: bool = False) -> list[str]:
        return [text.text for text in select(read_texts(body) or (), frozenset(roles), last)]

    def test_by_roles(self) -> None:
        assert self.texts(CONVERSATION, "user") == ["old", "new", "er", "p"]
        assert self.texts(CONVERSATION, "Assistant", "system") == ["s", "a"]
        assert self.texts(CONVERSATION, "model") == ["a"]
        assert self.texts(CONVERSATION, "*") == ["s", "old", "a", "new", "er", "p"]

    def test_a_role_of_ones_own_is_a_users_on_both_sides(self) -> None:
        assert self.texts({"messages": [{"role": "critic", "content": X}]}, "critic") == [X]

    def test_the_last_message_of_a_user(self) -> None:
        """S3.D13: what was refused once does not stay in the way; a prompt beside messages still counts."""
        assert self.texts(CONVERSATION, "user", last=True) == ["new", "er", "p"]
        assert self.texts(CONVERSATION, "*", last=True) == ["s", "a", "new", "er", "p"]

    def test_what_is_no_message_hides_none(self) -> None:
        assert self.texts({"input": [{"role": "user", "content": X}, "a"]}, "user", last=True) == [X, "a"]

    def test_no_list_hides_the_last_message_of_another(self) -> None:
        decoy = [{"role": "user", "content": "harmless"}]
        evil = [{"role": "user", "content": X}]
        for body in (
            {"messages": evil, "input": decoy},
            {"messages": evil, "Messages": decoy},
            {"requests": [{"params": {"messages": evil}}, {"params": {"messages": decoy}}]},
            {"inputs": [[{"messages": evil}], [{"messages": decoy}]]},
        ):
            assert X in self.texts(body, "user", last=True)


@given(st.text(min_size=1, max_size=30), st.data())
def test_parts_are_read_as_the_message_that_they_are(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    for spelled in ("text", "Text", "content"):
        parts = [{spelled: piece} for piece in pieces]
        for body in (user(parts), {"system": parts}, {"input": [{"content": parts}]}, {"content": {"parts": parts}}):
            assert text in statements(read_texts(body) or ())


def test_side_by_side_is_not_one_statement() -> None:
    for body in (
        {"input": ["1234", "5678"]},
        {"query": "", "documents": ["1234", "5678"]},
        {"messages": [{"role": "user", "content": "1234"}, {"role": "user", "content": "5678"}]},
        {"messages": [{"role": "user", "content": [{"toolUse": {"input": {"a": 1234, "b": 5678}}}]}]},
    ):
        assert "12345678" not in statements(read_texts(body) or ())


def test_messages_in_depth_are_told_apart() -> None:
    parts = [[{"type": "text", "text": text} for text in pair] for pair in ("ab", "cd")]
    for body in (
        {"input": {"messages": [{"content": content} for content in parts]}},
        {"requests": [{"params": {"messages": [{"content": content}]}} for content in parts]},
        {"requests": [{"system": content} for content in parts]},
        {"messages": [{"content": "", "text": pair[0], "title": pair[1]} for pair in ("ab", "cd")]},
    ):
        said = list(statements(read_texts(body) or ()))
        assert {"ab", "cd"} < set(said)
        assert not any("bc" in text or "abcd" in text for text in said)


usual = st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=4)})
unusual = st.fixed_dictionaries({"text": st.text(max_size=4)}) | st.text(max_size=4)
said_by = st.sampled_from(["user", "System", "nobody"])


@given(st.lists(st.tuples(said_by, st.text(max_size=4) | st.lists(usual | unusual, max_size=5)), max_size=6))
def test_what_is_usual_reads_as_what_is_not(messages: list[tuple[str, Any]]) -> None:
    """The shortcuts for plain messages and parts change nothing but the time."""
    usually = {"messages": [{"role": role, "content": content} for role, content in messages]}
    detour = {
        "messages": [
            {
                "role": role,
                "id": "",
                "content": [_longer(part) for part in content] if isinstance(content, list) else content,
            }
            for role, content in messages
        ]
    }
    assert read_texts(usually) == read_texts(detour)


def _longer(part: Any) -> Any:
    return {**part, "id": ""} if isinstance(part, dict) else part


@given(st.dictionaries(st.text(max_size=5), st.text(), min_size=1, max_size=3), st.booleans())
def test_what_is_json_is_also_read_with_its_escapes_resolved(arguments: dict[str, str], ascii_only: bool) -> None:
    """S3.D2: the arguments of a call are JSON in a string, of which most clients escape all that is not ASCII."""
    written = json.dumps(arguments, ensure_ascii=ascii_only)
    call = {"function": {"name": "f", "arguments": written}}
    said = list(statements(read_texts({"messages": [{"role": "assistant", "tool_calls": [call]}]}) or ()))
    assert written in said
    assert all(any(text in _paired(statement) for statement in said) for text in arguments.values())


def _paired(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16")


def test_what_is_no_json_is_read_as_it_is() -> None:
    assert list(statements(read_texts({"prompt": r"a \u0062"}) or ())) == [r"a \u0062"]


REPEATED = [
    b'{"messages":[],"messages":[]}',
    b'{"messages":[{"role":"user","content":"a","content":"b"}]}',
    b'{"messages":[],"m\\u0065ssages":[]}',
    b'{"a":[[{"b":{"c":1,"c":2}}]]}',
]


@pytest.mark.parametrize("body", REPEATED)
def test_names_given_twice_are_seen(body: bytes) -> None:
    assert has_repeated_names(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" + b"{}," * 60_000 + b"{}]",
        b"[1" + b",1" * 400_000 + b"]",
    ],
    ids=["empty", "cut", "bytes", "lists", "objects", "many objects", "many values"],
)
def test_what_cannot_be_told_counts_as_repeated(body: bytes) -> None:
    assert has_repeated_names(body)


@given(json_values)
def test_ordinary_bodies_repeat_nothing(document: Any) -> None:
    assert not has_repeated_names(json.dumps(document, allow_nan=False).encode() if _finite(document) else b"{}")


def test_long_prompts_repeat_nothing() -> None:
    assert not has_repeated_names(orjson.dumps(user('a "quoted", {braced} text\n' * 8000)))


def _at(document: Any, path: Path) -> Any:
    for step in path:
        document = document[step]
    return document


def _respelled(value: Any, spell: Any) -> Any:
    if isinstance(value, dict):
        return {spell(name) if name != "type" else name: _respelled(member, spell) for name, member in value.items()}
    return [_respelled(member, spell) for member in value] if isinstance(value, list) else value


def _finite(value: Any) -> bool:
    return all(number == number and abs(number) != float("inf") for number in _floats(value))


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, list | dict):
        for member in value.values() if isinstance(value, dict) else value:
            yield from _floats(member)
