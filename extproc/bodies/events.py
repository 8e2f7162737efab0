"""The JSON texts of a stream, whatever frames them: which are looked at, and what is taken from them.

A stream begins with an introduction: its first events are parsed, to tell which family it belongs to and the name of
the model. After that an event without token counts costs two searches, not a parse.
"""

from __future__ import annotations

import orjson

from extproc.bodies.findings import Findings
from extproc.bodies.json_scanner import JsonScanner
from extproc.bodies.wanted import HEAD, Wanted

_FOR_SHAPE = 16
_FOR_MODEL = 4
"""Events after which a stream without the one or the other goes on without it."""


class EventSink:
    """Given each event's bytes by the reader that frames them: `scan` pieces, `parse` single JSON texts.

    What is found depends on the events alone, not on how many of them a piece holds.
    """

    __slots__ = ("_add_text", "_events", "_findings", "_introducing", "_more_needles", "_scanned", "_seen", "_wanted")

    def __init__(self, wanted: Wanted, findings: Findings, more_needles: tuple[bytes, ...] = ()) -> None:
        """`more_needles`: of events that are parsed whatever the shape."""
        self._wanted = wanted
        self._findings = findings
        self._add_text = findings.text.add
        self._events = wanted.any_shape
        self._more_needles = more_needles
        self._introducing = True
        self._seen = 0
        self._scanned = False
        """The text of the piece at hand has been noted."""

    def scan(self, data: bytes) -> bool:
        """Note the text in `data`, which holds whole events; whether each of them must be parsed too."""
        if self._introducing:
            self._scanned = False
            return True
        events = self._events
        # Every piece of every stream comes through here: what follows is `_is_exact` and `_note_text`, in line.
        for needle in events.exact_needles:
            if data.find(needle) >= 0:
                self._scanned = False
                return True
        self._scanned = True
        if events.find_text is not None:
            for text in events.find_text(data):
                self._add_text(text)
        return self._may_matter(data)

    def parse(self, *lines: bytes) -> None:
        """Take what is wanted from one event: the JSON text that its lines make, or else each of them."""
        text = lines[0] if len(lines) == 1 else b"\n".join(lines)
        if self._introducing:
            self._recognise(text)
        exact = self._is_exact(text)
        if not (self._scanned or exact):
            self._note_text(text)
        wanted = self._introducing or exact or self._may_matter(text)
        if wanted and not self._take(text, exact=exact) and len(lines) > 1:
            for line in lines:
                self._take(line, exact=exact)
        if self._introducing:
            self._introduced()

    def _take(self, text: bytes, *, exact: bool) -> bool:
        """Take what one JSON text holds; False when it is none."""
        try:
            document = orjson.loads(text)
        except orjson.JSONDecodeError:
            return self._scan_text(text)
        self._events.tree.extract(document, self._findings)
        if exact:
            self._events.exact_text.collect(document, self._findings.text)
        return True

    def _is_exact(self, data: bytes) -> bool:
        return any(needle in data for needle in self._events.exact_needles)

    def _scan_text(self, text: bytes) -> bool:
        """Take what can be had of a text that a strict parser refuses: 1e400, lone surrogates, 100,000 brackets."""
        if not self._may_matter(text):
            return False
        scanner = self.scanner()
        scanner.feed(text)
        scanner.close()
        return scanner.complete

    def scanner(self) -> JsonScanner:
        """For a text that is too long to be held: finds all but its generated text."""
        return JsonScanner(self._events.tree, self._findings, following=True)

    def _note_text(self, data: bytes) -> None:
        if self._events.find_text is not None:
            for text in self._events.find_text(data):
                self._add_text(text)

    def _may_matter(self, data: bytes) -> bool:
        # any() and `in` would cost as much again.
        for needle in self._events.all_needles:
            if data.find(needle) >= 0:
                return True
        return bool(self._more_needles) and any(needle in data for needle in self._more_needles)

    def _recognise(self, text: bytes) -> None:
        findings = self._findings
        if not findings.shape and (shape := self._wanted.recognise(text[:HEAD])):
            findings.shape = shape
            self._events = self._wanted.events_of(shape)

    def _introduced(self) -> None:
        findings = self._findings
        self._seen += 1
        waits_for_model = not findings.model and self._seen < _FOR_MODEL
        waits_for_shape = not findings.shape and self._seen < _FOR_SHAPE
        self._introducing = waits_for_model or waits_for_shape
