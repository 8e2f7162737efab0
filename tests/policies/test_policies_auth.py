"""AuthPolicy: who is let in, what is known of them, and what is refused."""

from __future__ import annotations

from typing import Any

import cel
import pytest
from policies.samples import GATEWAY, SECRET, TARGET, TO_GATEWAY, Compile, Data, Refused, auth, policy, route

from extproc.expressions.functions import LIBRARY
from extproc.expressions.program import Expression

KEYS = {"apiKey": {"allNamespaces": True, "selector": {"matchLabels": {"app": "llm"}}}}


def config(compiled: Compile, **rules: Any) -> Data:
    """The entry of `authConfigs` that a policy comes to."""
    ((name, found),) = compiled(route(), SECRET, auth(**rules)).auth_configs.items()
    assert name == "llm/who"
    return found  # type: ignore[no-any-return]


def value(expression: str, identity: Data | None = None, request: Data | None = None) -> Any:
    variables = {"auth": {"identity": identity or {}}, "request": {"headers": {}} | (request or {})}
    return Expression(expression).evaluate(cel.Context(variables=variables, functions=dict(LIBRARY)))


def test_api_keys_come_from_the_files_with_secrets(compiled: Compile, tmp_path: Any) -> None:
    source = config(compiled)["authentication"]["keys"]
    assert source == {
        "apiKeys": {"files": [str(tmp_path / "policies.yaml")], "selector": {"matchLabels": {"app": "llm"}}},
        "credentials": {"header": "authorization", "prefix": "Bearer"},
    }


@pytest.mark.parametrize(
    ("credentials", "expected"),
    [
        ({}, {"header": "authorization", "prefix": "Bearer"}),
        ({"authorizationHeader": {}}, {"header": "authorization", "prefix": "Bearer"}),
        ({"authorizationHeader": {"prefix": "APIKEY"}}, {"header": "authorization", "prefix": "APIKEY"}),
        ({"customHeader": {"name": "X-API-Key"}}, {"header": "x-api-key", "prefix": ""}),
    ],
)
def test_where_a_key_is_expected(credentials: Data, expected: Data, compiled: Compile) -> None:
    found = config(compiled, authentication={"keys": {**KEYS, "credentials": credentials}})
    assert found["authentication"]["keys"]["credentials"] == expected


def test_without_all_namespaces_secrets_are_looked_for_where_kuadrant_does(compiled: Compile) -> None:
    keys = {"apiKey": {"selector": {"matchLabels": {"app": "llm"}}}}
    found = compiled(route(), SECRET, auth(authentication={"keys": keys}))
    assert found.auth_configs["llm/who"]["authentication"]["keys"]["apiKeys"]["namespace"] == "kuadrant-system"
    (warning,) = found.warnings
    assert warning.path == "AuthPolicy llm/who: spec.rules.authentication.keys.apiKey.selector"
    assert "no Secret in namespace `kuadrant-system`" in warning.message
    assert "there are some in `llm`: write `allNamespaces: true`" in warning.message


def test_a_selector_that_no_secret_has_is_told(compiled: Compile) -> None:
    (warning,) = compiled(route(), auth()).warnings
    assert warning.message == "nobody can call: no Secret has the labels `app=llm`"


def test_no_key_is_ever_shown(compiled: Compile, refused: Refused) -> None:
    """Not when compiled, and not in what is said of documents that are wrong."""
    assert "a-very-secret-key" not in repr(compiled(route(), SECRET, auth()))
    assert "a-very-secret-key" not in repr(refused(SECRET, SECRET, policy(limits={"a": {}})))


def test_claims_of_tokens(compiled: Compile) -> None:
    """S1.13: Envoy verifies, which is told because nobody sees it from here."""
    jwt = {
        "kc": {
            "jwt": {"issuerUrl": "https://kc/realms/maas", "ttl": 60},
            "credentials": {"customHeader": {"name": "T"}},
        }
    }
    found = compiled(route(), auth(authentication=jwt))  # fmt: skip
    assert found.auth_configs["llm/who"]["authentication"] == {"kc": {"jwt": {"issuer": "https://kc/realms/maas"}}}
    (warning,) = found.warnings
    assert warning.path == "AuthPolicy llm/who: spec.rules.authentication.kc.jwt"
    for word in ("jwt_authn", "`https://kc/realms/maas`", "payload_in_metadata: principal", "the header `t`"):
        assert word in warning.message


