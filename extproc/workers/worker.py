"""One of several workers: `python -m extproc.workers.worker CONFIG`, started by its supervisor.

Standard input brings a Seat and then nothing more: it ends when the supervisor wants the workers to stop, or is no
more itself. Standard output takes the one answer, Ready or Refused.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import uvloop

from extproc.admin.server import AdminError
from extproc.config.errors import ConfigError
from extproc.lifecycle import Signals
from extproc.server import Place, Server
from extproc.telemetry.logs import configure, say_always
from extproc.transport.listener import ListenError
from extproc.workers.counters import CountersServer
from extproc.workers.seats import Ready, Refused, Seat, longest_drain
from extproc.workers.shared import SharedCounters

_CONNECT_WITHIN = 10.0
"""Seconds; a worker is not ready without the counters, but neither does it wait for ever for them."""


def main() -> int:
    """The worker's exit status: 0 stopped, 2 refused."""
    told = sys.stdin.buffer.readline()
    if not told:
        return 0
    seat = Seat.model_validate_json(told)
    say_always(worker=seat.index)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_work(Path(sys.argv[1]), seat))
    except (ConfigError, ListenError, AdminError) as error:
        _tell(Refused(problem=str(error)))
        return 2
    return 0


async def _work(path: Path, seat: Seat) -> None:
    supervised = _end_of(sys.stdin.fileno())
    place = Place(seat.listeners, seat.admin)
    if seat.counters is None:
        await _serve(_loaded(Server(path, place=place)), supervised)
    elif seat.counts_for_all:
        server = _loaded(Server(path, place=place))
        async with _counting_for_all(server, Path(seat.counters), seat.company, supervised):
            await _serve(server, supervised)
    else:
        shared = SharedCounters(Path(seat.counters))
        server = _loaded(Server(path, place=place, counting=shared.limiter_for))
        await shared.connect(_CONNECT_WITHIN)
        await _serve(server, supervised)
        await shared.close()


def _loaded(server: Server) -> Server:
    server.load()
    configure(server.config.log.level, server.config.log.format)
    return server


@asynccontextmanager
async def _counting_for_all(
    server: Server, socket: Path, company: int, supervised: asyncio.Future[None]
) -> AsyncIterator[None]:
    """Count for the others within the block; when all stop together, until the last of them has reported."""
    counters = CountersServer(socket, server.limiter)
    await counters.start()
    alone = _end_of(company)
    yield
    if supervised.done():
        await asyncio.wait((alone,), timeout=longest_drain(server.config))
    counters.stop()
    if alone.done():
        # A supervisor that was killed has left the folder behind.
        with suppress(OSError):
            socket.parent.rmdir()


async def _serve(server: Server, supervised: asyncio.Future[None]) -> None:
    async with server.serving() as signals:
        _tell(Ready(listeners=tuple(server.addresses), admin=server.admin_address))
        await _stop(signals, supervised)


async def _stop(signals: Signals, supervised: asyncio.Future[None]) -> None:
    """Return when a signal, or the supervisor, asks to stop."""
    signalled = asyncio.ensure_future(signals.stop())
    await asyncio.wait((signalled, supervised), return_when=asyncio.FIRST_COMPLETED)
    signalled.cancel()


def _end_of(fd: int) -> asyncio.Future[None]:
    """Done when nobody has the other end of a pipe any more into which nobody writes."""
    loop = asyncio.get_running_loop()
    end: asyncio.Future[None] = loop.create_future()

    def reached() -> None:
        loop.remove_reader(fd)
        end.set_result(None)

    loop.add_reader(fd, reached)
    return end


def _tell(answer: Ready | Refused) -> None:
    with suppress(BrokenPipeError):
        sys.stdout.buffer.write(answer.line())
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
