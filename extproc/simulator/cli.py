"""The simulated model as a process."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable
from typing import Any

import uvloop

from extproc.simulator import options
from extproc.simulator.options import PARSERS, OptionError, Options
from extproc.simulator.server import Simulator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--listen` and every option of the model; the table of options becomes the parser's epilog."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = options.__doc__
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        type=_address,
        default=("127.0.0.1", 8000),
        help="default 127.0.0.1:8000; port 0 is a free one, shown on standard output",
    )
    group = parser.add_argument_group("the answer unless a request says otherwise, explained below")
    for field in PARSERS:
        flag = "--" + field.replace("_", "-")
        group.add_argument(flag, dest=f"sim_{field}", type=_parser(field), metavar="VALUE", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; 1 where the address cannot be had."""
    given = {field: getattr(args, f"sim_{field}") for field in PARSERS}
    chosen = Options(**{field: value for field, value in given.items() if value is not None})
    host, port = args.listen
    try:
        uvloop.run(_serve(Simulator(host, port, chosen)))
    except OSError as error:
        sys.stderr.write(f"--listen: {error}\n")
        return 1
    return 0


async def _serve(simulator: Simulator) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with simulator:
        sys.stdout.write(f"listening on {simulator.address}\n")
        sys.stdout.flush()
        await stopped.wait()


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError("expected HOST:PORT")
    return host.strip("[]"), int(port)


def _parser(field: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return options.parse(field, text, "--" + field.replace("_", "-"))
        except OptionError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse
