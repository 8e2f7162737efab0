"""Newline-delimited JSON: what is found, whatever the pieces; what is parsed; what is held."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.bodies.findings import Findings
from extproc.bodies.ndjson_reader import NdjsonReader
from extproc.bodies.shapes import Shape
from extproc.bodies.wanted import Wanted
from fuzz.framing import compact, ndjson

SHAPE = Shape(
    name="test",
    opening=rb'"done"',
    needles=(b"eval_count",),
    counts=("/prompt_eval_count", "/eval_count"),
    models=("/model",),
    event_keys=("content",),
)
WANTED = Wanted(frozenset({("eval_count",)}), [SHAPE], keep_text=1000)
LIMIT = 4096

DELTA = compact({"model": "llama3.2", "message": {"role": "assistant", "content": "Café"}, "done": False})
END = b'{"model":"llama3.2","message":{"content":""},"done":true,"prompt_eval_count":26,"eval_count":282}'
STREAM = ndjson([DELTA, DELTA, END])
COUNTED = {"/prompt_eval_count": 26, "/eval_count": 282}
FIVE, SIX, SEVEN = (b'{"eval_count":%d}' % count for count in (5, 6, 7))


def read(pieces: Iterable[bytes], limit: int = LIMIT) -> tuple[NdjsonReader, Findings]:
    findings = Findings(WANTED.keep_text)
    reader = NdjsonReader(WANTED, findings, limit)
    for piece in pieces:
        reader.feed(piece)
    reader.close()
    return reader, findings


@pytest.mark.parametrize("stream", [STREAM, STREAM.replace(b"\n", b"\r\n"), STREAM.removesuffix(b"\n")])
def test_every_split_gives_the_same_usage(stream: bytes) -> None:
    """S0.6: also inside of UTF-8 and of line ends; the last line needs none."""
    for cut in range(len(stream) + 1):
        reader, findings = read([stream[:cut], stream[cut:]])
        assert findings.counts == COUNTED
        assert findings.values == {("eval_count",): 282}
        assert (findings.model, findings.text.decoded()) == ("llama3.2", "CaféCafé")
        assert (reader.unread, reader.mid_event, reader.complete) == (None, False, True)
    assert read(bytes([byte]) for byte in stream)[1].counts == COUNTED


@pytest.mark.parametrize(
    ("name", "stream", "expected"),
    [
        ("the last value counts", FIVE + b"\n" + SEVEN + b"\n", 7),
        ("null takes nothing back", FIVE + b'\n{"eval_count":null}\n', 5),
        ("no count takes nothing back", FIVE + b'\n{"eval_count":-1}\n{"eval_count":"9"}\n{"eval_count":1.5}\n', 5),
        ("blank lines", b"\n\r\n \n" + FIVE + b"\n\n", 5),
        ("byte order mark", b"\xef\xbb\xbf" + FIVE + b"\n", 5),
        ("byte order mark and no line end", b"\xef\xbb\xbf" + FIVE, 5),
        ("a line that is no JSON", b'{"eval_count":\n' + FIVE + b"\n<html>eval_count\n", 5),
        ("NUL bytes", b"\x00\n" + FIVE + b"\n\x00\x00", 5),
        ("nothing", b"", None),
    ],
)
def test_shapes(name: str, stream: bytes, expected: int | None) -> None:
    assert read([stream])[1].counts.get("/eval_count") == expected
    assert read(bytes([byte]) for byte in stream)[1].counts.get("/eval_count") == expected


@pytest.mark.parametrize("kept", range(1, len(END)))
def test_a_stream_cut_inside_a_line_says_so(kept: int) -> None:
    """What came before counts, and its text for an estimate; of the cut line at most a number that is whole."""
    reader, findings = read([ndjson([FIVE, DELTA]), END[:kept]])
    assert findings.counts in ({"/eval_count": 5}, {"/eval_count": 5, "/prompt_eval_count": 26})
    assert findings.text.decoded() == "Café"
    assert reader.mid_event


def test_a_stream_cut_between_lines_does_not() -> None:
    assert not read([ndjson([DELTA, FIVE])])[0].mid_event


@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 20])
@pytest.mark.parametrize("over", [0, 1, 2, LIMIT])
def test_a_line_over_the_limit_is_scanned_however_it_comes(size: int, over: int) -> None:
    """It is not held, and its counts are found all the same, in the order of the lines."""
    long = SIX + b" " * (LIMIT - len(SIX) + over)
    for lines, expected in (([FIVE, long], 6), ([long, FIVE], 5), ([FIVE, long, long, SEVEN], 7)):
        stream = ndjson(lines)
        reader, findings = read(stream[start : start + size] for start in range(0, len(stream), size))
        assert findings.counts == {"/eval_count": expected}
        assert reader.unread is None
        assert not reader.mid_event


def test_a_cut_inside_a_line_over_the_limit() -> None:
    reader, findings = read([FIVE + b"\n", b'{"x":"' + b"x" * LIMIT, b"x"])
    assert (findings.counts, reader.mid_event) == ({"/eval_count": 5}, True)


def test_lines_without_counts_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the beginning, which tells the model, a piece without counts costs a search."""
    parsed: list[bytes] = []
    parse = orjson.loads

    def loads(data: bytes) -> Any:
        parsed.append(data)
        return parse(data)

    monkeypatch.setattr("extproc.bodies.events.orjson.loads", loads)
    _, findings = read([DELTA + b"\n"] * 100 + [DELTA + b"\n" + END + b"\n"])
    assert findings.counts == COUNTED
    assert len(parsed) < 10


def test_memory_does_not_grow_with_a_line() -> None:
    """S0.D12: 10 MB without a line end are passed by, and what follows is read."""
    findings = Findings()
    reader = NdjsonReader(WANTED, findings, LIMIT)
    piece = b"x" * 65_536
    tracemalloc.start()
    reader.feed(FIVE + b"\n")
    for _ in range(160):
        reader.feed(piece)
    reader.feed(b"\n" + SEVEN + b"\n")
    reader.close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 512 * 1024
    assert findings.counts == {"/eval_count": 7}


def test_a_long_line_byte_by_byte_is_not_copied_each_time() -> None:
    """Quadratic copying of 1 MB would take minutes."""
    line = compact({"x": "y" * 1_000_000, "eval_count": 5})
    began = time.process_time()
    _, findings = read((line[at : at + 1] for at in range(len(line))), limit=1 << 20)
    assert findings.counts == {"/eval_count": 5}
    assert time.process_time() - began < 10


lines = st.sampled_from(
    [FIVE, SEVEN, DELTA, END, b"", b"\r", b"{", b"\xef\xbb\xbf", b"\xc3", b"x" * 70, b'{"eval_count":null}', b"[1]"]
)


@given(st.lists(lines | st.binary(max_size=30), max_size=8), st.lists(st.integers(0, 400), max_size=6), st.booleans())
def test_no_bytes_raise_and_no_split_changes_the_answer(parts: list[bytes], cuts: list[int], ended: bool) -> None:
    stream = b"\n".join(parts) + b"\n" * ended
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[start:end] for start, end in pairwise(edges)]
    one, found = read(pieces, limit=64)
    other, expected = read([stream], limit=64)
    assert (found.counts, found.values) == (expected.counts, expected.values)
    assert (one.unread, one.mid_event) == (other.unread, other.mid_event)
