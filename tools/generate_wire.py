"""Generate `extproc/wire/` from `proto/`.

The virtual path `extproc/wire` makes protoc emit imports inside our package, so that no
top-level `envoy` package of ours can ever shadow another one. Full message and service names
stay Envoy's and Kuadrant's: those are what the wire sees.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
PACKAGE = "extproc/wire"


def generate(out: Path) -> None:
    """Write the generated modules below `out`/extproc/wire; raises RuntimeError when protoc refuses."""
    (out / PACKAGE).mkdir(parents=True, exist_ok=True)
    well_known = resources.files("grpc_tools") / "_proto"
    names = sorted(path.name for path in PROTO.glob("*.proto"))
    arguments = [
        "protoc",
        f"--proto_path={PACKAGE}={PROTO}",
        f"--proto_path={well_known}",
        f"--python_out={out}",
        f"--pyi_out={out}",
        *(f"{PACKAGE}/{name}" for name in names),
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError(f"protoc refused {', '.join(names)}")


def main() -> int:
    wire = ROOT / PACKAGE
    for stale in (*wire.glob("*_pb2.py"), *wire.glob("*_pb2.pyi")):
        stale.unlink()
    generate(ROOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