def test_sources_are_asked_by_priority(compiled: Compile) -> None:
    found = config(compiled, authentication={"late": {**KEYS, "priority": 1}, "early": KEYS, "also": KEYS})
    assert list(found["authentication"]) == ["early", "also", "late"]


def json_of(**properties: Data) -> Data:
    return {"success": {"filters": {"identity": {"json": {"properties": properties}}}}}


ANNOTATION = "auth.identity.metadata.annotations"
SELECTORS = [
    (ANNOTATION + r".secret\.kuadrant\.io/user-id", f'{ANNOTATION}["secret.kuadrant.io/user-id"]'),
    (ANNOTATION + r".kuadrant\.io/groups", f'{ANNOTATION}["kuadrant.io/groups"]'),
    ("auth.identity.sub", "auth.identity.sub"),
    ("auth.identity.tier[0]", "auth.identity.tier[0]"),
    ("auth.identity.tier.0", "auth.identity.tier[0]"),
    ("auth.identity.in", 'auth.identity["in"]'),
    ("request.headers.x-tenant", 'request.headers["x-tenant"]'),
    ("context.request.http.headers.x-tenant", 'request.headers["x-tenant"]'),
    ("context.request.http.method", "request.method"),
]


@pytest.mark.parametrize(("selector", "expected"), SELECTORS)
def test_selectors(selector: str, expected: str, compiled: Compile) -> None:
    found = config(compiled, response=json_of(userid={"selector": selector}))
    assert found["filters"] == {"identity": {"userid": expected}}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"expression": " auth.identity.sub\n"}, "auth.identity.sub"),
        ({"value": "free"}, '"free"'),
        ({"value": 'a"b\\'}, '"a\\"b\\\\"'),
        ({"value": 5}, "5"),
        ({"value": ["a", "ü"]}, '["a", "ü"]'),
    ],
)
def test_values(given: Data, expected: str, compiled: Compile) -> None:
    found = config(compiled, response=json_of(x=given))
    assert found["filters"]["identity"]["x"] == expected


def test_a_policy_that_names_no_user_lets_callers_without_one_in(compiled: Compile) -> None:
    """Kuadrant knows no users; where a policy does, callers without are refused (S4.D2)."""
    assert config(compiled)["onMissingUser"] == "allow"
    assert "onMissingUser" not in config(compiled, response=json_of(userid={"selector": "auth.identity.sub"}))


def test_headers_for_the_model(compiled: Compile) -> None:
    headers = {
        "x-user": {"plain": {"selector": "auth.identity.sub"}},
        "tier": {"key": "x-tier", "plain": {"value": "a"}},
    }
    assert config(compiled, response={"success": {"headers": headers}})["headers"] == {
        "x-user": "auth.identity.sub",
        "x-tier": '"a"',
    }


def test_refusals(compiled: Compile) -> None:
    found = config(
        compiled,
        response={
            "unauthenticated": {
                "code": 418,
                "headers": {"x-why": {"value": "no key"}},
                "message": {"value": "get one"},
            },
            "unauthorized": {"body": {"value": "no\n"}},
        },
    )
    assert found["unauthenticated"] == {"status": 418, "headers": {"x-why": "no key", "x-ext-auth-reason": "get one"}}
    assert found["unauthorized"] == {"body": "no\n"}


def allows(compiled: Compile, patterns: list[Data], identity: Data, **more: Any) -> bool:
    rules = {"authorization": {"rule": {"patternMatching": {"patterns": patterns}, **more}}}
    found = config(compiled, **rules).get("authorization", [])
    return all(value(expression, identity, {"method": "GET"}) is True for expression in found)


def compare(selector: str, operator: str, text: str) -> Data:
    return {"selector": selector, "operator": operator, "value": text}


