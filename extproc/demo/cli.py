"""Play a story on the real Envoy, on this machine and without Docker. Everything listens on free local ports and is
stopped at the end.

  extproc demo        a JSON answer and a streamed one are counted, the limit is reached, four providers are asked the
                      same, a client hangs up, and the limiter moves into a process of its own
  extproc demo maas   Models as a Service: API keys and tiers from Kuadrant's policies, token budgets, JWTs
  extproc demo gloo   JWTs, access by claims, and token budgets of a minute, an hour and a day at once
  extproc demo plano  providers by hint and by model, their credentials, bodies edited, limits of prompts
  extproc demo guard  patterns, a second look by a model, a webhook, answers that are cut short
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from extproc.admin.server import AdminError
from extproc.config.errors import ConfigError
from extproc.demo import gloo, guard, maas, plano
from extproc.demo.page import Page, StoryError
from extproc.demo.story import stay, tell
from extproc.gateway import GatewayError
from extproc.telemetry.logs import configure
from extproc.transport.listener import ListenError

Tell = Callable[[Page, Path, Path, int], Coroutine[Any, Any, None]]
_STORIES: dict[str | None, Tell] = {
    None: tell,
    "maas": maas.tell,
    "gloo": gloo.tell,
    "plano": plano.tell,
    "guard": guard.tell,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The story, `--stay` and `--port`."""
    names = [name for name in _STORIES if name is not None]
    parser.add_argument("story", nargs="?", choices=names, help="another story than that of one limit")
    parser.add_argument(
        "--stay",
        action="store_true",
        help="leave it running, with curl lines to paste; of the story of one limit only; Ctrl-C stops",
    )
    parser.add_argument(
        "--port", type=_port, default=0, metavar="N", help="port of the gateway on 127.0.0.1; default: any free one"
    )


def run(options: argparse.Namespace) -> int:
    """0 when everything happened as told, otherwise 1 with the reason on standard error; 2 for wrong usage."""
    if options.stay and options.story:
        sys.stderr.write(f"extproc demo: --stay has no meaning for {options.story}\n")
        return 2
    play = stay if options.stay else _STORIES[options.story]
    with tempfile.TemporaryDirectory(prefix="extproc-demo-") as directory:
        log = Path(directory, "extproc.log")
        with log.open("w") as stream:
            configure("info", "json", stream)
            try:
                asyncio.run(_ended_by_signals(play(Page(sys.stdout), Path(directory), log, options.port)))
            except asyncio.CancelledError:
                return 130
            except (GatewayError, AdminError, ListenError, ConfigError, OSError) as error:
                sys.stderr.write(f"extproc demo: {error}\n")
                return 1
            except StoryError as error:
                sys.stderr.write(f"extproc demo: not as expected: {error}\n{log.read_text()[-2000:]}")
                return 1
    return 0


async def _ended_by_signals(story: Coroutine[Any, Any, None]) -> None:
    """A closed terminal and `kill` end it as Ctrl-C does: Envoy is a child that would outlive us."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await story


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text[:6]) < 65536):
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, found `{text}`")
    return int(text)
