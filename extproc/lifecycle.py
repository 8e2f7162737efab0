"""Signals: stop, reload."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any


class Signals:
    """SIGTERM and SIGINT ask to stop, SIGHUP to reload. A second SIGTERM or SIGINT stops at once."""

    def __init__(self, reload: Callable[[], Coroutine[Any, Any, object]]) -> None:
        self._stop = asyncio.Event()
        self._reload = reload
        self._reloads: set[asyncio.Task[object]] = set()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_reload)

    def _on_stop(self, number: int) -> None:
        self._stop.set()
        loop = asyncio.get_running_loop()
        for again in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(again)

    def _on_reload(self) -> None:
        task = asyncio.create_task(self._reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def stop(self) -> None:
        """Return when the process is asked to stop."""
        await self._stop.wait()
