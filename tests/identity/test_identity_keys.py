"""API keys: who is let in, what everybody else is told, and what the model gets to see."""

from __future__ import annotations

import hmac
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.identity import sources
from extproc.identity.embedded import EmbeddedAuthenticator
from extproc.identity.seam import Verdict

FREE = "freeuser1_key"
PREMIUM = "premiumuser1_key"
NO_GROUP = "nogroupuser_key"
TIERS = 'auth.identity.groups.split(",").exists(g, g in ["free", "premium", "enterprise"])'
MISSING = "credential not found"
INVALID = "the API Key provided is invalid"


@pytest.fixture
def config(make) -> dict[str, Any]:
    """Models-as-a-Service: one source, tiers, userid and groups."""
    return {"authentication": {"api-key-users": make.key_source()}, "authorization": [TIERS]}


@pytest.fixture
def entries(make):
    return [
        make.entry(FREE, userid="freeuser1", groups="free"),
        make.entry(PREMIUM, userid="premiumuser1", groups="premium,beta"),
        make.entry(NO_GROUP, userid="nogroupuser", groups=""),
    ]


@pytest.fixture
def ask(asked, config, entries):
    return asked(config, *entries)


def apikey(key: str) -> dict[str, str]:
    return {"authorization": f"APIKEY {key}"}


def test_a_key_is_its_user(ask) -> None:
    """S1.1; S1.D3: the key ends here."""
    assert ask(apikey(FREE)) == Verdict(
        auth={"identity": {"userid": "freeuser1", "groups": "free"}}, remove_headers=("authorization",)
    )


def challenged(reason: str, *challenges: str) -> Verdict:
    headers = [("www-authenticate", challenge) for challenge in challenges]
    return Verdict(401, reason, headers=(*headers, ("x-ext-auth-reason", reason)))


REFUSED = [
    ({}, MISSING),  # S1.2
    ({"authorization": "APIKEY wrong"}, INVALID),  # S1.3
    ({"authorization": f"Bearer {FREE}"}, MISSING),  # S1.4
    ({"authorization": FREE}, MISSING),
    ({"authorization": "APIKEY"}, MISSING),
    ({"authorization": "APIKEY "}, MISSING),
    ({"authorization": f"APIKEY  {FREE}"}, INVALID),
    ({"authorization": f"APIKEY {FREE} "}, INVALID),
    ({"authorization": f"APIKEY {FREE.upper()}"}, INVALID),
    ({"authorization": f"APIKEY {FREE},APIKEY {FREE}"}, INVALID),
    ({"authorization": b"APIKEY \xff\xfe"}, INVALID),
    ({"authorization": "APIKEY " + "x" * 100_000}, INVALID),
    ({"x-api-key": FREE}, MISSING),
]


@pytest.mark.parametrize(("headers", "reason"), REFUSED)
def test_everybody_else_is_challenged_as_by_authorino(ask, headers: dict[str, str], reason: str) -> None:
    assert ask(headers) == challenged(reason, 'APIKEY realm="api-key-users"')


@pytest.mark.parametrize("scheme", ["APIKEY", "apikey", "ApiKey"])
def test_the_scheme_counts_in_any_case(ask, scheme: str) -> None:
    """RFC 9110, section 11.1."""
    assert ask({"authorization": f"{scheme} {FREE}"}).status == 0


FORMS = [
    ({"prefix": "Bearer"}, {"authorization": f"Bearer {FREE}"}, 'Bearer realm="users"'),
    ({"prefix": "", "header": "X-API-Key"}, {"x-api-key": FREE}, 'X-API-Key realm="users"'),
    ({"prefix": "Key", "header": "x-api-key"}, {"x-api-key": f"Key {FREE}"}, 'Key realm="users"'),
    ({"prefix": ""}, {"authorization": FREE}, 'APIKEY realm="users"'),
]


@pytest.mark.parametrize(("credentials", "headers", "challenge"), FORMS)
def test_where_the_key_is(asked, make, credentials, headers, challenge: str) -> None:
    """Without a prefix the value is the key; the challenge names the prefix, or the header, as Authorino's does."""
    ask = asked({"authentication": {"users": make.key_source(**credentials)}}, make.entry(FREE, userid="a"))
    assert ask(headers) == Verdict(auth={"identity": {"userid": "a"}}, remove_headers=tuple(headers))
    assert ask() == challenged(MISSING, challenge)


def test_two_sources(asked, make) -> None:
    """S1.4: a reason for each, by name, and a challenge for each."""
    names = {"api-key-users-bearer": make.key_source("Bearer"), "api-key-users-apikey": make.key_source("APIKEY")}
    ask = asked({"authentication": names}, make.entry(FREE, userid="a"))
    assert ask({"authorization": f"Bearer {FREE}"}).status == 0
    assert ask(apikey(FREE)).status == 0
    assert ask(apikey("wrong")) == challenged(
        f'{{"api-key-users-apikey":"{INVALID}","api-key-users-bearer":"{MISSING}"}}',
        'Bearer realm="api-key-users-bearer"',
        'APIKEY realm="api-key-users-apikey"',
    )


