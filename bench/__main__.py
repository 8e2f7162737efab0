"""`python -m bench`: what a server costs on this machine, compared with the least one in Python can cost."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from bench.errors import BenchError
from bench.load import find_h2load
from bench.results import Run, rows, save, table
from bench.scenarios import SCENARIOS, Length, Scenario
from bench.stack import OTHER_CORES, SERVERS, missing, model, stack
from extproc.gateway import GatewayError, find_envoy

LATEST = Path(__file__).parent / "results" / "latest.json"
_QUICK = Length(0.5, share=0.1)


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 with the reason on standard error."""
    args = _parser().parse_args(arguments)
    length = _QUICK if args.quick else Length(args.seconds)
    repeat = 1 if args.quick else args.repeat
    scenarios = [SCENARIOS[name] for name in args.scenario or SCENARIOS]
    if OTHER_CORES is not None:
        os.sched_setaffinity(0, OTHER_CORES)  # Envoy, the model, the limiter and h2load inherit it
    try:
        find_h2load()
        find_envoy()
        runs = asyncio.run(_measure(scenarios, args.server or SERVERS, length, repeat))
    except (BenchError, GatewayError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    found = rows(runs)
    save(found, args.output)
    print(table(found))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="may be repeated; all by default")
    parser.add_argument("--server", action="append", choices=SERVERS, help="may be repeated; all by default")
    parser.add_argument("--seconds", type=float, default=2.5, help="length of one run (default 2.5)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each server (default 3)")
    parser.add_argument("--quick", action="store_true", help="short and inexact: does it work at all?")
    parser.add_argument("--output", type=Path, default=LATEST, help="where the rows go as JSON")
    return parser


async def _measure(scenarios: Sequence[Scenario], servers: Sequence[str], length: Length, repeat: int) -> list[Run]:
    runs: list[Run] = []
    for scenario in scenarios:
        wanted = [server for server in servers if server in scenario.servers]
        runs += await _scenario(scenario, available(scenario, wanted), length, repeat if scenario.repeated else 1)
    return runs


def available(scenario: Scenario, servers: Sequence[str]) -> list[str]:
    """Those of `servers` that can run on this machine; what the others lack is told."""
    lacking = {server: reason for server in servers if (reason := missing(server))}
    for server, reason in lacking.items():
        print(f"{scenario.name}: left out {server}: {reason}", file=sys.stderr)
    return [server for server in servers if server not in lacking]


async def _scenario(scenario: Scenario, servers: Sequence[str], length: Length, repeat: int) -> list[Run]:
    """All stacks run side by side, one at a time under load: noise of the machine hits neighbours alike."""
    async with AsyncExitStack() as running:
        directory = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="extproc-bench-")))
        upstream = await running.enter_async_context(model(*scenario.options(length)))
        stacks = [
            await running.enter_async_context(
                stack(server, upstream, directory, scenario.path, scenario.users(length), scenario.work)
            )
            for server in servers
        ]
        for each in stacks:
            try:
                await each.works()
            except BenchError as error:
                raise BenchError(f"{scenario.name}, {each.server}: {error}") from None
        runs = []
        for repetition in range(repeat):
            for each in stacks:
                begun = time.monotonic()
                try:
                    values = await scenario.measure(each, scenario.body, length)
                except (BenchError, TimeoutError) as error:
                    raise BenchError(f"{scenario.name}, {each.server}: {error or 'took too long'}") from error
                runs.append(Run(scenario.name, each.server, repetition, values))
                took = time.monotonic() - begun
                print(f"{scenario.name} {each.server} {repetition + 1}/{repeat}: {took:.1f} s", file=sys.stderr)
        return runs


if __name__ == "__main__":
    sys.exit(main())