@pytest.mark.parametrize(
    ("pattern", "identity", "expected"),
    [
        (compare("auth.identity.a", "eq", "x"), {"a": "x"}, True),
        (compare("auth.identity.a", "eq", "x"), {"a": "y"}, False),
        (compare("auth.identity.a", "eq", "x"), {}, False),
        (compare("auth.identity.a", "eq", ""), {}, True),
        (compare("auth.identity.a", "eq", "5"), {"a": 5}, True),
        (compare("auth.identity.a", "eq", "true"), {"a": True}, True),
        (compare("auth.identity.a", "eq", "true"), {"a": "true"}, True),
        (compare("auth.identity.a.b", "neq", "x"), {}, True),
        (compare("auth.identity.a", "neq", "x"), {"a": "x"}, False),
        (compare("auth.identity.a", "incl", "x"), {"a": ["w", "x"]}, True),
        (compare("auth.identity.a", "incl", "x"), {"a": ["w"]}, False),
        (compare("auth.identity.a", "incl", "x"), {"a": "x"}, True),
        (compare("auth.identity.a", "incl", "x"), {}, False),
        (compare("auth.identity.a", "incl", "3"), {"a": [1, 3]}, True),
        (compare("auth.identity.a", "excl", "x"), {"a": ["w"]}, True),
        (compare("auth.identity.a", "excl", "x"), {"a": ["x"]}, False),
        (compare("auth.identity.a", "matches", "^x.$"), {"a": "xy"}, True),
        (compare("auth.identity.a", "matches", "^x.$"), {"a": "axy"}, False),
        (compare("auth.identity.a", "matches", "^$"), {}, True),
        (compare("context.request.http.method", "eq", "GET"), {}, True),
        (compare("request.headers.x", "eq", "1"), {}, False),
        ({"predicate": "auth.identity.a == 'x'\n"}, {"a": "x"}, True),
        ({"any": [compare("auth.identity.a", "eq", "1"), {"predicate": "true"}]}, {}, True),
        ({"any": [compare("auth.identity.a", "eq", "1"), compare("auth.identity.a", "eq", "2")]}, {"a": "2"}, True),
        ({"all": [compare("auth.identity.a", "eq", "1"), compare("auth.identity.b", "eq", "2")]}, {"a": "1"}, False),
        ({"any": [{"all": [{"predicate": "false"}]}, compare("auth.identity.a", "eq", "1")]}, {"a": "1"}, True),
    ],
)
def test_patterns(pattern: Data, identity: Data, expected: bool, compiled: Compile) -> None:
    assert allows(compiled, [pattern], identity) is expected


A = "auth.identity.a"


@pytest.mark.parametrize(
    ("value", "identity"),
    [
        ("", {}),
        ("", {"a": None}),
        ("", {"a": ""}),
        ("0", {"a": 0.0}),
        ("-1", {"a": -1}),
        ("-1", {"a": -1.0}),
        ("1.5", {"a": 1.5}),
        ("-0.25", {"a": -0.25}),
        ("0.0000001", {"a": 1e-7}),
        ("100000000000000000000", {"a": 1e20}),
        ("12345678901234567000", {"a": 12345678901234567890.0}),
        ("false", {"a": False}),
    ],
)
def test_values_are_compared_as_authorino_writes_them(value: str, identity: Data, compiled: Compile) -> None:
    """What is denied for being a text is denied for being the number, and null is the empty text."""
    assert allows(compiled, [compare(A, "eq", value)], identity)
    assert not allows(compiled, [compare(A, "neq", value)], identity)
    counts = compare(A, "eq", value)
    assert not allows(compiled, [{"predicate": "false"}], identity, when=[counts])
    if identity:
        listed = {"a": [identity["a"]]}
        assert allows(compiled, [compare(A, "incl", value)], listed)
        assert not allows(compiled, [compare(A, "excl", value)], listed)


@pytest.mark.parametrize(
    ("value", "found"),
    [("01", 1), ("1.0", 1.0), ("9007199254740993", 9007199254740992.0), ("1", True), ("True", True)],
)
def test_other_spellings_are_other_texts(value: str, found: Any, compiled: Compile) -> None:
    assert not allows(compiled, [compare(A, "eq", value)], {"a": found})
    assert not allows(compiled, [compare(A, "incl", value)], {"a": [found]})


@pytest.mark.parametrize("identity", [{}, {"a": None}])
def test_no_value_is_in_no_list(identity: Data, compiled: Compile) -> None:
    for value in ("", "x"):
        assert not allows(compiled, [compare(A, "incl", value)], identity)
        assert allows(compiled, [compare(A, "excl", value)], identity)


