"""API keys from files: lists of ours, and Kubernetes Secrets as Authorino reads them.

A file holds any number of documents:

    keys:
      - {key: "sha256:<64 hexadecimal digits>", userid: alice, groups: free}
      - {key: "sk-in-plain-text", userid: bob, groups: [free, beta]}
    ---
    kind: Secret            # chosen by its labels; the key is its `api_key`, whose value may also be `sha256:...`
    metadata: {name: carol, labels: {app: llm}, annotations: {kuadrant.io/groups: premium}}
    stringData: {api_key: sk-in-plain-text-too}

No message holds a key, and of a key nothing but its hash outlives the reading.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from extproc.config.document import kind_of, parse_documents
from extproc.config.errors import ConfigError, Problem, Step, field_path, first_problems
from extproc.config.files import Files, Unreadable
from extproc.config.model import ApiKeys
from extproc.config.secret_documents import (
    DEFAULT_NAMESPACE,
    Steps,
    Unusable,
    check_carried,
    no_text,
    secrets_in,
    value_of,
)

MAX_KEY: Final = 4096
"""Bytes of a key."""
SUFFIXES: Final = (".yaml", ".yml", ".json")
"""Of the files that are read of a folder."""

_HASH = re.compile(rb"sha256:([0-9a-fA-F]{64})")
_KEY: Final = "api_key"


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A key, as its SHA-256, and whose it is."""

    digest: bytes
    identity: Mapping[str, Any]


def read_keys(source: ApiKeys, files: Files) -> list[KeyEntry]:
    """The keys of `source`, in the order of its files; none is fine, nobody gets in then.

    Identities are the entries of our lists without `key`, and of a Secret `metadata` with `name`, `namespace`,
    `labels` and `annotations`. Documents of other kinds, and Secrets that are not chosen, are passed over. Raises
    ConfigError with the problems of all files.
    """
    reading = _Reading(source, files)
    if problems := first_problems(reading.problems()):
        raise ConfigError(problems)
    return reading.entries


class _Reading:
    """Collects entries, and yields what is wrong on the way."""

    def __init__(self, source: ApiKeys, files: Files) -> None:
        self.entries: list[KeyEntry] = []
        self._source = source
        self._files = files
        self._places: dict[bytes, tuple[str, Steps]] = {}

    def problems(self) -> Iterator[Problem]:
        seen: set[Path] = set()
        for name in self._source.files:
            try:
                paths = self._files.list(Path(name), SUFFIXES)
            except Unreadable as error:
                yield Problem("", str(error), name)
                continue
            for path in paths:
                if path not in seen:
                    seen.add(path)
                    yield from self._file(path)

    def _file(self, path: Path) -> Iterator[Problem]:
        name = str(path)
        try:
            documents = parse_documents(self._files.read_text(path), name)
        except Unreadable as error:
            yield Problem("", str(error), name)
            return
        except ConfigError as error:
            yield from error.problems
            return
        for number, document in enumerate(documents, 1):
            yield from self._document(document, name if len(documents) == 1 else f"{name}, document {number}")

    def _document(self, document: Any, file: str) -> Iterator[Problem]:
        if not isinstance(document, dict):
            yield Problem("", f"expected `keys`, or a Kubernetes document, found {kind_of(document)}", file)
        elif "kind" in document:
            for steps, secret in secrets_in(document):
                yield from self._take(self._entry_of_secret, secret, steps, file)
        elif document.keys() != {"keys"}:
            yield Problem("", "expected `keys` and nothing else, or a Kubernetes document with its `kind`", file)
        elif not isinstance(document["keys"], list | None):
            yield Problem("keys", f"expected a list, found {kind_of(document['keys'])}", file)
        else:
            for index, item in enumerate(document["keys"] or ()):
                yield from self._take(_entry_of_item, item, ("keys", index), file)

    def _take(self, read: Callable[[Any], KeyEntry | None], data: Any, steps: Steps, file: str) -> Iterator[Problem]:
        """Add what `read` makes of `data`, unless its key is there already."""
        try:
            entry = read(data)
        except Unusable as bad:
            yield Problem.at((*steps, *bad.steps), str(bad), file)
            return
        if entry is None:
            return
        place = (file, steps)
        earlier = self._places.setdefault(entry.digest, place)
        if earlier is not place:
            where = ": ".join(filter(None, (earlier[0] if earlier[0] != file else "", field_path(earlier[1]))))
            yield Problem.at(steps, f"the same key as in {where}", file)
            return
        self.entries.append(entry)

    def _entry_of_secret(self, secret: Mapping[str, Any]) -> KeyEntry | None:
        """None for a Secret that the selector, or the namespace, does not choose."""
        metadata = secret.get("metadata")
        if not isinstance(metadata, dict):
            return None
        labels = metadata.get("labels") or {}
        namespace = metadata.get("namespace") or DEFAULT_NAMESPACE
        wanted = self._source.selector.match_labels
        if not isinstance(labels, dict) or any(labels.get(name) != value for name, value in wanted.items()):
            return None
        if self._source.namespace not in (None, namespace):
            return None
        identity = {
            "name": metadata.get("name", ""),
            "namespace": namespace,
            "labels": _texts(metadata, "labels"),
            "annotations": _texts(metadata, "annotations"),
        }
        key, where = value_of(secret, _KEY)
        return KeyEntry(_digest_of(key, *where), {"metadata": identity})


def _entry_of_item(item: Any) -> KeyEntry:
    if not isinstance(item, dict):
        raise Unusable(f"expected an object with `key`, found {kind_of(item)}")
    if "key" not in item:
        raise Unusable("missing", "key")
    if not isinstance(item["key"], str):
        raise Unusable(no_text(item["key"]), "key")
    digest = _digest_of(item["key"].encode(), "key")
    return KeyEntry(digest, {name: value for name, value in item.items() if name != "key"})


def _digest_of(key: bytes, *steps: Step) -> bytes:
    """The SHA-256 that `key` is, or has."""
    if (written := _HASH.fullmatch(key)) is not None:
        return bytes.fromhex(written.group(1).decode())
    if key.startswith(b"sha256:"):
        raise Unusable("expected 64 hexadecimal digits after `sha256:`", *steps)
    check_carried(key, MAX_KEY, *steps)
    return hashlib.sha256(key).digest()


def _texts(metadata: Mapping[str, Any], field: str) -> dict[str, str]:
    """Labels or annotations."""
    found = metadata.get(field) or {}
    if not isinstance(found, dict):
        raise Unusable(f"expected an object, found {kind_of(found)}", "metadata", field)
    for name, value in found.items():
        if not isinstance(value, str):
            raise Unusable(no_text(value), "metadata", field, name)
    return found
