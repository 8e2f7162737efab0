"""HTTPRoute and Gateway: which requests an action set is for, and which of them is asked first."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policies.samples import GATEWAY, TARGET, TO_GATEWAY, Compile, Data, Refused, limit, policy, route

from extproc.expressions.functions import LIBRARY
from extproc.expressions.program import Expression
from extproc.plan.hosts import HostTable
from extproc.policies.gateway_api import Match, PathMatch
from extproc.policies.routes import covers, host_in_common, predicates

LIMITS = policy(limits={"a": limit(1)})
UNDER_V1 = 'request.url_path == "/v1" || request.url_path.startsWith("/v1/")'


def one_match(path_type: str, value: str) -> Data:
    return {"rules": [{"matches": [{"path": {"type": path_type, "value": value}}]}]}


def conditions(compiled: Compile, match: Data) -> list[str]:
    (action_set,) = compiled(route(matches=[match]), LIMITS).action_sets
    found: list[str] = action_set["routeRuleConditions"].get("predicates", [])
    return found


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ({}, []),
        ({"path": {"value": "/"}}, []),
        ({"path": {"type": "PathPrefix", "value": "/v1"}}, [UNDER_V1]),
        ({"path": {"type": "PathPrefix", "value": "/v1/"}}, [UNDER_V1]),
        ({"path": {"type": "Exact", "value": '/a"b'}}, ['request.url_path == "/a\\"b"']),
        ({"path": {"type": "RegularExpression", "value": "/v[0-9]+"}}, ['request.url_path.matches("^(?:/v[0-9]+)$")']),
        ({"method": "GET"}, ['request.method == "GET"']),
        (
            {"headers": [{"name": "X-Tenant", "value": "a"}, {"name": "x-tenant", "value": "b"}]},
            ['"x-tenant" in request.headers && request.headers["x-tenant"] == "a"'],
        ),
        (
            {"queryParams": [{"name": "q", "type": "RegularExpression", "value": "[ab]"}]},
            ['"q" in queryMap(request.query) && queryMap(request.query)["q"].matches("^(?:[ab])$")'],
        ),
    ],
)
def test_matches_are_predicates(match: Data, expected: list[str], compiled: Compile) -> None:
    assert conditions(compiled, match) == expected


@pytest.mark.parametrize(
    ("prefix", "path", "matches"),
    [
        ("/v1", "/v1", True),
        ("/v1", "/v1/", True),
        ("/v1", "/v1/chat", True),
        ("/v1", "/v1x", False),
        ("/v1", "/v", False),
        ("/v1/", "/v1", True),
        ("/", "/anything", True),
    ],
)
def test_a_prefix_is_one_of_whole_segments(prefix: str, path: str, matches: bool) -> None:
    found = predicates(Match(path=PathMatch(value=prefix)))
    assert all(holds(predicate, {"url_path": path}) for predicate in found) is matches


@pytest.mark.parametrize("request_", [{"headers": {}, "query": ""}, {"headers": {"a": "2"}, "query": "b=2"}])
def test_what_is_not_there_does_not_match_and_is_no_error(request_: Data, compiled: Compile) -> None:
    named = [{"name": "a", "value": "1"}]
    found = conditions(compiled, {"headers": named, "queryParams": [{"name": "b", "value": "1"}]})
    assert [holds(predicate, request_) for predicate in found] == [False, False]


def holds(predicate: str, request: Data) -> Any:
    import cel

    return Expression(predicate).evaluate(cel.Context(variables={"request": request}, functions=dict(LIBRARY)))


def test_more_specific_matches_are_asked_first(compiled: Compile) -> None:
    """The Gateway API's precedence, over all routes: the exchange takes the first that holds."""
    header = {"name": "x", "value": "1"}
    prefix = {"path": {"value": "/v1"}}
    matches: list[Data] = [
        {},
        prefix,
        {"path": {"value": "/v1/chat"}},
        {"path": {"type": "RegularExpression", "value": "/.*"}},
        {"path": {"type": "Exact", "value": "/v1"}},
        {**prefix, "queryParams": [header]},
        {**prefix, "headers": [header]},
        {**prefix, "headers": [header, {"name": "y", "value": "1"}]},
        {**prefix, "method": "POST"},
    ]
    found = compiled(route(matches=matches), LIMITS).action_sets
    order = [action_set["name"].rpartition("-")[2] for action_set in found]
    assert order == ["5", "4", "3", "9", "8", "7", "6", "2", "1"]


def test_older_routes_are_asked_first_then_by_name(compiled: Compile) -> None:
    old, new, unknown = route("z"), route("a"), route("m")
    old["metadata"]["creationTimestamp"] = "2024-01-01T00:00:00Z"
    new["metadata"]["creationTimestamp"] = "2025-01-01T00:00:00Z"
    found = compiled(GATEWAY, new, old, policy(target=TO_GATEWAY, limits={"a": limit(1)}), unknown)
    assert [action_set["name"] for action_set in found.action_sets] == ["llm/m/rule-1", "llm/z/rule-1", "llm/a/rule-1"]


def test_a_rule_that_no_policy_is_for_keeps_its_requests_from_wider_rules(compiled: Compile) -> None:
    free = {"name": "health", "matches": [{"path": {"type": "Exact", "value": "/health"}}]}
    target = {**TARGET, "sectionName": "rule-2"}
    found = compiled(route(rules=[free, {}]), policy(target=target, limits={"a": limit(1)}))
    assert [(one["name"], bool(one["actions"])) for one in found.action_sets] == [
        ("llm/chat/health", False),
        ("llm/chat/rule-2", True),
    ]


