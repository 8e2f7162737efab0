"""Work that others ask for as often as they like, and that is done no more often than it may take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

FRESH: Final = 1.0
"""Seconds for which an answer is good."""
SHARE: Final = 20
"""An answer is good for as many times the time that it took: this work gets at most a twentieth of the process."""

T = TypeVar("T")


class Paced(Generic[T]):
    """The last answer of `compute` while it is fresh, else a new one; who asks meanwhile waits for the same.

    `clock` gives seconds, from anywhere, never going back.
    """

    def __init__(self, compute: Callable[[], Awaitable[T]], clock: Callable[[], float] = time.monotonic) -> None:
        self._compute = compute
        self._clock = clock
        self._working = asyncio.Lock()
        self._answer: tuple[T] | None = None
        self._fresh_until = 0.0

    async def __call__(self) -> T:
        """Raises what `compute` raises, to each who asked."""
        async with self._working:
            if self._answer is None or self._clock() >= self._fresh_until:
                began = self._clock()
                self._answer = (await self._compute(),)
                ended = self._clock()
                self._fresh_until = ended + max(FRESH, SHARE * (ended - began))
            return self._answer[0]
