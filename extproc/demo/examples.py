"""The configurations in deploy/examples, which are played as they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"


def example(name: str, root: Path = EXAMPLES) -> dict[str, Any]:
    """An example's extproc.yaml, for use from any folder: its `policies` are found where they are.

    Raises FileNotFoundError in an installation without the examples.
    """
    folder = root / name
    try:
        config: dict[str, Any] = yaml.safe_load((folder / "extproc.yaml").read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} is not there: the examples come with the repository") from None
    if "policies" in config:
        config["policies"] = [str(folder / path) for path in config["policies"]]
    return config


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Where the credentials of an example come from, while it plays; whoever has real ones shows them to no model."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
