"""The command line: every option is documented, read, and applied."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import sys

import aiohttp
import pytest

from extproc.simulator import add_arguments, options, run
from extproc.simulator.options import PARSERS


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser


@pytest.mark.parametrize("field", PARSERS)
def test_every_option_is_in_the_table_and_in_the_help(field: str, parser: argparse.ArgumentParser) -> None:
    name = field.replace("_", "-")
    assert f"\n    {name} " in (options.__doc__ or "")
    assert f"\n    {name} " in parser.format_help()
    assert f"--{name}" in parser._option_string_actions


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--frames", "x"], "--frames: expected a whole number"),
        (["--listen", "8000"], "expected HOST:PORT"),
        (["--listen", "a:99999"], "expected HOST:PORT"),
    ],
)
def test_a_wrong_argument_is_named(
    parser: argparse.ArgumentParser, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser.parse_args(arguments)
    assert says in capsys.readouterr().err


def test_a_port_that_is_taken_is_an_error(parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run(parser.parse_args(["--listen", f"127.0.0.1:{taken.getsockname()[1]}"])) == 1
    assert "--listen: " in capsys.readouterr().err


async def test_the_process_serves_its_defaults_until_sigterm() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "extproc.simulator", "--listen", "127.0.0.1:0", "--total-tokens", "30",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    address = (await process.stdout.readline()).decode().removeprefix("listening on ").strip()
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"http://{address}/v1/chat/completions", data=b"{}") as response,
    ):
        assert json.loads(await response.read())["usage"]["total_tokens"] == 30
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0
