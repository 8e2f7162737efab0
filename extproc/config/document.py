"""Text to plain data: dictionaries with string keys, lists and scalars, whatever the notation.

JSON is strict (RFC 8259). YAML is read by the rules of YAML 1.2's core schema, as Limitador does: `on`, `no` and
`12:30` are strings. Beyond that, `<<` merges, and any mapping key is the text that was written. A key given twice
is an error in both.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import orjson
import yaml

from extproc.config.errors import ConfigError, Problem, quoted
from extproc.config.files import MAX_BYTES

MAX_DEPTH = 64
"""Nesting of lists and mappings in YAML; deeper is an error."""

_NODE_COST = 16
_MAX_NUMBER = 100
_STRING_TAG = "tag:yaml.org,2002:str"
_CONSTANTS = {"": None, "~": None} | {
    spelling: value
    for word, value in (("null", None), ("true", True), ("false", False))
    for spelling in (word, word.title(), word.upper())
}
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)")
_CITED = re.compile(r"`.*`|'.*'", re.DOTALL)
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_document(text: str, name: str) -> Any:
    """The data in `text`: JSON when `name` ends in .json or the content is JSON, otherwise YAML.

    Raises ConfigError with `name` as the problem's file.
    """
    return _parse(text, name, several=False)[0]


def parse_documents(text: str, name: str) -> list[Any]:
    """The data of each document in `text`, as Kubernetes tools write them: YAML with `---` between, or one of JSON.

    Documents of nothing but comments are left out. Raises ConfigError with `name` as the problem's file; its messages
    show nothing of the text, for these are the files that keys are in.
    """
    try:
        return _parse(text, name, several=True)
    except ConfigError as error:
        told = [Problem(problem.path, _CITED.sub("`…`", problem.message), problem.file) for problem in error.problems]
        raise ConfigError(told) from None


def kind_of(value: Any) -> str:
    """What `value`, which a document holds, is, without showing it."""
    if value is None:
        return "null"
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "`true` or `false`"}
    return kinds.get(type(value), "a number")


def _parse(text: str, name: str, *, several: bool) -> list[Any]:
    try:
        if len(text) > MAX_BYTES or len(text.encode()) > MAX_BYTES:
            raise _Bad("", f"larger than {MAX_BYTES // 10**6} MB")
        if not text.strip():
            if several:
                return []
            raise _Bad("", "the file is empty")
        if name.endswith(".json"):
            return [_parse_json(text)]
        if text.lstrip()[0] in "{[":
            try:
                return [_parse_json(text)]
            except _NotJson:
                pass
        return _YamlReader(text, several=several).documents()
    except UnicodeEncodeError:
        raise ConfigError([Problem("", "not valid Unicode", name)]) from None
    except _Bad as bad:
        raise ConfigError([Problem(bad.where, bad.message, name)]) from None


class _Bad(Exception):
    def __init__(self, where: str, message: str) -> None:
        super().__init__(where, message)
        self.where = where
        self.message = message


class _NotJson(_Bad):
    """Not JSON at all, so it may be YAML."""


def _parse_json(text: str) -> Any:
    """orjson knows exactly what JSON is; the standard library shows the keys that occur twice."""
    try:
        orjson.loads(text)
        return json.loads(text, object_pairs_hook=_unique)
    except orjson.JSONDecodeError as error:
        raise _NotJson(_position(error.lineno, error.colno), f"not JSON: {error.msg}") from None
    except RecursionError:
        raise _Bad("", "nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Bad("", f"key {quoted(twice)} is given twice in one object")
    return found


def _position(line: int, column: int) -> str:
    return f"line {line}, column {column}"


@dataclass(slots=True)
class _Collection:
    """A list or mapping under construction; `cost` is the size of what it holds, aliases written out."""

    value: list[Any] | dict[str, Any]
    anchor: str | None
    cost: int = _NODE_COST
    key: str | None = None
    merging: bool = False
    merged: list[Any] = field(default_factory=list)


class _YamlReader:
    """Builds plain data from parser events.

    Works without recursion, and counts what aliases stand for against the limit for files, so that neither deep
    nesting nor a small file of aliases of aliases can exhaust the process.
    """

    def __init__(self, text: str, *, several: bool = False) -> None:
        self._text = text
        self._several = several
        self._open: list[_Collection] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._expanded = 0
        self._results: list[Any] = []
        self._documents = 0

    def documents(self) -> list[Any]:
        """What each document holds; of several, those that hold something. The one, where only one is read."""
        try:
            for event in yaml.parse(self._text, Loader=_LOADER):
                self._take(event)
        except yaml.MarkedYAMLError as error:
            raise _Bad(*self._explain(error)) from None
        except yaml.YAMLError:
            raise _Bad("", "not YAML: it contains control characters") from None
        except (ValueError, OverflowError):
            raise _Bad("", "not YAML: a string contains an escape that is not a character") from None
        if not self._documents and not self._several:
            raise _Bad("", "the file is empty")
        return self._results

    def _explain(self, error: yaml.MarkedYAMLError) -> tuple[str, str]:
        mark = error.problem_mark or error.context_mark
        if mark is None:
            return "", f"not YAML: {error.problem}"
        lines = self._text.splitlines()
        line = lines[mark.line] if mark.line < len(lines) else ""
        message = f"not YAML: {error.problem}"
        if "cannot start any token" in message and line[mark.column : mark.column + 1] == "\t":
            message = "a tab: YAML is indented with spaces"
        return _position(mark.line + 1, mark.column + 1), message

    def _take(self, event: Any) -> None:
        match event:
            case yaml.ScalarEvent():
                self._scalar(event)
            case yaml.AliasEvent():
                self._alias(event)
            case yaml.SequenceStartEvent():
                self._start(event, [])
            case yaml.MappingStartEvent():
                self._start(event, {})
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                self._end(event)
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1 and not self._several:
                    raise self._bad(event, "a second YAML document; only one is read")
                self._anchors.clear()

    def _bad(self, event: Any, message: str) -> _Bad:
        return _Bad(_position(event.start_mark.line + 1, event.start_mark.column + 1), message)

    def _scalar(self, event: Any) -> None:
        text: str = event.value
        text.encode()
        plain = event.implicit[0]
        if event.tag not in (None, "!", _STRING_TAG):
            raise self._bad(event, f"tag {quoted(event.tag)} is not supported")
        self._put(event, text, _resolve(text) if plain else text, _NODE_COST + len(text), is_plain=plain)

    def _alias(self, event: Any) -> None:
        if event.anchor not in self._anchors:
            raise self._bad(event, f"alias {quoted(event.anchor)} has nothing complete to stand for")
        value, cost = self._anchors[event.anchor]
        self._expanded += cost
        if self._expanded > MAX_BYTES:
            raise self._bad(event, f"larger than {MAX_BYTES // 10**6} MB with its aliases written out")
        self._put(event, value if isinstance(value, str) else None, value, cost)

    def _start(self, event: Any, value: list[Any] | dict[str, Any]) -> None:
        if event.tag is not None and not event.implicit:
            raise self._bad(event, f"tag {quoted(event.tag)} is not supported")
        if len(self._open) == MAX_DEPTH:
            raise self._bad(event, f"nested more than {MAX_DEPTH} deep")
        self._check_key(event)
        if event.anchor:
            self._anchors.pop(event.anchor, None)
        self._open.append(_Collection(value, event.anchor))

    def _end(self, event: Any) -> None:
        done = self._open.pop()
        if isinstance(done.value, dict):
            for source in done.merged:
                done.value |= {key: item for key, item in source.items() if key not in done.value}
        self._put(event, None, done.value, done.cost, anchor=done.anchor)

    def _check_key(self, event: Any) -> None:
        """A collection may not stand where a key is expected."""
        if self._open and isinstance(self._open[-1].value, dict):
            parent = self._open[-1]
            if parent.key is None and not parent.merging:
                raise self._bad(event, "a list or mapping cannot be a key")

    def _put(
        self,
        event: Any,
        as_key: str | None,
        value: Any,
        cost: int,
        *,
        anchor: str | None = None,
        is_plain: bool = False,
    ) -> None:
        """Adds a finished value to the collection that is open."""
        anchor = anchor or (event.anchor if isinstance(event, yaml.ScalarEvent) else None)
        if anchor:
            self._anchors[anchor] = (value, cost)
        if not self._open:
            if value is not None or not self._several:
                self._results.append(value)
            return
        parent = self._open[-1]
        parent.cost += cost
        if isinstance(parent.value, list):
            parent.value.append(value)
        elif parent.merging:
            parent.merged.extend(self._merge_sources(event, value))
            parent.merging = False
        elif parent.key is not None:
            parent.value[parent.key] = value
            parent.key = None
        elif as_key == "<<" and is_plain:
            parent.merging = True
        elif as_key is None:
            raise self._bad(event, "a list or mapping cannot be a key")
        elif as_key in parent.value:
            raise self._bad(event, f"key {quoted(as_key)} is given twice")
        else:
            parent.key = as_key

    def _merge_sources(self, event: Any, value: Any) -> list[dict[str, Any]]:
        sources = value if isinstance(value, list) else [value]
        if not all(isinstance(source, dict) for source in sources):
            raise self._bad(event, "`<<` takes a mapping or a list of mappings")
        return sources


def _resolve(text: str) -> Any:
    """A plain scalar by the core schema, without a leading zero: what that would mean nobody agrees on."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if len(text) > _MAX_NUMBER:
        return text
    if _INTEGER.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    return float(text) if _FLOAT.fullmatch(text) else text