@pytest.mark.parametrize(
    ("expression", "text"), [(r"^\w+$", "é"), (r"^\d$", "٣"), (r"^a\s$", "a\u2003"), (r"^[\w-]+$", "ü-1")]
)
def test_classes_of_regular_expressions_are_ascii(expression: str, text: str, compiled: Compile) -> None:
    """As in RE2."""
    assert not allows(compiled, [compare(A, "matches", expression)], {"a": text})


@pytest.mark.parametrize(
    ("expression", "text"),
    [(r"^[\w-]+$", "a-1"), (r"^\D\W\S$", "x-y"), (r"^\\w$", "\\w"), (r"\bb\b", "a b c"), (r"^\.$", ".")],
)
def test_regular_expressions(expression: str, text: str, compiled: Compile) -> None:
    assert allows(compiled, [compare(A, "matches", expression)], {"a": text})


def test_all_patterns_and_all_rules_must_hold(compiled: Compile) -> None:
    patterns = [compare("auth.identity.a", "eq", "1"), compare("auth.identity.b", "eq", "2")]
    assert allows(compiled, patterns, {"a": "1", "b": "2"})
    assert not allows(compiled, patterns, {"a": "1"})


def test_a_rule_counts_under_its_conditions(compiled: Compile) -> None:
    when = [compare("auth.identity.org", "eq", "us")]
    for org, expected in (("us", False), ("eu", True)):
        assert allows(compiled, [{"predicate": "false"}], {"org": org}, when=when) is expected


def test_patterns_may_be_named(compiled: Compile) -> None:
    named = {"premium": {"allOf": [compare("auth.identity.tier", "eq", "premium")]}}
    rules = {
        "authentication": {"k": KEYS},
        "authorization": {"p": {"patternMatching": {"patterns": [{"patternRef": "premium"}]}}},
    }
    found = compiled(route(), SECRET, policy("AuthPolicy", "who", patterns=named, rules=rules))  # fmt: skip
    (expression,) = found.auth_configs["llm/who"]["authorization"]
    assert value(expression, {"tier": "premium"}) is True
    assert value(expression, {"tier": "free"}) is False


def test_conditions_of_a_policy_are_those_of_its_action(compiled: Compile) -> None:
    document = auth()
    document["spec"]["when"] = [{"predicate": "request.method != 'OPTIONS'"}]
    (action,) = compiled(route(), SECRET, document).action_sets[0]["actions"]
    assert action == {
        "service": "auth-service",
        "scope": "llm/who",
        "sources": ["authpolicy.kuadrant.io:llm/who"],
        "predicates": ["request.method != 'OPTIONS'"],
    }


def test_what_a_source_adds_is_written_out_where_it_is_read(compiled: Compile) -> None:
    source = {
        **KEYS,
        "overrides": {"userid": {"expression": 'auth.identity.metadata.name + "!"'}},
        "defaults": {"tier": {"value": "free"}},
    }
    found = config(
        compiled,
        authentication={"keys": source},
        authorization={"x": {"patternMatching": {"patterns": [compare("auth.identity.userid", "eq", "al!")]}}},
        response=json_of(
            userid={"selector": "auth.identity.userid"},
            tier={"expression": "auth.identity['tier'] + \"auth.identity.tier\""},
            name={"selector": "auth.identity.metadata.name"},
        ),
    )
    filters = found["filters"]["identity"]
    known = {"metadata": {"name": "al"}}
    assert value(filters["userid"], known) == "al!"
    assert value(filters["tier"], known) == "freeauth.identity.tier"
    assert value(filters["tier"], known | {"tier": "gold"}) == "goldauth.identity.tier"
    assert filters["name"] == "auth.identity.metadata.name"
    (allowed,) = found["authorization"]
    assert value(allowed, known) is True


