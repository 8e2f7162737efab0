"""Signals: stop, reload."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable


class Signals:
    """SIGTERM and SIGINT ask to stop, SIGHUP to reload. A second SIGTERM or SIGINT stops at once."""

    def __init__(self, reload: Callable[[], object]) -> None:
        self._stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop, number)
        loop.add_signal_handler(signal.SIGHUP, reload)

    def _on_stop(self, number: int) -> None:
        self._stop.set()
        loop = asyncio.get_running_loop()
        for again in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(again)

    async def stop(self) -> None:
        """Return when the process is asked to stop."""
        await self._stop.wait()
