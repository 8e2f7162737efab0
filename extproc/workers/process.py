"""One worker as its supervisor sees it: a process that is started again when it dies."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from extproc.workers.seats import Ready, Refused, Seat, parse_answer

_LOG = logging.getLogger(__name__)
_LONGEST_ANSWER = 1024 * 1024
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0
_GOOD_LIFE = 30.0
"""Seconds; a worker that has lived so long is started again as quickly as at first."""


class WorkerRefused(Exception):
    """A worker cannot start as configured; the text tells the operator why."""


class End(NamedTuple):
    """How a process ended: its exit status, negative for a signal, and why it refused to start, if it did."""

    status: int
    problem: str

    @property
    def fields(self) -> dict[str, Any]:
        """For the log."""
        how = {"signal": signal.Signals(-self.status).name} if self.status < 0 else {"exit_status": self.status}
        return {**how, "problems": self.problem} if self.problem else how


class Pauses:
    """Seconds before each new start: 0.1, 0.2 ... 10, and again from 0.1 after a life of half a minute."""

    def __init__(self) -> None:
        self._next = _FIRST_PAUSE

    def after(self, life: float) -> float:
        """The pause after a process that lived for `life` seconds."""
        pause = _FIRST_PAUSE if life >= _GOOD_LIFE else self._next
        self._next = min(2 * pause, _LONGEST_PAUSE)
        return pause


class Worker:
    """Keeps one seat taken. Its process serves as long as its standard input is open.

    `ready` is set once it has served; what it said then is `answer`. `drained` is False when its last process was
    asked to stop and did not do so well.
    """

    def __init__(self, path: Path, seat: Seat) -> None:
        self.ready = asyncio.Event()
        self.answer: Ready
        self.drained = True
        self._path = path
        self._seat = seat
        self._released = asyncio.Event()
        self._process: Process | None = None
        self._serves = False

    async def keep(self) -> None:
        """Run until released. Raises WorkerRefused when the worker refuses its very first start.

        Later that is no reason to end the others: perhaps the file is being changed, and they keep the old one.
        """
        loop = asyncio.get_running_loop()
        pauses = Pauses()
        while not self._released.is_set():
            started = loop.time()
            end = await self._live()
            if self._released.is_set():
                self.drained = end.status == 0
                return
            if end.problem and not self.ready.is_set():
                raise WorkerRefused(end.problem)
            pause = pauses.after(loop.time() - started)
            lost = {"lost": "all counters"} if self._seat.counts_for_all else {}
            fields = {"worker": self._seat.index, **end.fields, **lost, "restart_in": pause}
            _LOG.error("worker ended", extra={"fields": fields})
            with suppress(TimeoutError):
                await asyncio.wait_for(self._released.wait(), pause)

    def release(self) -> None:
        """Ask it to drain, and start it no more."""
        self._released.set()
        self._close_input()

    def reload(self) -> None:
        """SIGHUP, if it serves: one that starts reads the newest files anyway, and would die of it."""
        if self._serves:
            self._send(signal.SIGHUP)

    def kill(self) -> None:
        """End its process at once."""
        self._send(signal.SIGKILL)

    async def _live(self) -> End:
        """The life of one process."""
        self._process = process = await self._spawn()
        _LOG.info("worker started", extra={"fields": {"worker": self._seat.index, "pid": process.pid}})
        if self._released.is_set():
            self._close_input()
        try:
            assert process.stdout is not None
            answer = parse_answer(await process.stdout.readline())
            if isinstance(answer, Ready):
                self._on_ready(answer)
            status = await process.wait()
        finally:
            self._serves = False
            if process.returncode is None:
                process.kill()
                await process.wait()
        return End(status, answer.problem if isinstance(answer, Refused) else "")

    async def _spawn(self) -> Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "extproc.workers.worker", self._path),
            stdin=PIPE,
            stdout=PIPE,
            limit=_LONGEST_ANSWER,
            pass_fds=(self._seat.company,),
            # A group of its own: Ctrl-C must reach the supervisor alone, which asks every worker just once.
            process_group=0,
        )
        assert process.stdin is not None
        process.stdin.write(self._seat.line())
        return process

    def _on_ready(self, answer: Ready) -> None:
        """From now on it keeps the ports that it was given: Envoy knows them."""
        self._seat = self._seat.at(answer)
        self._serves = True
        self.answer = answer
        self.ready.set()

    def _close_input(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)
