"""What broken servers send, through every reader: nothing is raised, held or lost that was seen before."""

from __future__ import annotations

import gzip
import random
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Sequence

import brotli
import pytest
import zstandard

from extproc.bodies.reader import BodyLimits, BodyReader, ReaderFactory
from extproc.bodies.wanted import Wanted
from extproc.usage.dialects import DIALECTS, reported
from fuzz.framing import EVENT_STREAM, JSON, NDJSON, SSE, event_stream, message, ndjson, sse

WANTED = Wanted(
    frozenset({("usage", "total_tokens"), ("model",)}), [each.shape for each in DIALECTS.values()], keep_text=65_536
)
TOTAL = "/usage/total_tokens"

Frame = Callable[[Sequence[bytes]], bytes]
STREAMS: dict[str, tuple[str, Frame]] = {
    "sse": (SSE, sse),
    "sse crlf": (SSE, lambda events: sse(events, b"\r\n")),
    "ndjson": (NDJSON, ndjson),
    "eventstream": (EVENT_STREAM, event_stream),
    "wrapped": (EVENT_STREAM, lambda events: event_stream(events, wrap=True)),
}
EVERY_STREAM = pytest.mark.parametrize(("content_type", "frame"), STREAMS.values(), ids=STREAMS)
TYPES = (JSON, SSE, NDJSON, EVENT_STREAM, "", "text/html")

DELTA = '{"object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":"é😀"}}]}'.encode()
USAGE = b'{"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":14,"total_tokens":24}}'
COUNTED = {"/usage/prompt_tokens": 10, "/usage/completion_tokens": 14, TOTAL: 24}

DIGITS = b"9" * 100_000
DEEP = b"[" * 100_000 + b"]" * 100_000
NO_COUNTS = {
    "string": b'"24"',
    "negative": b"-24",
    "infinite": b"1e400",
    "minus infinite": b"-1e400",
    "fraction": b"24.5",
    "null": b"null",
    "true": b"true",
    "list": b"[24]",
    "object": b'{"a":24}',
    "beyond doubles": b"9007199254740994",
    "gigantic": DIGITS,
    "not a number": b"NaN",
    "nothing": b"",
    "deep": DEEP,
    "lone surrogate": rb'"\ud800"',
    "split UTF-8": b'"\xc3"',
}
ODD_VALUES = {
    "infinite": b"1e400",
    "gigantic": DIGITS,
    "deep list": DEEP,
    "deep object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "lone surrogate": rb'"\ud83d"',
    "long string": b'"' + b"x" * 100_000 + b'"',
    "backslashes": b'"' + b"\\" * 100_000 + b'"',
    "quotes and brackets": rb'"\"}]\\"',
    "usage in a string": rb'"{\"usage\":{\"total_tokens\":99}}"',
}
NOISE = {
    "nothing": b"",
    "NUL bytes": b"\x00" * 100,
    "byte order mark": b"\xef\xbb\xbf",
    "half a character": b"\xf0\x9f\x98",
    "a page": b"<html><body>total_tokens</body></html>",
    "words": b"upstream connect error or disconnect/reset before headers",
    "half an event": USAGE[:-20],
    "an opening bracket": b"{",
    "closing brackets": b"]}" * 1000,
    "a quote": b'"',
    "a lone backslash": b"\\",
    "random bytes": random.Random(7).randbytes(5000),
}


def open_reader(content_type: str, encoding: str = "", **limits: int) -> BodyReader:
    return ReaderFactory(WANTED, BodyLimits(**limits)).open(content_type, encoding)


def read(content_type: str, pieces: Iterable[bytes], encoding: str = "", **limits: int) -> BodyReader:
    """Read, and ask for all that an exchange asks for."""
    reader = open_reader(content_type, encoding, **limits)
    for piece in pieces:
        reader.feed(piece)
    reader.close()
    reported(reader.findings)
    reader.findings.text.decoded()
    return reader


def cut(body: bytes, size: int) -> Iterable[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))


@EVERY_STREAM
@pytest.mark.parametrize("value", NO_COUNTS.values(), ids=NO_COUNTS)
def test_a_number_that_is_none_replaces_none(content_type: str, frame: Frame, value: bytes) -> None:
    broken = b'{"choices":[],"usage":{"total_tokens":' + value + b"}}"
    stream = frame([DELTA, USAGE, broken])
    for size in (1000, len(stream)):
        assert read(content_type, cut(stream, size)).findings.counts == COUNTED


