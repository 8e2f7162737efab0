"""What the admin port shows of a configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from extproc.config.load import load_config, parse_config
from extproc.config.masking import holds_secret, masked, without_userinfo
from extproc.config.model import Config, DenyWith, Endpoint

VALID = sorted((Path(__file__).parent / "valid").iterdir())


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.name)
def test_what_is_shown_loads_as_the_same_configuration(path: Path) -> None:
    config = load_config(path).config
    text = json.dumps(masked(config))
    assert "***" not in text
    assert parse_config(text, name="shown.json", base=path.parent).config == config


def test_secrets_are_not_shown() -> None:
    headers = {"Authorization": "Bearer hunter2", "set-cookie": "sid=hunter2", "X-API-Key": "hunter2", "x-ok": "shown"}
    config = Config(
        services={},
        action_sets=[],
        endpoints={
            "cache": Endpoint(address="redis://admin:hunter2@redis:6379/0"),
            "token": Endpoint(address="admin:hunter2@redis:6379"),
        },
        deny_with=DenyWith(headers=headers, body="see http://u:hunter2@docs/"),
    )
    shown = masked(config)
    assert "hunter2" not in json.dumps(shown)
    assert shown["denyWith"]["headers"] == dict.fromkeys(headers, "***") | {"x-ok": "shown"}
    assert shown["endpoints"]["cache"]["address"] == "redis://***@redis:6379/0"
    assert shown["endpoints"]["token"]["address"] == "***@redis:6379"


@pytest.mark.parametrize(
    ("steps", "secret"),
    [
        (("redis", "password"), True),
        (("provider", "apiKey"), True),
        (("provider", "api_keys", 0), True),
        (("provider", "credentials", "anything", 3), True),
        (("auth", "key"), True),
        (("auth", "JWT"), True),
        (("auth", "clientSECRET"), True),
        (("endpoints", "a", "tls", "key"), False),
        (("data", 0, "static", "key"), False),
        (("data", 0, "expression", "key"), False),
        (("services", "count-token", "type"), False),
        (("usage", "tokenCount"), False),
        (("limits", 0, "max_value"), False),
        ((), False),
    ],
)
def test_names_tell_what_is_secret(steps: Any, secret: bool) -> None:
    assert holds_secret(steps) is secret


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a:1", "a:1"), ("u@a:1", "***@a:1"), ("s://u:p@q@a/x", "s://***@a/x"), ("unix:/a@b", "***@b")],
)
def test_user_information_is_masked_in_addresses(text: str, shown: str) -> None:
    assert without_userinfo(text, address=True) == shown