def test_a_name_of_a_source_cannot_break_out_of_its_header(asked, make) -> None:
    ask = asked({"authentication": {'a"b\\c\nd': make.key_source()}})
    assert ask().headers[0] == ("www-authenticate", 'APIKEY realm="a\\"b\\\\c?d"')


@pytest.mark.parametrize("key", [NO_GROUP])
def test_a_key_of_no_tier_is_refused(ask, key: str) -> None:
    """S1.5."""
    assert ask(apikey(key)) == Verdict(403, "Unauthorized", headers=(("x-ext-auth-reason", "Unauthorized"),))


@pytest.mark.parametrize(
    "expression",
    [
        "false",
        "auth.identity.admin",  # no such key
        "auth.identity.admin == 'yes'",
        "auth.identity.groups",  # a text
        "auth.identity.groups + 1 == 2",  # an error
        "request.headers['x-role'] == 'admin'",
    ],
)
def test_only_true_is_an_authorization(asked, config, entries, expression: str) -> None:
    assert asked(config | {"authorization": ["true", expression]}, *entries)(apikey(FREE)).status == 403


LOOKING = [
    ("request.method == 'POST'", {"method": "GET"}),
    ("request.url_path == '/v1/models'", {"path": "/v2?/v1/models"}),
    ("request.path == '/v1/models?x=1'", {"path": "/v1/models"}),
    ("request.host == 'trlp.example.com'", {"host": "other.example.com"}),
    ("request.headers['x-role'] == 'admin'", {"headers": {"x-role": "user"}}),
    ("request.headers.exists(name, name.startsWith('x-ro'))", {"headers": {}}),
    ("request.path.startsWith('/v1/') && auth.identity.groups == 'free'", {"path": "/v2"}),
    ("request == request && size(request.headers['x-role']) == 5", {"headers": {"x-role": "user"}}),
]


@pytest.mark.parametrize(("expression", "other"), LOOKING)
def test_authorization_may_look_at_the_request(asked, config, entries, expression: str, other: dict[str, Any]) -> None:
    ask = asked(config | {"authorization": [expression]}, *entries)
    request: dict[str, Any] = {"headers": {"x-role": "admin"}, "path": "/v1/models?x=1"}
    for fields, status in ((request, 0), (request | other, 403)):
        headers = apikey(FREE) | fields["headers"]
        assert ask(**(fields | {"headers": headers})).status == status


# --- denials in other words


def test_denials_may_be_worded_otherwise(asked, config, entries) -> None:
    """What is given replaces the usual header of that name, and comes besides the others."""
    worded = {
        "unauthenticated": {"status": 404, "headers": {"X-Ext-Auth-Reason": "who?", "x-help": "docs"}, "body": "who?"},
        "unauthorized": {"body": ""},
    }
    ask = asked(config | worded, *entries)
    challenge = ("www-authenticate", 'APIKEY realm="api-key-users"')
    expected = Verdict(404, MISSING, (challenge, ("x-ext-auth-reason", "who?"), ("x-help", "docs")), b"who?")
    assert ask() == expected
    assert ask(apikey(NO_GROUP)).body == b""


def test_a_scope_without_rules(make) -> None:
    """Authorino's answer to a host that it does not know."""
    verdict = EmbeddedAuthenticator({}, {}).authenticate(make.facts(), "elsewhere")
    assert (verdict.status, verdict.headers) == (404, (("x-ext-auth-reason", "Service not found"),))


# --- what the model sees


@pytest.mark.parametrize(
    ("sent", "removed"),
    [
        ({}, ("authorization",)),
        ({"x-maas-user": "root"}, ("authorization", "x-maas-user")),
        ({"x-maas-": "root", "x-maasy": "1", "x-extproc-tier": "gold"}, ("authorization", "x-maas-", "x-extproc-tier")),
    ],
)
def test_identity_headers_of_a_client_are_taken_away(ask, sent: dict[str, str], removed: tuple[str, ...]) -> None:
    """S1.D4."""
    assert ask(apikey(FREE) | sent).remove_headers == removed


@pytest.mark.parametrize("expression", ["request.headers['x-maas-role'] == 'root'", "size(request.headers) > 50"])
def test_identity_headers_of_a_client_are_not_believed(asked, config, entries, expression: str) -> None:
    """S1.D4: not by an expression either."""
    ask = asked(config | {"authorization": [expression]}, *entries)
    assert ask(apikey(FREE) | {"x-maas-role": "root"} | {f"x-maas-{n}": "1" for n in range(60)}).status == 403


