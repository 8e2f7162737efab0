"""Streams of events: each is passed on once its texts have been looked at, together with what came before them.

What a client gets is whole events, so that a final one in place of an event that completes a match is read as an event
of its own. It depends on the bytes alone, not on the chunks that they come in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from extproc.guards.answer_texts import Piece, texts_of
from extproc.guards.final_events import Framing, Profile, final_events
from extproc.guards.growing_texts import DenyPatterns, GrowingTexts
from extproc.usage.dialects import DIALECTS

MAX_EVENT: Final = 1024 * 1024
"""Bytes of an event, or a comment, unless configured."""
MAX_DOUBTFUL: Final = 64 * 1024
"""Bytes of events that wait for how a text goes on."""
TOO_LONG: Final = "too_long"
"""The rule that an event breaks which is longer than may be held."""

_RECOGNISED_WITHIN = 16
"""Events."""
_HEAD = 4096
_OPENINGS = [(re.compile(dialect.shape.opening).search, name) for name, dialect in DIALECTS.items()]
_BOM = b"\xef\xbb\xbf"
_LINE_ENDS = re.compile(rb"[\r\n]++")
_COMMENT = re.compile(rb"[^\r\n]*+[\r\n]")
# A line feed after it belongs to the blank line, and is taken for one of its own when it comes later.
_EVENT_END = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\r|\n)")
_LONGEST_END = 4
_ENDS_OF_LINES = b"\r\n"
_COLON = ord(":")
_NO_TEXT = (b":", b"event:", b"id:", b"retry:")
"""How lines begin that a client reads no text from. One that it knows nothing of is looked at: not all are strict."""
_DONE = b"[DONE]"
_PLAIN = ""
"""The place of what is no JSON, as of a bare JSON string."""


class StreamGuard:
    """Looks at one stream of server-sent events (WHATWG HTML, section 9.2), or of JSON lines.

    Held back are an event that is not complete, up to `max_event` bytes, beyond which the stream is refused; and
    events from one on whose match depends on how its text goes on (`\\bass\\b` and `ass`, `ess...`), up to 64 KiB,
    beyond which it is taken for a match. Comments and empty lines pass at once, unless events wait.
    """

    __slots__ = ("_buffer", "_dialect", "_doubtful", "_framing", "_max_event", "_seen", "_texts", "_waiting", "denied")

    def __init__(
        self,
        patterns: DenyPatterns,
        look_behind: int,
        *,
        framing: Framing = "sse",
        profile: Profile = "openai",
        max_event: int = MAX_EVENT,
    ) -> None:
        """`look_behind` in characters. `profile` words the end of a stream whose dialect is not recognised."""
        self.denied: str | None = None
        """The rule that the stream broke: nothing more is passed on."""
        self._texts = GrowingTexts(patterns, look_behind)
        self._framing = framing
        self._dialect: str = profile if profile == "anthropic" else ""
        self._max_event = max_event
        self._seen = 0
        """Events, until the dialect is recognised."""
        self._buffer = bytearray()
        self._waiting = bytearray()
        self._doubtful: dict[str, str] = {}
        """Of texts that match unless they go on: the rule, by place."""

    @property
    def held(self) -> int:
        """Bytes held back."""
        return len(self._buffer) + len(self._waiting)

    def feed(self, chunk: bytes, last: bool = False) -> bytes:
        """What to send in place of `chunk`. After the `last` nothing is held."""
        if self.denied is not None:
            return b""
        buffer = self._buffer
        seen = len(buffer)
        data: bytes | bytearray = chunk
        if seen:
            buffer += chunk
            data = buffer
        passed: list[bytes] = []
        position = 0
        while end := self._end_of_unit(data, position, seen):
            passed.append(self._pass(bytes(data[position:end])))
            if self.denied is not None:
                return b"".join(passed)
            position = end
        if seen:
            del buffer[:position]
        else:
            buffer += chunk[position:]
        if last:
            passed.append(self._finish())
        elif len(buffer) > self._max_event and self._is_too_long(buffer):
            passed.append(self.refuse(TOO_LONG))
        return b"".join(passed)

    def refuse(self, rule: str) -> bytes:
        """End the stream for `rule`; what to send last."""
        return self._deny(rule, self._buffer)

    def _deny(self, rule: str, withheld: bytes | bytearray) -> bytes:
        """End the stream in place of what waits, if something does, and of what is `withheld`."""
        self.denied = rule
        first = self._waiting or withheld
        # An event that is too long may not be there as a whole.
        end = final_events(self._framing, self._dialect, bytes(first[: self._max_event]))
        self._waiting.clear()
        self._buffer.clear()
        return end

    def _finish(self) -> bytes:
        """The stream is over: what is doubtful matches, for its text does not go on."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        passed = self._pass(rest) if rest else b""
        if self._doubtful and self.denied is None:
            return passed + self.refuse(next(iter(self._doubtful.values())))
        return passed

    def _end_of_unit(self, data: bytes | bytearray, position: int, seen: int) -> int:
        """Where what begins at `position` ends: an event, a line, a comment, line ends; 0 while it does not.

        The first `seen` bytes hold no such end.
        """
        if position == len(data):
            return 0
        if self._framing == "ndjson":
            return data.find(b"\n", max(position, seen)) + 1
        first = data[position]
        if first in _ENDS_OF_LINES:
            found = _LINE_ENDS.match(data, position)
        elif first == _COLON:
            found = _COMMENT.match(data, max(position, seen))
        else:
            found = _EVENT_END.search(data, max(position, seen - _LONGEST_END))
        return 0 if found is None else found.end()

    def _pass(self, unit: bytes) -> bytes:
        """What to send for one unit, after a look at it."""
        if len(unit) > self._max_event and self._is_too_long(unit):
            return self._deny(TOO_LONG, unit)
        rule = self._rule_broken(unit)
        waiting = self._waiting
        if rule is None and not self._doubtful:
            if not waiting:
                return unit
            unit = bytes(waiting) + unit
            waiting.clear()
            return unit
        waiting += unit
        if rule is None and len(waiting) > MAX_DOUBTFUL:
            rule = next(iter(self._doubtful.values()))
        return b"" if rule is None else self._deny(rule, unit)

    def _is_too_long(self, unit: bytes | bytearray) -> bool:
        # Without its end, of which the last byte may not be there yet.
        return len(unit.rstrip(b"\r\n")) > self._max_event

    def _rule_broken(self, unit: bytes) -> str | None:
        if self._framing == "ndjson":
            return self._look([unit])
        if unit[0] in b":\r\n":
            return None
        data: list[bytes] = []
        strange: list[bytes] = []
        for line in unit.removeprefix(_BOM).splitlines():
            if line.startswith(b"data:"):
                data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif line and not line.startswith(_NO_TEXT):
                strange.append(line)
        return self._look(data) or (self._look(strange) if strange else None)

    def _look(self, lines: list[bytes]) -> str | None:
        """The rule that a JSON text breaks, given in lines; or each line where they are none together."""
        text = b"\n".join(lines)
        stripped = text.strip()
        if not stripped or stripped == _DONE:
            return None
        self._recognise(text)
        pieces = texts_of(text)
        if pieces is not None:
            return self._grow(pieces)
        for line in lines:
            pieces = texts_of(line)
            rule = self._grow([Piece(_PLAIN, line.decode("utf-8", "replace"))] if pieces is None else pieces)
            if rule is not None:
                return rule
        return None

    def _grow(self, pieces: Iterable[Piece]) -> str | None:
        """The rule that a text breaks for certain; what is not certain is noted."""
        for piece in pieces:
            match = self._texts.grow(piece)
            if match is None:
                if self._doubtful:
                    self._doubtful.pop(piece.place, None)
            elif match.certain:
                return match.rule
            else:
                self._doubtful[piece.place] = match.rule
        return None

    def _recognise(self, text: bytes) -> None:
        if self._seen >= _RECOGNISED_WITHIN:
            return
        self._seen += 1
        head = text[:_HEAD]
        for search, name in _OPENINGS:
            if search(head):
                self._dialect = name
                self._seen = _RECOGNISED_WITHIN
                return
