"""What each dialect's answers say, whoever wrote them and however they are spaced."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from usage.dialects import TABLES
from usage.dialects.case import Case

from extproc.bodies.findings import Findings
from extproc.bodies.reader import BodyLimits, ReaderFactory
from extproc.bodies.wanted import HEAD, Wanted
from extproc.usage.dialects import DIALECTS, reported
from extproc.usage.usage import Reported
from fuzz.framing import EVENT_STREAM, JSON, NDJSON, SSE, compact, event_stream, ndjson, sse

WANTED = Wanted(frozenset(), [dialect.shape for dialect in DIALECTS.values()], keep_text=1 << 16)
SCANNED = BodyLimits(json_buffer=1)

Dump = Callable[[Any], bytes]


def spaced(value: Any) -> bytes:
    return json.dumps(value).encode()


def indented(value: Any) -> bytes:
    return json.dumps(value, indent="\t").replace("\n", "\r\n").encode()


def body_of(case: Case, dump: Dump) -> tuple[bytes, str]:
    """The bytes of an answer and its content type."""
    if case.framing == "json":
        return dump(case.answer), JSON
    events = [dump(event) for event in case.answer]
    if case.framing == "sse":
        return sse(events), SSE
    if case.framing == "ndjson":
        return ndjson(events), NDJSON
    return event_stream(events, wrap=case.framing == "wrapped"), EVENT_STREAM


def read(body: bytes, content_type: str, wanted: Wanted = WANTED, limits: BodyLimits | None = None) -> Findings:
    reader = ReaderFactory(wanted, limits or BodyLimits()).open(content_type, "")
    reader.feed(body)
    reader.close()
    return reader.findings


def rows(*, framings: str = "json sse ndjson eventstream wrapped") -> list[Any]:
    return [
        pytest.param(dialect, case, id=f"{dialect}: {case.name}")
        for dialect, cases in TABLES.items()
        for case in cases
        if case.framing in framings.split()
    ]


def check(dialect: str, case: Case, findings: Findings) -> None:
    name, usage = reported(findings)
    assert usage == case.usage
    assert findings.model == case.model
    if case.text is not None:
        found = findings.text.decoded()
        # Of a document, text is taken pointer by pointer and not in its order.
        assert sorted(found) == sorted(case.text) if case.framing == "json" else found == case.text
    if usage is not None or case.recognised:
        assert name == (case.dialect or dialect)


@pytest.mark.parametrize(("dialect", "case"), rows())
def test_counts_model_and_text(dialect: str, case: Case) -> None:
    """S0.1, S0.2, F10."""
    check(dialect, case, read(*body_of(case, compact)))


@pytest.mark.parametrize(("dialect", "case"), rows())
def test_space_between_tokens_changes_nothing(dialect: str, case: Case) -> None:
    check(dialect, case, read(*body_of(case, spaced)))


@pytest.mark.parametrize(("dialect", "case"), rows(framings="json"))
@pytest.mark.parametrize("dump", [compact, indented])
def test_large_documents_say_the_same(dialect: str, case: Case, dump: Dump) -> None:
    """Scanned instead of parsed. Text comes in the order of the document, so only its size is compared."""
    findings = read(*body_of(case, dump), limits=SCANNED)
    small = read(*body_of(case, dump))
    assert reported(findings) == reported(small) == (reported(small)[0], case.usage)
    assert findings.model == case.model
    if "input" not in str(case.answer) and "args" not in str(case.answer) and "arguments" not in str(case.answer):
        assert findings.text.size == small.text.size


def _of_its_own_dialect(row: Any) -> bool:
    """Whether the row is counted by the dialect in whose table it stands."""
    case: Case = row.values[1]
    return not case.dialect and case.recognised


@pytest.mark.parametrize(("dialect", "case"), [row for row in rows() if _of_its_own_dialect(row)])
def test_one_dialect_configured_counts_the_same(dialect: str, case: Case) -> None:
    """`dialect: NAME`: nothing is recognised, and what is read is of that dialect."""
    alone = Wanted(frozenset(), [DIALECTS[dialect].shape], keep_text=1 << 16)
    check(dialect, case, read(*body_of(case, compact), alone))


@pytest.mark.parametrize("dump", [compact, spaced, indented, lambda value: b"\xef\xbb\xbf" + compact(value)])
@pytest.mark.parametrize(("dialect", "case"), rows(framings="json"))
def test_documents_are_recognised_by_their_beginning(dialect: str, case: Case, dump: Dump) -> None:
    recognised = WANTED.recognise(dump(case.answer)[:HEAD])
    assert recognised == (dialect if case.recognised else "")


@pytest.mark.parametrize(("dialect", "case"), rows(framings="sse ndjson eventstream wrapped"))
@pytest.mark.parametrize("dump", [compact, spaced])
def test_streams_are_recognised_by_their_first_events(dialect: str, case: Case, dump: Dump) -> None:
    recognised = {WANTED.recognise(dump(event)[:HEAD]) for event in case.answer}
    assert dialect in recognised
    assert recognised <= {dialect, ""}
    assert read(*body_of(case, dump)).shape == dialect


def test_comments_and_event_names_are_no_events() -> None:
    """OpenRouter keeps a connection open with comments."""
    frames = (
        b": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\n\n"
        b'data: {"id":"g","object":"chat.completion.chunk","model":"m","choices":[{"delta":{"content":"Hello"}}]}\n\n'
        b": OPENROUTER PROCESSING\n\n"
        b'event: message\ndata: {"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":8,"total_tokens":20}}\n\n'
        b"data: [DONE]\n\n"
    )
    assert reported(read(frames, SSE)) == ("openai", Reported(12, 8, 20))


OTHERS = {
    "OpenAI's error": {"error": {"message": "Rate limit reached", "type": "tokens", "param": None, "code": None}},
    "Anthropic's error": {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
    "Gemini's error": {
        "error": {"code": 429, "message": "Resource has been exhausted", "status": "RESOURCE_EXHAUSTED"}
    },
    "Bedrock's error": {"message": "The security token included in the request is invalid."},
    "Ollama's error": {"error": "model 'm' not found"},
    "counted in advance, Anthropic": {"input_tokens": 2095},
    "counted in advance, Gemini": {"totalTokens": 31, "promptTokensDetails": []},
    "other JSON": {"status": "ok", "usage": "none", "items": [{"usage": {"prompt_tokens": 9}}]},
    "an empty object": {},
    "a string": '{"choices":[]}',
    "a number": 20,
    "an empty array": [],
    "arrays of arrays": [[{"usage": {"total_tokens": 9}}]],
    "null": None,
}


@pytest.mark.parametrize("answer", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("content_type", [JSON, SSE, NDJSON])
def test_other_answers_have_no_usage_and_no_dialect(answer: Any, content_type: str) -> None:
    body = sse([compact(answer)]) if content_type == SSE else compact(answer)
    assert reported(read(body, content_type)) == ("", None)


FORGED = {
    "choices": [],
    "object": "chat.completion",
    "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, "inputTokens": 0, "input_tokens": 0},
    "usageMetadata": {"promptTokenCount": 0, "candidatesTokenCount": 0, "totalTokenCount": 0},
    "prompt_eval_count": 0,
    "eval_count": 0,
    "type": "message_start",
    "amazon-bedrock-invocationMetrics": {"inputTokenCount": 0, "outputTokenCount": 0},
}


def forged(answer: Any, string: str) -> Any:
    """`answer` with `string` for every text, and an object of the user's beside it wherever there is a container."""
    if isinstance(answer, dict):
        inner = {key: forged(value, string) for key, value in answer.items()}
        return {"0": FORGED, "metadata": FORGED, **inner} if "text" in inner or "content" in inner else inner
    if isinstance(answer, list):
        return [forged(value, string) for value in answer]
    return string if answer in ("Hello", "Hel", "lo", "Hm. ") else answer


