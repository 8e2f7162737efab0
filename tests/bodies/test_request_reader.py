"""Request bodies that a decision depends on: read once, or not at all."""

from __future__ import annotations

import gzip
from typing import Any

import brotli
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.bodies.reader import BodyReader
from extproc.bodies.request_reader import DECODED, MARKS, RequestReaderFactory
from extproc.bodies.shapes import Shape
from extproc.bodies.wanted import Wanted

MODEL = Shape("request", opening=b"(?!)", needles=(), counts=(), models=("/model",))
FACTORY = RequestReaderFactory(Wanted(frozenset({("user",)}), (MODEL,), count_text=False), 8 * 1024 * 1024)


def read(body: bytes, encoding: str = "", pieces: int = 1) -> BodyReader:
    reader = FACTORY.open("", encoding)
    size = max(1, -(-len(body) // pieces))
    for start in range(0, len(body), size):
        reader.feed(body[start : start + size])
    reader.close()
    return reader


@given(st.integers(1, 9))
def test_any_split_gives_the_same(pieces: int) -> None:
    reader = read(b'{"model":"m","user":"alice","messages":[]}', pieces=pieces)
    assert (reader.findings.model, reader.findings.values, reader.complete) == ("m", {("user",): "alice"}, True)


@pytest.mark.parametrize(
    "body", [b"", b"crap", b'{"model":"m"', b'{"model":"m"} {"model":"n"}', b'data: {"model":"m"}\n\n']
)
def test_what_is_no_document_has_no_values(body: bytes) -> None:
    reader = read(body)
    assert (reader.findings.model, reader.unread, reader.complete) == ("", "corrupt" if body else None, False)


def test_a_compressed_body_is_read() -> None:
    assert read(gzip.compress(b'{"model":"m"}'), "gzip").findings.model == "m"


@pytest.mark.parametrize(
    ("body", "encoding", "unread"),
    [
        (b'{"model":"m","x":"' + b"x" * 9_000_000 + b'"}', "", "too_large"),
        (b'{"model":"m","x":[' + b"0," * (MARKS + 1) + b"0]}", "", "too_large"),
        (brotli.compress(b'{"model":"m","x":"' + b" " * DECODED + b'"}'), "br", "too_large"),
        (gzip.compress(gzip.compress(b'{"model":"m"}')), "gzip, gzip", "encoding"),
        (b"not gzip", "gzip", "corrupt"),
        (b"x", "dcb", "encoding"),
    ],
    ids=["long", "many values", "little that decodes to much", "twice", "corrupt", "unknown"],
)
def test_what_would_take_too_long_is_not_read(body: bytes, encoding: str, unread: str) -> None:
    """A few bytes that become many, or many that mean little, hold up nobody."""
    reader = read(body, encoding)
    assert (reader.unread, reader.findings.model) == (unread, "")


@given(st.dictionaries(st.sampled_from(["model", "user", "x"]), st.one_of(st.text(), st.none(), st.lists(st.text()))))
def test_values_are_those_of_the_document(document: dict[str, Any]) -> None:
    reader = read(orjson.dumps(document))
    user = document.get("user")
    assert reader.findings.values.get(("user",)) == (user if isinstance(user, str) else None)