def test_a_policy_of_a_route_and_one_of_its_gateway_make_one_entry(compiled: Compile) -> None:
    """Authentication from the gateway, authorization from the route."""
    general = policy(
        "AuthPolicy", "general", TO_GATEWAY, defaults={"strategy": "merge", "rules": {"authentication": {"k": KEYS}}}
    )
    special = auth("special", TARGET, authentication={}, authorization={"x": {"opa": {"rego": "allow { false }"}}})
    found = compiled(GATEWAY, route(), route("free", "b.ex.com"), SECRET, general, special)  # fmt: skip
    assert set(found.auth_configs) == {"llm/general", "llm/general+llm/special"}
    assert found.auth_configs["llm/general+llm/special"]["authorization"] == ["false"]


def source(**spec: Any) -> Data:
    return {"authentication": {"x": spec}}


def rule(**spec: Any) -> Data:
    return {"authorization": {"x": spec}}


def pattern_of(**spec: Any) -> Data:
    return rule(patternMatching={"patterns": [spec]})


def item(group: str, **spec: Any) -> Data:
    return {"response": {"success": {group: {"f": spec}}}}


def told(**spec: Any) -> Data:
    return {"response": json_of(x=spec)}


PATTERNS = "authorization.x.patternMatching.patterns"
TOLD = "response.success.filters.identity.json.properties.x"
HTTP = {"x": {"http": {"url": "http://x"}}}
EXPRESSIONS = [{"key": "a", "operator": "Exists"}]
UNSUPPORTED: list[tuple[Data, str, str]] = [
    (source(anonymous={}), "authentication.x.anonymous", "not supported: anonymous access; "),
    (source(x509={}), "authentication.x.x509", "not supported: only `apiKey` and `jwt` are"),
    (source(plain={"selector": "a"}), "authentication.x.plain", "not supported: only `apiKey` and `jwt` are"),
    (source(kubernetesTokenReview={}), "authentication.x.kubernetesTokenReview", "not supported: only `apiKey`"),
    (source(oauth2Introspection={}), "authentication.x.oauth2Introspection", "not supported: only `apiKey`"),
    (source(), "authentication.x", "expected exactly one of `apiKey`, `jwt`"),
    (source(**KEYS, jwt={}), "authentication.x", "expected exactly one of `apiKey`, `jwt`"),
    (source(**KEYS, when=[{"predicate": "a"}]), "authentication.x.when", "not supported: a condition of a single"),
    (source(**KEYS, credentials={"cookie": {"name": "a"}}), "authentication.x.credentials.cookie", "not supported: a "),
    (source(**KEYS, credentials={"queryString": {}}), "authentication.x.credentials.queryString", "not supported: a "),
    (
        source(apiKey={"selector": {"matchExpressions": EXPRESSIONS}}),
        "authentication.x.apiKey.selector.matchExpressions",
        "not supported: write `matchLabels`",
    ),
    (
        {"authentication": {"x": {**KEYS, "overrides": {"a": {"value": 1}}}, "y": KEYS}},
        "authentication.x.overrides",
        "not supported beside other sources",
    ),
    ({"authentication": {}, **rule(opa={"rego": ""})}, "authentication", "expected at least one source, here or in"),
    ({"metadata": HTTP}, "metadata", "not supported: nobody is asked about a caller"),
    ({"callbacks": HTTP}, "callbacks", "not supported: nobody is told of a caller"),
    (rule(kubernetesSubjectAccessReview={}), "authorization.x.kubernetesSubjectAccessReview", "not supported: write "),
    (rule(spicedb={}), "authorization.x.spicedb", "not supported: write `patternMatching`"),
    (rule(opa={"externalPolicy": {}}), "authorization.x.opa.externalPolicy", "not supported: a policy from elsewhere"),
    (rule(opa={"rego": "allow {\n  input.x }"}), "authorization.x.opa.rego", "line 2: `input.x` is not understood"),
    (rule(), "authorization.x", "expected exactly one of `patternMatching`, `opa`"),
    (pattern_of(), PATTERNS, "expected exactly one of"),
    (pattern_of(patternRef="q"), PATTERNS, "`patterns` has no `q`"),
    (pattern_of(selector="auth.identity.a"), PATTERNS, "`selector` and `operator` belong together"),
    (pattern_of(predicate="auth.metadata.x == 1"), PATTERNS, "reads `auth.metadata`, known are `auth.identity`"),
    (pattern_of(predicate="request.body == ''"), PATTERNS, "reads `request.body`, known are `request.headers`"),
    (pattern_of(predicate="requestBodyJSON('/a') == ''"), PATTERNS, "reads a body, which is not there"),
    (pattern_of(predicate="user == ''"), PATTERNS, "unknown variable `user`, known are auth, request"),
    (pattern_of(**compare("auth.authorization.y", "eq", "")), PATTERNS, "the selector `auth.authorization.y` leads"),
    (pattern_of(**compare("auth.identity.a", "matches", "(")), PATTERNS, '"(" is no regular expression'),
    (pattern_of(any=[]), PATTERNS, "empty: `all` and `any` have one pattern at least"),
    (pattern_of(all=[]), PATTERNS, "empty: `all` and `any` have one pattern at least"),
    (pattern_of(**compare("auth.identity.a", "neq", '["a"]')), PATTERNS, "`value` is that of a list or an object"),
    (pattern_of(**compare("auth.identity.a", "excl", '{"a":1}')), PATTERNS, "`value` is that of a list or an object"),
    (pattern_of(**compare("request.headers.X-A", "eq", "1")), PATTERNS, "headers have names in lower case: write `re"),
    (pattern_of(**compare("auth.identity.data.a", "neq", "")), PATTERNS, "reads `auth.identity.data`, which is not "),
    (pattern_of(predicate="!has(auth.identity.metadata.uid)"), PATTERNS, "reads `auth.identity.metadata.uid`, which"),
    (
        source(**KEYS, overrides={"a": {"value": 1}}) | pattern_of(predicate="auth['identity'].a == 2"),
        PATTERNS,
        "`auth.identity` as a whole cannot be read beside `overrides`",
    ),
    (
        source(**KEYS, overrides={"a": {"value": 1}}) | pattern_of(predicate="auth.identity['\\x61'] == 2"),
        PATTERNS,
        "`auth.identity` as a whole cannot be read beside `overrides`",
    ),
    (told(selector="auth.identity.a.#.b"), TOLD, "`#` in the selector"),
    (told(selector="auth.identity.a.@extract:{}"), TOLD, "`@` in the selector"),
    (told(selector="Hello {auth.identity.a}"), TOLD, "`{` in the selector"),
    (told(selector="auth.identity..a"), TOLD, "the selector `auth.identity..a` has an empty step"),
    (told(), TOLD, "expected exactly one of `value`, `selector`, `expression`"),
    (told(value="a", selector="b"), TOLD, "expected exactly one of `value`, `selector`, `expression`"),
    (told(expression="a ("), TOLD, "invalid CEL expression"),
    (item("filters", plain={"value": "x"}), "response.success.filters.f", "not supported: anything but `json`"),
    (item("headers", json={"properties": {}}), "response.success.headers.f", "not supported: anything but `plain`"),
    (item("headers", wristband={}), "response.success.headers.f.wristband", "not supported: no tokens are issued"),
    (item("headers", when=[{}]), "response.success.headers.f.when", "not supported: a condition of a single item"),
    ({"response": {"unauthorized": {"code": 302}}}, "response.unauthorized.code", "not supported: a redirection"),
    (
        {"response": {"unauthorized": {"body": {"selector": "auth.identity"}}}},
        "response.unauthorized.body",
        "not supported: a refusal that differs",
    ),
]


@pytest.mark.parametrize(("rules", "place", "message"), UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(rules: Data, place: str, message: str, refused: Refused) -> None:
    problems = refused(route(), SECRET, auth(**rules))
    assert any(p.startswith(f"AuthPolicy llm/who: spec.rules.{place}: {message}") for p in problems), problems


def test_a_policy_without_rules_is_no_protection(refused: Refused) -> None:
    (problem,) = refused(route(), policy("AuthPolicy", "who", rules={"authentication": {}}))
    assert problem == "AuthPolicy llm/who: spec.rules: missing, or empty"


def test_what_has_no_effect_is_told(compiled: Compile) -> None:
    cached = {**KEYS, "metrics": True, "cache": {"key": {"selector": "auth.identity.sub"}}}
    warnings = compiled(route(), SECRET, auth(authentication={"k": cached})).warnings
    assert [(w.path.rpartition(".")[2], w.message) for w in warnings] == [
        ("metrics", "has no effect here"),
        ("cache", "has no effect here"),
    ]
