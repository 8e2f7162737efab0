"""The fuzzer: its seeds are valid, it finds what is broken, and a little of it runs with every run of the tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extproc.bodies.ndjson_reader import NdjsonReader
from extproc.bodies.reader import BodyLimits, ReaderFactory
from extproc.usage.dialects import DIALECTS
from fuzz import __main__ as command
from fuzz import engines
from fuzz.build import ENCODINGS, TARGETS
from fuzz.case import Case
from fuzz.edits import MODEL, REWRITE, check_edits, examine
from fuzz.engines import cases, explore, has_atheris
from fuzz.framing import EVENT_STREAM, JSON, NDJSON, SSE, event_stream, ndjson, sse
from fuzz.invariants import WANTED, Broken, Outcome, check, held
from fuzz.seeds import DOCUMENTS, REQUESTS, STREAMS

Feed = Callable[[NdjsonReader, bytes], None]
FRAMED = {
    **{("json", name): (JSON, body) for name, body in DOCUMENTS.items()},
    **{("sse", name): (SSE, sse(events)) for name, events in STREAMS.items()},
    **{("ndjson", name): (NDJSON, ndjson(events)) for name, events in STREAMS.items()},
    **{("eventstream", name): (EVENT_STREAM, event_stream(events)) for name, events in STREAMS.items()},
}


def case(framing: str, name: str, *cuts: int, encoding: str = "") -> Case:
    content_type, body = FRAMED[framing, name]
    return Case(content_type, encoding, ENCODINGS[encoding](body) if encoding else body, cuts, 64 * 1024)


@pytest.mark.parametrize(("framing", "name"), FRAMED, ids=map("-".join, FRAMED))
def test_every_seed_is_an_answer_whose_usage_is_found(framing: str, name: str) -> None:
    """Otherwise the fuzzer starts from noise."""
    outcome = check(case(framing, name, 1, 100))
    assert outcome.counts
    assert (outcome.unread, outcome.mid_event, outcome.complete) == (None, False, True)


def test_every_dialect_has_a_seed() -> None:
    documents = {check(case("json", name)).shape for name in DOCUMENTS}
    streams = {check(case("sse", name)).shape for name in STREAMS}
    assert documents | streams >= set(DIALECTS)


@pytest.mark.parametrize("target", TARGETS)
def test_a_little_of_it_with_every_run(target: str) -> None:
    @settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(cases(target))
    def run(found: Case) -> None:
        examine(found)

    run()


@pytest.mark.parametrize("name", REQUESTS)
def test_every_request_is_one_that_is_edited(name: str) -> None:
    body = REQUESTS[name]
    assert REWRITE.apply(body, MODEL) not in (None, body)
    check_edits(Case(JSON, "", body, (1, len(body) // 2), is_request=True))


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (lambda body: body.replace(b'"gpt-4o"', b'"the-providers-own"'), "something else was edited, or less"),
        (lambda body: body + b" ", "edited twice is not edited once"),
        (lambda body: body[:-1], "raised Uneditable"),
    ],
)
def test_a_wrong_edit_is_found(fault: Callable[[bytes], bytes], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.edits.REWRITE", Wrong(fault))
    with pytest.raises(Broken, match=told):
        check_edits(Case(JSON, "", REQUESTS["chat"], is_request=True))


class Wrong:
    """Edits a body as a test says, once if that can be told."""

    def __init__(self, fault: Callable[[bytes], bytes]) -> None:
        self._fault = fault

    def apply(self, body: bytes, model: str, document: Any = None) -> bytes | None:
        if document is None:
            REWRITE.apply(body, model)
        edited = self._fault(body)
        return None if edited == body else edited


@given(st.binary(max_size=40), st.sampled_from(["", "gzip"]), st.lists(st.integers(0, 40)), st.integers(1, 9))
def test_a_case_is_kept_and_read_again(body: bytes, encoding: str, cuts: list[int], limit: int) -> None:
    one = Case("application/json", encoding, body, tuple(sorted(min(cut, len(body)) for cut in cuts)), limit)
    assert b"".join(one.pieces()) == body


def test_a_saved_case_is_the_same(tmp_path: Path) -> None:
    one = case("sse", "anthropic", 5, 7, encoding="gzip")
    for each in (one, replace(one, is_request=True)):
        assert Case.load(each.save(tmp_path)) == each


FEED = NdjsonReader.feed


def raises(reader: NdjsonReader, data: bytes) -> None:
    if b"\x00" in data or b"-1" in data:
        raise ValueError("cannot be")
    FEED(reader, data)


def depends_on_pieces(reader: NdjsonReader, data: bytes) -> None:
    FEED(reader, data if data.endswith(b"\n") else data + b"\n")


@pytest.mark.parametrize("fault", [raises, depends_on_pieces])
def test_a_fault_is_found_and_saved(
    fault: Feed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command fails, and leaves an input that fails again until the fault is gone."""
    monkeypatch.setattr(command, "has_atheris", lambda: False)
    monkeypatch.setattr(NdjsonReader, "feed", fault)
    assert command.main(["--target", "ndjson", "--seconds", "60", "--seed", "1", "--output", str(tmp_path)]) == 1
    (saved,) = tmp_path.iterdir()
    assert str(saved) in capsys.readouterr().err
    assert command.main(["--replay", str(saved)]) == 1
    monkeypatch.setattr(NdjsonReader, "feed", FEED)
    assert command.main(["--replay", str(saved)]) == 0


