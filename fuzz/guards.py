"""What must hold of guards for every input: of streams of events, and of the texts of a request."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, TypeVar

import orjson

from extproc.guards.final_events import Framing
from extproc.guards.patterns import Patterns
from extproc.guards.seam import Path, Text
from extproc.guards.stream_guard import MAX_DOUBTFUL, StreamGuard
from extproc.guards.texts import EVERYBODY, TOOLS, has_repeated_names, read_texts, select, statements
from fuzz.case import Case
from fuzz.framing import NDJSON, compact
from fuzz.invariants import Broken, Hung, watched

T = TypeVar("T")

DENIED: Final = "denied"
_CERTAIN: Final = (DENIED, r"\n\n", "[\U0001f600-\U0001f64f]")
CERTAIN: Final = Patterns(deny=_CERTAIN)
PATTERNS: Final = Patterns(deny=(*_CERTAIN, r"\bass\b", "o$"))
"""Also such as depend on how a text goes on."""
LOOK_BEHIND: Final = 16
_END_OF_LINE: Final = 4
"""Bytes of a line's end that are held beside an event that may not be longer."""
_ROLES: Final = frozenset({"user", "system", "developer", "assistant", "tool", TOOLS})


class Passed(NamedTuple):
    """What a client gets of a stream, and the rule that it broke."""

    data: bytes
    denied: str | None


def check_stream(case: Case) -> Passed:
    """Guard a stream in its pieces and as a whole. Raises Broken.

    A client gets the same either way: all of it, or a beginning in which nothing is denied, and then an error.
    """
    return _watching(case, _check_stream)


def check_texts(case: Case) -> tuple[Text, ...] | None:
    """Read the texts of a request: each stands where it says that it does. Raises Broken."""
    return _watching(case, _check_texts)


def _watching(case: Case, look: Callable[[Case], T]) -> T:
    with watched(case):
        try:
            return look(case)
        except (Broken, Hung):
            raise
        except Exception as error:
            raise Broken(case, f"raised {type(error).__name__}: {error}") from error


# ── streams ───────────────────────────────────────────────────────────────────────────────────────


def _check_stream(case: Case) -> Passed:
    framing: Framing = "ndjson" if case.content_type == NDJSON else "sse"
    found = _guarded(case, case.pieces(), framing)
    whole = _guarded(case, [case.body], framing)
    if found != whole:
        raise Broken(case, f"in pieces {found!r:.300}, not as a whole {whole!r:.300}")
    if DENIED in _shown(found.data):
        raise Broken(case, "a client reads what is denied")
    if found.denied is None and found.data != case.body:
        raise Broken(case, "a stream that was not cut is not the same")
    if found.denied is not None:
        _check_cut(case, found, framing)
    return found


def _guarded(case: Case, pieces: Iterable[bytes], framing: Framing, patterns: Patterns = PATTERNS) -> Passed:
    guard = StreamGuard(patterns, LOOK_BEHIND, framing=framing, max_event=case.limit)
    most = 2 * case.limit + MAX_DOUBTFUL + _END_OF_LINE
    sent: list[bytes] = []
    for piece in pieces:
        sent.append(guard.feed(piece))
        if guard.held > most:
            raise Broken(case, f"a guard holds {guard.held} bytes, at most {most} are allowed")
    sent.append(guard.feed(b"", last=True))
    if guard.held:
        raise Broken(case, "a guard holds something after the end")
    if guard.denied is not None and guard.feed(b"data: more\n\n", last=True):
        raise Broken(case, "something passes after the end")
    return Passed(b"".join(sent), guard.denied)


def _check_cut(case: Case, found: Passed, framing: Framing) -> None:
    equal = (index for index, (one, other) in enumerate(zip(found.data, case.body, strict=False)) if one != other)
    same = next(equal, min(len(found.data), len(case.body)))
    if same == len(found.data):
        raise Broken(case, "a stream that was cut has no end of its own")
    # What the error and the event in whose place it is begin with alike is no event.
    begun = case.body[: case.body.rfind(b"\n", 0, same) + 1]
    again = _guarded(case, [begun], framing, CERTAIN)
    if again.denied is not None and again.denied.startswith("deny"):
        raise Broken(case, f"what passed before the cut breaks {again.denied} itself: {begun[-300:]!r}")


def _shown(data: bytes) -> str:
    """What a client of OpenAI's reads in server-sent events, of those that are spelled as among the seeds."""
    texts: list[str] = []
    for line in data.splitlines():
        try:
            event = json.loads(line.removeprefix(b"data: "))
        except (ValueError, RecursionError):
            continue
        match event:
            case {"choices": [{"index": 0, "delta": {"content": str(text)}}], "object": "chat.completion.chunk"}:
                if line == b"data: " + compact(event):
                    texts.append(text)
    return "".join(texts)


# ── requests ──────────────────────────────────────────────────────────────────────────────────────


def _check_texts(case: Case) -> tuple[Text, ...] | None:
    has_repeated_names(case.body)
    try:
        document = json.loads(case.body, strict=False)
    except (ValueError, RecursionError):
        return None
    texts, without = read_texts(document), read_texts(document, definitions=False)
    if texts is None:
        return None
    if without != tuple(text for text in texts if text.role != TOOLS):
        raise Broken(case, "without definitions of tools other texts are missing")
    for text in texts:
        if text.role not in _ROLES:
            raise Broken(case, f"nobody has the role {text.role!r}")
        if text.text not in _said_at(document, text.path):
            raise Broken(case, f"at {text.path} does not stand {text.text!r:.100}")
    for role in (*_ROLES, EVERYBODY):
        _check_selection(case, texts, role)
    said = list(statements(texts))
    if not {text.text for text in texts} <= set(said):
        raise Broken(case, "a text is lost among statements")
    return texts


def _said_at(document: Any, path: Path) -> Iterable[str]:
    """What a text there may say; names of members stand where their object stands."""
    for step in path:
        document = document[step]
    if isinstance(document, (str, dict)):
        return (document,) if isinstance(document, str) else document
    return (orjson.dumps(document).decode(),)


def _check_selection(case: Case, texts: tuple[Text, ...], role: str) -> None:
    chosen = select(texts, frozenset({role}), False)
    last = select(texts, frozenset({role}), True)
    if chosen != tuple(text for text in texts if role in (EVERYBODY, text.role)):
        raise Broken(case, f"what {role} says is not what was chosen")
    if not set(last) <= set(chosen) or (chosen and not last):
        raise Broken(case, f"what {role} says last is lost")
