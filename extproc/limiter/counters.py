"""The embedded limiter, wherever its counters are: in this process or in Redis."""

from __future__ import annotations

import time
from collections.abc import Callable

from extproc.config.errors import ConfigError, Problem
from extproc.config.model import Storage
from extproc.limiter.embedded import Counter, EmbeddedLimiter
from extproc.limiter.limits import LimitSet
from extproc.limiter.redis_limiter import RedisLimiter
from extproc.limiter.redis_store import RedisStore
from extproc.limiter.seam import Limiter
from extproc.limiter.tally import Tally

SWEPT = 1000
"""Rows that are looked at between two calls: about two milliseconds."""


def open_counters(storage: Storage, clock: Callable[[], float] = time.monotonic) -> Counters:
    """Counters in `storage`; nothing is connected yet. Raises ConfigError with the field that is wrong."""
    try:
        return Counters(storage, clock)
    except ValueError as error:
        # Of TLS files; the text begins with the field.
        raise ConfigError([Problem("", f"storage.{error}")]) from None


class Counters:
    """Limits, and how much of them is used, in `storage`.

    `clock` times windows in memory. Raises ConfigError for an address that cannot be understood, ValueError for TLS
    files that cannot be used.
    """

    def __init__(self, storage: Storage, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = None if storage.in_memory else RedisStore(storage)
        self.memory = EmbeddedLimiter(LimitSet(), clock)
        """Where they are when they are in this process, empty otherwise."""
        self._redis = None if self._store is None else RedisLimiter(self._store, LimitSet())

    @property
    def tally(self) -> Tally:
        """What was allowed and refused, by namespace."""
        return self.memory.tally if self._redis is None else self._redis.tally

    def limiter(self, timeout: float) -> Limiter:
        """For one service; `timeout` seconds for a call that leaves this process."""
        return self.memory if self._redis is None else self._redis.view(timeout)

    def replace_limits(self, limits: LimitSet, *, tells_quotas: bool) -> None:
        """Use `limits` from now on; counters of limits with an unchanged identity keep their hits.

        With `tells_quotas` answers other than refusals say too how much is left.
        """
        limiter = self.memory if self._redis is None else self._redis
        limiter.replace_limits(limits)
        limiter.tells_quotas = tells_quotas

    async def counters(self, at_most: int) -> list[Counter]:
        """The counters nearest to their maximum, those first. Raises LimiterError."""
        return await (self.memory if self._redis is None else self._redis).counters(at_most)

    async def start(self) -> None:
        """Connect, as far as that is needed. Does not wait for ever: it goes on in the background."""
        if self._store is not None:
            await self._store.start()

    async def close(self) -> None:
        """Give up what waits, and every connection."""
        if self._store is not None:
            await self._store.close()

    def sweep(self) -> None:
        """Free some of what is over."""
        self.memory.sweep(SWEPT)
