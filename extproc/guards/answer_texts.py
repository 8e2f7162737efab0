"""The texts of an answer, or of one event of it, of whatever dialect.

Every string counts as text, so that no dialect, old or new, gets by unseen. Left out is what the model did not write
and patterns would only stumble over: identifiers and names of kinds, under keys that are known for them and as long
as they look like that; data in base64; log probabilities, which spell out a text that stands beside them; what a
`response` repeats of its request. Arguments of tools that come as objects count as the JSON that they are, keys
included, with nothing left out.

Each text has a *place*: its keys from the root, with the `index` of elements and events that have one. Texts at one
place follow each other, in one document and from event to event: they are one text to whoever reads them.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import orjson

MAX_VALUES = 50_000
"""Strings, lists and objects that are looked at: some fifty milliseconds. Numbers in lists cost nothing."""
_LONGEST_LABEL = 256
_LONGEST_PLACE = 256
"""Characters; a longer one is told from others by its hash."""
_SHORTEST_DATA = 256
"""Characters of base64 under `data`, a key that may be anybody's."""

_LABELS = frozenset(
    "call_id created_at done_reason event_type finishReason finish_reason generation_id id item_id model modelVersion "
    "obfuscation object previous_response_id provider responseId response_id response_type role service_tier status "
    "stopReason stop_reason system_fingerprint toolUseId tool_call_id tool_use_id type".split()
)
_ENCODED = frozenset(
    "b64_json embedding encrypted_content partial_image_b64 signature thoughtSignature thought_signature".split()
)
_SOUND = frozenset({"response.audio.delta", "response.output_audio.delta"})
_BASE64 = re.compile(r"[A-Za-z0-9+/_=-]*+")
_SPELT_OUT = frozenset({"logprobs", "logprobsResult", "top_logprobs"})
_ARGUMENTS = frozenset({"args", "arguments", "input", "parameters"})
_ECHOED = frozenset({"metadata", "prompt", "text", "tool_choice", "tools"})
_INDICES = ("index", "output_index", "content_index", "summary_index")
_SAME_PLACE = {"content_block": "delta"}
"""Anthropic begins a block in one and goes on in the other."""
_BOM = b"\xef\xbb\xbf"
_ROOT = ""


class Piece(NamedTuple):
    """A text, or the next piece of it. Never empty; may hold lone surrogates, as JSON may."""

    place: str
    text: str


class _TooMuchError(Exception):
    """More values than are looked at."""


def texts_of(data: bytes) -> list[Piece] | None:
    """The texts of one JSON text, in order; None for what is no JSON, too deep, or more than is looked at.

    Of duplicate keys all values count: parsers differ in which one they take. JSON that only lenient parsers read (NaN,
    control characters and bytes that are no UTF-8 in strings, lone surrogates) is read. A number or word alone is text.
    """
    data = data.removeprefix(_BOM)
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        return _texts_of_lenient(data)
    if not isinstance(document, (dict, list)):
        return _texts_of_scalar(document, data.decode("utf-8", "replace"))
    walk = _Walk()
    try:
        walk.read(document)
    except (_TooMuchError, ValueError, RecursionError):
        return None
    # A parser that dropped a member dropped its key at least.
    return walk.pieces if walk.quotes == _quotes(data) else _texts_of_lenient(data)


def _texts_of_lenient(data: bytes) -> list[Piece] | None:
    text = data.decode("utf-8", "replace")
    walk = _Walk()
    try:
        document = json.loads(text, strict=False, object_pairs_hook=_all_members)
        if not isinstance(document, (dict, list)):
            return _texts_of_scalar(document, text)
        walk.read(document)
    except (_TooMuchError, ValueError, RecursionError):
        return None
    return walk.pieces


def _texts_of_scalar(value: object, written: str) -> list[Piece]:
    text = value if isinstance(value, str) else written
    return [Piece(_ROOT, text)] if text else []


