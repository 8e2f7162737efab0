"""The events of a streamed answer, as transcripts write them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

PIECE = "{piece}"
PIECE_SIZE = 8
"""Characters."""


class EventError(Exception):
    """An item is no event; the message names it."""


class Event(NamedTuple):
    """One event. `text` is the piece of generated text that it brings, and `part` numbers the text it is of."""

    data: str
    name: str = ""
    comment: bool = False
    text: str = ""
    part: int = -1


def expanded(items: Iterable[Any]) -> Iterator[Event]:
    """The events that `items` stand for; an item with `pieces` stands for many. Raises EventError."""
    for number, item in enumerate(items):
        if isinstance(item, dict) and "pieces" in item:
            yield from _pieces(number, item)
        else:
            yield _event(item)


def compact(value: Any) -> str:
    """JSON as models write it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _event(item: Any) -> Event:
    if isinstance(item, dict) and item.keys() == {"event", "data"}:
        return _event(item["data"])._replace(name=str(item["event"]))
    if isinstance(item, dict) and item.keys() == {"comment"}:
        return Event(str(item["comment"]), comment=True)
    return Event(item if isinstance(item, str) else compact(item))


def _pieces(number: int, item: dict[str, Any]) -> Iterator[Event]:
    text, size, template = item["pieces"], item.get("size", PIECE_SIZE), item.get("in")
    if item.keys() - {"pieces", "size", "in"}:
        raise EventError(f"event {number}: `pieces` goes with `in` and `size` alone")
    if not isinstance(text, str) or type(size) is not int or size < 1:
        raise EventError(f"event {number}: `pieces` is a text, and `size` a number of characters")
    if PIECE not in compact(template):
        raise EventError(f"event {number}: `in` has no {PIECE}")
    for start in range(0, len(text), size):
        piece = text[start : start + size]
        yield _event(_filled(template, piece))._replace(text=piece, part=number)


def _filled(template: Any, piece: str) -> Any:
    """`template` with the piece in its place, wherever that is."""
    if isinstance(template, str):
        return template.replace(PIECE, piece)
    if isinstance(template, dict):
        return {key: _filled(value, piece) for key, value in template.items()}
    if isinstance(template, list):
        return [_filled(value, piece) for value in template]
    return template
