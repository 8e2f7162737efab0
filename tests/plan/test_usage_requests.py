"""Which requests are asked to report usage: those that know the option, and nobody that refuses it."""

from __future__ import annotations

from typing import Any

import pytest
from support.messages import request_headers

from extproc.facts import RequestFacts
from extproc.plan.usage_requests import UsageRequests


def asking(**options: Any) -> UsageRequests:
    known: dict[str, Any] = {
        "paths": ["/chat/completions", "/completions"],
        "except_hosts": [],
        "except_models": [],
        "strip": True,
    }
    return UsageRequests(**{**known, **options})


def facts(**request: Any) -> RequestFacts:
    return RequestFacts(request_headers(**request))


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/chat/completions", True),
        ("/chat/completions", True),
        ("/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21", True),
        ("/v1/completions", True),
        ("/v1/chat/completions?a=/v1/embeddings", True),
        ("/v1/chat/completions/", False),
        ("/v1/chat/completions/id", False),
        ("/v1/embeddings?next=/chat/completions", False),
        ("/v1/messages", False),
        ("/v1/responses", False),
        ("/", False),
        ("", False),
    ],
)
def test_the_path_without_its_query_decides(path: str, asked: bool) -> None:
    assert asking().may_ask(facts(path=path)) is asked


def test_paths_are_the_operators_choice() -> None:
    assert asking(paths=["/generate"]).may_ask(facts(path="/x/generate"))
    assert not asking(paths=["/generate"]).may_ask(facts())
    assert not asking(paths=[]).may_ask(facts())


@pytest.mark.parametrize(
    ("pattern", "host", "asked"),
    [
        ("api.mistral.ai", "api.mistral.ai", False),
        ("api.mistral.ai", "API.mistral.AI:443", False),
        ("api.mistral.ai", "other.mistral.ai", True),
        ("*.mistral.ai", "api.mistral.ai", False),
        ("*.mistral.ai", "mistral.ai", True),
        ("*", "anything", False),
        ("api.mistral.ai", None, True),
    ],
)
def test_hosts_that_refuse_the_option(pattern: str, host: str | None, asked: bool) -> None:
    assert asking(except_hosts=[pattern]).may_ask(facts(host=host)) is asked


@pytest.mark.parametrize("encoding", ["gzip", "identity", ""])
def test_a_body_in_a_content_coding_is_left_alone(encoding: str) -> None:
    assert not asking().may_ask(facts(headers={"content-encoding": encoding}))


@pytest.mark.parametrize(
    ("pattern", "model", "asked"),
    [
        ("gpt-4", "gpt-4", False),
        ("GPT-4", "gpt-4", False),
        ("gpt-4", "GPT-4", False),
        ("gpt-4", "gpt-4o", True),
        ("gpt-4*", "gpt-4o", False),
        ("*/llama*", "meta/Llama-3", False),
        ("*", "", False),
        ("gpt-*", "", True),
        ("", "gpt-4", True),
    ],
)
def test_models_that_refuse_the_option(pattern: str, model: str, asked: bool) -> None:
    assert asking(except_models=[pattern]).may_ask_model(model) is asked


@pytest.mark.parametrize(("pattern", "model"), [("m[12]", "m1"), ("m?", "m1"), ("[!x]*", "m")])
def test_only_the_asterisk_is_special(pattern: str, model: str) -> None:
    """The configuration promises no more, and names of models may hold the rest."""
    assert asking(except_models=[pattern]).may_ask_model(model)
    assert not asking(except_models=[pattern]).may_ask_model(pattern)


def test_without_exceptions_every_model_is_asked() -> None:
    assert asking().may_ask_model("")
    assert asking().may_ask_model("anything")
