"""JSON and SSE readers: what is found, whatever the pieces, and what is held."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from extproc.bodies.findings import Findings, Values
from extproc.bodies.json_scanner import JsonScanner
from extproc.bodies.reader import BodyLimits, BodyReader, ReaderFactory
from extproc.bodies.wanted import Wanted
from extproc.usage.dialects import DIALECTS

TOTAL = ("usage", "total_tokens")
PATHS = frozenset({TOTAL, ("model",), ("choices", "0", "finish_reason"), ("list", "2")})


WANTED = Wanted(PATHS, [dialect.shape for dialect in DIALECTS.values()], keep_text=1 << 20)


def read(
    pieces: Iterator[bytes] | list[bytes], content_type: str = "", wanted: Wanted = WANTED, **limits: int
) -> Values:
    return read_all(pieces, content_type, wanted, **limits).findings.values


def read_all(
    pieces: Iterator[bytes] | list[bytes], content_type: str = "", wanted: Wanted = WANTED, **limits: int
) -> BodyReader:
    reader = ReaderFactory(wanted, BodyLimits(**limits)).open(content_type, "")
    for piece in pieces:
        reader.feed(piece)
    reader.close()
    return reader


def found_in(reader: BodyReader) -> tuple[object, ...]:
    """All that was found, for comparison."""
    found = reader.findings
    return found.values, found.counts, found.model, found.shape, found.text.size, found.text.decoded()


def split_at(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def sse(pieces: list[bytes]) -> Values:
    return read(pieces, "text/event-stream; charset=utf-8")


F1 = (
    b'{"id":"x","model":"meta-llama/Llama-3.1-8B-Instruct","choices":[{"finish_reason":"stop","text":"\\u00e9 \\"}"}],'
    b'"usage":{"prompt_tokens":12,"completion_tokens":12,"total_tokens":24}}'
)
FRAMES = [
    b'data: {"id":"a","usage":null,"choices":[{"delta":{"content":"To b\xc3\xa9"}}]}',
    b'data: {"id":"b","usage":null,"choices":[{"delta":{"content":" or not"}}]}',
    b'data: {"id":"c","usage":{"prompt_tokens":0,"completion_tokens":4,"total_tokens":4},"choices":[]}',
    b"data: [DONE]",
]
F2A = FRAMES[0] + b"\n" + FRAMES[1] + b"\n\n\n" + FRAMES[2] + b"\n" + FRAMES[3] + b"\n"
F2B = b"\n\n".join(FRAMES) + b"\n\n"


@pytest.mark.parametrize("stream", [F2A, F2B, F2B.replace(b"\n", b"\r\n"), F2B.replace(b"\n", b"\r")])
def test_sse_every_split_gives_the_same_usage(stream: bytes) -> None:
    """S0.3, S0.4, S0.6, S0.D1, S0.D2: also inside UTF-8, `\\r\\n` and `data: `."""
    for cut in range(len(stream) + 1):
        assert sse([stream[:cut], stream[cut:]])[TOTAL] == 4
    assert sse([bytes([byte]) for byte in stream])[TOTAL] == 4


def test_json_every_split_gives_the_same_usage() -> None:
    """S0.6, buffered and scanned."""
    expected: Values = {
        TOTAL: 24,
        ("model",): "meta-llama/Llama-3.1-8B-Instruct",
        ("choices", "0", "finish_reason"): "stop",
    }
    for cut in range(len(F1) + 1):
        for buffer in (1 << 20, 1):
            assert read([F1[:cut], F1[cut:]], json_buffer=buffer) == expected
    assert read([bytes([byte]) for byte in F1], json_buffer=1) == expected


@pytest.mark.parametrize(
    ("name", "stream", "expected"),
    [
        ("no [DONE]", b"\n\n".join(FRAMES[:3]) + b"\n\n", 4),
        ("frame after usage", b"\n\n".join([FRAMES[2], FRAMES[0], FRAMES[3]]) + b"\n\n", 4),
        ("missing final blank line", b"\n\n".join(FRAMES[:3]), 4),
        ("comments and keep-alives", b": ping\n\n" + FRAMES[2] + b"\n: bye\n\n: ping\n\n", 4),
        ("named events", b"event: message\nid: 7\n" + FRAMES[2] + b"\n\n", 4),
        ("byte order mark", b"\xef\xbb\xbf" + FRAMES[2] + b"\n\n", 4),
        ("no space after the colon", FRAMES[2].replace(b"data: ", b"data:") + b"\n\n", 4),
        ("only [DONE]", b"data: [DONE]\n\n", None),
        ("no JSON before [DONE]", b"data: total_tokens\n\ndata: [DONE]\n\n", None),
        ("usage over two data lines", b'data: {"usage":\ndata: {"total_tokens":42}}\n\n', 42),
        ("usage over three data lines", b'data: {"usage":\ndata: {"total_tokens":42}\ndata: }\n\n', 42),
        (
            "last of continuous usage",
            b"".join(FRAMES[2].replace(b's":4', b's":%d' % n) + b"\n\n" for n in (1, 2, 9)),
            9,
        ),
        ("null after usage", FRAMES[2] + b'\n\ndata: {"usage":{"total_tokens":null}}\n\n', 4),
        ("empty", b"", None),
        ("blank lines only", b"\n\n\r\n\r\n\n", None),
        ("an answer that is HTML", b"<html>total_tokens</html>", None),
        ("NUL bytes", b"\x00\x00" + FRAMES[2] + b"\n\n" + FRAMES[2] + b"\n\n", 4),
    ],
)
def test_sse_shapes(name: str, stream: bytes, expected: int | None) -> None:
    """S0.D1, S0.D3 and the shapes real servers send."""
    assert sse([stream]).get(TOTAL) == expected
    assert sse([bytes([byte]) for byte in stream]).get(TOTAL) == expected


def test_split_usage_of_two_events_is_found_by_two_pointers() -> None:
    """S0.D4: Anthropic's input tokens come with the first event, output tokens with a later one."""
    paths = frozenset({("message", "usage", "input_tokens"), ("usage", "output_tokens")})
    stream = (
        b"event: message_start\n"
        b'data: {"type":"message_start","message":{"usage":{"input_tokens":25,"output_tokens":1}}}\n\n'
        b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":15}}\n\n'
    )
    values = read([stream], "text/event-stream", Wanted(paths))
    assert values == {("message", "usage", "input_tokens"): 25, ("usage", "output_tokens"): 15}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["usage", "total_tokens", "model", "list", "choices", "x", 'é"\\']), inner, max_size=5
        )
    ),
    max_leaves=20,
)


