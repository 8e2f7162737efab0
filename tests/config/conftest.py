from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from extproc.config.load import Loaded, parse_config

HERE = Path(__file__).parent


@pytest.fixture
def plugin() -> dict[str, Any]:
    """A wasm-shim plugin configuration: check and report in front of a model, nothing of our own."""
    found: dict[str, Any] = json.loads((HERE / "plugin.json").read_text())
    return found


@pytest.fixture
def document(plugin: dict[str, Any]) -> dict[str, Any]:
    """The same with an embedded limiter, so that it is valid."""
    limit = {"namespace": "domain-a", "max_value": 100, "seconds": 60}
    return copy.deepcopy(plugin) | {"endpoints": {"limitador": "embedded"}, "limits": [limit]}


@pytest.fixture
def load(tmp_path: Path) -> Callable[[Any], Loaded]:
    """Loads plain data as if it were written in a JSON file in `tmp_path`."""

    def load_data(data: Any) -> Loaded:
        return parse_config(json.dumps(data), name="config.json", base=tmp_path)

    return load_data
