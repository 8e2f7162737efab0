"""Texts that arrive in pieces, searched with as much of what came before as a match may have begun in."""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

from extproc.guards.answer_texts import Piece

_MOST_TEXTS = 256
_FEWEST_TEXTS = 16
_ALL_CHARACTERS = 1024 * 1024
"""That are kept of all texts together, unless a few take more."""

_PROBES = ("a", " ")
"""What may stand beside a text: a letter and no letter. A match with both depends on neither."""
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|((?:u[0-9a-fA-F]{0,3})?)\Z|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


class DenyPatterns(Protocol):
    """The patterns that no text may match anywhere."""

    def denied_by(self, text: str) -> str | None:
        """The name of the rule that `text`, which has no lone surrogates, breaks; None when it breaks none."""


class Match(NamedTuple):
    """A rule that a text breaks; not `certain` while it depends on where the text ends: `\\bass\\b` and `ass...`."""

    rule: str
    certain: bool


def sound(text: str) -> str:
    """`text` with its surrogates paired, and U+FFFD in place of lone ones."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def is_json(text: str) -> bool:
    """Whether a text that is not blank begins as an object or a list: tool call arguments, structured output."""
    return text.lstrip().startswith(("{", "["))


class Escapes:
    """Resolves the escapes of JSON strings in a text that is JSON itself, across its pieces."""

    __slots__ = ("_unfinished",)

    def __init__(self) -> None:
        self._unfinished = ""

    def resolve(self, piece: str) -> str:
        """The next piece as it reads. An unfinished escape waits for its rest."""
        text = self._unfinished + piece
        self._unfinished = ""
        return _ESCAPE.sub(self._resolved, text) if "\\" in text else text

    def _resolved(self, escape: re.Match[str]) -> str:
        digits, unfinished, character = escape.groups()
        if digits is not None:
            return chr(int(digits, 16))
        if unfinished is not None:
            self._unfinished = escape.group()
            return ""
        return _ESCAPED.get(character, character)


class _Window:
    """The last characters of one text: those in which a match may begin, and one more for what stands before it."""

    __slots__ = ("behind", "is_cut")

    def __init__(self, behind: str = "", *, is_cut: bool = False) -> None:
        self.behind = behind
        self.is_cut = is_cut

    def look(self, piece: str, keep: int, patterns: DenyPatterns) -> Match | None:
        """What the text matches now that it goes on with `piece`."""
        text, is_cut = self.behind + piece, self.is_cut
        self.behind = text[-keep:]
        self.is_cut = is_cut or len(text) > keep
        text = sound(text)
        rule = patterns.denied_by(text)
        return None if rule is None else _weighed(text, rule, patterns, is_cut=is_cut)


def _weighed(text: str, rule: str, patterns: DenyPatterns, *, is_cut: bool) -> Match | None:
    """What a match in `text` is worth: where the text is cut off in front, its edge must not be what matched."""
    if is_cut:
        for probe in _PROBES:
            found = patterns.denied_by(probe + text)
            if found is None:
                return None
            rule = found
    before = _PROBES if is_cut else ("",)
    return Match(rule, all(patterns.denied_by(start + text + end) for start in before for end in _PROBES))


class _GrowingText:
    """One text: as it is, and, if it is JSON with escapes, as it reads."""

    __slots__ = ("_escapes", "_is_json", "_plain", "_raw")

    def __init__(self, *, is_cut: bool) -> None:
        self._raw = _Window(is_cut=is_cut)
        self._is_json: bool | None = None
        self._plain: _Window | None = None
        self._escapes = Escapes()

    def look(self, piece: str, keep: int, patterns: DenyPatterns) -> Match | None:
        if self._is_json is None and not piece.isspace():
            self._is_json = is_json(piece)
        if self._plain is None and self._is_json and "\\" in piece:
            self._plain = _Window(self._raw.behind, is_cut=self._raw.is_cut)
        match = self._raw.look(piece, keep, patterns)
        if self._plain is None or (match is not None and match.certain):
            return match
        return self._plain.look(self._escapes.resolve(piece), keep, patterns) or match


class GrowingTexts:
    """All texts of one stream, by place.

    A match is found if it begins at most `look_behind` characters before the piece that completes it. Of the texts the
    ones that grew last are kept, some 256 and fewer the longer `look_behind` is; one that grows after it was let go
    starts anew.
    """

    __slots__ = ("_keep", "_let_go", "_limit", "_patterns", "_texts")

    def __init__(self, patterns: DenyPatterns, look_behind: int) -> None:
        self._patterns = patterns
        self._keep = look_behind + 1
        self._limit = max(_FEWEST_TEXTS, min(_MOST_TEXTS, _ALL_CHARACTERS // self._keep))
        self._texts: dict[str, _GrowingText] = {}
        self._let_go = False

    def grow(self, piece: Piece) -> Match | None:
        """What the text at the place of `piece` matches with it, None for nothing."""
        text = self._texts.pop(piece.place, None)
        if text is None:
            if len(self._texts) >= self._limit:
                del self._texts[next(iter(self._texts))]
                self._let_go = True
            text = _GrowingText(is_cut=self._let_go)
        self._texts[piece.place] = text
        return text.look(piece.text, self._keep, self._patterns)
