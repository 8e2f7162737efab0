"""`extproc compile`."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import yaml

from extproc.config.load import parse_config
from extproc.config.schema import LIMITS
from extproc.config.validate import validate
from extproc.policies import cli

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"


def compile_command(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return cli.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.mark.parametrize("example", ["maas", "maas-oidc", "tokens"])
def test_what_is_printed_is_a_configuration(example: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compile_command(EXAMPLES / example / "policies") == 0
    printed = capsys.readouterr().out
    assert "&id" not in printed
    loaded = parse_config(printed, name="printed.yaml", base=tmp_path)
    assert len(loaded.config.action_sets) == 2
    assert len(loaded.config.embedded_limits) == 6


def test_what_is_printed_for_limitador_is_a_limits_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert compile_command(EXAMPLES / "tokens" / "policies", "--for", "limitador") == 0
    limits = yaml.safe_load(capsys.readouterr().out)
    assert len(validate(LIMITS, limits, base=Path())) == 6
    fields = {"namespace", "max_value", "seconds", "name", "conditions", "variables"}
    assert all(set(limit) == fields for limit in limits)


def test_warnings_are_told_beside(capsys: pytest.CaptureFixture[str]) -> None:
    assert compile_command(EXAMPLES / "maas-oidc" / "policies") == 0
    told = capsys.readouterr().err
    assert told.startswith("warning: ")
    assert "AuthPolicy llm/gateway-auth-policy-oidc: spec.rules.authentication.keycloak-jwt.jwt" in told


def test_what_is_wrong_is_told_with_file_and_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (EXAMPLES / "maas" / "policies" / "rate-limits.yaml").read_text()
    (tmp_path / "limits.yaml").write_text(text.replace("window: 2m", "windw: 2m", 1))
    assert compile_command(tmp_path, EXAMPLES / "maas" / "policies" / "gateway.yaml") == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("extproc: failed to parse policies: ")
    place = "RateLimitPolicy llm/gateway-rate-limits: spec.limits.free-user-requests.rates[0].windw"
    assert f"{tmp_path}/limits.yaml: {place}: unknown field, did you mean `window`?" in told.err


def test_help_teaches_with_an_example() -> None:
    assert cli.__doc__ is not None
    assert "extproc compile deploy/examples/maas/policies\n" in cli.__doc__
