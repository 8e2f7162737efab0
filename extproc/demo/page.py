"""The page that the story is told on, and what is raised when it goes otherwise."""

from __future__ import annotations

import unicodedata
from typing import TextIO


class StoryError(Exception):
    """Something happened otherwise than the story says."""


class Page:
    """Where the story is told."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._colour = stream.isatty()

    def line(self, text: str = "") -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def act(self, title: str) -> None:
        self.line()
        self.line(f"\033[1m{title}\033[0m" if self._colour else title)


def padded(text: str, width: int) -> str:
    """With spaces up to so many columns; of a Chinese character a terminal makes two."""
    columns = sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
    return text + " " * (width - columns)


def expect(what: str, found: object, expected: object) -> None:
    """Raises StoryError unless they are equal."""
    if found != expected:
        raise StoryError(f"{what}: {found}, expected {expected}")
