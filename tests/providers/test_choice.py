"""Which provider a request goes to, whose bodies are edited, and which headers of a client go no further."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.messages import request_headers

from extproc.config.model import Config
from extproc.facts import RequestFacts
from extproc.providers.choice import Choice, Refused
from extproc.providers.provider import Provider
from extproc.wire.external_processor_pb2 import ProcessingRequest

HINT = "x-arch-llm-provider-hint"
ROUTING = "x-arch-llm-provider"
PLANO = [
    {"name": "open-ai-gpt-4", "model": "gpt-4", "credential": {"env": "A"}, "default": True},
    {"name": "open-ai-gpt-4o", "model": "gpt-4o", "credential": {"env": "B"}},
]
"""As in Plano's tests."""
BY_MODEL = [
    {"name": "openai", "models": ["gpt-*", "o3"], "credential": "none"},
    {"name": "azure", "models": {"gpt-4*": "deployment", "gpt-4.1": None}, "credential": "none"},
    {"name": "local", "credential": "none"},
]
UNKNOWN = Refused(f"the LLM Provider that `{HINT}` names is not known")
NONE = Refused("no LLM Provider is configured for this request")


def choice(providers: list[Any] = PLANO, **sections: Any) -> Choice:
    config = Config.model_validate({"providers": providers, **sections})
    return Choice(config, {("providers", index): f"secret-{index}" for index in range(len(providers))})


def facts(path: str = "/v1/chat/completions", **headers: str | bytes) -> RequestFacts:
    return RequestFacts(request_headers({name.replace("_", "-"): value for name, value in headers.items()}, path=path))


def hinted(*values: str | bytes, path: str = "/v1/chat/completions") -> RequestFacts:
    message = request_headers(path=path)
    for value in values:
        raw = value if isinstance(value, bytes) else value.encode()
        message.request_headers.headers.headers.add(key=HINT, raw_value=raw)
    return RequestFacts(message)


def chosen(made: Provider | Refused | None) -> str | Refused | None:
    return made.name if isinstance(made, Provider) else made


# --- by the head


@pytest.mark.parametrize(
    ("hint", "provider"),
    [
        (["open-ai-gpt-4o"], "open-ai-gpt-4o"),
        (["open-ai-gpt-4"], "open-ai-gpt-4"),
        (["default"], "open-ai-gpt-4"),
        ([], "open-ai-gpt-4"),
        ([""], "open-ai-gpt-4"),
    ],
)
def test_a_hint_decides_and_without_one_the_default(hint: list[str], provider: str) -> None:
    """S2.1, S2.2, S2.3"""
    assert chosen(choice().by_head(hinted(*hint), None)) == provider


@pytest.mark.parametrize(
    "hint", [["gpt-5"], ["OPEN-AI-GPT-4O"], [b"\xff\xfe"], ["open-ai-gpt-4o", "open-ai-gpt-4"], ["default", "default"]]
)
def test_an_unknown_hint_is_refused_or_overlooked(hint: list[str | bytes]) -> None:
    """S2.D22: by configuration. Of several hints none counts; none is shown."""
    assert choice().by_head(hinted(*hint), None) == UNKNOWN
    lenient = choice(routing={"unknown_hint": "default"})
    assert chosen(lenient.by_head(hinted(*hint), None)) == "open-ai-gpt-4"


def test_a_rule_goes_before_a_hint() -> None:
    assert chosen(choice().by_head(hinted("open-ai-gpt-4"), "open-ai-gpt-4o")) == "open-ai-gpt-4o"


def test_a_single_provider_is_the_default_by_itself() -> None:
    only = choice([{"name": "only", "credential": "none"}])
    assert chosen(only.by_head(facts(), None)) == "only"
    assert chosen(only.by_head(hinted("default"), None)) == "only"


def test_among_several_none_is_taken_by_chance() -> None:
    """S2.D21"""
    several = choice(BY_MODEL)
    assert several.default is None
    assert several.by_head(hinted("default"), None) == UNKNOWN
    assert several.by_head(facts("/v1/embeddings"), None) == NONE
    assert several.by_model("claude") == NONE


def test_another_header_may_carry_the_hint() -> None:
    named = choice(routing={"hint_header": "x-provider"})
    assert chosen(named.by_head(facts(x_provider="open-ai-gpt-4o"), None)) == "open-ai-gpt-4o"
    assert chosen(named.by_head(hinted("open-ai-gpt-4o"), None)) == "open-ai-gpt-4"


# --- by the model


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("gpt-3.5-turbo", "openai"),
        ("o3", "openai"),
        ("gpt-4o", "azure"),
        ("GPT-4.1", "azure"),
        ("claude", NONE),
        ("", NONE),
    ],
)
def test_the_model_in_the_body_decides(model: str, provider: str | Refused) -> None:
    """The longest pattern of all providers."""
    by_model = choice(BY_MODEL)
    assert by_model.by_head(facts(), None) is None
    assert chosen(by_model.by_model(model)) == provider


def test_a_hint_goes_before_the_model_and_the_default_gets_the_rest() -> None:
    providers = [*BY_MODEL[:2], BY_MODEL[2] | {"default": True}]
    assert chosen(choice(providers).by_head(hinted("openai"), None)) == "openai"
    assert chosen(choice(providers).by_model("claude")) == "local"
    assert chosen(choice(providers).by_head(facts("/v1/embeddings"), None)) == "local"