def test_a_reader_that_holds_too_much_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def feed(reader: NdjsonReader, data: bytes) -> None:
        reader._limit = 1 << 30
        FEED(reader, data)

    too_long = Case(NDJSON, "", b"y" * 150_000, (100_000,))
    check(too_long)
    monkeypatch.setattr(NdjsonReader, "feed", feed)
    with pytest.raises(Broken, match="holds 100000 bytes"):
        check(too_long)


def test_a_hang_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forever(reader: NdjsonReader, data: bytes) -> None:
        while True:
            pass

    monkeypatch.setattr(NdjsonReader, "feed", forever)
    monkeypatch.setattr("fuzz.invariants.SECONDS", 0.05)
    with pytest.raises(Broken, match="more than"):
        check(case("ndjson", "ollama"))


def test_what_a_reader_holds_is_counted_with_what_it_contains() -> None:
    for content_type, encoding in ((SSE, ""), (NDJSON, ""), (JSON, "gzip")):
        reader = ReaderFactory(WANTED, BodyLimits()).open(content_type, encoding)
        piece = b'data: {"x":"' + b"y" * 10_000
        reader.feed(ENCODINGS["gzip"](piece) if encoding else piece)
        assert held(reader) >= 10_000


def test_the_time_is_kept() -> None:
    """Whatever the number of targets; nothing is examined after it."""
    seen: list[Case] = []
    result = explore("json", 0.2, examine=seen.append)
    assert result.failure is None
    assert result.executions == len(seen) > 0


@pytest.mark.parametrize("content", ["", "{", "{}", '{"body": 1}'])
def test_a_file_that_is_no_case_is_an_error_and_no_traceback(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "case.json"
    path.write_text(content)
    assert command.main(["--replay", str(path)]) == 1
    assert str(path) in capsys.readouterr().err


def test_it_says_when_atheris_is_absent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "has_atheris", lambda: False)
    assert command.main(["--target", "eventstream", "--seconds", "0.2", "--output", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "atheris is not installed" in told
    assert "eventstream" in told
    assert "inputs" in told


@pytest.mark.skipif(not has_atheris(), reason="atheris is optional")
def test_atheris_runs() -> None:
    assert engines.guide("eventstream", 2).failure is None


def test_saved_files_are_readable(tmp_path: Path) -> None:
    saved = json.loads(replace(case("json", "openai chat"), cuts=(1,)).save(tmp_path).read_text())
    assert saved["content_type"] == JSON
    assert saved["cuts"] == [1]


def test_outcomes_compare_all_that_an_exchange_uses() -> None:
    assert {"counts", "values", "model", "text", "unread", "complete", "mid_event"} <= set(Outcome._fields)
