"""Claims of a verified token, and what rules make of whoever was found: filters, users, models."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.config.errors import ConfigError
from extproc.identity.seam import Verdict
from extproc.identity.sources import MAX_REMEMBERED_CLAIMS, REMEMBERED

ALICE = {
    "iss": "solo.io",
    "sub": "alice",
    "org": "solo.io",
    "team": "dev",
    "llms": {"openai": ["gpt-3.5-turbo", "gpt-4"]},
}
BOB = ALICE | {"sub": "bob", "team": "ops", "llms": {"mistral": "mistral-7b"}}
JWT = "envoy.filters.http.jwt_authn"


@pytest.fixture(scope="session")
def config(make) -> dict[str, Any]:
    return {"authentication": {"oidc": make.jwt_source()}, "user": "sub"}


@pytest.fixture(scope="session")
def oidc(make) -> dict[str, Any]:
    """The OIDC variant of Models-as-a-Service."""
    properties = {"userid": "auth.identity.sub", "tier": "auth.identity.tier[0]", "email": "auth.identity.email"}
    return {"authentication": {"keycloak": make.jwt_source()}, "filters": {"identity": properties}}


def test_claims_are_the_identity(asked, config) -> None:
    """S1.13, S4.3: whole numbers are integers, as CEL compares them. The token itself is Envoy's business."""
    verdict = asked(config)({"authorization": "Bearer x.y.z"}, claims=ALICE | {"exp": 1893456000, "score": 0.5})
    assert verdict == Verdict(auth={"identity": ALICE | {"exp": 1893456000, "score": 0.5}})
    assert type(verdict.auth["identity"]["exp"]) is int


ABSENT = [
    {},
    {"other.filter": {"principal": ALICE}},
    {JWT: {"verified_jwt": ALICE}},
    {JWT: {"principal": "alice"}},
    {JWT: {"principal": None}},
    {JWT: {"principal": [ALICE]}},
]


@pytest.mark.parametrize("metadata", ABSENT)
def test_without_claims_nobody_is_known(asked, config, metadata: dict[str, Any]) -> None:
    assert asked(config)(metadata=metadata) == Verdict(
        401,
        "credential not found",
        headers=(("www-authenticate", 'Bearer realm="oidc"'), ("x-ext-auth-reason", "credential not found")),
    )


def test_where_the_claims_are(asked, make) -> None:
    source = make.jwt_source(namespace="my.jwt", payload="claims")
    ask = asked({"authentication": {"oidc": source}, "user": "sub"})
    assert ask(metadata={"my.jwt": {"claims": ALICE}}).auth == {"identity": ALICE}


FAULTS = [
    ({"issuer": "solo.io"}, ALICE, ""),
    ({"issuer": "other"}, ALICE, "the token is from another issuer"),
    ({"issuer": "solo.io"}, {"sub": "alice"}, "the token is from another issuer"),
    ({"issuer": "solo.io"}, ALICE | {"iss": ["solo.io"]}, "the token is from another issuer"),
    ({"requireExpiration": True}, ALICE | {"exp": 1893456000}, ""),
    ({"requireExpiration": True}, ALICE | {"exp": 1893456000.5}, ""),
    ({"requireExpiration": True}, ALICE, "the token does not expire"),
    ({"requireExpiration": True}, ALICE | {"exp": "never"}, "the token does not expire"),
    ({"requireExpiration": True}, ALICE | {"exp": True}, "the token does not expire"),
    ({"requireExpiration": True}, ALICE | {"exp": None}, "the token does not expire"),
]


@pytest.mark.parametrize(("source", "claims", "reason"), FAULTS)
def test_what_a_token_must_say(asked, make, source: dict[str, Any], claims: dict[str, Any], reason: str) -> None:
    """S4.D9; a claim of an unexpected type is refused."""
    verdict = asked({"authentication": {"oidc": make.jwt_source(**source)}, "user": "sub"})(claims=claims)
    assert (verdict.status, verdict.reason) == ((401, reason) if reason else (0, ""))


