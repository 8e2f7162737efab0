"""What is said of providers, limits of prompts and guards that cannot work, and of what hardly works as meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from extproc.config.check_guards import find_guard_problems
from extproc.config.check_providers import MAX_TOKENS, find_provider_problems, find_provider_warnings
from extproc.config.errors import ConfigError
from extproc.config.files import Files
from extproc.config.model import Config
from extproc.config.schema import CONFIG
from extproc.config.validate import validate

HERE = Path(__file__).parent
GPT_4 = {"name": "gpt-4", "model": "gpt-4", "credential": {"env": "A"}, "default": True}
GPT_4O = {"name": "gpt-4o", "model": "gpt-4o", "credential": {"env": "B"}}
SERVICES = {
    "limits": {"type": "ratelimit", "endpoint": "embedded"},
    "check": {"type": "ratelimit-check", "endpoint": "embedded"},
    "report": {"type": "ratelimit-report", "endpoint": "embedded"},
}
MODEL = {"host": "guard", "credential": {"env": "GUARD"}}
HOOK = {"url": "https://moderation.example.com:8443/check?v=1"}


def config_of(**sections: Any) -> Config:
    return validate(CONFIG, {"providers": [GPT_4, GPT_4O], "services": SERVICES, **sections}, base=HERE)


def problems(**sections: Any) -> list[str]:
    return [str(problem) for problem in find_provider_problems(config_of(**sections))]


def guard_problems(**sections: Any) -> list[str]:
    found = find_guard_problems(config_of(**sections), Files())
    return [str(problem).replace(f"{HERE}/", "") for problem in found]


def warnings(**sections: Any) -> list[str]:
    return [str(warning) for warning in find_provider_warnings(config_of(**sections))]


def limits(*found: Any, **fields: Any) -> dict[str, Any]:
    return {"promptLimits": {"limits": list(found)} | fields}


def limit(tokens: int = 50, model: str = "gpt-4", **fields: Any) -> dict[str, Any]:
    return {"model": model, "tokens": tokens} | fields


FULL = {
    "routing": {
        "hosts": ["llm.example.com", "*.internal"],
        "rules": [{"when": "request.host == 'x'", "provider": "gpt-4o"}],
        "removeHeaders": ["x-arch-*", "x-secret"],
        "paths": ["/v1/chat/completions", "*/messages"],
    },
    "guards": {
        "chat": {
            "hosts": ["*"],
            "model": MODEL | {"report": {"service": "report", "scope": "guards"}},
            "webhook": HOOK | {"credential": {"env": "HOOK"}, "headers": {"x-tenant": "a"}},
        }
    },
    "actionSets": [
        {"name": "a", "routeRuleConditions": {"hostnames": ["*"]}, "actions": [], "guards": ["chat"]},
    ],
    **limits(limit(), limit(selector="x-tenant"), limit(per="day", selector="x-tenant"), service="limits"),
}


def test_a_whole_configuration_has_no_problems() -> None:
    assert problems(**FULL) == guard_problems(**FULL) == warnings(**FULL) == []


def test_nor_has_one_without_any_of_it() -> None:
    assert problems(providers=[]) == guard_problems() == warnings(providers=[]) == []


# --- Plano's words


@pytest.mark.parametrize("section", [{"routing": {"header": "x-to"}}, limits(limit())])
def test_there_must_be_a_provider(section: Any) -> None:
    """S2.21, S2.D27"""
    assert problems(providers=[], **section) == ["providers: There must be at least one LLM Provider"]


def test_there_must_not_be_two_defaults() -> None:
    """S2.21"""
    assert problems(providers=[GPT_4, GPT_4O | {"default": True}]) == [
        "providers[1].default: There must be at most one default LLM Provider"
    ]


def test_names_are_unique() -> None:
    """S2.21, S2.D27"""
    assert problems(providers=[GPT_4, GPT_4O | {"name": "gpt-4"}]) == [
        "providers[1].name: 'gpt-4' is not a unique name"
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"selector": {"header": "k", "value": "v"}}, {"selector": {"header": "K", "value": "v"}}),
        ({"selector": "k"}, {"selector": {"header": "k", "value": ""}}),
        ({"selector": "k"}, {"selector": "k", "model": "GPT-4"}),
        ({}, {}),
    ],
)
def test_selectors_are_unique(first: Any, second: Any) -> None:
    """S2.21"""
    assert problems(**limits(limit(1) | first, limit(2) | second)) == [
        "promptLimits.limits[1].selector: repeated selector. Selectors per provider must be unique"
    ]


@pytest.mark.parametrize("other", [{"selector": "j"}, {"selector": {"header": "k", "value": "v"}}, {"per": "day"}, {}])
def test_other_selectors_and_units_are_no_repetition(other: Any) -> None:
    first = limit(selector="k") if other else limit(model="gpt-4o", selector="k")
    assert problems(**limits(first, limit(selector="k") | other)) == []


@pytest.mark.parametrize("tokens", [0, -1])
def test_a_limit_is_positive(tokens: int) -> None:
    """S2.21"""
    assert problems(**limits(limit(tokens))) == ["promptLimits.limits[0].tokens: Limit's tokens must be positive"]


def test_a_limit_can_be_counted() -> None:
    assert problems(**limits(limit(MAX_TOKENS))) == []
    assert problems(**limits(limit(MAX_TOKENS + 1))) == ["promptLimits.limits[0].tokens: expected at most 4294967296"]


def test_limits_in_the_place_where_plano_ignores_them_are_refused() -> None:
    """S2.28"""
    with pytest.raises(ConfigError, match="rate_limits"):
        config_of(providers=[GPT_4 | {"rate_limits": []}])


# --- providers and their choice

UNNAMED = "no request without a hint would get one: say which is the `default`, or which `models` they have"
BAD_PROVIDERS: list[tuple[list[Any], str]] = [
    ([GPT_4 | {"name": ""}], "providers[0].name: expected a name that a header can carry"),
    ([GPT_4 | {"name": "a\nb"}], "providers[0].name: expected a name"),
    ([GPT_4 | {"name": " a"}], "providers[0].name: expected a name"),
    ([GPT_4 | {"name": "a,b"}], "providers[0].name: expected a name"),
    ([GPT_4 | {"name": "ä"}], "providers[0].name: expected a name"),
    ([GPT_4 | {"cluster": "a\tb"}], "providers[0].cluster: expected what a header can carry"),
    ([GPT_4 | {"model": ""}], "providers[0].model: empty; leave it out"),
    ([GPT_4 | {"models": {"": "a"}}], 'providers[0].models[""]: the name of a model is not empty'),
    ([GPT_4 | {"models": {"a": ""}}], "providers[0].models.a: the name of a model is not empty"),
    ([GPT_4 | {"headers": {"x": "a\r\nb"}}], "providers[0].headers.x: a header's value holds no line breaks"),
    ([GPT_4 | {"headers": {"Host": "a"}}], "providers[0].headers.host: this header belongs to the gateway"),
    (
        [GPT_4 | {"headers": {"authorization": "a"}}],
        "providers[0].headers.authorization: set already: it carries the credential",
    ),
    (
        [GPT_4 | {"headers": {"x-arch-llm-provider": "a"}}],
        "providers[0].headers.x-arch-llm-provider: set already: `routing.header` is set",
    ),
    (
        [GPT_4 | {"credential": {"env": "A", "header": "content-length"}}],
        "providers[0].credential.header: this header belongs to the gateway",
    ),
    (
        [GPT_4 | {"credential": {"env": "A", "header": "x-arch-llm-provider"}}],
        "providers[0].credential.header: this header belongs to the gateway",
    ),
    (
        [GPT_4 | {"credential": {"env": "A", "prefix": "a\n"}}],
        "providers[0].credential.prefix: a header's value holds no line breaks",
    ),
    ([GPT_4, GPT_4O | {"name": "default"}], "providers[1].name: a hint of `default` means the default provider"),
    ([GPT_4 | {"default": False}, GPT_4O], f"providers: {UNNAMED}"),
    (
        [GPT_4 | {"models": {"GPT-*": None}}, GPT_4O | {"models": {"gpt-*": None}}],
        'providers[1].models["gpt-*"]: requests for `gpt-*` go to providers[0] already',
    ),
]


@pytest.mark.parametrize(("providers", "told"), BAD_PROVIDERS)
def test_a_provider_that_cannot_work(providers: Any, told: str) -> None:
    [line] = problems(providers=providers)
    assert line.startswith(told)


@pytest.mark.parametrize(
    "sections",
    [
        {"providers": [GPT_4 | {"default": False}]},
        {"providers": [GPT_4 | {"default": False, "models": {"a": None}}, GPT_4O]},
        {
            "providers": [GPT_4 | {"default": False}, GPT_4O],
            "routing": {"rules": [{"when": "true", "provider": "gpt-4"}]},
        },
        {"providers": [GPT_4 | {"name": "default"}, GPT_4O]},
    ],
)
def test_something_has_to_decide(sections: Any) -> None:
    """S2.D21: a single provider, a default, models or rules; never chance."""
    assert problems(**sections) == []


BAD_ROUTING: list[tuple[dict[str, Any], str]] = [
    (
        {"rules": [{"when": "true", "provider": "gpt-4p"}]},
        "routing.rules[0].provider: no provider is named `gpt-4p`, did you mean `gpt-4",
    ),
    (
        {"rules": [{"when": "true", "provider": "x"}]},
        "routing.rules[0].provider: no provider is named `x`, known: `gpt-4`, `gpt-4o`",
    ),
    ({"hosts": ["http://a"]}, "routing.hosts[0]: `http://a`: a hostname has no scheme"),
    ({"hosts": ["a", "A"]}, "routing.hosts[1]: `a` is given twice, also as hosts[0]"),
    ({"header": "Host"}, "routing.header: this header belongs to the gateway"),
    ({"hintHeader": "content-type"}, "routing.hintHeader: this header belongs to the gateway"),
    ({"header": "x-to", "hintHeader": "x-to"}, "routing.hintHeader: the same as `routing.header`"),
    ({"removeHeaders": ["x y"]}, "routing.removeHeaders[0]: expected the name of an HTTP header, or its beginning"),
    ({"removeHeaders": ["x-*-y"]}, "routing.removeHeaders[0]: expected the name of an HTTP header"),
    (
        {"removeHeaders": ["Content-*"]},
        "routing.removeHeaders[0]: `Content-*` would take away `content-length`, `content-type`, which requests need",
    ),
    ({"removeHeaders": ["host"]}, "routing.removeHeaders[0]: `host` would take away `host`"),
    ({"paths": ["v1"]}, "routing.paths[0]: expected a path without a query"),
    ({"paths": ["/v1?a"]}, "routing.paths[0]: expected a path without a query"),
]


@pytest.mark.parametrize(("routing", "told"), BAD_ROUTING)
def test_routing_that_cannot_work(routing: Any, told: str) -> None:
    [line] = problems(routing=routing)
    assert line.startswith(told)


def test_a_header_has_the_name_of_one() -> None:
    for routing in ({"header": "x y"}, {"hintHeader": ""}):
        with pytest.raises(ConfigError, match="expected the name of a header"):
            config_of(routing=routing)


BAD_LIMITS: list[tuple[dict[str, Any], str]] = [
    (limits(limit(), service="limit"), "promptLimits.service: no service is named `limit`, did you mean `limits`?"),
    (
        limits(limit(), service="check"),
        "promptLimits.service: `check` is of the type `ratelimit-check`; prompts need `ratelimit`",
    ),
    (limits(limit(model="")), "promptLimits.limits[0].model: the name of a model is not empty"),
    (limits(limit(selector="model")), "promptLimits.limits[0].selector.header: `model` is what descriptors call"),
]


@pytest.mark.parametrize(("sections", "told"), BAD_LIMITS)
def test_limits_of_prompts_that_cannot_work(sections: Any, told: str) -> None:
    [line] = problems(**sections)
    assert line.startswith(told)


# --- guards


def test_the_words_of_the_asm_proxy() -> None:
    """S3.13, S3.D10"""
    assert guard_problems(guards={"chat": {"model": {"host": ""}}}) == [
        "guards.chat.model.host: intelligent guard cluster cannot be empty",
        "guards.chat.model.credential: intelligent guard api_key cannot be empty; write `none` if it needs none",
    ]
    assert guard_problems(guards={"chat": {"model": {"host": "guard", "credential": "none"}}}) == []


BAD_GUARDS: list[tuple[dict[str, Any], str]] = [
    ({"model": MODEL | {"host": "guard:8080"}}, "model.host: `guard:8080`: expected a name or an address, without a"),
    ({"model": MODEL | {"host": "https://guard"}}, "model.host: `https://guard`: expected a name or an address"),
    ({"model": MODEL | {"host": "me:pw@guard"}}, "model.host: `***@guard`: expected a name or an address"),
    ({"model": MODEL | {"path": "v1"}}, "model.path: expected a path"),
    ({"model": MODEL | {"path": "/v1\r\nx: y"}}, "model.path: expected a path"),
    ({"model": MODEL | {"model": ""}}, "model.model: the name of a model is not empty"),
    ({"model": MODEL | {"credential": "client"}}, "model.credential: what a client sent is for its provider"),
    ({"model": MODEL | {"ca": "missing.pem"}}, "model.ca: `missing.pem`: cannot be read: no such file or directory"),
    (
        {"model": MODEL | {"credential": {"env": "A", "header": "host"}}},
        "model.credential.header: this header carries no credential",
    ),
    (
        {"model": MODEL | {"credential": {"env": "A", "prefix": "\n"}}},
        "model.credential.prefix: a header's value holds no line breaks",
    ),
    (
        {"model": MODEL | {"report": {"service": "reports", "scope": "s"}}},
        "model.report.service: no service is named `reports`, did you mean `report`?",
    ),
    (
        {"model": MODEL | {"report": {"service": "limits", "scope": "s"}}},
        "model.report.service: `limits` is of the type `ratelimit`, not `ratelimit-report`",
    ),
    ({"webhook": {"url": "ftp://hook"}}, "webhook.url: `ftp://hook`: expected `https://...` or `http://...`"),
    ({"webhook": {"url": "hook"}}, "webhook.url: `hook`: expected `https://...` or `http://...`"),
    ({"webhook": {"url": "http://"}}, "webhook.url: `http://`: the host or the port is not one"),
    ({"webhook": {"url": "http://a:99999"}}, "webhook.url: `http://a:99999`: the host or the port is not one"),
    ({"webhook": {"url": "http://[::"}}, "webhook.url: `http://[::`: the host or the port is not one"),
    ({"webhook": {"url": "http://a b"}}, "webhook.url: `http://a b`: a URL holds no spaces or control characters"),
    ({"webhook": {"url": "http://me:pw@a"}}, "webhook.url: `http://***@a`: a URL holds no user information"),
    ({"webhook": HOOK | {"credential": "client"}}, "webhook.credential: what a client sent is for its provider"),
    ({"webhook": HOOK | {"headers": {"x": "\n"}}}, "webhook.headers.x: a header's value holds no line breaks"),
    ({"webhook": HOOK | {"headers": {"host": "a"}}}, "webhook.headers.host: this header is not for you to set"),
    (
        {"webhook": HOOK | {"headers": {"authorization": "a"}, "credential": {"env": "A"}}},
        "webhook.headers.authorization: set already: it carries the credential",
    ),
    ({"hosts": ["a:x"]}, "hosts[0]: `a:x`: a hostname has no port"),
    ({"denyWith": {"headers": {"a b": "c"}}}, 'denyWith.headers["a b"]: not the name of an HTTP header'),
]


@pytest.mark.parametrize(("guard", "told"), BAD_GUARDS)
def test_a_guard_that_cannot_work(guard: Any, told: str) -> None:
    [line] = guard_problems(guards={"chat": guard})
    assert line.startswith(f"guards.chat.{told}")


@pytest.mark.parametrize("host", ["guard", "guard.example.com", "10.0.0.1", "::1", "[::1]"])
def test_where_a_guard_may_be(host: str) -> None:
    assert guard_problems(guards={"chat": {"model": MODEL | {"host": host}}}) == []


def test_an_action_set_names_guards_that_are_there() -> None:
    action_set = {"name": "a", "routeRuleConditions": {"hostnames": ["*"]}, "actions": [], "guards": ["chta"]}
    assert guard_problems(guards={"chat": {}}, actionSets=[action_set]) == [
        "actionSets[0].guards[0]: no guard is named `chta`, did you mean `chat`? known: `chat`"
    ]


def test_the_roots_that_a_guard_trusts_are_watched() -> None:
    files = Files()
    hook = HOOK | {"ca": str(Path(__file__))}
    assert not list(find_guard_problems(config_of(guards={"chat": {"webhook": hook}}), files))
    assert list(files.snapshot) == [Path(__file__).absolute()]


# --- warnings


def test_a_provider_without_a_credential_is_warned_of() -> None:
    """S2.6"""
    assert warnings(providers=[GPT_4, {"name": "local"}]) == [
        "providers[1].credential: missing: its requests are refused (400); write `none` if it needs none"
    ]


@pytest.mark.parametrize(
    ("provider", "model", "warned"),
    [
        ({}, "gpt-5", True),
        ({}, "GPT-4", False),
        ({"models": {"fast": "gpt-5-mini", "gpt-5": None}}, "gpt-5", False),
        ({"models": {"fast": "gpt-5-mini"}}, "gpt-5-mini", False),
        ({"models": {"gpt-*": None}}, "gpt-5", False),
        ({"model": None}, "gpt-5", False),
    ],
)
def test_a_limit_for_a_model_that_nobody_has_is_warned_of(provider: Any, model: str, warned: bool) -> None:
    """S2.17: it limits nothing, which a misspelt name should not go unnoticed with."""
    lines = warnings(providers=[GPT_4 | provider], **limits(limit(model=model)))
    told = f"promptLimits.limits[0].model: no provider calls a model `{model}`, so the limit is for no request"
    assert lines == ([told] if warned else [])


ALIASED = {"name": "a", "models": {"fast": "gpt-5-mini", "gpt-5-*": None, "same": "SAME"}, "credential": "none"}


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("gpt-*", "no model is called `gpt-*`; a limit is for one model, not for a pattern"),
        ("Fast", "`Fast` is what clients ask for; a limit is for what the provider calls it, `gpt-5-mini`"),
        ("gpt-5-mini", None),
        ("same", None),
        ("gpt-5-nano", None),
    ],
)
def test_a_limit_for_a_name_that_no_provider_uses_is_warned_of(model: str, told: str | None) -> None:
    lines = warnings(providers=[ALIASED], **limits(limit(model=model)))
    assert lines == ([f"promptLimits.limits[0].model: {told}"] if told else [])


@pytest.mark.parametrize(
    ("header", "auth", "taker"),
    [
        ("x-arch-team", {}, "`routing`"),
        ("x-arch-llm-provider-hint", {}, "`routing`"),
        ("authorization", {}, None),
        ("authorization", {"authentication": {"keys": {"apiKeys": {"files": ["keys"]}}}}, "`authConfigs.users`"),
        (
            "authorization",
            {"authentication": {"keys": {"apiKeys": {"files": ["keys"]}}}, "forwardCredentials": True},
            None,
        ),
        ("authorization", {"authentication": {"sso": {"jwt": {}}}}, None),
        ("x-maas-tier", {"authentication": {"sso": {"jwt": {}}}}, "`authConfigs.users`"),
        ("x-maas-tier", {"authentication": {"sso": {"jwt": {}}}, "headers": {"X-MaaS-Tier": "'a'"}}, None),
    ],
)
def test_a_selector_that_never_gets_there_is_warned_of(header: str, auth: Any, taker: str | None) -> None:
    told = "takes this header away before prompts are counted, so every request lacks it"
    sections = {"authConfigs": {"users": auth}} if auth else {}
    lines = warnings(**limits(limit(selector=header)), **sections)
    assert lines == ([f"promptLimits.limits[0].selector.header: {taker} {told}"] if taker else [])


def test_prompts_are_counted_in_a_namespace_of_their_own() -> None:
    """What other limits count is something else, and every query is asked of all limits of its namespace."""
    other = {"namespace": "prompts", "max_value": 1, "seconds": 1, "conditions": [], "variables": []}
    assert not warnings(**limits(limit()), limits=[other | {"namespace": "tokens"}])
    assert warnings(**limits(limit()), limits=[other]) == [
        "promptLimits.domain: `prompts` is a namespace of `limits` too: those count prompts as well"
    ]


@pytest.mark.parametrize(
    ("when", "warned"),
    [
        ("request.headers['x-team'] == 'a'", True),
        ('request.headers["x-team"] == "a"', True),
        ('"x-team" in request.headers && request.headers["x-team"] == "a"', False),
        ("'x-other' in request.headers && request.headers['x-team'] == 'a'", True),
        ("request.headers[':path'] == '/'", False),
        ("request.host == 'x-team'", False),
    ],
)
def test_a_rule_that_fails_where_a_header_is_missing_is_warned_of(when: str, warned: bool) -> None:
    told = (
        "routing.rules[0].when: a request without the header `x-team` is answered 500; write "
        '`"x-team" in request.headers && ...` if it may be missing'
    )
    assert warnings(routing={"rules": [{"when": when, "provider": "gpt-4"}]}) == ([told] if warned else [])


@pytest.mark.parametrize("header", ["authorization", "Cookie", "x-mine"])
def test_a_hint_is_no_key(header: str) -> None:
    mine = {"name": "mine", "credential": {"env": "C", "header": "x-mine"}}
    assert problems(providers=[GPT_4, mine], routing={"hintHeader": header}) == [
        "routing.hintHeader: this header carries keys, and a hint goes to nobody"
    ]


HERE_ONE, THERE_ONE = {"address": "https://a.example.com"}, {"address": "https://b.example.com"}


@pytest.mark.parametrize(
    ("one", "two", "refused", "warned"),
    [
        (HERE_ONE, THERE_ONE, True, False),
        (HERE_ONE, HERE_ONE, False, False),
        (HERE_ONE, {"address": "https://a.example.com:443"}, False, False),
        (HERE_ONE, {}, False, True),
        ({}, {}, False, True),
        ({"credential": GPT_4O["credential"]}, {}, False, False),
    ],
)
def test_one_destination_is_one_place(one: Any, two: Any, refused: bool, warned: bool) -> None:
    """Else the credential of one would go to the other."""
    providers = [GPT_4 | {"cluster": "gpt-4o"} | one, GPT_4O | two]
    told = "providers[1].address: providers[0] goes to `gpt-4o` too, and says another address"
    assert problems(providers=providers) == ([told] if refused else [])
    if not refused:
        assert [line.partition(":")[0] for line in warnings(providers=providers)] == (
            ["providers[1].cluster"] if warned else []
        )
