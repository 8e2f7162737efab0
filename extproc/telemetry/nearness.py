"""How near limits are to their end: the counters that are used most, and of each limit the most used one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from extproc.telemetry.exposition import Family, labels
from extproc.telemetry.names import OTHER, printable
from extproc.telemetry.paced import Paced

LOOKED_AT: Final = 1000
"""Counters nearest to their maximum; a limit with none among them has no ratio: it is farther from its end."""
MAX_LIMITS: Final = 500
PATIENCE: Final = 2.0
"""Seconds that looking may take, where counters are elsewhere."""

USED_RATIO: Final = Family(
    "extproc_limit_used_ratio",
    "Of the counters of a limit the most used: hits by maximum; above 1 is overshoot.",
    "gauge",
)

_logger = logging.getLogger(__name__)


class LimitUse(NamedTuple):
    """A counter as it stands: `used` hits of `maximum`, seconds until it starts anew, the window's length in seconds.

    `values` are those of the limit's variables.
    """

    namespace: str
    limit: str
    values: tuple[str, ...]
    used: int
    maximum: int
    resets_in: float
    window: int

    @property
    def ratio(self) -> float:
        """Hits by maximum; of a limit of 0, which is always at its end, at least 1."""
        return self.used / self.maximum if self.maximum else 1.0 + self.used


@dataclass(frozen=True, slots=True)
class Near:
    """The counters nearest to their maximum, those first, and the highest ratio by namespace and limit, printable."""

    counters: tuple[LimitUse, ...] = ()
    ratios: Mapping[tuple[str, str], float] = field(default_factory=dict)


Nearest = Callable[[int], Awaitable[Sequence[LimitUse]]]
"""At most so many counters, the nearest to its maximum first; others must get their turn meanwhile."""


class LimitWatch:
    """Looks at counters no more often than `Paced` lets it. Where they cannot be seen, there are none."""

    def __init__(self, nearest: Nearest, clock: Callable[[], float] = time.monotonic) -> None:
        self._nearest = nearest
        self._near = Paced(self._look, clock)
        self.last = Near()
        """As it was found when somebody last asked."""

    async def look(self) -> Near:
        """As it is now, or was a moment ago."""
        self.last = await self._near()
        return self.last

    async def _look(self) -> Near:
        try:
            async with asyncio.timeout(PATIENCE):
                counters = await self._nearest(LOOKED_AT)
        except Exception as error:  # noqa: BLE001 - all other metrics are needed most when a storage is away
            _logger.warning("counters cannot be shown: %s", str(error) or type(error).__name__)
            return Near()
        ratios: dict[tuple[str, str], float] = {}
        for counter in counters:
            limit = (printable(counter.namespace), printable(counter.limit))
            if limit not in ratios and len(ratios) >= MAX_LIMITS:
                limit = (OTHER, OTHER)
            ratios[limit] = max(counter.ratio, ratios.get(limit, 0.0))
        return Near(tuple(counters), ratios)


def exposition(near: Near, openmetrics: bool) -> Iterator[str]:
    """The ratios as Prometheus' text."""
    yield USED_RATIO.header(openmetrics) + USED_RATIO.lines(
        (labels(namespace=namespace, limit=limit), round(ratio, 6)) for (namespace, limit), ratio in near.ratios.items()
    )
