"""Show who spends what, how near which limit is to its end, and who is refused, as a running extproc counts it.

Asks the admin port every few seconds. Several `--admin` are the workers of one gateway: their numbers are added up.
Without a terminal there are no colours and nothing is shortened; `--once --json` is for scripts. Exit status 1 when
nobody answers.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final, get_args

import orjson
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from extproc.top.fetch import Source, Unanswered, pages
from extproc.top.overview import By, Overview, Overviews
from extproc.top.view import view

DEFAULT: Final = "127.0.0.1:9090"
_SHORTEST: Final = 0.2
"""Seconds between two polls."""
_WIDE: Final = 160
"""Columns where no terminal says how many there are."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `extproc top`."""
    parser.add_argument(
        "--admin",
        action="append",
        type=_source,
        metavar="ADDRESS",
        help=f"admin port, HOST:PORT or unix:/path; may be repeated; default: {DEFAULT}",
    )
    parser.add_argument("--interval", type=_seconds, default=2.0, metavar="SECONDS", help="default: %(default)g")
    parser.add_argument("--once", action="store_true", help="print everything once and end")
    parser.add_argument("--by", choices=get_args(By), default="tokens", help="order of the users; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print a line of JSON each time")


def run(options: argparse.Namespace) -> int:
    """0 when stopped, or done; 1 when nobody answers at the start."""
    sources = options.admin or [Source(DEFAULT)]
    try:
        asyncio.run(_run(sources, options))
    except Unanswered as error:
        sys.stderr.write(f"extproc: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


async def _run(sources: Sequence[Source], options: argparse.Namespace) -> None:
    async with AsyncExitStack() as stack:
        for source in sources:
            await stack.enter_async_context(source)
        watcher = _Watcher(sources, options.by)
        await watcher.poll()
        if options.once or options.json or not sys.stdout.isatty():
            await _print(watcher, options)
        else:
            await _live(watcher, options.interval)


async def _print(watcher: _Watcher, options: argparse.Namespace) -> None:
    """One answer after another, for whatever reads this."""
    console = _console()
    while True:
        if options.json:
            sys.stdout.write(orjson.dumps(watcher.overview.json()).decode() + "\n")
        else:
            console.print(watcher.view())
        sys.stdout.flush()
        for complaint in watcher.complaints:
            sys.stderr.write(f"extproc: {complaint}\n")
        if options.once:
            return
        await asyncio.sleep(options.interval)
        await watcher.poll()


async def _live(watcher: _Watcher, interval: float) -> None:
    console = _console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            hint = Text(f"every {interval:g} s, Ctrl-C ends", style="dim")
            live.update(Group(watcher.view(console.size.height - 1), hint), refresh=True)
            await asyncio.sleep(interval)
            await watcher.poll()


class _Watcher:
    """Polls, and keeps the last overview when nobody answers any more."""

    def __init__(self, sources: Sequence[Source], by: By) -> None:
        self._sources = sources
        self._overviews = Overviews(by)
        self._overview: Overview | None = None
        self.complaints: list[str] = []

    @property
    def overview(self) -> Overview:
        """The last one."""
        assert self._overview is not None
        return self._overview

    async def poll(self) -> None:
        """Raises Unanswered when nobody has ever answered."""
        found, missing = await pages(self._sources)
        self.complaints = [str(error) for error in missing]
        if found:
            self._overview = self._overviews.of(found, time.monotonic())
        elif self._overview is None:
            raise missing[0]
        else:
            self.complaints.append("nobody answers; the numbers are old")

    def view(self, height: int | None = None) -> RenderableType:
        """What a terminal shows."""
        return view(self.overview, height, self.complaints if height is not None else ())


def _console() -> Console:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name must not end the program because a terminal cannot show it.
        sys.stdout.reconfigure(errors="replace")
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE, highlight=False)


def _source(text: str) -> Source:
    try:
        return Source(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected seconds, got `{text}`") from None
    if not _SHORTEST <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"expected {_SHORTEST:g} to 3600 seconds, got `{text}`")
    return seconds
