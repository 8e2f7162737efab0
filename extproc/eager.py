"""Coroutines that begin at once.

A task costs more than most exchanges have to do. A coroutine that is driven by hand up to the first thing that it
really has to wait for costs next to nothing, and most of ours never get there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


def begin(coroutine: Coroutine[Any, Any, T]) -> T | Awaitable[T]:
    """Run `coroutine` as far as it gets: its result, or an awaitable for it. Raises what it raises until then.

    The awaitable may be awaited once, from the task that called this.
    """
    try:
        waiting = coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    return _Begun(coroutine, waiting)


class _Begun(Awaitable[T]):
    """The rest of a coroutine that waits for something."""

    __slots__ = ("_coroutine", "_waiting")

    def __init__(self, coroutine: Coroutine[Any, Any, T], waiting: Any) -> None:
        self._coroutine = coroutine
        self._waiting = waiting

    def __await__(self) -> Generator[Any, Any, T]:
        coroutine, waiting = self._coroutine, self._waiting
        try:
            while True:
                try:
                    sent = yield waiting
                except BaseException as error:  # noqa: BLE001 - a cancellation is the coroutine's to know of
                    waiting = coroutine.throw(error)
                else:
                    waiting = coroutine.send(sent)
        except StopIteration as done:
            result: T = done.value
            return result
