"""`include_usage`: asking an OpenAI-like server for a stream's usage when the client did not, and hiding that we did.

With `stream_options.include_usage` such a server sends one more event before `[DONE]`: no choices, and the usage of
the whole request. A client that had not asked may index into `choices`, so the event is taken out again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, auto

import orjson

from extproc.bodies.json_edit import append_member, append_to_root, find_member, parse_object

MAX_FRAME = 64 * 1024
"""Longest event that is taken for a usage frame, in bytes; of a longer one nothing is held back."""
_MAX_HEAD = 1024
"""Its data begin within this many bytes, after fields like `id:`."""

_OPTIONS = "stream_options"
_INCLUDE = "include_usage"
_INCLUDE_MEMBER = b'"include_usage":true'
_OPTIONS_MEMBER = b'"stream_options":{"include_usage":true}'

_COUNT = b'_tokens"'
"""In every usage object that counts something: `total_tokens`, `prompt_tokens` ..."""
_BLANK_ENDS = (b"\n\n", b"\n\r\n")
_LINE_END = re.compile(rb"[\r\n]")
_EVENT_END = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\r|\n)")
# A byte order mark is taken for space: it belongs to the stream and not to its first event.
_IDLE = re.compile(rb"(?:[\r\n\xef\xbb\xbf]++|:[^\r\n]*+[\r\n])*")
_FIRST_DATA = re.compile(rb"(?:\A|[\r\n])data:[ \t]*+([^ \t\r\n])")
# Data may be cut into lines outside of strings: `data:` may stand between tokens, and its `d` begins no value.
_NO_CHOICES = re.compile(rb'"choices"[\s:dat]*+\[[\s:dat]*+\]')
_HAS_CHOICES = re.compile(rb'"choices"\s*+:\s*+(?:\[\s*+)?+[{"tfn\d-]')
_CHOICES_WINDOW = 64
"""How much of what is held is searched for choices again when more arrives, in bytes."""
_CARRIAGE_RETURN, _LINE_FEED, _COLON = b"\r\n:"


def with_include_usage(body: bytes, may_ask: Callable[[str], bool] = lambda model: True) -> bytes | None:
    """The request `body` with `stream_options.include_usage: true`, every other byte as it was.

    None when there is nothing to change: no JSON object (as a strict parser sees it), `stream` not literally true,
    `include_usage` already there with any value, `stream_options` there and no object, or a `model` ("" when it names
    none) that may not be asked.
    """
    request = parse_object(body)
    if request is None or request.get("stream") is not True:
        return None
    model = request.get("model")
    if not may_ask(model if isinstance(model, str) else ""):
        return None
    if _OPTIONS not in request:
        return append_to_root(body, _OPTIONS_MEMBER)
    options = request[_OPTIONS]
    if not isinstance(options, dict) or _INCLUDE in options:
        return None
    member = find_member(body, _OPTIONS)
    return None if member is None else append_member(body, member.end, _INCLUDE_MEMBER)


class _State(Enum):
    BETWEEN = auto()
    """At the start of a line that belongs to no event yet."""
    COMMENT = auto()
    """In a comment line before an event."""
    HOLDING = auto()
    """In an event that may be a usage frame; all of it so far is held."""
    PASSING = auto()
    """In an event that is none, and passed on as it comes."""


class UsageFrameFilter:
    """Takes usage frames out of a stream of server-sent events; all other bytes pass, in order.

    A usage frame is an event whose data are a JSON object with `choices` empty and `usage` an object with token
    counts, and in which no other `choices` hold anything. It goes with its blank line and with what fields and
    comments stand between its first line and that. What comes out does not depend on how the stream is cut into chunks.
    """

    __slots__ = ("_drop_line_feed", "_held", "_line_end", "_state")

    def __init__(self) -> None:
        self._state = _State.BETWEEN
        self._held = b""
        self._line_end = b""
        """While passing: the byte the last chunk ended with, if it ends a line."""
        self._drop_line_feed = False
        """A frame taken out ended in a carriage return; a line feed that follows is the rest of its blank line."""

    @property
    def held(self) -> int:
        """Bytes held back: the beginning of an event that may become a usage frame."""
        return len(self._held)

    def feed(self, chunk: bytes, last: bool = False) -> bytes | None:
        """What to send in place of `chunk`; None when that is the chunk itself. After the `last` nothing is held."""
        held = self._held
        if not held and not self._drop_line_feed and chunk.endswith(_BLANK_ENDS) and not _may_hold_usage_frame(chunk):
            self._state = _State.BETWEEN
            return None
        self._held = b""
        if self._drop_line_feed and chunk:
            self._drop_line_feed = False
            kept = self._filter(chunk[1:] if chunk[0] == _LINE_FEED else chunk, 0, last)
        else:
            kept = self._filter(held + chunk, len(held), last)
        return None if kept == chunk else kept

    def _filter(self, data: bytes, seen: int, last: bool) -> bytes:
        """What of `data` is passed on. Its first `seen` bytes were held, and hold no end of an event."""
        kept: list[bytes] = []
        start, position = 0, self._before_event(data)
        while position < len(data):
            found = _EVENT_END.search(data, max(position, seen - 2))
            if found is None:
                if self._withhold(data[position:], max(0, seen - position), last):
                    kept.append(data[start:position])
                    start = len(data)
                break
            end = found.end()
            if _is_usage_frame(data[position : found.start()]):
                kept.append(data[start:position])
                start = end
                self._drop_line_feed = end == len(data) and data[-1] == _CARRIAGE_RETURN
            self._state = _State.BETWEEN
            position = self._before_event(data, end)
        kept.append(data[start:])
        return b"".join(kept)

    def _before_event(self, data: bytes, position: int = 0) -> int:
        """Where the next event whose end decides begins; before it, all of `data` from `position` on passes."""
        if self._state is _State.HOLDING:
            return position
        if self._state is _State.PASSING:
            before = self._line_end
            found = _EVENT_END.search(before + data)
            if found is None:
                self._line_end = _trailing_line_end(before + data)
                return len(data)
            position = found.end() - len(before)
        elif self._state is _State.COMMENT:
            found = _LINE_END.search(data, position)
            if found is None:
                return len(data)
            position = found.end()
        idle = _IDLE.match(data, position)
        assert idle is not None
        position = idle.end()
        in_comment = position < len(data) and data[position] == _COLON
        self._state = _State.COMMENT if in_comment else _State.BETWEEN
        return len(data) if in_comment else position

    def _withhold(self, event: bytes, seen: int, last: bool) -> bool:
        """Whether an unfinished event stays here: held, or, at the end of the stream, taken out."""
        if last:
            return _is_usage_frame(event.rstrip(b"\r\n"))
        if _may_become_usage_frame(event, seen):
            self._held = event
            self._state = _State.HOLDING
            return True
        self._line_end = _trailing_line_end(event)
        self._state = _State.PASSING
        return False


def _may_hold_usage_frame(data: bytes) -> bool:
    """Whether some event in `data` can be a usage frame: two searches instead of a parse."""
    return _COUNT in data and _NO_CHOICES.search(data) is not None


def _may_become_usage_frame(event: bytes, seen: int) -> bool:
    """Whether some continuation of an unfinished event is a usage frame; of its first `seen` bytes some was.

    Must not say no to what `_is_usage_frame` will say yes to. The other way around costs only a delay.
    """
    if len(event.rstrip(b"\r\n")) > MAX_FRAME:
        return False
    first = _FIRST_DATA.search(event, 0, _MAX_HEAD)
    if first is None:
        return len(event) < _MAX_HEAD
    if first.group(1) != b"{" or _HAS_CHOICES.search(event, max(0, seen - _CHOICES_WINDOW)):
        return False
    if not event.rstrip().endswith(b"}"):
        return True
    # An object that is complete stays what it is: only space may follow it.
    document = _json_of(event)
    return document is None or _is_usage(document)


def _is_usage_frame(event: bytes) -> bool:
    """Whether an event, without its blank line, is a usage frame. Parsed only when nothing cheaper says no."""
    if not _may_hold_usage_frame(event) or len(event) > MAX_FRAME or _HAS_CHOICES.search(event):
        return False
    first = _FIRST_DATA.search(event, 0, _MAX_HEAD)
    return first is not None and first.group(1) == b"{" and _is_usage(_json_of(event))


def _is_usage(document: object) -> bool:
    return isinstance(document, dict) and document.get("choices") == [] and isinstance(document.get("usage"), dict)


def _json_of(event: bytes) -> object:
    """The value of an event's data, its lines joined; None when they are no JSON."""
    lines = [line[5:] for line in event.splitlines() if line.startswith(b"data:")]
    try:
        return orjson.loads(b"\n".join(lines))
    except orjson.JSONDecodeError:
        return None


def _trailing_line_end(data: bytes) -> bytes:
    """The last byte of `data` if it ends a line."""
    return data[-1:] if data.endswith((b"\r", b"\n")) else b""
