"""`python -m fuzz`: look for bytes that make a body reader raise, hang, hold too much, or depend on how they are cut,
for requests that are edited elsewhere than they should be, and for what gets past a guard.

Hypothesis makes the inputs; where atheris is installed (`pip install atheris`), it gets half of the time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fuzz.build import TARGETS
from fuzz.case import Case
from fuzz.edits import examine
from fuzz.engines import Result, explore, guide, has_atheris
from fuzz.invariants import Broken

FAILURES = Path("fuzz-failures")
_SLICE = 30.0
"""Seconds after which a target tells how far it is."""

Engine = Callable[[str, float, int], Result]


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 when an invariant broke; the input is then in a file that `--replay` takes."""
    args = _parser().parse_args(arguments)
    if args.replay is not None:
        return _replay(args.replay)
    engines: dict[str, Engine] = {"hypothesis": explore}
    if has_atheris():
        engines["atheris"] = guide
    else:
        print("atheris is not installed: hypothesis alone")
    targets = args.target or list(TARGETS)
    share = args.seconds / (len(targets) * len(engines))
    failures = [not _run(name, engine, target, share, args) for target in targets for name, engine in engines.items()]
    return int(any(failures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together (default 60)")
    parser.add_argument("--target", action="append", choices=TARGETS, help="may be repeated; all by default")
    parser.add_argument("--seed", type=int, help="of the choices; the time by default")
    parser.add_argument("--output", type=Path, default=FAILURES, help=f"where failing inputs go (default {FAILURES}/)")
    parser.add_argument("--replay", type=Path, help="check one saved input and do nothing else")
    return parser


def _run(name: str, engine: Engine, target: str, seconds: float, args: argparse.Namespace) -> bool:
    """Run one target with one engine; whether nothing was found."""
    seed = time.time_ns() % 2**31 if args.seed is None else args.seed
    began, executions, failure = time.monotonic(), 0, None
    while failure is None and (left := began + seconds - time.monotonic()) > 0:
        done, failure = engine(target, min(left, _SLICE), seed + executions)
        executions += done
        elapsed = time.monotonic() - began
        rate = executions / elapsed
        print(f"{target:12} {name:10} {elapsed:7.1f} s {executions:9} inputs {rate:7.0f}/s", flush=True)
    if failure is None:
        return True
    print(f"{target}: {failure}", file=sys.stderr)
    print(f"repeat with: python -m fuzz --replay {failure.case.save(args.output)}", file=sys.stderr)
    return False


def _replay(path: Path) -> int:
    try:
        case = Case.load(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"fuzz: {path}: {error}", file=sys.stderr)
        return 1
    try:
        print(examine(case))
    except Broken as broken:
        print(f"{path}: {broken}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
