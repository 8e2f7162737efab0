"""What one row of a dialect's table says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from extproc.usage.usage import Reported

Framing = Literal["json", "sse", "ndjson", "eventstream", "wrapped"]


@dataclass(frozen=True)
class Case:
    """An answer and what must be found in it. `answer` is a document, or a list of events where `framing` says so.

    `text` is what was generated, as far as an estimate would count it. An answer that is not `recognised` by its
    beginning (an image, for one) is still counted. `dialect` is who tells the counts, where that is another.
    """

    name: str
    answer: Any
    usage: Reported | None
    framing: Framing = "json"
    model: str = "m"
    text: str | None = None
    dialect: str = ""
    recognised: bool = True
