"""Amazon event streams: what is found, whatever the pieces; what is believed; what is held."""

from __future__ import annotations

import base64
import time
import tracemalloc
import zlib
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.bodies.eventstream_reader import EventStreamReader
from extproc.bodies.findings import Findings
from extproc.bodies.shapes import Shape
from extproc.bodies.wanted import Wanted
from fuzz.framing import compact, event_stream, message, wrapped

SHAPE = Shape(
    name="test",
    opening=rb'"role"',
    needles=(b"Tokens",),
    counts=("/usage/inputTokens", "/usage/outputTokens"),
    models=("/model",),
    event_keys=("text",),
)
WANTED = Wanted(frozenset({("usage", "outputTokens")}), [SHAPE], keep_text=1000)
LIMIT = 4096

START = b'{"role":"assistant","p":"abc"}'
DELTA = compact({"contentBlockIndex": 0, "delta": {"text": "Café"}, "p": "abcdefghijkl"})
STOP = b'{"stopReason":"end_turn"}'
USAGE = b'{"metrics":{"latencyMs":10},"usage":{"inputTokens":30,"outputTokens":62}}'
EVENTS = [START, DELTA, DELTA, STOP, USAGE]
STREAM = event_stream(EVENTS)
COUNTED = {"/usage/inputTokens": 30, "/usage/outputTokens": 62}


def read(pieces: Iterable[bytes], limit: int = LIMIT) -> tuple[EventStreamReader, Findings]:
    findings = Findings(WANTED.keep_text)
    reader = EventStreamReader(WANTED, findings, limit)
    for piece in pieces:
        reader.feed(piece)
    reader.close()
    return reader, findings


def usage(count: int) -> bytes:
    return compact({"usage": {"outputTokens": count}})


def test_the_framing_is_that_of_the_published_test_vector() -> None:
    """The message without headers and payload of Amazon's own test suite."""
    assert message(b"", {}) == bytes.fromhex("00000010 00000000 05c248eb 7d98c8ff")


def test_every_split_gives_the_same_usage() -> None:
    """S0.6: also inside of preludes, headers and checksums."""
    expected = read([STREAM])[1]
    assert expected.counts == COUNTED
    assert expected.values == {("usage", "outputTokens"): 62}
    assert expected.text.decoded() == "CaféCafé"
    for cut in range(len(STREAM) + 1):
        reader, findings = read([STREAM[:cut], STREAM[cut:]])
        assert (findings.counts, findings.text.size) == (COUNTED, expected.text.size)
        assert (reader.unread, reader.mid_event, reader.complete) == (None, False, True)
    assert read(bytes([byte]) for byte in STREAM)[1].counts == COUNTED


def test_a_model_s_own_events_are_unwrapped() -> None:
    """InvokeModelWithResponseStream: base64 of the model's event."""
    _, findings = read([event_stream(EVENTS, wrap=True)])
    assert findings.counts == COUNTED
    assert findings.text.decoded() == "CaféCafé"


@pytest.mark.parametrize(
    ("name", "payload", "expected"),
    [
        ("wrapped", wrapped(usage(7)), 7),
        ("without padding", compact({"bytes": base64.b64encode(usage(7)).decode()}), 7),
        ("spaces, another order", b'{ "p" : "ab", "bytes" : "' + base64.b64encode(usage(7)) + b'" }', 7),
        ("more keys: an event of its own", b'{"bytes":"AAAA","usage":{"outputTokens":7}}', 7),
        ("bytes is no string", b'{"bytes":7}', None),
        ("no base64", b'{"bytes":"{\\"usage\\":{\\"outputTokens\\":7}}"}', None),
        ("base64 without its end", b'{"bytes":"' + base64.b64encode(usage(7)).rstrip(b"=")[:-1] + b'"}', None),
        ("not ASCII", '{"bytes":"é"}'.encode(), None),
        ("wrapped twice", wrapped(wrapped(usage(7))), None),
        ("wrapped text that is no JSON", wrapped(b'"outputTokens":7'), None),
        ("no JSON", b'"bytes" outputTokens', None),
        ("no payload", b"", None),
    ],
)
def test_payloads(name: str, payload: bytes, expected: int | None) -> None:
    reader, findings = read([message(payload)])
    assert findings.counts.get("/usage/outputTokens") == expected
    assert reader.unread is None


@pytest.mark.parametrize("kind", ["exception", "error"])
def test_what_an_exception_says_is_not_counted(kind: str) -> None:
    refusal = message(usage(9), {":exception-type": "throttlingException", ":message-type": kind})
    assert read([message(usage(7)) + refusal])[1].counts == {"/usage/outputTokens": 7}