@given(json_values, st.lists(st.integers(0, 500), max_size=6), st.booleans(), st.booleans())
@example({"usage": {"total_tokens": 5}, "list": [[1], "a", 7]}, [3], True, False)
def test_scanner_agrees_with_a_parser(document: Any, cuts: list[int], ascii_only: bool, spaced: bool) -> None:
    """S0.6: for any JSON and any split, scanning finds what parsing finds."""
    text = json.dumps(document, ensure_ascii=ascii_only, indent=1 if spaced else None).encode("utf-8", "surrogatepass")
    expected, found = Findings(), Findings()
    WANTED.document.extract(json.loads(text), expected)
    scanner = JsonScanner(WANTED.document, found)
    for piece in split_at(text, cuts):
        scanner.feed(piece)
    scanner.close()
    assert (found.values, found.counts, found.model) == (expected.values, expected.counts, expected.model)


@given(
    st.binary(max_size=200) | st.text('{}[]":,\\ useagmodl0123', max_size=60).map(str.encode),
    st.lists(st.integers(0, 200), max_size=5),
)
def test_no_bytes_raise_and_no_split_changes_the_answer(body: bytes, cuts: list[int]) -> None:
    """S0.6 for bytes that are not JSON and not SSE."""
    for content_type in ("application/json", "text/event-stream"):
        for buffer in (1, 1 << 20):
            whole = found_in(read_all([body], content_type, json_buffer=buffer))
            assert found_in(read_all(split_at(body, cuts), content_type, json_buffer=buffer)) == whole


events = st.lists(
    st.tuples(
        st.sampled_from(["data: ", "data:", ": ", "event: ", ""]),
        st.sampled_from(
            [f'{{"usage":{{"total_tokens":{n}}}}}' for n in (0, 7, 123)] + ["[DONE]", "{", "}", '{"usage":null}', "é"]
        ),
        st.sampled_from(["\n", "\n\n", "\r\n", "\r\n\r\n", "\r", "\r\r"]),
    ),
    max_size=12,
)


