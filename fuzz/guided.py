"""`python -m fuzz.guided TARGET FOLDER SECONDS SEED`: one target under atheris, which never returns.

A failing input is saved into FOLDER; the exit status is then not zero.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

atheris: Any = import_module("atheris")

with atheris.instrument_imports(include=["extproc.bodies", "extproc.guards", "extproc.usage"]):
    from fuzz.build import build
    from fuzz.edits import examine
    from fuzz.invariants import Broken


class _Provided:
    def __init__(self, data: bytes) -> None:
        self._data = atheris.FuzzedDataProvider(data)

    def below(self, bound: int) -> int:
        return int(self._data.ConsumeIntInRange(0, bound - 1))

    def octets(self, most: int) -> bytes:
        return bytes(self._data.ConsumeBytes(self.below(most + 1)))


def main(target: str, folder: str, seconds: str, seed: str) -> None:
    """Fuzz until the time is over or an invariant broke."""

    def run(data: bytes) -> None:
        try:
            examine(build(target, _Provided(data)))
        except Broken as broken:
            broken.case.save(Path(folder))
            raise

    options = [f"-max_total_time={seconds}", f"-seed={int(seed) + 1}", "-max_len=512", "-len_control=0", "-timeout=60"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", "-print_final_stats=1"], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
