"""The files that `extproc envoy-config` printed are what it prints, and are Envoy's."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from support.envoys import refusal, typed

from extproc.gateway import envoy_config_cli

DEPLOY = Path(__file__).parents[2] / "deploy"
PROVIDERS = DEPLOY / "examples" / "providers"


class Command(NamedTuple):
    """A command that a README tells to run in its folder."""

    folder: Path
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.folder.name}/{self.words[-1]}"


COMMANDS = [
    Command(page.parent, tuple(shlex.split(line)[2:]))
    for page in sorted(DEPLOY.glob("**/README.md"))
    for line in page.read_text().splitlines()
    if line.startswith("extproc envoy-config ")
]


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_the_files_are_what_the_commands_beside_them_print(command: Command, tmp_path: Path) -> None:
    """In an environment without any credential."""
    parser = argparse.ArgumentParser()
    envoy_config_cli.add_arguments(parser)
    options = parser.parse_args(command.words)
    name = options.output.name
    options.config, options.output = command.folder / options.config, tmp_path / name
    assert envoy_config_cli.run(options) == 0
    same = (tmp_path / name).read_text() == (command.folder / name).read_text()
    assert same, f"{command.folder}: run the commands of its README again: {name}"


def test_every_printed_file_has_a_command() -> None:
    files = {path for path in DEPLOY.glob("**/*.yaml") if "printed by `extproc envoy-config`" in _beginning(path)}
    assert {command.folder / command.words[-1] for command in COMMANDS} == files
    assert {path.name for path in PROVIDERS.glob("*.yaml")} == {
        *("extproc.yaml", "envoy.yaml", "istio.yaml", "envoy-gateway.yaml")
    }


@pytest.mark.e2e
def test_envoy_accepts_its_own(tmp_path: Path) -> None:
    config = yaml.safe_load((PROVIDERS / "envoy.yaml").read_text())
    typed(config)
    assert refusal(config, tmp_path) == ""


def _beginning(path: Path) -> str:
    return path.read_text().partition("\n")[0]
