"""Lines about decisions, in batches.

Among the work of a request one line costs about a hundred microseconds, because none of the code that writes it is in
a CPU cache by then; in a row with others it costs a tenth of that. So lines wait up to `interval` seconds. Each keeps
the time at which it was noted. Failures are not decisions: those are logged at once.
"""

from __future__ import annotations

import asyncio
import logging
from time import time
from typing import Any

from extproc.telemetry.logs import sole_line_handler

MAX_WAITING = 256
"""Lines; at so many they are written without waiting longer."""


class DecisionLog:
    """Notes decisions at INFO; confined to the event loop."""

    def __init__(self, name: str = "extproc.exchange", interval: float = 0.05) -> None:
        self._logger = logging.getLogger(name)
        self._interval = interval
        self._waiting: list[tuple[float, str, dict[str, Any]]] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def enabled(self) -> bool:
        """Whether a note is worth making."""
        return self._logger.isEnabledFor(logging.INFO)

    def note(self, event: str, fields: dict[str, Any]) -> None:
        """Write a line soon; `fields` as for `extproc.telemetry.logs`. Ask `enabled` first where making them costs."""
        self._waiting.append((time(), event, fields))
        if len(self._waiting) >= MAX_WAITING:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._interval, self.flush)

    def flush(self) -> None:
        """Write what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        if not self.enabled:
            return
        records = (self._record(*line) for line in waiting)
        handler = sole_line_handler(self._logger)
        if handler is not None:
            handler.emit_all(records)
        else:
            for record in records:
                self._logger.handle(record)

    def _record(self, when: float, event: str, fields: dict[str, Any]) -> logging.LogRecord:
        extra = {"fields": fields}
        record = self._logger.makeRecord(self._logger.name, logging.INFO, "", 0, event, (), None, extra=extra)
        record.created = when
        return record
