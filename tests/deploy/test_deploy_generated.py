"""The files that `extproc envoy-config` printed are what it prints, and are Envoy's."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pytest
import yaml
from support.envoys import refusal, typed

from extproc.gateway import envoy_config_cli

EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "providers"
COMMANDS = [
    shlex.split(line)[2:]
    for line in (EXAMPLE / "README.md").read_text().splitlines()
    if line.startswith("extproc envoy-config ")
]


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "MISTRAL_API_KEY", "DASHSCOPE_API_KEY"):
        monkeypatch.setenv(name, "s3cret")


def printed(words: list[str], folder: Path) -> tuple[str, str]:
    """What a command of the README writes, and the file that it names."""
    parser = argparse.ArgumentParser()
    envoy_config_cli.add_arguments(parser)
    options = parser.parse_args(words)
    name = options.output.name
    options.config, options.output = EXAMPLE / options.config, folder / name
    assert envoy_config_cli.run(options) == 0
    return (folder / name).read_text(), name


@pytest.mark.parametrize("words", COMMANDS, ids=[words[-1] for words in COMMANDS])
def test_the_files_are_what_the_commands_beside_them_print(words: list[str], tmp_path: Path) -> None:
    text, name = printed(words, tmp_path)
    assert text == (EXAMPLE / name).read_text(), (
        f"deploy/examples/providers: run the commands of its README again: {name}"
    )
    assert "s3cret" not in text


def test_there_is_one_for_each_gateway() -> None:
    files = {path.name for path in EXAMPLE.glob("*.yaml")} - {"extproc.yaml"}
    assert {words[-1] for words in COMMANDS} == files


@pytest.mark.e2e
def test_envoy_accepts_its_own(tmp_path: Path) -> None:
    config = yaml.safe_load((EXAMPLE / "envoy.yaml").read_text())
    typed(config)
    assert refusal(config, tmp_path) == ""
