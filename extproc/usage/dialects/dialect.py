"""What a dialect is: where an answer keeps its numbers, and what they mean.

A new one is a module beside this with a `DIALECT`, a line in `__init__`, and a table of cases in tests/usage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from extproc.bodies.shapes import Shape
from extproc.usage.usage import Reported

Counts = Mapping[str, int]
"""Valid token counts by pointer, as the dialect's shape names them."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One family of answers."""

    shape: Shape
    provider: str
    """`gen_ai.provider.name` of OpenTelemetry's GenAI conventions."""
    usage: Callable[[Counts], Reported | None]
    """Reads the counts; None when those that make it this dialect are not among them."""

    @property
    def name(self) -> str:
        return self.shape.name


def first(counts: Counts, *pointers: str) -> int | None:
    """The count at the first pointer that has one."""
    for pointer in pointers:
        if pointer in counts:
            return counts[pointer]
    return None


def total_of(counts: Counts, *pointers: str) -> int | None:
    """The sum of the counts that there are, None when there are none."""
    found = [counts[pointer] for pointer in pointers if pointer in counts]
    return sum(found) if found else None


def under(places: tuple[str, ...], fields: tuple[str, ...]) -> tuple[str, ...]:
    """The pointers of all `fields` in all `places`."""
    return tuple(f"{place}/{field}" for place in places for field in fields)
