"""The examples that are shipped: S1's and S4's numbers and names, and that a server can be started with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cel
import pytest

from extproc.config.load import Loaded, load_config
from extproc.expressions.functions import LIBRARY
from extproc.expressions.program import Expression

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"
DOMAINS = ("llm/qwen3-domain-route", "llm/simulator-domain-route")


@pytest.fixture(scope="module")
def maas() -> Loaded:
    return load_config(EXAMPLES / "maas" / "extproc.yaml")


@pytest.fixture(scope="module")
def oidc() -> Loaded:
    return load_config(EXAMPLES / "maas-oidc" / "extproc.yaml")


@pytest.fixture(scope="module")
def tokens() -> Loaded:
    return load_config(EXAMPLES / "tokens" / "extproc.yaml")


@pytest.fixture(scope="module")
def gloo() -> Loaded:
    return load_config(EXAMPLES / "gloo" / "extproc.yaml")


def numbers(loaded: Loaded, domain: str) -> dict[str, tuple[int, int | None]]:
    limits = [limit for limit in loaded.config.embedded_limits if limit.namespace == domain]
    return {str(limit.name): (limit.max_value, limit.seconds) for limit in limits}


@pytest.mark.parametrize("domain", DOMAINS)
def test_requests_by_tier(domain: str, maas: Loaded, oidc: Loaded) -> None:
    """S1.6-S1.9, S1.13, S1.26: 5, 20 and 100 in two minutes, for each route by itself."""
    expected = {"free": (5, 120), "premium": (20, 120), "enterprise": (100, 120)}
    assert numbers(maas, domain) == {f"{tier}-user-requests": found for tier, found in expected.items()}
    assert numbers(oidc, domain) == {f"{tier}-user-requests-oidc": found for tier, found in expected.items()}


@pytest.mark.parametrize("domain", DOMAINS)
def test_tokens_by_tier(domain: str, tokens: Loaded) -> None:
    """S1.19."""
    assert numbers(tokens, domain) == {
        "free-user-tokens": (100, 60),
        "premium-user-tokens": (500, 60),
        "enterprise-user-tokens": (2000, 60),
    }


@pytest.mark.parametrize(
    ("example", "services"),
    [
        ("maas", ["auth-service", "ratelimit-service"]),
        ("maas-oidc", ["auth-service", "ratelimit-service"]),
        ("tokens", ["auth-service", "ratelimit-check-service", "ratelimit-report-service"]),
    ],
)
def test_every_host_has_its_route(example: str, services: list[str]) -> None:
    config = load_config(EXAMPLES / example / "extproc.yaml").config
    assert {a.route_rule_conditions.hostnames[0]: a.name for a in config.action_sets} == {
        "simulator.maas.local": "llm/simulator-domain-route/rule-1",
        "qwen3.maas.local": "llm/qwen3-domain-route/rule-1",
    }
    for action_set in config.action_sets:
        assert action_set.route_rule_conditions.predicates == []
        assert [action.service for action in action_set.actions] == services
    assert all(endpoint.embedded for endpoint in config.endpoints.values())


def test_a_free_user_is_one_entry_of_one_call(maas: Loaded) -> None:
    """S1.1: [[limit.free_user_requests=1, auth.identity.userid=freeuser1]]."""
    identity = {"userid": "freeuser1", "groups": "free"}
    action = maas.config.action_sets[1].actions[1]
    assert action.scope == "llm/simulator-domain-route"
    entries = []
    for block in action.conditional_data:
        if all(value(predicate, {"identity": identity}) is True for predicate in block.predicates):
            entries += [(data.item.key, value(data.item.value, {"identity": identity})) for data in block.data]
    assert entries == [("limit.free_user_requests__ce4d9058", 1), ("auth.identity.userid", "freeuser1")]


def value(expression: str, auth: dict[str, Any]) -> Any:
    context = cel.Context(variables={"auth": auth, "request": {}}, functions=dict(LIBRARY))
    return Expression(expression).evaluate(context)


USERS = ["freeuser1", "freeuser2", "premiumuser1", "premiumuser2", "enterpriseuser1", "nogroupuser"]


def test_keys_their_owners_and_who_is_let_in(maas: Loaded, tokens: Loaded) -> None:
    """S1.1, S1.5."""
    for loaded in (maas, tokens):
        ((scope, auth),) = loaded.config.auth_configs.items()
        found = {}
        for entry in loaded.keys[scope, "api-key-users"]:
            known = {"identity": entry.identity}
            identity = {key: value(cel, known) for key, cel in auth.filters["identity"].items()}
            found[identity["userid"]] = identity["groups"], all(value(rule, known) for rule in auth.authorization)
        assert found == {user: ("" if user == "nogroupuser" else user[:-5], user != "nogroupuser") for user in USERS}


def test_the_credential_is_an_api_key_in_the_authorization_header(maas: Loaded) -> None:
    """S1.2-S1.4."""
    source = maas.config.auth_configs["llm/gateway-auth-policy"].authentication["api-key-users"]
    assert (source.credentials.header, source.credentials.prefix) == ("authorization", "APIKEY")


def test_claims_say_who_one_is(oidc: Loaded) -> None:
    """S1.13, S1.14, S1.16."""
    ((_, auth),) = oidc.config.auth_configs.items()
    source = auth.authentication["keycloak-jwt"]
    assert source.jwt is not None
    assert source.jwt.issuer == "http://keycloak.keycloak-system.svc.cluster.local:8080/realms/maas"
    assert auth.filters["identity"] == {
        "userid": "auth.identity.sub",
        "username": "auth.identity.preferred_username",
        "groups": "auth.identity.groups",
        "tier": "auth.identity.tier[0]",
        "email": "auth.identity.email",
    }
    assert auth.authorization == []
    (warning,) = oidc.warnings
    assert "jwt_authn" in warning.message


def test_who_is_in_no_tier_is_refused(maas: Loaded, oidc: Loaded, tokens: Loaded) -> None:
    """S1.D1."""
    assert {loaded.config.on_no_limit for loaded in (maas, oidc, tokens)} == {"deny"}


def test_three_windows_for_one_user(gloo: Loaded) -> None:
    """S4.6, S4.8, S4.10: 150, 300 and 800 on the same counter key, told without a body."""
    limits = gloo.config.embedded_limits
    assert [(limit.max_value, limit.seconds) for limit in limits] == [(150, 60), (300, 3600), (800, 86400)]
    assert {tuple(limit.variables) for limit in limits} == {("descriptors[0]['user-id']",)}
    assert gloo.config.deny_with.profile == "gloo"
    auth = gloo.config.auth_configs["viewer"]
    assert auth.filters["identity"]["userid"] == "auth.identity.sub"
    assert (auth.models, auth.on_missing_user) == ("auth.identity.llms.openai", "deny")
    assert set(gloo.config.metrics.labels) == {"team", "org", "id"}


@pytest.mark.parametrize("folder", ["maas", "maas-oidc", "tokens", "gloo"])
def test_every_example_says_what_it_is(folder: str) -> None:
    assert (EXAMPLES / folder / "README.md").read_text().startswith("# ")
