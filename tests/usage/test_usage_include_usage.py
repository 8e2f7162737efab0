"""S0.D6: usage is asked for by the smallest edit, and what came only for that is taken out again."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from extproc.usage.include_usage import MAX_FRAME, UsageFrameFilter, with_include_usage

ADDED = b'"stream_options":{"include_usage":true}'


@pytest.mark.parametrize(
    ("body", "edited"),
    [
        (b'{"stream":true}', b'{"stream":true,' + ADDED + b"}"),
        (b'{\n "stream" : true ,\n "n": 1\n}\n', b'{\n "stream" : true ,\n "n": 1,' + ADDED + b"\n}\n"),
        (b'\xef\xbb\xbf{"stream":true}', b'\xef\xbb\xbf{"stream":true,' + ADDED + b"}"),
        (
            b'{"temperature":1.0e0,"temperature":0.10,"user":"\\u00e9\\/","stream":true}',
            b'{"temperature":1.0e0,"temperature":0.10,"user":"\\u00e9\\/","stream":true,' + ADDED + b"}",
        ),
        (b'{"stream_options":{},"stream":true}', b'{"stream_options":{"include_usage":true},"stream":true}'),
        (
            b'{"stream_options": { "include_obfuscation": false } ,"stream":true}',
            b'{"stream_options": { "include_obfuscation": false,"include_usage":true } ,"stream":true}',
        ),
        (
            rb'{"stream\u005foptions":{},"str\u0065am":true}',
            rb'{"stream\u005foptions":{"include_usage":true},"str\u0065am":true}',
        ),
        # Of duplicates the last counts.
        (b'{"stream":false,"stream":true}', b'{"stream":false,"stream":true,' + ADDED + b"}"),
        (
            b'{"stream_options":null,"stream":true,"stream_options":{}}',
            b'{"stream_options":null,"stream":true,"stream_options":{"include_usage":true}}',
        ),
        # Only the outermost members matter.
        (
            b'{"messages":[{"stream_options":{"include_usage":false},"stream":false}],"stream":true}',
            b'{"messages":[{"stream_options":{"include_usage":false},"stream":false}],"stream":true,' + ADDED + b"}",
        ),
        (
            b'{"metadata":{"stream_options":{}},"stream":true,"stream_options":{"include_usages":0}}',
            b'{"metadata":{"stream_options":{}},"stream":true,"stream_options":{"include_usages":0,"include_usage":true}}',
        ),
    ],
)
def test_the_member_is_added_and_nothing_else(body: bytes, edited: bytes) -> None:
    """S0.D6."""
    assert with_include_usage(body) == edited
    assert with_include_usage(edited) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"[true]",
        b'"stream"',
        b"{}",
        b'{"stream":false}',
        b'{"stream":"true"}',
        b'{"stream":1}',
        b'{"stream":null}',
        b'{"stream":true,"stream":false}',
        b'{"messages":[{"stream":true}]}',
        b'{"messages":"\\"stream\\": true"}',
        b'{"stream":true,"stream_options":null}',
        b'{"stream":true,"stream_options":[]}',
        b'{"stream":true,"stream_options":"x"}',
        b'{"stream":true,"stream_options":{"include_usage":true}}',
        b'{"stream":true,"stream_options":{"include_usage":false}}',
        b'{"stream":true,"stream_options":{"include_usage":null}}',
        b'{"stream":true,"stream_options":{"include\\u005fusage":0}}',
        b'{"stream":true,"stream_options":{},"stream_options":null}',
        b'{"stream":true',
        b'{"stream":true}}',
        b'{"stream":true,}',
        b'{"stream":true}{}',
        b'{"stream":true,"x":NaN}',
        b'{"stream":true,"x":"\xff"}',
        b'{"stream":true,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"stream":true,"stream_options":' + b'{"a":' * 100_000,
        '{"stream":true}'.encode("utf-16"),
    ],
)
def test_a_body_that_is_not_understood_or_needs_nothing_is_left(body: bytes) -> None:
    """S0.D6: what the client sent is never overwritten."""
    assert with_include_usage(body) is None


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=10,
)
OPTIONS = st.one_of(
    st.just({}), st.dictionaries(st.sampled_from(["include_usage", "include_obfuscation", "x"]), VALUES), VALUES
)
MEMBERS = st.one_of(
    st.just(("stream", True)),
    st.tuples(st.just("stream"), VALUES),
    st.tuples(st.just("stream_options"), OPTIONS),
    st.tuples(st.text(max_size=8), VALUES),
)


@given(
    pairs=st.lists(MEMBERS, max_size=6),
    streamed=st.booleans(),
    ascii_only=st.booleans(),
    space=st.sampled_from(["", " ", "\n\t"]),
)
def test_the_meaning_is_that_of_the_original_and_one_member(
    pairs: list[tuple[str, Any]], streamed: bool, ascii_only: bool, space: str
) -> None:
    """S0.D6: for any object; and without the inserted bytes it is the original again."""
    if streamed:
        pairs = [*pairs, ("stream", True)]
    texts = [
        f"{json.dumps(key, ensure_ascii=ascii_only)}{space}:{space}"
        f"{json.dumps(value, ensure_ascii=ascii_only, indent=len(space) or None)}"
        for key, value in pairs
    ]
    body = (space + "{" + space + f"{space},{space}".join(texts) + space + "}" + space).encode()
    expected = json.loads(body)
    options = expected.get("stream_options", {})
    edited = with_include_usage(body)
    if expected.get("stream") is not True or not isinstance(options, dict) or "include_usage" in options:
        assert edited is None
        return
    assert edited is not None
    expected["stream_options"] = {**options, "include_usage": True}
    assert json.loads(edited) == expected
    same = next((at for at, byte in enumerate(body) if byte != edited[at]), len(body))
    assert edited[:same] + edited[same + len(edited) - len(body) :] == body


USAGE = b'{"id":"c","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":4,"total_tokens":9}}'
FRAME = b"data: " + USAGE + b"\n\n"
DELTA = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"To b\xc3\xa9"}}],"usage":null}\n\n'
CONTINUOUS = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}],"usage":{"total_tokens":3}}\n\n'
AZURE_FIRST = b'data: {"choices":[],"prompt_filter_results":[{"prompt_index":0}],"usage":null}\n\n'
DONE = b"data: [DONE]\n\n"


def filtered(stream: bytes, cuts: list[int] | None = None) -> bytes:
    """What comes out of a filter that is fed `stream`, cut at `cuts`."""
    edges = [0, *sorted({cut % (len(stream) + 1) for cut in cuts or []}), len(stream)]
    return fed([stream[start:end] for start, end in pairwise(edges)])


def fed(chunks: list[bytes]) -> bytes:
    frames = UsageFrameFilter()
    out = b""
    for index, chunk in enumerate(chunks, 1):
        passed = frames.feed(chunk, last=index == len(chunks))
        assert passed is None or passed != chunk, "None says that nothing changed"
        out += chunk if passed is None else passed
    assert frames.held == 0
    return out


def bytewise(stream: bytes) -> bytes:
    return fed([bytes([byte]) for byte in stream])


FRAMES = {
    "chat completions": FRAME,
    "legacy completions": b'data: {"object":"text_completion","choices":[],"usage":{"total_tokens":9}}\n\n',
    "no space": b"data:" + USAGE + b"\n\n",
    "spaces": b'data:  { "choices" : [ ] , "usage" : { "total_tokens" : 9 } } \n\n',
    "other fields": b"id: 7\nevent: message\ndata: " + USAGE + b"\nretry: 10\n: comment\n\n",
    "several lines": b'data: {\ndata: "choices": [\ndata: ], "usage":\ndata:{"total_tokens":9}\ndata\ndata: }\n\n',
    "a name without a colon": b"data\ndata: " + USAGE + b"\n\n",
    "usage first": b'data: {"usage":{"total_tokens":9,"x":[{}]},"choices":[]}\n\n',
}


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_the_frame_is_taken_out_however_it_is_written_and_cut(frame: bytes, end: bytes) -> None:
    """S0.D6: with its blank line; every other byte passes."""
    before, frame, after = (part.replace(b"\n", end) for part in (b": hi\n\n" + DELTA, frame, CONTINUOUS + DONE))
    stream = before + frame + after
    assert filtered(frame) == b""
    assert bytewise(stream) == before + after
    for cut in range(len(stream) + 1):
        assert filtered(stream, [cut]) == before + after


@pytest.mark.parametrize(
    "event",
    [
        DELTA,
        CONTINUOUS,
        AZURE_FIRST,
        DONE,
        b": OPENROUTER PROCESSING\n\n",
        b"event: ping\n\n",
        b"\n\n\n",
        b'data: {"choices":[],"usage":[]}\n\n',
        b'data: {"choices":[],"usage":{}}\n\n',
        b'data: {"choices":[],"x":{"usage":{"total_tokens":9}}}\n\n',
        b'data: {"choices":null,"usage":{"total_tokens":9}}\n\n',
        b'data: {"x":{"choices":[],"usage":{"total_tokens":9}}}\n\n',
        b'data: {"usage":{"total_tokens":9}}\n\n',
        b"data: [" + USAGE + b"]\n\n",
        b"data: " + USAGE + b" x\n\n",
        b"data: " + USAGE + b"\ndata: [DONE]\n\n",
        b"data: " + USAGE[:-1] + b"\n\n",
        b'data: {"choices":[],"usage":{"total_tokens":1},"x":"\xff"}\n\n',
        b'data: {"x":{"choices":[{}]},"choices":[],"usage":{"total_tokens":9}}\n\n',
        b"data : " + USAGE + b"\n\n",
        b"Data: " + USAGE + b"\n\n",
        b": " + FRAME,
        b"data: " + json.dumps({"choices": [{"text": FRAME.decode()}]}).encode() + b"\n\n",
        b'data: {"choices":[],"usage":{"total_tokens":9},"x":"' + b"x" * MAX_FRAME + b'"}\n\n',
        b"id: " + b"7" * 2000 + b"\n" + FRAME,
    ],
)
def test_all_other_events_pass(event: bytes) -> None:
    """S0.D6: Azure's first frame, usage in every frame, usage beside choices, and what only looks alike."""
    assert UsageFrameFilter().feed(event) is None
    step = max(1, len(event) // 500)
    for cut in range(0, len(event), step):
        assert filtered(event + DONE, [cut]) == event + DONE


def test_each_of_several_frames_in_a_chunk_goes() -> None:
    assert UsageFrameFilter().feed(FRAME + DELTA + FRAME + FRAME + DONE + FRAME) == DELTA + DONE


def test_a_comment_line_before_the_frame_stays() -> None:
    assert bytewise(b": ping\n" + FRAME + DONE) == b": ping\n" + DONE


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""])
def test_a_byte_order_mark_stays_at_the_start(mark: bytes) -> None:
    assert bytewise(mark + FRAME + DONE) == mark + DONE