def test_keys_and_tokens_side_by_side(asked, make) -> None:
    """S1.4: the first source that knows the caller counts; a key is taken away even where a token was enough."""
    sources = {"oidc": make.jwt_source(), "keys": make.key_source("", header="x-api-key")}
    ask = asked({"authentication": sources, "onMissingUser": "allow"}, make.entry("sk-1", userid="carol"))
    assert ask({"x-api-key": "sk-1"}, claims=ALICE) == Verdict(auth={"identity": ALICE}, remove_headers=("x-api-key",))
    assert ask({"x-api-key": "sk-1"}).auth == {"identity": {"userid": "carol"}}
    assert ask().reason == '{"keys":"credential not found","oidc":"credential not found"}'
    assert [value for name, value in ask().headers if name == "www-authenticate"] == [
        'Bearer realm="oidc"',
        'x-api-key realm="keys"',
    ]


# --- filters


@pytest.mark.parametrize("tier", ["free", ["free"], ["free", "premium"]])
def test_a_tier_is_a_text_or_a_list(asked, oidc, tier: Any) -> None:
    """S1.16: the policy says `tier[0]`, the realm's mapper gives a text."""
    verdict = asked(oidc)(claims={"sub": "u-1", "tier": tier, "email": "u@example.com"})
    assert verdict.auth == {"identity": {"userid": "u-1", "tier": "free", "email": "u@example.com"}}


def test_an_expression_that_is_more_than_a_path_has_to_know_what_it_gets(asked, oidc) -> None:
    """S1.16: as documented."""
    filters = {"identity": {"userid": "auth.identity.sub", "free": "auth.identity.tier == 'free'"}}
    ask = asked(oidc | {"filters": filters})
    assert ask(claims={"sub": "a", "tier": "free"}).auth["identity"]["free"] is True
    assert ask(claims={"sub": "a", "tier": ["free"]}).auth["identity"]["free"] is False


FILTERS = [
    ("auth.identity.sub", "alice"),
    ("auth.identity.org + '/' + auth.identity.team", "solo.io/dev"),
    ("auth.identity.llms.openai[1]", "gpt-4"),
    ("auth.identity['llms']", ALICE["llms"]),
    ("'x-' + request.method", "x-POST"),
    ("request.host", "trlp.example.com"),
    ("auth.identity.team == 'dev' ? 3 : 1", 3),
    ("auth.identity.sub.split('l')[0].upperAscii()", "A"),
    ("auth.identity.none", ...),
    ("auth.identity.sub[1]", ...),
    ("auth.identity.sub + 1", ...),
    ("request.headers['x-none']", ...),
    ("null", None),
]


@pytest.mark.parametrize(("expression", "value"), FILTERS)
def test_what_filters_give(asked, config, expression: str, value: Any) -> None:
    """S1.D1: a property without a value is null, as Authorino's; then `== 'free'` is false, and fails nothing."""
    filters = {"identity": {"sub": "auth.identity.sub", "it": expression}, "limits": {"it": expression}}
    auth = asked(config | {"filters": filters})(claims=ALICE).auth
    expected = {"it": None if value is ... else value}
    assert auth == {"identity": {"sub": "alice"} | expected, "limits": expected}


def test_filters_of_another_name_leave_the_identity_as_it_was_found(asked, config) -> None:
    auth = asked(config | {"filters": {"limits": {"team": "auth.identity.team"}}})(claims=ALICE).auth
    assert auth == {"identity": ALICE, "limits": {"team": "dev"}}


def test_all_expressions_see_what_was_found(asked, oidc) -> None:
    """Authorization, models and headers look at the claims, whatever filters leave of them."""
    rules = {"authorization": ["auth.identity.org == 'solo.io'"], "headers": {"x-team": "auth.identity.team"}}
    assert asked(oidc | rules)(claims=ALICE).set_headers == (("x-team", "dev"),)


# --- users

