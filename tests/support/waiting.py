"""Waiting for what has no event of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_PAUSE = 0.005


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Return once `condition` holds; raises TimeoutError after about `seconds`."""
    for _ in range(round(seconds / _PAUSE)):
        if condition():
            return
        await asyncio.sleep(_PAUSE)
    raise TimeoutError("what was waited for did not happen")
