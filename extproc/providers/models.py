"""Something for each model, by names in which `*` stands for any characters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Generic, TypeVar

from extproc.usage.patterns import ModelPattern

LONGEST: Final = 512
"""Characters of a name that is looked for; a longer one is nobody's."""

T = TypeVar("T")


class ModelTable(Generic[T]):
    """A name as it is written in the table wins, then one that differs in case only, then the longest pattern.

    Of patterns of the same length the first counts. A request that names no model (`""`) is matched by `*` alone.
    """

    __slots__ = ("_any_case", "_names", "_patterns")

    def __init__(self, table: Mapping[str, T]) -> None:
        self._names = {name: item for name, item in table.items() if "*" not in name}
        self._any_case: dict[str, T] = {}
        for name, item in self._names.items():
            self._any_case.setdefault(name.lower(), item)
        patterns = sorted((name for name in table if "*" in name), key=len, reverse=True)
        self._patterns = [(ModelPattern(pattern), table[pattern]) for pattern in patterns]

    def __bool__(self) -> bool:
        return bool(self._names or self._patterns)

    def find(self, model: str) -> T | None:
        """What the table has for `model`, None when it has nothing."""
        found = self._names.get(model)
        if found is None and len(model) <= LONGEST:
            found = self._any_case.get(model.lower())
            if found is None and self._patterns:
                found = next((item for pattern, item in self._patterns if pattern.matches(model)), None)
        return found