def test_nothing_to_enforce_is_no_action_set(compiled: Compile) -> None:
    assert compiled(GATEWAY, route()).action_sets == []


def hosts(compiled: Compile, listeners: list[Data], *hostnames: str) -> list[list[str]]:
    gateway = GATEWAY | {"spec": {"listeners": listeners}}
    spec = route("chat", *hostnames) if hostnames else route() | {"spec": {"parentRefs": [{"name": "gw"}]}}
    found = compiled(gateway, spec, policy(target=TO_GATEWAY, limits={"a": limit(1)}))
    return [action_set["routeRuleConditions"]["hostnames"] for action_set in found.action_sets]


@pytest.mark.parametrize(
    ("listeners", "hostnames", "expected"),
    [
        ([None], (), ["*"]),
        ([None], ("a.ex.com", "b.ex.com"), ["a.ex.com", "b.ex.com"]),
        (["*.ex.com"], (), ["*.ex.com"]),
        (["*.ex.com"], ("a.ex.com", "a.other.com"), ["a.ex.com"]),
        (["a.ex.com"], ("*.ex.com",), ["a.ex.com"]),
        (["a.ex.com", "b.ex.com"], ("*.ex.com",), ["a.ex.com", "b.ex.com"]),
        (["*.ex.com", None], ("a.ex.com",), ["a.ex.com"]),
    ],
)
def test_hosts_are_those_that_listener_and_route_have_in_common(
    listeners: list[str | None], hostnames: tuple[str, ...], expected: list[str], compiled: Compile
) -> None:
    named = [{"name": f"l{i}", **({"hostname": name} if name else {})} for i, name in enumerate(listeners)]
    assert hosts(compiled, named, *hostnames) == [expected]


def test_a_route_may_name_the_listener_that_serves_it(compiled: Compile) -> None:
    listeners = [{"name": "one", "hostname": "a.ex.com", "port": 1}, {"name": "two", "hostname": "b.ex.com", "port": 2}]
    gateway = GATEWAY | {"spec": {"listeners": listeners}}
    for ref in ({"name": "gw", "sectionName": "two"}, {"name": "gw", "port": 2}):
        chat = route("chat", "*.ex.com", parentRefs=[ref])
        (found,) = compiled(gateway, chat, LIMITS).action_sets
        assert found["routeRuleConditions"]["hostnames"] == ["b.ex.com"]


@given(st.sampled_from(["*", "*.com", "*.a.com", "a.com", "b.a.com", "c.b.a.com", "ba.com"]), st.data())
def test_what_two_patterns_have_in_common_is_what_the_exchange_finds_for_both(first: str, data: st.DataObject) -> None:
    second = data.draw(st.sampled_from(["*", "*.com", "*.a.com", "a.com", "b.a.com", "x.org"]))
    host = data.draw(st.sampled_from(["a.com", "b.a.com", "c.b.a.com", "ba.com", "x.org", "d.ba.com"]))
    both = host_in_common(first, second)
    matched = [HostTable({pattern: True}).find(host) is not None for pattern in (first, second)]
    assert all(matched) is (both is not None and HostTable({both: True}).find(host) is not None)
    assert not (covers(first, second) and matched == [False, True])


@pytest.mark.parametrize(
    ("spec", "place", "message"),
    [
        ({"hostnames": ["https://a.com"]}, "spec.hostnames[0]", "expected a name such as"),
        ({"hostnames": ["a.*.com"]}, "spec.hostnames[0]", "expected a name such as"),
        (one_match("RegularExpression", "("), "spec.rules[0].matches[0]", '"(" is no regular'),
        (one_match("Prefix", "/"), "spec.rules[0].matches[0].path.type", "unknown variant `Prefix`"),
        ({"rules": [{"name": "rule-2"}, {}]}, "spec.rules[1].name", "`rule-2` is the name of rules[0]"),
        ({"useDefaultGateways": "All"}, "spec.useDefaultGateways", "not supported: write `parentRefs`"),
        ({"rules": [{"match": []}]}, "spec.rules[0].match", "unknown field, did you mean `matches`?"),
    ],
)
def test_what_is_wrong_with_a_route(spec: Data, place: str, message: str, refused: Refused) -> None:
    (problem,) = refused(GATEWAY, route(**spec), policy(target=TO_GATEWAY, limits={"a": limit(1)}))
    assert problem.startswith(f"HTTPRoute llm/chat: {place}: {message}")


def test_what_a_proxy_does_with_a_request_is_not_looked_at(compiled: Compile) -> None:
    rule = {
        "filters": [{"type": "URLRewrite", "urlRewrite": {}}],
        "backendRefs": [{"name": "x"}],
        "timeouts": {"request": "1s"},
    }
    assert compiled(route(rules=[rule]), LIMITS).limits  # fmt: skip


def test_too_many_matches_are_refused(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    from extproc.policies import compile as compiling

    monkeypatch.setattr(compiling, "MAX_ACTION_SETS", 2)
    with pytest.raises(AssertionError):  # a problem of all documents together, so of no file
        refused(route(matches=[{"method": "GET"}, {"method": "POST"}, {"method": "PUT"}]), LIMITS)
