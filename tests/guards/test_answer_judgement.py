"""Answers that come as one document: allowed, denied, or not to be judged."""

from __future__ import annotations

import gzip
import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.guards.answers import MAX_TEXTS, Judged, answer_kind, judge_json, judge_text
from extproc.guards.decoded_answers import decoded_body
from extproc.guards.final_events import MESSAGE, replacement

ALLOWED = Judged("allowed")
UNPARSABLE = Judged("unparsable")


class Deny:
    """Patterns as a guard has them."""

    def __init__(self, *patterns: str) -> None:
        self._patterns = [re.compile(pattern) for pattern in patterns]

    def denied_by(self, text: str) -> str | None:
        text.encode()
        found = (index for index, pattern in enumerate(self._patterns) if pattern.search(text))
        return next((f"deny[{index}]" for index in found), None)


SECRET = Deny("nothing", "账号")


def chat(content: Any, **message: Any) -> bytes:
    return orjson.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": content, **message}}]})


def test_an_answer_without_a_match_is_allowed_and_one_with_a_match_names_the_rule() -> None:
    assert judge_json(chat("all is well"), SECRET) == ALLOWED
    assert judge_json(chat("my 账号 is"), SECRET) == Judged("denied", "deny[1]")


@pytest.mark.parametrize(
    "body",
    [
        chat([{"type": "text", "text": "账"}, {"type": "text", "text": "号"}]),
        chat(None, refusal="账号"),
        chat(None, reasoning_content="账号"),
        chat(None, tool_calls=[{"function": {"name": "f", "arguments": '{"a":"\\u8d26\\u53f7"}'}}]),
        chat('{"structured":"\\u8d26\\u53f7"}'),
        b'{"choices":[{"text":"\\u8d26\\u53f7"}]}',
        b'{"choices":[{"text":"\xe8\xb4\xa6\xe5\x8f\xb7","text":"fine"}]}',
        b'[{"candidates":[{"content":{"parts":[{"text":"\xe8\xb4\xa6"}]}}]},\n'
        b'{"candidates":[{"content":{"parts":[{"text":"\xe5\x8f\xb7"}]}}]}]',
        orjson.dumps({"content": [{"type": "tool_use", "input": {"账号": 1}}]}),
    ],
)
def test_no_form_of_an_answer_hides_a_text(body: bytes) -> None:
    assert judge_json(body, SECRET).outcome == "denied"


def test_choices_are_texts_of_their_own() -> None:
    choices = [{"index": index, "text": text} for index, text in enumerate("账号")]
    assert judge_json(orjson.dumps({"choices": choices}), SECRET) == ALLOWED


def test_parts_are_looked_at_alone_and_together() -> None:
    parts = chat([{"text": "one"}, {"text": "two"}])
    assert judge_json(parts, Deny("^two$")).outcome == "denied"
    assert judge_json(parts, Deny("^onetwo$")).outcome == "denied"


@pytest.mark.parametrize("body", [b"<html>", b'{"choices":[{"text":"cut', b"[" * 100_000, b"\xff", b"{}{}"])
def test_what_is_no_json_is_unparsable(body: bytes) -> None:
    assert judge_json(body, SECRET) == UNPARSABLE


def test_an_empty_answer_has_no_text() -> None:
    assert judge_json(b"", SECRET) == judge_json(b"\xef\xbb\xbf \r\n", SECRET) == ALLOWED


def test_more_texts_than_are_looked_at_are_unparsable() -> None:
    assert judge_json(orjson.dumps(["a"] * (MAX_TEXTS + 1)), SECRET) == UNPARSABLE


def test_null_content_empty_choices_and_lone_surrogates_are_no_trouble() -> None:
    """S2.D5, S2.D6."""
    for body in (chat(None), b'{"choices":[]}', b'{"choices":null}', b"null", b'{"a":"\\ud83d"}', b'{"a":"\xff"}'):
        assert judge_json(body, SECRET) == ALLOWED


def test_halves_of_one_character_in_two_parts_are_one_character() -> None:
    assert judge_json(b'{"c":[{"t":"\\ud83d"},{"t":"\\ude00"}]}', Deny("\U0001f600")).outcome == "denied"


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (b"all is well", "allowed"),
        ("my 账号".encode(), "denied"),
        (b'{"text":"\\u8d26\\u53f7"}', "denied"),
        (b'data: {"text":"\\u8d26"}\n\ndata: {"text":"\\u53f7"}', "denied"),
        (b": ping\n\ndata: fine\n\n", "allowed"),
        (b'{"response":"\\u8d26"}\n{"response":"\\u53f7"}\n', "denied"),
        (b'{"response":"fine"}\n{"response":"fine"}\n', "allowed"),
        ("my 账号".encode("utf-16"), "unparsable"),
        ("my 账号".encode("utf-16-le"), "unparsable"),
        ("my 账号".encode("gbk"), "unparsable"),
        (b"", "allowed"),
    ],
)
def test_plain_text_is_looked_at_for_what_it_says_and_what_it_is(body: bytes, outcome: str) -> None:
    assert judge_text(body, SECRET).outcome == outcome


@pytest.mark.parametrize(
    ("content_type", "encoding", "kind"),
    [
        ("application/json", "", "json"),
        ("Application/Problem+JSON; charset=utf-8", "gzip", "json"),
        ("text/event-stream; charset=utf-8", "br, gzip", "sse"),
        ("application/x-ndjson", "", "ndjson"),
        ("application/stream+json", "", "ndjson"),
        ("text/html", "identity", "text"),
        ("", "", "text"),
        ("application/vnd.amazon.eventstream", "", "other"),
        ("audio/mpeg", "", "other"),
        ("application/octet-stream", "", "other"),
        ("application/json", "compress", "other"),
        ("text/event-stream", "gzip, gzip, gzip, gzip, gzip", "other"),
    ],
)
def test_headers_tell_how_an_answer_is_guarded(content_type: str, encoding: str, kind: str) -> None:
    assert answer_kind(content_type, encoding) == kind


def test_a_replacement_is_an_error_of_its_api_and_names_nothing() -> None:
    openai = orjson.loads(replacement("openai").body)
    assert openai["error"]["message"] == MESSAGE
    assert openai["error"]["type"] == "content_filter"
    anthropic = orjson.loads(replacement("anthropic").body)
    assert (anthropic["type"], anthropic["error"]["message"]) == ("error", MESSAGE)
    assert replacement("asm") == ("text/plain", b"response was denied by asm llm proxy")


def test_a_held_body_is_decoded_up_to_a_limit() -> None:
    body = gzip.compress(b"a" * 100_000)
    assert decoded_body(body, "gzip", 100_000) == b"a" * 100_000
    assert decoded_body(body, "gzip", 99_999) is None
    assert decoded_body(b"no gzip", "gzip", 100) is None
    assert decoded_body(b"abc", "compress", 100) is None
    assert decoded_body(b"abc", "", 3) == b"abc"


@given(st.binary(max_size=300))
def test_no_bytes_raise(body: bytes) -> None:
    judge_json(body, SECRET)
    judge_text(body, SECRET)
