"""A configuration can be looked at where its secrets are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.messages import request_headers

from extproc.active import activate
from extproc.cli import main
from extproc.config.errors import ConfigError
from extproc.config.load import load_config
from extproc.facts import RequestFacts
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.limits import LimitSet
from extproc.limiter.seam import Code, Query

CONFIG = """
providers:
  - {name: gpt, credential: {env: EXTPROC_TEST_NOWHERE}, address: %s}
authConfigs:
  users: {authentication: {keys: {apiKeys: {files: [keys.yaml]}}}}
"""

KEYED = """
providers:
  - {name: gpt, model: gpt, credential: {env: EXTPROC_TEST_NOWHERE, header: x-provider}}
authConfigs:
  users: {authentication: {keys: {apiKeys: {files: [keys.yaml]}, credentials: {header: X-Caller}}}}
promptLimits:
  limits:
    - {model: gpt, selector: {header: x-provider, value: s3cret-1}, tokens: 4}
    - {model: gpt, selector: x-caller, tokens: 50}
    - {model: gpt, selector: x-team, tokens: 50}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "extproc.yaml"
    path.write_text(CONFIG % "https://api.openai.com")
    return path


def test_what_is_configured_is_there_and_no_secret(path: Path) -> None:
    loaded = load_config(path, credentials=False)
    assert loaded.config.providers[0].address == "https://api.openai.com"
    assert (loaded.credentials, loaded.keys) == ({}, {})


def test_whoever_needs_them_is_told_that_they_are_missing(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"keys\.yaml"):
        load_config(path)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://api.openai.com/v1", r"providers\[0\]\.address: `https://api.openai.com/v1`: write .* without a path"),
        ("api.openai.com", r"providers\[0\]\.address: .*the port is missing"),
        ("https://user:s3cret@api.openai.com", r"providers\[0\]\.address: `https://\*\*\*@api.openai.com`: "),
        ("user:s3cret@api.openai.com:80", r"providers\[0\]\.address: `\*\*\*@api.openai.com:80`: "),
    ],
)
def test_an_address_that_is_none_is_found_out_all_the_same(path: Path, address: str, message: str) -> None:
    """And whatever secret is in it is not shown."""
    path.write_text(CONFIG % address)
    with pytest.raises(ConfigError, match=message) as raised:
        load_config(path, credentials=False)
    assert "s3cret" not in str(raised.value)


def test_a_configuration_can_be_checked_without_them(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where secrets must not be, as in CI."""
    assert main(["check", "--without-credentials", str(path)]) == 0
    assert "gpt: at https://api.openai.com" in capsys.readouterr().out


def test_credentials_that_are_missing_hide_no_other_problem(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = path.read_text().partition("authConfigs")[0]
    path.write_text(text + "routing: {rules: [{when: 'request.host ==', provider: gpt}]}")
    assert main(["check", str(path)]) == 2
    told = capsys.readouterr().err
    assert "providers[0].credential.env: `EXTPROC_TEST_NOWHERE` is not set" in told
    assert "routing.rules[0].when" in told
    assert main(["check", "--without-credentials", str(path)]) == 2
    assert "EXTPROC_TEST_NOWHERE" not in capsys.readouterr().err


def test_nothing_is_told_twice(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(CONFIG % "api.openai.com")
    assert main(["check", str(path)]) == 2
    assert capsys.readouterr().err.count("providers[0].address") == 1


def test_the_headers_of_all_credentials_select_by_their_hashes(path: Path) -> None:
    """S2.D24: those of providers and of callers, wherever a prompt limit is made of them."""
    path.write_text(KEYED)
    active = activate(load_config(path, credentials=False), lambda config, service: EmbeddedLimiter(LimitSet()))
    assert active.plan.routing is not None
    assert active.plan.routing.prompts is not None
    queries = active.plan.routing.prompts.queries
    headers = {"x-provider": "s3cret-1", "x-caller": "s3cret-2", "x-team": "red"}
    query = queries.query(queries.select(RequestFacts(request_headers(headers))), "gpt", 5)
    assert isinstance(query, Query)
    assert dict(query.descriptors[0])["x-team"] == "red"
    assert "s3cret" not in repr(query)
    assert EmbeddedLimiter(active.limits).should_rate_limit(query).code is Code.OVER_LIMIT