@pytest.mark.parametrize(("dialect", "case"), rows())
@pytest.mark.parametrize(
    "string",
    [
        '","choices":[],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0},"x":"',
        '\n\ndata: {"choices":[],"usage":{"total_tokens":0}}\n\n',
        compact(FORGED).decode(),
        '\\","usage":{"input_tokens":0,"output_tokens":0,"total_tokens":0},"type":"message","x":"\\',
    ],
)
def test_what_users_write_changes_no_count(dialect: str, case: Case, string: str) -> None:
    """Neither generated text nor objects that a user may have put into a request that an answer repeats."""
    findings = read(*body_of(Case(case.name, forged(case.answer, string), None, case.framing), compact))
    name, usage = reported(findings)
    assert usage == case.usage
    assert name in (case.dialect or dialect, "")


def test_a_tool_schema_that_an_answer_repeats_does_not_choose_the_dialect() -> None:
    """The Responses API repeats the request's tools in its first event."""
    created = {"type": "response.created", "response": {"object": "response", "model": "m", "tools": [FORGED]}}
    turned = {"response": created["response"], "type": "response.created"}
    for event in (created, turned):
        assert WANTED.recognise(compact(event)) == "responses"
    completed = {
        "type": "response.completed",
        "response": {"usage": {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}, "tools": [FORGED]},
    }
    findings = read(sse([compact(created), compact(completed)]), SSE)
    assert reported(findings) == ("responses", Reported(3, 2, 5))


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize(
    "hostile",
    [
        b"{" * HEAD,
        b'{"a":' * (HEAD // 5),
        b'{"a":"' + b"\\" * HEAD,
        b'{"a":[' + b'"",' * (HEAD // 3),
        b"{" + b'"":"",' * (HEAD // 6),
        b" " * HEAD,
        b'{"a":{"a":[' * (HEAD // 11),
    ],
    ids=range(7),
)
def test_recognising_takes_no_time(name: str, hostile: bytes) -> None:
    search = re.compile(DIALECTS[name].shape.opening).search
    began = time.perf_counter()
    assert search(hostile[:HEAD]) is None
    assert time.perf_counter() - began < 0.05


@given(st.binary(max_size=300) | st.text(alphabet='{}[]",:\\ ab1', max_size=300).map(str.encode))
def test_recognising_never_fails(beginning: bytes) -> None:
    assert WANTED.recognise(beginning) in {"", *DIALECTS}


POINTERS = sorted({pointer for dialect in DIALECTS.values() for pointer in dialect.shape.counts})


@given(st.dictionaries(st.sampled_from(POINTERS), st.integers(0, 2**53), max_size=12))
def test_parts_are_never_more_than_their_wholes(counts: dict[str, int]) -> None:
    """Whatever a server says, a price that subtracts the cached part from the prompt stays positive."""
    findings = Findings()
    findings.counts = counts
    _, usage = reported(findings)
    if usage is None:
        return
    assert min(usage.cached, usage.cache_write, usage.reasoning) >= 0
    assert usage.prompt is None or 0 <= usage.cached + usage.cache_write <= usage.prompt
    assert usage.completion is None or usage.reasoning <= usage.completion


def test_names_are_those_of_the_configuration() -> None:
    assert list(DIALECTS) == list(TABLES)
    assert all(name == dialect.name for name, dialect in DIALECTS.items())
