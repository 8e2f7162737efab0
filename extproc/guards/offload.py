"""Patterns over long texts, beside the event loop: RE2 lets go of the interpreter while it searches."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, Generic, TypeVar

from extproc.guards.patterns import Patterns, Refusal
from extproc.guards.seam import Text

T = TypeVar("T")

_OVERLOADED: Final = Refusal("patterns", "request was denied because too many texts wait to be searched", "failure")
_LATE: Final = Refusal("patterns", "request was denied because its texts were not searched in time", "timeout")
_FAILED: Final = Refusal("patterns", "request was denied because its texts could not be searched", "failure")


class PatternWorker:
    """Searches for a whole process; call `close` when it ends.

    Short texts are searched at once, others in one of `workers` threads. At most `pending` requests with
    `pending_size` characters are under way, each for at most `deadline` seconds, waiting included; what is more or
    takes longer is refused with another outcome than `deny`.
    """

    __slots__ = ("_deadline", "_jobs", "_lock", "_pending", "_pending_size", "_pool", "_size")

    def __init__(
        self,
        *,
        workers: int = 2,
        pending: int = 256,
        pending_size: int = 32 << 20,
        deadline: float = 2.0,
    ) -> None:
        self._pending = pending
        self._pending_size = pending_size
        self._deadline = deadline
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="patterns")
        self._lock = threading.Lock()
        self._jobs = 0
        self._size = 0

    def judge(self, patterns: Patterns, texts: Sequence[Text]) -> Refusal | Awaitable[Refusal | None] | None:
        """As `Patterns.judge`: at once, or an awaitable for one task, which needs a running loop; never an error."""
        size = sum(len(text.text) for text in texts)
        if size <= patterns.at_once:
            return patterns.judge(texts)
        return self.run(size, partial(patterns.judge, texts))

    def run(self, size: int, look: Callable[[], T]) -> Refusal | Awaitable[T | Refusal]:
        """What `look` finds in `size` characters, in a thread; a Refusal with another outcome than `deny` for nothing.

        An awaitable is for one task, which needs a running loop.
        """
        if not self._admit(size):
            return _OVERLOADED
        try:
            future = self._pool.submit(look)
        except RuntimeError:
            self._leave(size)
            return _FAILED
        future.add_done_callback(lambda _: self._leave(size))
        return _Later(future, asyncio.get_running_loop().time() + self._deadline)

    def close(self) -> None:
        """What waits is refused, and so is everything from now on; a search that has begun comes to its end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _admit(self, size: int) -> bool:
        with self._lock:
            if self._jobs >= self._pending or (self._jobs and self._size + size > self._pending_size):
                return False
            self._jobs += 1
            self._size += size
            return True

    def _leave(self, size: int) -> None:
        with self._lock:
            self._jobs -= 1
            self._size -= size


class _Later(Generic[T]):
    """A search under way. When nobody waits any longer, one that has not begun is given up."""

    __slots__ = ("_future", "_until")

    def __init__(self, future: Future[T], until: float) -> None:
        self._future = future
        self._until = until

    def __await__(self) -> Generator[Any, None, T | Refusal]:
        return self._wait().__await__()

    async def _wait(self) -> T | Refusal:
        found = asyncio.wrap_future(self._future)
        try:
            await asyncio.wait((found,), timeout=self._until - asyncio.get_running_loop().time())
            if not found.done():
                return _LATE
            return _FAILED if found.cancelled() or found.exception() is not None else found.result()
        finally:
            found.cancel()