@pytest.mark.parametrize("value", NO_COUNTS.values(), ids=NO_COUNTS)
@pytest.mark.parametrize("json_buffer", [16, 1 << 20])
def test_a_number_that_is_none_is_not_counted(value: bytes, json_buffer: int) -> None:
    body = b'{"object":"chat.completion","usage":{"prompt_tokens":10,"total_tokens":' + value + b"}}"
    for size in (1000, len(body)):
        counts = read(JSON, cut(body, size), json_buffer=json_buffer).findings.counts
        assert counts == {"/usage/prompt_tokens": 10}


@EVERY_STREAM
@pytest.mark.parametrize("value", ODD_VALUES.values(), ids=ODD_VALUES)
def test_odd_json_beside_usage_hides_no_usage(content_type: str, frame: Frame, value: bytes) -> None:
    stream = frame([DELTA, b'{"x":' + value + b',"usage":{"prompt_tokens":10,"total_tokens":24}}'])
    for size in (1000, len(stream)):
        assert read(content_type, cut(stream, size)).findings.counts == {"/usage/prompt_tokens": 10, TOTAL: 24}


@pytest.mark.parametrize("value", ODD_VALUES.values(), ids=ODD_VALUES)
@pytest.mark.parametrize("json_buffer", [16, 1 << 20])
def test_odd_json_beside_usage_hides_no_usage_of_a_document(value: bytes, json_buffer: int) -> None:
    body = b'{"x":' + value + b',"usage":{"total_tokens":24}}'
    for size in (1000, len(body)):
        assert read(JSON, cut(body, size), json_buffer=json_buffer).findings.counts == {TOTAL: 24}


@pytest.mark.parametrize("depth", [100, 254, 255, 300, 1000, 1024, 1025, 100_000])
@pytest.mark.parametrize("json_buffer", [16, 1 << 20])
def test_deep_text_does_no_harm(depth: int, json_buffer: int) -> None:
    """Generated text may be any JSON value, tool arguments for one."""
    value = b"[" * depth + b"]" * depth
    for body in (
        b'{"type":"message","content":[{"type":"tool_use","input":' + value + b'}],"usage":{"total_tokens":24}}',
        b'{"type":"message","content":['
        + b",".join([b'{"input":' + value + b"}"] * 2)
        + b'],"usage":{"total_tokens":24}}',
        b'{"choices":[{"message":{"refusal":' + value + b'}}],"usage":{"total_tokens":24}}',
    ):
        for size in (1000, len(body)):
            assert read(JSON, cut(body, size), json_buffer=json_buffer).findings.counts == {TOTAL: 24}


@EVERY_STREAM
@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
def test_noise_after_usage_takes_nothing_back(content_type: str, frame: Frame, noise: bytes) -> None:
    """Inside of a frame and outside of any; whatever the pieces."""
    for stream in (frame([DELTA, USAGE, noise]), frame([DELTA, USAGE]) + noise):
        for size in (1, len(stream)):
            assert read(content_type, cut(stream, size)).findings.counts == COUNTED


@EVERY_STREAM
@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
def test_a_frame_of_noise_hides_no_usage(content_type: str, frame: Frame, noise: bytes) -> None:
    stream = frame([noise, DELTA, noise, USAGE])
    assert read(content_type, [stream]).findings.counts == COUNTED


@EVERY_STREAM
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_stream_cut_anywhere_keeps_whole_events_only(content_type: str, frame: Frame, ascii_only: bool) -> None:
    """24 that was cut after the 2 is not 2."""
    delta = DELTA.replace("é😀".encode(), rb"\u00e9\ud83d\ude00") if ascii_only else DELTA
    stream = frame([delta, USAGE])
    for kept in range(len(stream) + 1):
        counts = read(content_type, [stream[:kept]]).findings.counts
        assert counts.items() <= COUNTED.items()


