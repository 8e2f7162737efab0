"""Who makes the choices: hypothesis, here; atheris, in a process of its own (fuzz/guided.py)."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisWarning

from fuzz.build import build
from fuzz.case import Case
from fuzz.edits import examine
from fuzz.invariants import Broken

_ROUND = 200
"""Examples between two looks at the clock."""


class Result(NamedTuple):
    """`failure` is the smallest input that was found to break an invariant, and which."""

    executions: int
    failure: Broken | None = None


class _Drawn:
    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self._draw = draw

    def below(self, bound: int) -> int:
        return int(self._draw(st.integers(0, bound - 1)))

    def octets(self, most: int) -> bytes:
        return bytes(self._draw(st.binary(max_size=most)))


@st.composite
def cases(draw: st.DrawFn, target: str) -> Case:
    """Inputs for `target`, as a strategy of hypothesis."""
    return build(target, _Drawn(draw))


def explore(target: str, seconds: float, start: int = 0, *, examine: Callable[[Case], object] = examine) -> Result:
    """Let hypothesis look for an input that breaks an invariant. `start` is the seed of the first round."""
    end = time.monotonic() + seconds
    executions = 0
    failed = False

    @settings(
        max_examples=_ROUND,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(cases(target))
    def run(case: Case) -> None:
        nonlocal executions, failed
        if not failed and time.monotonic() >= end:
            return
        executions += 1
        try:
            examine(case)
        except Broken:
            failed = True
            raise

    while time.monotonic() < end:
        start += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", HypothesisWarning)  # it finds some inputs too large to show
                seed(start)(run)()
        except Broken as broken:
            return Result(executions, broken)
    return Result(executions)


def has_atheris() -> bool:
    """Whether atheris is installed; it is no dependency."""
    return find_spec("atheris") is not None


def guide(target: str, seconds: float, start: int = 0) -> Result:
    """Let atheris look for an input that breaks an invariant."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        process = subprocess.run(
            [sys.executable, "-m", "fuzz.guided", target, folder, str(max(1, round(seconds))), str(start)],
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        counted = re.findall(r"^#(\d+)", process.stderr, re.MULTILINE)
        executions = int(counted[-1]) if counted else 0
        saved = list(Path(folder).glob("case-*.json"))
        if not saved and process.returncode:
            raise RuntimeError(f"atheris ended with {process.returncode}: {process.stderr[-2000:]}")
        if not saved:
            return Result(executions)
        case = Case.load(saved[0])
    try:
        examine(case)
    except Broken as broken:
        return Result(executions, broken)
    return Result(executions, Broken(case, "broken once, under atheris, and not again"))
