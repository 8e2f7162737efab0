"""A clock that a story can move on, so that a window of two minutes is over in no time."""

from __future__ import annotations

import time


class MovableClock:
    """Seconds that never go back: what the windows of the embedded limiter go by."""

    def __init__(self) -> None:
        self._moved = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self._moved

    def advance(self, seconds: float) -> None:
        """Windows are so much older from now on."""
        self._moved += seconds
