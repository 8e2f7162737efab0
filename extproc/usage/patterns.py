"""Patterns of model names, in which `*` stands for any characters and nothing else is special."""

from __future__ import annotations


class ModelPattern:
    """Matches without regard to case, in time linear in both."""

    __slots__ = ("_first", "_last", "_middle", "_wild")

    def __init__(self, pattern: str) -> None:
        first, *middle = pattern.lower().split("*")
        self._wild = bool(middle)
        self._first = first
        self._last = middle.pop() if middle else ""
        self._middle = middle

    def matches(self, model: str) -> bool:
        """Whether all of `model` matches."""
        text = model.lower()
        if not self._wild:
            return text == self._first
        end = len(text) - len(self._last)
        if end < len(self._first) or not text.startswith(self._first) or not text.endswith(self._last):
            return False
        position = len(self._first)
        for part in self._middle:
            found = text.find(part, position, end)
            if found < 0:
                return False
            position = found + len(part)
        return True
