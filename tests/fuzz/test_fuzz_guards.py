"""What the fuzzer knows of guards: that it finds a guard with a fault, and none in the seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from extproc.guards import texts
from extproc.guards.growing_texts import GrowingTexts
from extproc.guards.stream_guard import StreamGuard
from fuzz import guards
from fuzz.build import TARGETS
from fuzz.case import Case
from fuzz.engines import explore
from fuzz.framing import JSON, NDJSON, SSE, ndjson, sse
from fuzz.guards import LOOK_BEHIND, PATTERNS, check_stream, check_texts
from fuzz.invariants import Broken
from fuzz.seeds import REQUESTS, STREAMS

FEED, GROW = StreamGuard.feed, GrowingTexts.grow
WORDS = (b'{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"%s"}}]}',) * 3


def stream(*words: bytes, cuts: tuple[int, ...] = ()) -> Case:
    body = sse([event % word for event, word in zip(WORDS, words, strict=False)])
    return Case(SSE, "", body, cuts, 1024, is_guarded=True)


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize(("content_type", "write"), [(SSE, sse), (NDJSON, ndjson)])
def test_seeds_pass_or_end_as_they_should(name: str, content_type: str, write: Callable[[Any], bytes]) -> None:
    body = write(STREAMS[name])
    found = check_stream(Case(content_type, "", body, (1, len(body) // 2), 4096, is_guarded=True))
    assert found.data.startswith(body[:1])


def test_what_is_denied_is_cut() -> None:
    assert check_stream(stream(b"den", b"ied", b"!", cuts=(20, 150))).denied == "deny[0]"
    assert check_stream(stream(b"den", b" ied")).denied is None


def test_requests_among_the_seeds_have_texts() -> None:
    """Otherwise nothing would be looked at."""
    read = {name for name, body in REQUESTS.items() if check_texts(Case(JSON, "", body, is_request=True))}
    assert read >= {"chat", "parts", "responses", "anthropic", "gemini", "cohere", "ollama", "embeddings"}


def passes_beginnings(guard: StreamGuard, chunk: bytes, last: bool = False) -> bytes:
    """Events are not waited for."""
    passed = FEED(guard, chunk, last)
    return passed + FEED(guard, b"\n\n") if passed and guard.held else passed


def forgets(found: GrowingTexts, piece: Any) -> Any:
    """What a word began with is not known when it goes on."""
    return GROW(GrowingTexts(PATTERNS, LOOK_BEHIND), piece)


def loses(guard: StreamGuard, chunk: bytes, last: bool = False) -> bytes:
    """The last byte of a stream."""
    passed = FEED(guard, chunk, last)
    return passed[:-1] if last else passed


@pytest.mark.parametrize(
    ("owner", "name", "fault", "case"),
    [
        (StreamGuard, "feed", passes_beginnings, stream(b"a", b"b", cuts=(20, 150))),
        (StreamGuard, "feed", loses, Case(SSE, "", b"data: x", is_guarded=True)),
        (GrowingTexts, "grow", forgets, stream(b"den", b"ied")),
    ],
)
def test_a_guard_with_a_fault_is_found(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, fault: Any, case: Case
) -> None:
    check_stream(case)
    monkeypatch.setattr(owner, name, fault)
    with pytest.raises(Broken):
        check_stream(case)


def test_the_fuzzer_comes_across_a_fault_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StreamGuard, "feed", loses)
    failure = explore("guarded", 30, 1).failure
    assert failure is not None
    assert failure.case.is_guarded


def test_a_text_at_another_place_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(document: Any, *, definitions: bool = True) -> Any:
        found = texts.read_texts(document, definitions=definitions)
        return None if found is None else tuple(text._replace(text=text.text + "!") for text in found)

    case = Case(JSON, "", REQUESTS["gemini"], is_request=True)
    check_texts(case)
    monkeypatch.setattr(guards, "read_texts", elsewhere)
    with pytest.raises(Broken, match="does not stand"):
        check_texts(case)


def test_a_guarded_case_is_kept_and_read_again(tmp_path: Any) -> None:
    one = stream(b"den", b"ied", cuts=(3,))
    assert Case.load(one.save(tmp_path)) == one
    assert "guarded" in TARGETS