USERS = [
    ("alice", "alice"),
    (7, "7"),
    (7.5, "7.5"),
    (2**53 - 1, "9007199254740991"),
    (2**53, None),  # and 2**53 + 1 are the same to Envoy
    ("", None),
    ("  ", None),
    (True, None),
    (None, None),
    (["alice"], None),
    ({"name": "alice"}, None),
    (..., None),
]
MISSING = {
    "deny": None,
    "allow": {},
    "shared": {"sub": "anonymous"},
    "address": {"sub": "address:10.0.0.7"},
}


@pytest.mark.parametrize(("claim", "user"), USERS)
@pytest.mark.parametrize(("mode", "otherwise"), MISSING.items())
def test_who_has_no_name_is_never_by_chance_somebody_else(
    asked, config, claim: Any, user: str | None, mode: str, otherwise: dict[str, str] | None
) -> None:
    """S4.D2: refused, or told apart by address; in one bucket only where that is asked for."""
    ask = asked(config | {"onMissingUser": mode})
    claims = {"team": "dev"} if claim is ... else {"team": "dev", "sub": claim}
    verdict = ask(claims=claims, attributes={"source.address": "10.0.0.7:4711"})
    expected = {"sub": user} if user is not None else otherwise
    if expected is None:
        assert verdict == Verdict(403, "no user", headers=(("x-ext-auth-reason", "no user"),))
    else:
        assert verdict.auth == {"identity": {"team": "dev"} | expected}


ADDRESSES = [
    ("10.0.0.7:4711", "address:10.0.0.7"),
    ("10.0.0.7", "address:10.0.0.7"),
    ("[2001:db8::7]:4711", "address:2001:db8::7"),
    ("2001:db8::7", "address:2001:db8::7"),
    ("/run/client.sock", "address:/run/client.sock"),
]


@pytest.mark.parametrize(("address", "user"), ADDRESSES)
def test_users_by_address_have_no_port(asked, config, address: str, user: str) -> None:
    """Every connection has another port; the address is found anew for every request."""
    ask = asked(config | {"onMissingUser": "address"})
    assert ask(claims={}, attributes={"source.address": "192.0.2.1:1"}).auth["identity"]["sub"] == "address:192.0.2.1"
    assert ask(claims={}, attributes={"source.address": address}).auth["identity"]["sub"] == user


@pytest.mark.parametrize("attributes", [None, {}, {"source.address": ""}])
def test_without_an_address_there_is_no_user(asked, config, attributes: Any) -> None:
    """Envoy sends it when it is told to: what it does not send is no bucket for all."""
    ask = asked(config | {"onMissingUser": "address"})
    assert ask({"x-forwarded-for": "192.0.2.1"}, claims={}, attributes=attributes).reason == "no user"


def test_a_filter_that_fails_leaves_no_user(asked, oidc) -> None:
    assert asked(oidc)(claims={"tier": "free"}).reason == "no user"


# --- models

MODELS = [
    (None, ALICE, None),
    ("auth.identity.llms.openai", ALICE, {"gpt-3.5-turbo", "gpt-4"}),
    ("auth.identity.llms.mistral", BOB, {"mistral-7b"}),
    ("auth.identity.llms.openai", BOB, set()),
    ("auth.identity.llms", ALICE, set()),
    ("auth.identity.llms.map(provider, provider)", ALICE, {"openai"}),
    ("auth.identity.llms.openai + ['free-for-all']", ALICE, {"gpt-3.5-turbo", "gpt-4", "free-for-all"}),
    ("[1, 'a', null]", ALICE, {"a"}),
    ("1", ALICE, set()),
    ("request.headers['x-model']", ALICE, set()),
]


@pytest.mark.parametrize(("expression", "claims", "models"), MODELS)
def test_models_that_may_be_asked_for(asked, config, expression: str | None, claims: Any, models: Any) -> None:
    """S4.5: what is not there allows nothing."""
    verdict = asked(config | {"models": expression})(claims=claims)
    assert verdict.models == (None if models is None else frozenset(models))


# --- nothing raises, nothing grows

CLAIMS = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
NAMED = st.dictionaries(st.sampled_from(["iss", "exp", "sub", "tier", "llms", "org", "email"]), CLAIMS)