@pytest.mark.parametrize("rest", [b"", b"\n", b"\r", b"\r\n"])
def test_a_frame_without_its_blank_line_at_the_end_goes_too(rest: bytes) -> None:
    assert filtered(DELTA + FRAME[:-2] + rest) == DELTA
    assert bytewise(DELTA + FRAME[:-2] + rest) == DELTA


def test_an_event_that_is_cut_off_at_the_end_is_released() -> None:
    for end in range(len(FRAME) - 3):
        assert filtered(DELTA + FRAME[:end], [len(DELTA)]) == DELTA + FRAME[:end]
        assert fed([FRAME[:end], b""]) == FRAME[:end]


@pytest.mark.parametrize(
    ("begun", "held"),
    [
        (b"d", 1),
        (b"id: 4\nda", 8),
        (b"data: ", 6),
        (b"data: {", 7),
        (b'data: {"choices":[', 18),
        (FRAME[:-1], len(FRAME) - 1),
        (b": comment", 0),
        (b": comment\n", 0),
        (b"data: [", 0),
        (b"data:\ndata: x", 0),
        (b'data: {"choices":[{', 0),
        (b'data: {"choices": null', 0),
        (DELTA[:-2], 0),
        (AZURE_FIRST[:-2], 0),
        (b'data: {"error":{"message":"overloaded"}}\n', 0),
        (b"x" * 1100, 0),
        (b'data: {"a":"' + b"x" * (MAX_FRAME - 100), MAX_FRAME - 88),
        (b'data: {"a":"' + b"x" * MAX_FRAME, 0),
    ],
)
def test_only_what_may_become_the_frame_is_held(begun: bytes, held: int) -> None:
    """What cannot be the frame is not delayed: trailers instead of a last chunk would lose it."""
    whole, halves = UsageFrameFilter(), UsageFrameFilter()
    passed = whole.feed(DELTA + begun)
    assert whole.held == held
    assert passed == (DELTA + begun[: len(begun) - held] if held else None)
    for half in (begun[: len(begun) // 2], begun[len(begun) // 2 :]):
        halves.feed(half)
    assert halves.held == held


def test_held_bytes_follow_as_soon_as_they_are_no_frame() -> None:
    frames = UsageFrameFilter()
    assert frames.feed(b'data: {"choices"') == b""
    assert frames.held == 16
    assert frames.feed(b":  ") == b""
    assert frames.feed(b'[{"delta"') == b'data: {"choices":  [{"delta"'
    assert frames.held == 0
    assert frames.feed(b':1}]}\n\ndata: {"choices":[') == b":1}]}\n\n"
    assert frames.feed(b"]}\n") == b'data: {"choices":[]}\n'
    assert frames.feed(b"\n" + FRAME[:-1]) == b"\n"
    assert frames.feed(b"\n" + DELTA[:-40]) == DELTA[:-40], "what was held before says nothing of the next event"
    assert frames.held == 0


def test_memory_is_bounded() -> None:
    """64 KiB of an event and a chunk, whatever the stream."""
    for line in (b'data: {"a":"', b"data: {\n", b"event: x\n", b"data: "):
        frames = UsageFrameFilter()
        frames.feed(line)
        for _ in range(300):
            frames.feed(b" " * 1000)
            assert frames.held <= MAX_FRAME + 2


EVENTS = st.sampled_from(
    [
        FRAME, DELTA, CONTINUOUS, AZURE_FIRST, DONE, *FRAMES.values(), b": comment\n", b"\n", b"event: x\n\n",
        b"id: 1\n",
        FRAME[:-1], FRAME[:30], USAGE + b"\n\n", b"data: x\n\n", b'data: {"choices":[{"a":1}],\n', b"data: {}\n\n",
    ]
)  # fmt: skip
LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


def expected_of(stream: bytes) -> bytes:
    """The stream without usage frames, the plain way: line by line, with all of it at hand."""
    out, block = b"", b""
    for line in re.findall(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z", stream):
        if not block and (line[:1] == b":" or not line.strip(b"\r\n")):
            out += line
        elif line.strip(b"\r\n"):
            block += line
        else:
            out += b"" if is_frame(block) else block + line
            block = b""
    return out if is_frame(block) else out + block


def is_frame(block: bytes) -> bool:
    lines = re.split(rb"\r\n|\r|\n", block)
    data = b"\n".join(line.partition(b":")[2] for line in lines if line.partition(b":")[0] == b"data")
    try:
        value = json.loads(data)
    except ValueError:
        return False
    return isinstance(value, dict) and value.get("choices") == [] and isinstance(value.get("usage"), dict)


@given(st.lists(st.tuples(EVENTS, LINE_ENDS), max_size=8), st.lists(st.integers(0, 5000), max_size=12))
@example([(FRAME, b"\r"), (b"\n", b"\n"), (DONE, b"\n")], [])
@example([(FRAME, b"\n"), (b"\n", b"\n"), (DONE, b"\n")], [])
def test_any_cut_of_any_stream_gives_the_same(events: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    """S0.D6: what comes out is what one would take out by hand, wherever chunks end."""
    stream = b"".join(event.replace(b"\n", end) for event, end in events)
    expected = expected_of(stream)
    assert filtered(stream) == expected
    assert filtered(stream, cuts) == expected
    assert bytewise(stream) == expected


@given(st.binary(max_size=60), st.lists(st.integers(0, 100), max_size=4))
def test_any_bytes_pass(junk: bytes, cuts: list[int]) -> None:
    """Nothing raises, and what is no frame comes out as it went in."""
    assert filtered(junk, cuts) == junk
    assert filtered(junk + b"\n\n" + FRAME + junk, cuts) == junk + b"\n\n" + junk
