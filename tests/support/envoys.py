"""Whether a configuration is one of Envoy's: by its generated types, and by its binary."""

from __future__ import annotations

import json
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from extproc.gateway import find_envoy

with warnings.catch_warnings():
    # Its modules use a deprecated feature of pydantic.
    warnings.simplefilter("ignore", DeprecationWarning)
    from envoy_data_plane.envoy.config.bootstrap.v3 import Bootstrap


def typed(config: Mapping[str, Any]) -> Bootstrap:
    """`config` as messages, down to the last `typed_config`.

    Raises KeyError for a field that a message does not have, others for values that it cannot hold.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for package in {*_packages(config)}:
            import_module(f"envoy_data_plane.{package}")
    return Bootstrap.from_dict(config)


def refusal(config: Mapping[str, Any], folder: Path) -> str:
    """What Envoy says against `config`; "" when it would run."""
    path = folder / "envoy.json"
    path.write_text(json.dumps(config))
    command = [find_envoy(), "--mode", "validate", "--log-level", "error", "--config-path", path]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return checked.stderr or "refused" if checked.returncode else ""


def _packages(value: Any) -> Iterator[str]:
    """Of all messages that are named by `@type`."""
    if isinstance(value, Mapping):
        if (name := value.get("@type")) is not None:
            yield name.rpartition("/")[2].rpartition(".")[0]
        value = [*value.values()]
    if isinstance(value, list):
        for each in value:
            yield from _packages(each)