@pytest.fixture(scope="session")
def strict(asked, make):
    """Every kind of expression over claims that may be anything."""
    return asked(
        {
            "authentication": {"oidc": make.jwt_source(requireExpiration=True)},
            "authorization": ["auth.identity.org == 'solo.io' || size(auth.identity.org) > 0"],
            "filters": {"identity": {"sub": "auth.identity.sub", "tier": "auth.identity.tier[0]"}},
            "models": "auth.identity.llms.openai.map(model, model.lowerAscii())",
            "headers": {"x-email": "auth.identity.email"},
            "user": "sub",
        }
    )


@given(claims=NAMED | CLAIMS)
def test_any_claims_are_judged(strict, claims: Any) -> None:
    verdict = strict(claims=claims if claims is not None else {})
    assert verdict.status in (0, 401, 403)
    if not verdict.status:
        user = verdict.auth["identity"]["sub"]
        assert isinstance(user, str)
        assert user.strip()
        assert all(value.isprintable() or "\t" in value or not value.isascii() for _, value in verdict.set_headers)


def test_the_same_claims_are_read_once(asked, config) -> None:
    """Whoever remembers by `auth` finds it again; the order in which Envoy writes claims does not matter."""
    ask = asked(config)
    first = ask(claims=ALICE)
    assert ask(claims=dict(reversed(ALICE.items()))) is first
    assert ask(claims=ALICE | {"iat": 1}).auth == {"identity": ALICE | {"iat": 1}}


def test_only_so_many_callers_are_remembered(asked, config) -> None:
    ask = asked(config)
    first = ask(claims=ALICE)
    for number in range(REMEMBERED):
        ask(claims={"sub": str(number)})
    again = ask(claims=ALICE)
    assert again == first
    assert again is not first
    large = ALICE | {"groups": ["x" * 100] * (MAX_REMEMBERED_CLAIMS // 100)}
    assert ask(claims=large) is not ask(claims=large)


# --- mistakes in a configuration

BAD = [
    ({"authorization": ["true", "auth.identity."]}, "authConfigs.maas.authorization[1]: "),
    (
        {"authorization": ["user.groups == 'free'"]},
        "authConfigs.maas.authorization[0]: unknown variable `user`, known are `auth`, `request`",
    ),
    (
        {"filters": {"identity": {"a": "request.body"}}},
        "authConfigs.maas.filters.identity.a: unknown field `request.body`, known are `request.headers`, ",
    ),
    (
        {"models": "auth.models"},
        "authConfigs.maas.models: unknown field `auth.models`, known are `auth.identity`",
    ),
    (
        {"models": "requestBodyJSON('/model')"},
        "authConfigs.maas.models: the bodies are not there yet when it is asked who calls",
    ),
    ({"headers": {"x-a": "nothing()"}}, "authConfigs.maas.headers.x-a: unknown function `nothing`"),
    ({"headers": {"Host": "'a'"}}, "authConfigs.maas.headers.Host: this header belongs to the gateway"),
    (
        {"removeHeaders": ["x-a", "content-*"]},
        "authConfigs.maas.removeHeaders[1]: `content-*` would take away `content-length`, `content-type`, which",
    ),
    ({"removeHeaders": ["*"]}, "authConfigs.maas.removeHeaders[0]: `*` would take away `:authority`, "),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_mistakes_are_named_by_their_field(asked, config, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        asked(config | fields)
    [problem] = caught.value.problems
    assert str(problem).startswith(message)


def test_all_mistakes_are_told_at_once(asked, config) -> None:
    with pytest.raises(ConfigError) as caught:
        asked(config | {"authorization": ["a", "b"], "models": "c"})
    assert len(caught.value.problems) == 3


def test_a_macro_may_name_its_variable_as_it_likes(asked, config) -> None:
    ask = asked(config | {"authorization": ["auth.identity.llms.openai.exists(string, string == 'gpt-4')"]})
    assert ask(claims=ALICE).status == 0
    assert ask(claims=BOB).status == 403