@pytest.mark.parametrize("json_buffer", [16, 1 << 20])
def test_a_document_cut_anywhere_keeps_whole_numbers_only(json_buffer: int) -> None:
    body = DELTA[:-1] + b"," + USAGE[1:]
    for kept in range(len(body)):
        reader = read(JSON, [body[:kept]], json_buffer=json_buffer)
        assert reader.findings.counts.items() <= COUNTED.items()
        assert not reader.complete
    assert read(JSON, [body]).complete


@pytest.mark.parametrize("content_type", TYPES)
@pytest.mark.parametrize(("frame_type", "frame"), STREAMS.values(), ids=STREAMS)
def test_formats_under_another_name(content_type: str, frame_type: str, frame: Frame) -> None:
    """No harm; what can be told by its first bytes is read as what it is."""
    findings = read(content_type, cut(frame([DELTA, USAGE]), 50)).findings
    told = frame_type == content_type or (frame_type == SSE and content_type in (JSON, "", "text/html"))
    assert findings.counts == COUNTED if told else findings.counts in ({}, COUNTED)


@pytest.mark.parametrize("content_type", [JSON, SSE, NDJSON, "", "text/html", EVENT_STREAM])
def test_a_json_error_under_the_name_of_a_stream(content_type: str) -> None:
    """A gateway's JSON answer with the content type of the stream that did not come."""
    body = b'{"object":"chat.completion","choices":[],"usage":{"total_tokens":24}}'
    for pieces in ([body], cut(body, 1)):
        assert read(content_type, pieces).findings.counts == {TOTAL: 24}


@pytest.mark.parametrize("content_type", TYPES)
@pytest.mark.parametrize("encoding", ["", "gzip", "br", "zstd", "deflate", "identity", "gzip, br", "x-unknown"])
def test_random_bytes(content_type: str, encoding: str) -> None:
    rng = random.Random(f"{content_type}{encoding}")
    for length in (1, 7, 100, 20_000):
        body = rng.randbytes(length)
        assert read(content_type, cut(body, max(1, length // 50)), encoding).findings.counts == {}


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda body: body,
    "gzip": lambda body: gzip.compress(body, 1),
    "deflate": zlib.compress,
    "br": lambda body: brotli.compress(body, quality=1),
    "zstd": lambda body: zstandard.ZstdCompressor(level=1).compress(body),
}


@pytest.mark.parametrize("content_type", [JSON, SSE, NDJSON, EVENT_STREAM])
@pytest.mark.parametrize("encoding", ENCODERS)
@pytest.mark.parametrize("filler", [b"x", b'{"a":', b"\x00", b"\\", b"[", b"9"])
def test_a_megabyte_of_the_same_is_read_in_time(content_type: str, encoding: str, filler: bytes) -> None:
    """Where something grew with the square of the length, this would take minutes."""
    body = ENCODERS[encoding](filler * (1_000_000 // len(filler)))
    began = time.process_time()
    reader = read(content_type, cut(body, 4096), encoding, sse_event=256 * 1024)
    assert time.process_time() - began < 5
    assert reader.findings.counts == {}


@pytest.mark.parametrize("content_type", TYPES)
def test_10_mb_without_a_line_end_hold_no_memory(content_type: str) -> None:
    """S0.D12."""
    piece = b"x" * 65_536
    reader = open_reader(content_type)
    reader.feed(b'data: {"c":"' if content_type == SSE else b'{"c":"')
    tracemalloc.start()
    for _ in range(160):
        reader.feed(piece)
    reader.close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 1024 * 1024


@pytest.mark.parametrize("encoding", [encoding for encoding in ENCODERS if encoding])
@EVERY_STREAM
def test_compressed_streams_cut_anywhere(encoding: str, content_type: str, frame: Frame) -> None:
    body = ENCODERS[encoding](frame([DELTA, USAGE]))
    for kept in range(len(body)):
        counts = read(content_type, [body[:kept]], encoding).findings.counts
        assert counts.items() <= COUNTED.items()
    assert read(content_type, cut(body, 1), encoding).findings.counts == COUNTED


def test_a_message_with_a_bad_checksum_among_good_ones() -> None:
    stream = message(USAGE) + message(USAGE.replace(b"24", b"99"))[:-1] + b"\x00" + message(DELTA)
    reader = read(EVENT_STREAM, [stream])
    assert reader.findings.counts == COUNTED
    assert reader.unread == "corrupt"
