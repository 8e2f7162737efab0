"""What reading a body yields."""

from __future__ import annotations

from collections.abc import Callable

from extproc.bodies.text import Text

Path = tuple[str, ...]
Scalar = str | int | float | bool
Values = dict[Path, Scalar]
"""Scalars that expressions want, by pointer: null, lists and maps count as not found."""

MAX_COUNT = 2**32 - 1
"""Larger numbers are no token counts: limiters count hits of one exchange in 32 bits."""
MAX_MODEL = 128
"""Characters of a model's name that are kept."""


class Findings:
    """Of every pointer the last value that is one: a null, a negative count or `"12"` replaces nothing.

    `counts` are token counts by their pointer as a dialect writes it; `shape` names the dialect whose beginning was
    recognised, "" when none was; `body_size` is that of a body which was decoded, in bytes.
    """

    __slots__ = ("_text", "_text_later", "body_size", "counts", "model", "shape", "values")

    def __init__(self, keep_text: int = 0) -> None:
        self.values: Values = {}
        self.counts: dict[str, int] = {}
        self.model = ""
        self.shape = ""
        self.body_size = 0
        self._text = Text(keep_text)
        self._text_later: Callable[[Text], None] | None = None

    @property
    def text(self) -> Text:
        """Generated text."""
        later = self._text_later
        if later is not None:
            self._text_later = None
            later(self._text)
        return self._text

    def collect_text_later(self, collect: Callable[[Text], None]) -> None:
        """Have `collect` find the text only when it is asked for: it costs more than all the rest."""
        self._text_later = collect


def count_of(value: object) -> int | None:
    """`value` as a token count: a whole number that is not negative, else None."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= MAX_COUNT else None