@given(events, st.lists(st.integers(0, 400), max_size=8))
def test_sse_no_split_changes_the_answer(parts: list[tuple[str, str, str]], cuts: list[int]) -> None:
    """S0.6 with every kind of line ending."""
    stream = "".join(map("".join, parts)).encode()
    assert sse(split_at(stream, cuts)) == sse([stream])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"usage":{"total_tokens":1},"usage":{"total_tokens":2}}', {TOTAL: 2}),
        ('{"usage":{"total_tokens":1},"usage":{}}', {}),
        ('{"usage":{"total_tokens":1},"usage":null}', {}),
        ('{"us\\u0061ge":{"total_tokens":3}}', {TOTAL: 3}),
        ('{"usage":{"total_tokens":[1]}}', {}),
        ('{"usage":[{"total_tokens":1}]}', {}),
        ('{"list":[0,1,"two"]}', {("list", "2"): "two"}),
        ('{"usage":{"total_tokens":5}', {TOTAL: 5}),
        ('{"usage":{"total_tokens":5', {}),
        ('{"model":"' + "m" * 70_000 + '","usage":{"total_tokens":5}}', {TOTAL: 5}),
        ('{"' + "k" * 70_000 + '":1,"usage":{"total_tokens":5}}', {TOTAL: 5}),
        ('{"n":' + "9" * 100_000 + ',"usage":{"total_tokens":5}}', {TOTAL: 5}),
        ("[" * 100_000 + '{"usage":{"total_tokens":5}}', {}),
        ('{"a":' + "[" * 100_000 + "]" * 100_000 + ',"usage":{"total_tokens":5}}', {TOTAL: 5}),
        ('{"a":"\\\\\\"","usage":{"total_tokens":5}}', {TOTAL: 5}),
    ],
)
def test_scanned_json_shapes(text: str, expected: Values) -> None:
    body = text.encode()
    for size in (7, 1000, len(body)):
        pieces = [body[start : start + size] for start in range(0, len(body), size)]
        assert read(pieces, json_buffer=16) == expected


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
def test_memory_does_not_grow_with_the_body(content_type: str) -> None:
    """S0.D12: a 50 MB answer is read with less than 2 MB held."""
    filler = b"x" * 65_536
    reader = ReaderFactory(WANTED, BodyLimits()).open(content_type, "")
    reader.feed(b'data: {"c":"' if "event" in content_type else b'{"c":"')
    tracemalloc.start()
    for _ in range(800):
        reader.feed(filler)
    reader.feed(b'","usage":{"total_tokens":9}}\n\ndata: {"usage":{"total_tokens":24}}\n\n')
    reader.close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 1024 * 1024
    assert reader.findings.values[TOTAL] == (24 if "event" in content_type else 9)
    assert reader.unread is None


@pytest.mark.parametrize("size", [1000, 65_536, 1 << 21])
def test_usage_behind_two_megabytes_of_one_event_is_found(size: int) -> None:
    """An image inside the event that tells the usage, as the Responses API sends it."""
    wanted = Wanted(frozenset(), [dialect.shape for dialect in DIALECTS.values()])
    usage = b'"usage":{"input_tokens":37,"output_tokens":11}'
    event = b'{"type":"response.completed","response":{"model":"m","output":["%s"],%s}}' % (b"A" * 2_000_000, usage)
    stream = b'event: x\ndata: {"type":"response.created"}\n\nevent: response.completed\ndata: ' + event
    for end in (b"", b"\n", b"\n\n", b"\r\n\r\n"):
        body = stream + end
        pieces = [body[start : start + size] for start in range(0, len(body), size)]
        found = read_all(pieces, "text/event-stream", wanted).findings
        assert found.counts == {"/response/usage/input_tokens": 37, "/response/usage/output_tokens": 11}
        assert found.model == "m"


def test_a_frame_without_usage_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An SSE chunk without what is looked for costs a scan."""
    parsed: list[bytes] = []
    parse = orjson.loads

    def loads(data: bytes) -> Any:
        parsed.append(data)
        return parse(data)

    monkeypatch.setattr("extproc.bodies.events.orjson.loads", loads)
    frames = [b'data: {"model":"m","choices":[]}\n\n', *[FRAMES[0] + b"\n\n"] * 100, *(f + b"\n\n" for f in FRAMES)]
    assert read(frames, "text/event-stream", Wanted(frozenset({TOTAL}), [DIALECTS["openai"].shape])) == {TOTAL: 4}
    assert len(parsed) == 2, "the first for the model, and the one with the usage"


def test_text_is_kept_for_estimates() -> None:
    """S0.D5: generated text, not JSON; of a stream, of a document that is parsed and of one that is scanned."""
    stream = read_all([frame + b"\n\n" for frame in FRAMES], "text/event-stream")
    assert stream.findings.text.decoded() == "To bé or not"
    body = (
        b'{"choices":[{"message":{"content":"f\\u00f6ur","tool_calls":[{"function":{"arguments":"{}"}}]}}],"id":"zz"}'
    )
    for buffer in (1, 1 << 20):
        assert read_all([body], json_buffer=buffer).findings.text.decoded() == "föur{}"


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream", "application/x-ndjson", ""])
def test_the_bytes_tell_the_format_where_the_content_type_does_not(content_type: str) -> None:
    """A stream that is called JSON, and a document that is called a stream, are read as what they are."""
    for body, expected in ((F2B, 4), (F1, 24), (F1 + b"\n" + F1, 24)):
        if content_type == "application/x-ndjson" and body is F2B:
            continue
        for cut in range(0, len(body), 7):
            assert read([body[:cut], body[cut:]], content_type).get(TOTAL) == expected
