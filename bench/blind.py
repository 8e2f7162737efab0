"""`extproc serve` that does not look at answers: the difference to the real one is what reading usage costs.

Every answer is taken to say that it used 24 tokens; all else, every message and every report, is as it is.
"""

from __future__ import annotations

import sys

from extproc.bodies.findings import Findings
from extproc.bodies.reader import BodyReader, ReaderFactory, Unread
from extproc.cli import main


class BlindReader:
    """Reads nothing."""

    complete = True
    mid_event = False
    streaming = True
    unread: Unread | None = None

    def __init__(self) -> None:
        self.findings = Findings()
        self.findings.values[("usage", "total_tokens")] = 24
        self.findings.counts.update({"/usage/prompt_tokens": 12, "/usage/completion_tokens": 12})

    def feed(self, data: bytes) -> None:
        """Look away."""

    def close(self) -> None:
        """Nothing to finish."""


def _open(factory: ReaderFactory, content_type: str, content_encoding: str) -> BodyReader:
    return BlindReader()


if __name__ == "__main__":
    setattr(ReaderFactory, "open", _open)  # noqa: B010 - mypy knows no assignment to a method
    sys.exit(main())