def test_the_key_may_be_left_in(asked, config, entries) -> None:
    ask = asked(config | {"forwardCredentials": True}, *entries)
    assert ask(apikey(FREE)).remove_headers == ()


def test_headers_for_the_model(asked, config, entries) -> None:
    """Set whatever the client sent; where there is nothing to set, the client's is taken away."""
    headers = {
        "X-User": "auth.identity.userid",
        "x-groups": "auth.identity.groups",
        "x-size": "size(auth.identity.groups)",
        "x-email": "auth.identity.email",
        "x-list": "[1]",
        "x-lines": "'a\\nb'",
        "x-empty": "''",
    }
    ask = asked(config | {"headers": headers, "removeHeaders": ["x-u*"]}, *entries)
    sent = {name.lower(): "forged" for name in headers}
    verdict = ask(apikey(FREE) | sent)
    assert verdict.set_headers == (("x-user", "freeuser1"), ("x-groups", "free"), ("x-size", "4"))
    assert verdict.remove_headers == ("authorization", "x-email", "x-list", "x-lines", "x-empty")


# --- nothing learns, nothing grows


def test_a_forged_key_takes_the_same_way_as_a_real_one(ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """S1.3: one hash, one look-up by it, one comparison of 32 bytes that takes the same time for all."""
    compared: list[tuple[int, int]] = []
    genuine = hmac.compare_digest

    def compare(ours: bytes, presented: bytes) -> bool:
        compared.append((len(ours), len(presented)))
        return genuine(ours, presented)

    monkeypatch.setattr(sources.hmac, "compare_digest", compare)
    statuses = [ask(apikey(key)).status for key in (FREE, "x", FREE[:-1] + "z", PREMIUM)]
    assert statuses == [0, 401, 401, 0]
    assert compared == [(32, 32)] * 4


def test_nobody_is_nobody_without_a_comparison(ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """What decides is the comparison, not whether something was looked up."""
    monkeypatch.setattr(sources.hmac, "compare_digest", lambda ours, presented: False)
    assert ask(apikey(FREE)).reason == INVALID


def test_forged_keys_leave_no_trace(ask, make) -> None:
    """A million of them would fill no memory: one more costs nothing that stays."""
    forged = [make.facts(apikey(f"forged-{number}")) for number in range(2000)]
    for facts in forged[:100]:
        ask.authenticator.authenticate(facts, "maas")
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for facts in forged:
            ask.authenticator.authenticate(facts, "maas")
        assert tracemalloc.get_traced_memory()[0] - before < 2000
    finally:
        tracemalloc.stop()


def test_what_depends_on_the_key_alone_is_found_once(ask) -> None:
    """The same verdict, and so the same `auth` for whoever remembers by it."""
    assert ask(apikey(FREE)) is ask(apikey(FREE))
    assert ask(apikey(FREE) | {"x-maas-user": "1"}).auth is ask(apikey(FREE)).auth
    assert ask(apikey(FREE)).auth != ask(apikey(PREMIUM)).auth


def test_the_identity_is_found_once_where_other_rules_look_at_the_request(asked, config, entries) -> None:
    ask = asked(config | {"authorization": [TIERS, "request.path != '/admin'"]}, *entries)
    assert ask(apikey(FREE)).auth is ask(apikey(FREE), path="/other").auth
    assert ask(apikey(FREE), path="/admin").status == 403


def test_a_changed_file_gives_another_authenticator(asked, config, entries) -> None:
    """S1.18: a revoked key is refused on the next request."""
    assert asked(config, *entries)(apikey(FREE)).status == 0
    assert asked(config, *entries[1:])(apikey(FREE)).reason == INVALID


def test_no_key_is_in_a_verdict(ask) -> None:
    """Verdicts are logged."""
    for key in (FREE, NO_GROUP, "sk-forged"):
        assert key not in repr(ask(apikey(key)))


HEADER_NAMES = st.sampled_from(["authorization", "x-api-key", "cookie", "x-maas-user"])


@pytest.fixture(scope="module")
def guarded(asked, make):
    """Two sources, one of them without a prefix, and a key nobody guesses."""
    names = {"prefixed": make.key_source(), "bare": make.key_source("", header="x-api-key")}
    return asked({"authentication": names}, make.entry("not to be guessed in a hundred tries", userid="a"))


@given(headers=st.dictionaries(HEADER_NAMES, st.binary(max_size=40), max_size=3), key=st.binary(max_size=40))
def test_no_bytes_of_a_client_raise_or_let_in(guarded, headers: dict[str, bytes], key: bytes) -> None:
    assert guarded(headers).status == 401
    assert guarded(headers | {"authorization": b"APIKEY " + key}).status == 401