def _all_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a key that occurs several times has a list of its values."""
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    values: dict[str, list[Any]] = {}
    for key, value in pairs:
        values.setdefault(key, []).append(value)
    return {key: several[0] if len(several) == 1 else several for key, several in values.items()}


class _Walk:
    """Collects the texts of a document. Its own stack instead of recursion: depth is the sender's choice."""

    __slots__ = ("_left", "_stack", "pieces", "quotes")

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.quotes = 0
        """That delimit the strings of the document, keys included."""
        self._stack: list[tuple[str, Any]] = []
        self._left = MAX_VALUES

    def read(self, document: dict[str, Any] | list[Any]) -> None:
        stack = self._stack
        stack.append((_beginning(document) if isinstance(document, dict) else _ROOT, document))
        while stack:
            place, value = stack.pop()
            if isinstance(value, dict):
                self._object(place, value)
            else:
                self._list(place, value)

    def _spend(self, values: int) -> None:
        self._left -= values
        if self._left < 0:
            raise _TooMuchError

    def _object(self, place: str, value: dict[str, Any]) -> None:
        self._spend(len(value))
        self.quotes += 2 * len(value)
        nested: list[tuple[str, Any]] = []
        for key, member in value.items():
            kind = type(member)
            if kind is str:
                self.quotes += 2
                if member and not _is_unsaid(key, member, value):
                    self.pieces.append(Piece(_under(place, key), member))
            elif kind is dict or kind is list:
                if key in _ARGUMENTS:
                    self.pieces.append(Piece(_under(place, key), self._whole(member)))
                elif key in _SPELT_OUT or (key in _ECHOED and value.get("object") == "response"):
                    self._whole(member)
                else:
                    nested.append((_under(place, _SAME_PLACE.get(key, key)), member))
        nested.reverse()
        self._stack += nested

    def _list(self, place: str, values: list[Any]) -> None:
        if set(map(type, values)).isdisjoint((str, dict, list)):
            return
        self._spend(len(values))
        nested: list[tuple[str, Any]] = []
        for element in values:
            if isinstance(element, str):
                self.quotes += 2
                if element:
                    self.pieces.append(Piece(place, element))
            elif isinstance(element, dict):
                index = element.get("index")
                nested.append((f"{place}#{index}" if type(index) is int else place, element))
            elif isinstance(element, list):
                nested.append((place, element))
        nested.reverse()
        self._stack += nested

    def _whole(self, value: Any) -> str:
        """The JSON of `value`."""
        try:
            written = orjson.dumps(value).decode()
        except TypeError:  # nested deeper than it goes, large integers, lone surrogates
            written = json.dumps(value, ensure_ascii=False)
        self.quotes += _quotes(written.encode("utf-8", "surrogatepass"))
        return written


def _under(place: str, key: str) -> str:
    below = f"{place}.{key}"
    return below if len(below) <= _LONGEST_PLACE else f"~{hash(below):x}"


def _beginning(event: dict[str, Any]) -> str:
    """The place of what an event says: of typed ones also which of several texts it goes on with."""
    if not isinstance(event.get("type"), str):
        return _ROOT
    return "".join(f"#{event[key]}" if type(event.get(key)) is int else "#" for key in _INDICES)


def _is_unsaid(key: str, text: str, beside: dict[str, Any]) -> bool:
    """Whether a string is none that a model wrote."""
    if key in _LABELS:
        return len(text) <= _LONGEST_LABEL and text.isascii() and " " not in text
    if key in _ENCODED or (key == "delta" and beside.get("type") in _SOUND):
        return _BASE64.fullmatch(text) is not None
    if key == "data":
        return len(text) >= _SHORTEST_DATA and _BASE64.fullmatch(text) is not None
    return key == "instructions" and beside.get("object") == "response"


def _quotes(data: bytes) -> int:
    """Of JSON: those that delimit strings. Backslashes are in strings alone, so they pair up from the left."""
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    return data.count(b'"')
