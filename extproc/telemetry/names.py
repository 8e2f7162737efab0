"""Names that others choose, before they become labels of metrics or fields of an access log."""

from __future__ import annotations

from collections.abc import Container, Sized
from typing import Final, Protocol

MAX_NAME: Final = 128
OTHER: Final = "(other)"
"""Stands for all names beyond a bound."""


class _Known(Container[str], Sized, Protocol):
    """A set of names, or a mapping by name."""


def printable(name: str) -> str:
    """The first 128 characters of `name`, with `?` for each that cannot be seen or encoded."""
    name = name[:MAX_NAME]
    return name if name.isprintable() else "".join(each if each.isprintable() else "?" for each in name)


def bounded(name: str, known: _Known, most: int) -> str:
    """`name` as long as it is among the first `most` that are `known`, else OTHER."""
    return name if name in known or len(known) < most else OTHER
