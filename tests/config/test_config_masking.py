"""What the admin port shows of a configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from extproc.config.load import load_config, parse_config
from extproc.config.masking import holds_secret, masked, without_userinfo
from extproc.config.model import Config, DenyWith, Endpoint
from extproc.config.schema import CONFIG
from extproc.config.validate import validate

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


PLACE = {"env": "VARIABLE", "header": "x-api-key"}


@pytest.mark.parametrize("name", ["chat", "credential", "secrets"])
def test_a_guard_may_be_called_anything(name: str) -> None:
    """Its secrets are not shown, whatever its name, and where they come from is."""
    hook = {"url": "https://hook/", "headers": {"x-api-key": "hunter2", "credential": "hunter2"}, "credential": PLACE}
    config = validate(CONFIG, {"guards": {name: {"webhook": hook}}}, base=Path())
    [shown] = masked(config)["guards"].values()
    assert shown["webhook"]["headers"] == {"x-api-key": "***", "credential": "***"}
    assert (shown["webhook"]["url"], shown["webhook"]["credential"]["env"]) == ("https://hook/", "VARIABLE")


def test_the_headers_of_a_provider_are_not_its_credential() -> None:
    provider = {"name": "a", "headers": {"credential": "hunter2"}, "credential": PLACE}
    [shown] = masked(validate(CONFIG, {"providers": [provider]}, base=Path()))["providers"]
    assert (shown["headers"], shown["credential"]["env"]) == ({"credential": "***"}, "VARIABLE")


@pytest.mark.parametrize(
    ("header", "value"), [("x-team", "hunter2"), ("authorization", "***"), ("cookie", "***"), ("x-mine", "***")]
)
def test_a_key_that_selects_a_limit_is_not_shown(header: str, value: str) -> None:
    """S2.D24"""
    limits = [
        {"model": "a", "selector": {"header": header, "value": "hunter2"}, "tokens": 1},
        {"model": "a", "tokens": 1},
    ]
    sections = {
        "providers": [{"name": "a", "credential": {"env": "VARIABLE", "header": "x-mine"}}],
        "promptLimits": {"limits": limits},
    }
    shown = masked(validate(CONFIG, sections, base=Path()))["promptLimits"]["limits"]
    assert (shown[0]["selector"]["value"], shown[1]["selector"]) == (value, None)


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
        (("promptLimits", "limits", 0, "tokens"), False),
        (("guards", "credential", "webhook", "headers", "x-ok"), False),
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
