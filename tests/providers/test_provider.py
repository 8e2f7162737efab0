"""What is done to a request that goes to a provider: headers set and taken away, and what the model is called."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.config import providers as config
from extproc.config.secret_headers import CREDENTIAL_HEADERS
from extproc.providers.models import LONGEST, ModelTable
from extproc.providers.provider import Provider, compile_provider

ROUTING = "x-arch-llm-provider"
SECRET = "sk-very-secret"
BESIDES = {"api-key", "x-goog-api-key", "proxy-authorization", "cookie"}


def compiled(secret: str | None = SECRET, foreign: tuple[str, ...] = (), **fields: Any) -> Provider:
    given_fields = {"name": "open-ai-gpt-4", "credential": {"env": "KEY"}} | fields
    return compile_provider(config.Provider(**given_fields), ROUTING, secret, foreign)


# --- headers


def test_the_routing_header_and_the_credential_are_set() -> None:
    """S2.4, S2.5"""
    assert dict(compiled().set_headers) == {ROUTING: "open-ai-gpt-4", "authorization": f"Bearer {SECRET}"}


@pytest.mark.parametrize(
    ("credential", "header", "value"),
    [
        ({"header": "x-api-key"}, "x-api-key", SECRET),
        ({"header": "X-Goog-Api-Key"}, "x-goog-api-key", SECRET),
        ({"prefix": "Key"}, "authorization", f"Key {SECRET}"),
        ({"prefix": ""}, "authorization", SECRET),
    ],
)
def test_a_credential_goes_where_the_provider_looks_for_it(credential: Any, header: str, value: str) -> None:
    provider = compiled(credential={"env": "KEY"} | credential)
    assert dict(provider.set_headers)[header] == value
    assert header not in provider.remove_headers


def test_a_cluster_stands_in_for_the_name() -> None:
    provider = compiled(cluster="outbound|443||api.openai.com")
    assert provider.destination == dict(provider.set_headers)[ROUTING] == "outbound|443||api.openai.com"


def test_other_headers_are_set_but_never_in_place_of_these() -> None:
    headers = {"anthropic-version": "2023-06-01", "authorization": "mine", ROUTING: "elsewhere"}
    assert dict(compiled(headers=headers).set_headers) == {
        "anthropic-version": "2023-06-01",
        "authorization": f"Bearer {SECRET}",
        ROUTING: "open-ai-gpt-4",
    }


@pytest.mark.parametrize(
    ("fields", "removed"),
    [
        ({}, BESIDES | {"x-api-key"}),
        ({"credential": "none"}, BESIDES | {"authorization", "x-api-key"}),
        ({"credential": "client"}, set()),
        ({"credential": {"env": "K", "header": "x-api-key"}}, BESIDES | {"authorization"}),
        ({"headers": {"cookie": "session=ours"}}, BESIDES - {"cookie"} | {"x-api-key"}),
        ({"credential": "none", "foreign": ("x-token", "x-token")}, {*CREDENTIAL_HEADERS, "x-token"}),
        ({"credential": "none", "headers": {"x-api-key": "public"}}, {*CREDENTIAL_HEADERS} - {"x-api-key"}),
    ],
)
def test_no_key_gets_to_a_provider_that_it_is_not_for(fields: Any, removed: set[str]) -> None:
    """What a client sent for us, or for another provider."""
    provider = compiled(**fields)
    assert set(provider.remove_headers) == removed
    assert len(provider.remove_headers) == len(removed)


def test_a_provider_without_a_credential_refuses() -> None:
    """S2.6"""
    provider = compiled(secret=None, credential=None)
    assert provider.refusal == 'No access key configured for selected LLM Provider "open-ai-gpt-4"'
    assert "authorization" not in dict(provider.set_headers)


@pytest.mark.parametrize("credential", ["none", "client", {"env": "KEY"}])
def test_others_do_not(credential: Any) -> None:
    assert compiled(SECRET if isinstance(credential, dict) else None, credential=credential).refusal is None


def test_a_provider_does_not_show_its_secret() -> None:
    """S2.D17"""
    assert SECRET not in repr(compiled())


# --- what the model is called

ALIASES = {"gpt-4o": "gpt-4o-2024-08-06", "o3": None, "gpt-*": "gpt-4", "gpt-4*": None, "GPT-4O": "shouted"}


@pytest.mark.parametrize(
    ("asked", "called"),
    [
        ("gpt-4o", "gpt-4o-2024-08-06"),
        ("GPT-4O", "shouted"),
        ("Gpt-4o", "gpt-4o-2024-08-06"),
        ("o3", "o3"),
        ("O3", "o3"),
        ("gpt-3.5-turbo", "gpt-4"),
        ("gpt-4.1", None),
        ("claude", "fallback"),
        ("", "fallback"),
        ("gpt-" + "4" * LONGEST, "fallback"),
    ],
)
def test_aliases(asked: str, called: str | None) -> None:
    """S2.9, S4.1: an exact name wins, then the longest pattern; null is the same name; else the provider's model."""
    assert compiled(models=ALIASES, model="fallback").model_for(asked) == called


@pytest.mark.parametrize(
    ("fields", "asked", "called"),
    [
        ({}, "gpt-4o", None),
        ({}, "", None),
        ({"model": "gpt-4"}, "gpt-4o", "gpt-4"),
        ({"model": "gpt-4"}, "", "gpt-4"),
        ({"models": ["*"]}, "gpt-4o", None),
        ({"models": ["*"]}, "", None),
        ({"models": ["*"], "model": "gpt-4"}, "", "gpt-4"),
        ({"models": {"*": "gpt-4"}}, "", "gpt-4"),
        ({"models": ["gpt-4"]}, "o3", None),
    ],
)
def test_what_a_client_did_not_name_is_the_provider_s_or_left_alone(
    fields: Any, asked: str, called: str | None
) -> None:
    assert compiled(**fields).model_for(asked) == called


@given(
    table=st.dictionaries(st.text("aB*-4", max_size=5), st.integers(), max_size=6), model=st.text("abB-4*", max_size=6)
)
def test_a_table_finds_what_its_order_says(table: dict[str, int], model: str) -> None:
    names = {name: item for name, item in table.items() if "*" not in name}
    found = ModelTable(table).find(model)
    if model in names:
        assert found == names[model]
    elif any(name.lower() == model.lower() for name in names):
        assert found == next(item for name, item in names.items() if name.lower() == model.lower())
    elif found is not None:
        assert found in [item for name, item in table.items() if "*" in name]
    else:
        assert "*" not in table
