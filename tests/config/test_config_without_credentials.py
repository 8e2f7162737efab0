"""A configuration can be looked at where its secrets are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from extproc.config.errors import ConfigError
from extproc.config.load import load_config

CONFIG = """
providers:
  - {name: gpt, credential: {env: EXTPROC_TEST_NOWHERE}, address: %s}
authConfigs:
  users: {authentication: {keys: {apiKeys: {files: [keys.yaml]}}}}
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
