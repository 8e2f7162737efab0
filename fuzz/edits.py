"""What must hold for every request body that is edited, whoever wrote it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from extproc.bodies.edits import MAX_DEPTH, Path, replace_texts
from extproc.bodies.json_edit import Uneditable, parse_object, read_object
from extproc.bodies.request_reader import RequestReader, RequestReaderFactory
from extproc.bodies.wanted import Wanted
from extproc.providers.rewrite import Rewrite
from extproc.usage.include_usage import with_include_usage
from extproc.usage.prompt import read_prompt
from fuzz.case import Case
from fuzz.guards import check_stream, check_texts
from fuzz.invariants import Broken, Hung, Outcome, check, watched

MODEL: Final = "the-providers-own"
REWRITE: Final = Rewrite(["/metadata", "/messages/*/model"])
READERS: Final = RequestReaderFactory(Wanted(frozenset({("model",)}), (), count_text=False), 1 << 20)
_EXCERPT: Final = 12
"""Bytes of a refusal that are in the body by no chance."""


class _Pairs(tuple[tuple[str, Any], ...]):
    """An object, with all its members."""

    __slots__ = ()


def examine(case: Case) -> Outcome | None:
    """Check a case of any kind. Raises Broken."""
    if case.is_guarded:
        check_stream(case)
    elif case.is_request:
        check_edits(case)
        check_texts(case)
    else:
        return check(case)
    return None


def check_edits(case: Case) -> None:
    """Edit `case` as for a provider, a usage frame, and a guard that replaces texts. Raises Broken."""
    with watched(case):
        try:
            for problem in _problems(case):
                raise Broken(case, problem)
        except (Broken, Hung):
            raise
        except Exception as error:
            raise Broken(case, f"raised {type(error).__name__}: {error}") from error


def _problems(case: Case) -> Iterator[str]:
    body = case.body
    document = _read(case.pieces())
    if repr(_read([body])) != repr(document):
        yield "in pieces it is another document"
    read_prompt(body)
    asking = with_include_usage(body)
    if asking is not None and not _asks(asking):
        yield "usage is not asked for, though the body was changed"
    try:
        edited = REWRITE.apply(body, MODEL, document)
    except Uneditable as error:
        told = str(error).encode()
        if any(told[at : at + _EXCERPT] in body for at in range(len(told) - _EXCERPT + 1)):
            yield f"the refusal shows what was sent: {error}"
        return
    if edited is not None:
        yield from _rewritten(body, edited)
    if body.strip():
        yield from _replaced(body, read_object(body, document))


def _read(pieces: list[bytes]) -> Any:
    reader = READERS.open("application/json", "")
    for piece in pieces:
        reader.feed(piece)
    reader.close()
    assert isinstance(reader, RequestReader)
    return reader.document


def _asks(body: bytes) -> bool:
    request = parse_object(body)
    return request is not None and request["stream_options"]["include_usage"] is True


def _rewritten(body: bytes, edited: bytes) -> Iterator[str]:
    if REWRITE.apply(edited, MODEL) is not None:
        yield "edited twice is not edited once"
    before, after = _parsed(body), _parsed(edited)
    if before is not None and repr(_expected(before)) != repr(after):
        yield "something else was edited, or less"


def _expected(request: _Pairs) -> _Pairs:
    members = []
    for key, value in request:
        if key == "messages" and type(value) is list:
            value = [_without_model(message) for message in value]
        if key != "metadata":
            members.append((key, MODEL if key == "model" else value))
    return _Pairs(members if any(key == "model" for key, _ in members) else [*members, ("model", MODEL)])


def _without_model(message: Any) -> Any:
    if not isinstance(message, _Pairs):
        return message
    return _Pairs((key, value) for key, value in message if key != "model")


def _parsed(body: bytes) -> Any:
    """None where Python does not go as deep."""
    try:
        text = body.decode("utf-8", "surrogatepass").removeprefix("\ufeff")
        return json.loads(text, strict=False, object_pairs_hook=_Pairs)
    except RecursionError:
        return None


def _replaced(body: bytes, request: dict[str, Any]) -> Iterator[str]:
    """As a guard does, with every text that a parser sees."""
    paths = list(_texts(request))
    try:
        edited = replace_texts(body, [(path, f"{index}") for index, path in enumerate(paths)])
    except Uneditable:
        return
    if edited is None:
        yield "texts that are there are not replaced"
    elif list(_texts(replaced := read_object(edited))) != paths:
        yield "other places have texts"
    elif any(_at(replaced, path) != f"{index}" for index, path in enumerate(paths)):
        yield "a text is not replaced"


def _texts(value: Any) -> Iterator[Path]:
    """Where texts are, without recursion, and no deeper than guards replace them."""
    ahead: list[tuple[Path, Any]] = [((), value)]
    while ahead:
        path, found = ahead.pop()
        if isinstance(found, str):
            yield path
        elif len(path) < MAX_DEPTH and isinstance(found, (dict, list)):
            inner = found.items() if isinstance(found, dict) else enumerate(found)
            ahead += [((*path, key), one) for key, one in inner]


def _at(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key]
    return value