@pytest.mark.parametrize(
    "headers", [{}, {":event-type": "exception"}, {"x": ":message-type", ":message-type": "event"}]
)
def test_other_headers_do_not_matter(headers: dict[str, str]) -> None:
    assert read([message(usage(7), headers)])[1].counts == {"/usage/outputTokens": 7}


def test_no_flipped_bit_is_believed() -> None:
    """Each bit of a message: its number is not taken, what came before stays, and nothing is raised."""
    before, flipped, after = message(usage(5)), message(usage(6)), message(usage(7))
    for bit in range(len(flipped) * 8):
        damaged = bytearray(flipped)
        damaged[bit // 8] ^= 1 << bit % 8
        in_prelude = bit < 12 * 8
        reader, findings = read([before + damaged + after])
        assert findings.counts == {"/usage/outputTokens": 5 if in_prelude else 7}
        assert reader.unread == "corrupt"


@pytest.mark.parametrize(
    ("name", "length", "headers"),
    [("shorter than itself", 8, 0), ("no room for a checksum", 15, 0), ("more headers than message", 20, 5)],
)
def test_lengths_that_cannot_be_end_the_reading(name: str, length: int, headers: int) -> None:
    prelude = length.to_bytes(4, "big") + headers.to_bytes(4, "big")
    impossible = prelude + zlib.crc32(prelude).to_bytes(4, "big") + bytes(20)
    reader, findings = read([message(usage(5)) + impossible + message(usage(7))])
    assert findings.counts == {"/usage/outputTokens": 5}
    assert (reader.unread, reader.mid_event) == ("corrupt", False)


@pytest.mark.parametrize("kept", range(1, len(message(USAGE))))
def test_a_stream_cut_inside_a_message_says_so(kept: int) -> None:
    """What came before counts; the cut message has no checksum to believe it by."""
    reader, findings = read([message(usage(5)), message(USAGE)[:kept]])
    assert findings.counts == {"/usage/outputTokens": 5}
    assert (reader.mid_event, reader.unread) == (True, None)


@pytest.mark.parametrize("size", [1, 11, 1000, 1 << 20])
def test_a_message_over_the_limit_is_skipped(size: int) -> None:
    """By its length: what follows is read."""
    stream = message(usage(5)) + message(compact({"x": "y" * LIMIT, "usage": {"outputTokens": 6}})) + message(usage(7))
    reader, findings = read(stream[start : start + size] for start in range(0, len(stream), size))
    assert findings.counts == {"/usage/outputTokens": 7}
    assert (reader.unread, reader.mid_event) == ("too_large", False)


def test_a_cut_inside_a_message_over_the_limit() -> None:
    reader, _ = read([message(b"x" * LIMIT)[:-1]])
    assert (reader.unread, reader.mid_event) == ("too_large", True)


def test_a_message_of_exactly_the_limit_is_read() -> None:
    exact = message(usage(5) + b" " * (LIMIT - len(message(usage(5)))))
    assert len(exact) == LIMIT
    assert read([exact])[1].counts == {"/usage/outputTokens": 5}


def test_memory_does_not_grow_with_a_message() -> None:
    """S0.D12: a message that announces 2 GB is passed by with nothing held."""
    reader = EventStreamReader(WANTED, Findings(), LIMIT)
    piece = bytes(65_536)
    prelude = (2**31).to_bytes(4, "big") + bytes(4)
    tracemalloc.start()
    reader.feed(prelude + zlib.crc32(prelude).to_bytes(4, "big"))
    for _ in range(500):
        reader.feed(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 256 * 1024


def test_a_large_message_byte_by_byte_is_not_copied_each_time() -> None:
    """Quadratic copying of 1 MiB would take minutes."""
    stream = message(compact({"x": "y" * 1_000_000, "usage": {"outputTokens": 5}}))
    began = time.process_time()
    _, findings = read((stream[at : at + 1] for at in range(len(stream))), limit=1 << 20)
    assert findings.counts == {"/usage/outputTokens": 5}
    assert time.process_time() - began < 10


@given(
    st.lists(st.binary(max_size=40).map(lambda text: message(text)) | st.binary(max_size=30), max_size=6).map(b"".join),
    st.lists(st.integers(0, 400), max_size=6),
)
def test_no_bytes_raise_and_no_split_changes_the_answer(stream: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[start:end] for start, end in pairwise(edges)]
    one, found = read(pieces, limit=64)
    other, expected = read([stream], limit=64)
    assert found.counts == expected.counts
    assert (one.unread, one.mid_event) == (other.unread, other.mid_event)
