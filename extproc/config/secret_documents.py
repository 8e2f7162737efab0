"""Kubernetes Secrets in files: where they are, and what one of their values is, without ever showing it."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from extproc.config.document import kind_of
from extproc.config.errors import Step

DEFAULT_NAMESPACE: Final = "default"
"""Where a Secret is that names no namespace, as for `kubectl`."""
_LISTS: Final = ("List", "SecretList")
_CARRIED = re.compile(rb"[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?")

Steps = tuple[Step, ...]


class Unusable(Exception):
    """A value, at `steps` below what is being read, cannot be used; the text says why, without it."""

    def __init__(self, message: str, *steps: Step) -> None:
        super().__init__(message)
        self.steps = steps


def secrets_in(document: Mapping[str, Any], steps: Steps = ()) -> Iterator[tuple[Steps, Mapping[str, Any]]]:
    """The Secret that a document with a `kind` is, or those that it lists, each with the way to it."""
    if document["kind"] == "Secret":
        yield steps, document
    elif document["kind"] in _LISTS and isinstance(document.get("items"), list):
        for index, item in enumerate(document["items"]):
            if isinstance(item, dict) and "kind" in item:
                yield from secrets_in(item, (*steps, "items", index))


def value_of(secret: Mapping[str, Any], key: str) -> tuple[bytes, Steps]:
    """What a Secret has as `key`, and where; `stringData` counts before `data`, as in Kubernetes.

    Raises Unusable when it is missing, no string, or not base64 where it has to be.
    """
    for section in ("stringData", "data"):
        values = secret.get(section)
        if not isinstance(values, dict) or key not in values:
            continue
        if not isinstance(values[key], str):
            raise Unusable(no_text(values[key]), section, key)
        value = values[key].encode()
        return (_decoded(value, key) if section == "data" else value), (section, key)
    raise Unusable("missing; a Secret that is chosen has its key here", "data", key)


def check_carried(value: bytes, longest: int, *steps: Step) -> None:
    """Raises Unusable for a secret that is empty, longer than `longest` bytes, or not fit for a header."""
    if not value:
        raise Unusable("empty", *steps)
    if len(value) > longest:
        raise Unusable(f"longer than {longest} bytes", *steps)
    if not _CARRIED.fullmatch(value):
        raise Unusable("no header can carry it: white space around it, a line break or a control character", *steps)


def no_text(value: Any) -> str:
    """What to say of a value that should be a string and is none."""
    hint = "; put it in quotes" if isinstance(value, bool | int | float) else ""
    return f"expected a string, found {kind_of(value)}{hint}"


def _decoded(text: bytes, key: str) -> bytes:
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error:
        raise Unusable("expected base64; plain text belongs into `stringData`", "data", key) from None
