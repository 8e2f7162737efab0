"""The life of several workers: start, restart, reload, stop. The supervisor itself serves nobody."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from extproc.config.errors import ConfigError
from extproc.config.load import load_config
from extproc.config.model import Config
from extproc.lifecycle import Signals
from extproc.telemetry.logs import configure
from extproc.workers.process import Worker, WorkerRefused
from extproc.workers.seats import longest_drain, reachable, seats

_LOG = logging.getLogger(__name__)

Announce = Callable[[Sequence[str]], None]
"""Told once where Envoy reaches the workers, one address each."""


class Supervisor:
    """`count` workers for one configuration file."""

    def __init__(self, path: Path, count: int, announce: Announce) -> None:
        self._path = path
        self._count = count
        self._announce = announce
        self._workers: list[Worker] = []
        self._killed_by: int | None = None

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; a second one kills the workers. The exit status: 0 when all was drained.

        Raises ConfigError or WorkerRefused when they cannot start.
        """
        config = load_config(self._path).config
        configure(config.log.level, config.log.format)
        with _counters(config) as counters, Company() as company:
            chairs = seats(config, self._count, counters=counters, company=company)
            self._workers = [Worker(self._path, seat) for seat in chairs]
            try:
                await self._supervise(config, company)
            except ExceptionGroup as group:
                # Often all of them refuse, for one reason.
                raise group.exceptions[0] from None
        return self._status()

    async def _supervise(self, config: Config, company: Company) -> None:
        signals = Signals(self._reload)
        async with asyncio.TaskGroup() as tasks:
            kept = [tasks.create_task(worker.keep()) for worker in self._workers]
            announcing = tasks.create_task(self._announce_when_ready())
            await signals.stop()
            announcing.cancel()
            await self._stop(kept, company, self._patience(config))

    async def _announce_when_ready(self) -> None:
        for worker in self._workers:
            await worker.ready.wait()
        answers = [worker.answer for worker in self._workers]
        self._announce([reachable(answer.listeners[0]) for answer in answers])
        fields = {
            "workers": len(answers),
            "listeners": [address for answer in answers for address in answer.listeners],
            "admin": [answer.admin for answer in answers if answer.admin is not None],
        }
        _LOG.info("ready", extra={"fields": fields})

    async def _reload(self) -> None:
        for worker in self._workers:
            worker.reload()

    async def _stop(self, kept: Iterable[asyncio.Task[None]], company: Company, patience: float) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_second_signal, number)
        _LOG.info("stopping", extra={"fields": {"workers": len(self._workers)}})
        for worker in self._workers:
            worker.release()
        company.leave()
        _, late = await asyncio.wait(kept, timeout=patience)
        if late:
            _LOG.error("workers did not stop in time", extra={"fields": {"workers": len(late), "seconds": patience}})
            self._kill()

    def _patience(self, config: Config) -> float:
        """The workers' may have changed since: they have read the files again."""
        with suppress(ConfigError):
            return max(longest_drain(config), longest_drain(load_config(self._path).config))
        return longest_drain(config)

    def _on_second_signal(self, number: int) -> None:
        self._killed_by = number
        self._kill()

    def _kill(self) -> None:
        for worker in self._workers:
            worker.kill()

    def _status(self) -> int:
        if self._killed_by is not None:
            return 128 + self._killed_by
        return 0 if all(worker.drained for worker in self._workers) else 1


class Company:
    """A pipe that tells the first worker when it is alone; see `Seat.company`.

    Its ends are passed on to the workers' processes. The supervisor holds it as well, because any of them may start
    again; once it leaves, and when it dies, only the workers are left.
    """

    def __enter__(self) -> Self:
        self.reading, self.writing = os.pipe()
        self._present = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Close the supervisor's ends; no worker may start after that."""
        if self._present:
            self._present = False
            os.close(self.reading)
            os.close(self.writing)


@contextmanager
def _counters(config: Config) -> Iterator[str | None]:
    """Where the first worker counts for all, in a folder that no other user can enter; None with a shared storage."""
    if not config.storage.in_memory:
        yield None
        return
    try:
        folder = tempfile.TemporaryDirectory(prefix="extproc-", ignore_cleanup_errors=True)
    except OSError as error:
        raise WorkerRefused(f"no folder for the socket of the counters: {error}; name one with TMPDIR") from None
    with folder as path:
        yield f"{path}/counters.sock"