def test_an_overlooked_hint_leaves_it_to_the_model() -> None:
    lenient = choice(BY_MODEL, routing={"unknown_hint": "default"})
    assert lenient.by_head(hinted("nobody"), None) is None


def test_where_nobody_claims_a_model_the_body_decides_nothing() -> None:
    assert chosen(choice().by_head(facts(), None)) == "open-ai-gpt-4"


# --- whose bodies are edited


@pytest.mark.parametrize(
    ("path", "edited"),
    [
        ("/v1/chat/completions", True),
        ("/v1/chat/completions?api-version=2024-06-01", True),
        ("/v1/chat/completions?", True),
        ("/v1/embeddings", False),
        ("/v1/embeddings?next=/v1/chat/completions", False),
        ("/v1/chat/completions/chatcmpl-1", False),
        ("/prefix/v1/chat/completions", False),
        ("", False),
        ("/", False),
        ("*", False),
    ],
)
def test_the_path_decides_without_its_query(path: str, edited: bool) -> None:
    """S2.22, S2.D14, S2.D16"""
    assert choice().edits(facts(path)) is edited


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions/",
        "/v1//chat/completions",
        "//v1/chat/completions",
        "/v1/./chat/completions",
        "/v1/models/../chat/completions",
        "/v1/chat%2fcompletions",
        "/v1/chat/%63ompletions",
        "/V1/Chat/Completions",
        "/v1/chat/%43ompletions",
        "/v1\\chat\\completions",
    ],
)
def test_another_spelling_of_the_path_is_no_way_around(path: str) -> None:
    assert choice().edits(facts(path))


@pytest.mark.parametrize(
    ("path", "edited"),
    [
        ("/openai/deployments/gpt-4/chat/completions?api-version=1", True),
        ("/openai/deployments//gpt-4/chat/completions/", True),
        ("/v1/chat/completions", True),
        ("/openai/deployments/gpt-4/embeddings", False),
        ("/raw/", True),
        ("/raw", True),
    ],
)
def test_paths_may_be_patterns(path: str, edited: bool) -> None:
    paths = ["/openai/deployments/*/chat/completions", "/v1/chat/completions", "/raw/"]
    assert choice(routing={"paths": paths}).edits(facts(path)) is edited


def test_a_path_of_nothing_but_detours_takes_no_time() -> None:
    """One step of decoding and no more, so that nesting buys nothing."""
    for path in ("/%" + "25" * 30_000, "/." * 30_000, "/" * 60_000, "%" * 60_000):
        assert not choice().edits(facts(path))


# --- what goes no further


def test_headers_that_pretend_to_be_ours_are_stripped() -> None:
    """S2.D11: hint and selector too; the routing header is not removed, it is overwritten."""
    headers = {
        HINT: "open-ai-gpt-4",
        ROUTING: "evil",
        "x_arch_llm_provider": "evil",
        "x-arch-state": "[]",
        "x-arch-ratelimit-selector": "selector-key",
        "selector-key": "selector-value",
        "x-architect": "frank",
        "authorization": "Bearer mine",
    }
    stripped = choice().stripped(RequestFacts(request_headers(headers)))
    assert set(stripped) == {HINT, "x_arch_llm_provider", "x-arch-state", "x-arch-ratelimit-selector"}


def test_hint_and_selector_headers_are_stripped_whatever_they_are_called() -> None:
    limits = {"limits": [{"model": "gpt-4", "tokens": 1}], "selector_header": "x-select"}
    routing = {"header": "x-to", "hint_header": "x-hint", "remove_headers": ["x-debug"]}
    headers = {"x-hint": "a", "x-select": "b", "x-debug": "1", "x-to": "evil", "x-to-": "kept", "x-arch-a": "kept"}
    stripped = choice(routing=routing, prompt_limits=limits).stripped(RequestFacts(request_headers(headers)))
    assert set(stripped) == {"x-hint", "x-select", "x-debug"}


def test_what_makes_a_request_stays() -> None:
    headers = {
        "host": "a",
        "content-length": "1",
        "content-type": "a/b",
        "transfer-encoding": "chunked",
        "te": "trailers",
    }
    message = request_headers(headers)
    assert choice(routing={"remove_headers": ["*"]}).stripped(RequestFacts(message)) == ("x-request-id", "te")


# --- what a client may send


@given(
    headers=st.lists(
        st.tuples(st.sampled_from([HINT, ROUTING, ":path", ":method", "x-arch-a", "a_b"]), st.binary(max_size=30))
    ),
    model=st.text(max_size=20),
    providers=st.sampled_from([PLANO, BY_MODEL]),
)
def test_nothing_that_a_client_sends_raises(headers: list[tuple[str, bytes]], model: str, providers: list[Any]) -> None:
    message = ProcessingRequest()
    for name, value in headers:
        message.request_headers.headers.headers.add(key=name, raw_value=value)
    made, about = choice(providers), RequestFacts(message)
    decided = made.by_head(about, None)
    if decided is None:
        assert made.edits(about)
        decided = made.by_model(model)
    assert isinstance(decided, Provider | Refused)
    assert ROUTING not in made.stripped(about)
