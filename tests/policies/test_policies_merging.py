"""Several policies for the same requests, and policies for something that is not there."""

from __future__ import annotations

from typing import Any

import pytest
from policies.samples import GATEWAY, TARGET, TO_GATEWAY, Compile, Data, Refused, auth, limit, policy, route

A_RULE = {**TARGET, "sectionName": "rule-1"}
A_LISTENER = {**TO_GATEWAY, "sectionName": "http"}


def of_gateway(*names: str, section: str = "", strategy: str = "atomic", when: str = "") -> Data:
    limits: Data = {"limits": {name: limit(1) for name in names}}
    if when:
        limits["when"] = [{"predicate": when}]
    spec = {section: {**limits, "strategy": strategy}} if section else limits
    return policy(name="general", target=TO_GATEWAY, **spec)


def of_route(*names: str, **spec: Any) -> Data:
    return policy(name="special", limits={name: limit(2) for name in names}, **spec)


@pytest.mark.parametrize(
    ("general", "special", "expected"),
    [
        (of_gateway("a"), None, {"a": 1}),
        (of_gateway("a"), of_route("b"), {"b": 2}),
        (of_gateway("a", section="defaults"), of_route("b"), {"b": 2}),
        (of_gateway("a", section="overrides"), of_route("b"), {"a": 1}),
        (of_gateway("a", "b", section="defaults", strategy="merge"), of_route("b"), {"a": 1, "b": 2}),
        (of_gateway("a", "b", section="overrides", strategy="merge"), of_route("b", "c"), {"a": 1, "b": 1, "c": 2}),
    ],
)
def test_defaults_yield_and_overrides_do_not(
    general: Data, special: Data | None, expected: dict[str, int], compiled: Compile
) -> None:
    found = compiled(GATEWAY, route(), general, *([special] if special else []))
    assert {one["name"]: one["max_value"] for one in found.limits} == expected


def test_a_merged_limit_keeps_the_name_it_has_from_its_own_policy(compiled: Compile) -> None:
    alone = compiled(GATEWAY, route(), of_gateway("a")).limits
    merged = compiled(GATEWAY, route(), of_gateway("a", section="defaults", strategy="merge"), of_route("b"))
    assert alone[0] in merged.limits
    (action,) = merged.action_sets[0]["actions"]
    assert action["sources"] == [f"ratelimitpolicy.kuadrant.io:llm/{name}" for name in ("general", "special")]


def test_conditions_of_a_whole_policy_are_a_rule_like_any_other(compiled: Compile) -> None:
    general = of_gateway("a", section="defaults", strategy="merge", when="request.method == 'POST'")
    (action,) = compiled(GATEWAY, route(), general, of_route("b")).action_sets[0]["actions"]
    assert [block["predicates"] for block in action["conditionalData"]] == [["request.method == 'POST'"]] * 2


def test_listeners_and_rules_are_more_specific_than_gateways_and_routes(compiled: Compile) -> None:
    levels = [TO_GATEWAY, A_LISTENER, TARGET, A_RULE]
    for count in range(1, 5):
        documents = [policy(name=f"p{i}", target=levels[i], limits={"a": limit(i)}) for i in range(count)]
        found = compiled(GATEWAY, route(), *documents)
        assert [one["max_value"] for one in found.limits] == [count - 1]


def test_a_policy_of_a_rule_is_for_that_rule_alone(compiled: Compile) -> None:
    rules = [{"name": "chat", "matches": [{"path": {"value": "/chat"}}]}, {"matches": [{"path": {"value": "/x"}}]}]
    target = {**TARGET, "sectionName": "chat"}
    found = compiled(route(rules=rules), policy(target=target, limits={"a": limit(1)}))
    assert {one["name"]: len(one["actions"]) for one in found.action_sets} == {
        "llm/chat/chat": 1,
        "llm/chat/rule-2": 0,
    }


def test_policies_of_the_same_age_and_target_are_refused(refused: Refused, compiled: Compile) -> None:
    twins = [policy(name=name, limits={"a": limit(i)}) for i, name in enumerate(("one", "two"))]
    (problem,) = refused(route(), *twins)
    assert problem.startswith("RateLimitPolicy llm/two: spec.targetRef: RateLimitPolicy llm/one has the same target")
    old = policy(name="one", limits={"a": limit(7)}, created="2024-05-01T00:00:00Z")
    new = policy(name="two", limits={"a": limit(8)}, created="2025-05-01T00:00:00Z")
    assert compiled(route(), new, old).limits[0]["max_value"] == 8


def test_a_gateway_need_not_be_among_the_documents_when_a_route_names_it(compiled: Compile) -> None:
    (action_set,) = compiled(route(), policy(target=TO_GATEWAY, limits={"a": limit(1)})).action_sets
    assert action_set["routeRuleConditions"]["hostnames"] == ["a.example.com"]


def test_a_route_without_a_gateway_stands_for_itself(compiled: Compile) -> None:
    assert compiled(route(parentRefs=[]), policy(limits={"a": limit(1)})).limits


@pytest.mark.parametrize(
    ("documents", "target", "place", "message"),
    [
        ([], TARGET, "name", "no HTTPRoute `llm/chat` is among the documents (known: none)"),
        ([route("other")], TARGET, "name", "no HTTPRoute `llm/chat` is among the documents (known: `llm/other`)"),
        ([], TO_GATEWAY, "name", "no Gateway `llm/gw` is among the documents (known: none); an HTTPRoute with it"),
        (
            [GATEWAY, route()],
            {**A_RULE, "sectionName": "rule-9"},
            "sectionName",
            "no rule is named `rule-9`, known: `r",
        ),
        ([GATEWAY, route()], {**A_LISTENER, "sectionName": "https"}, "sectionName", "no listener is named `https`"),
        ([route()], {**TARGET, "kind": "GRPCRoute"}, "kind", "unknown variant `GRPCRoute`, expected one of `Gateway`"),
        ([route()], {**TARGET, "group": ""}, "group", "expected a value "),
        ([route()], {**TARGET, "namespace": "x"}, "namespace", "unknown field, did you mean `name`?"),
    ],
)
@pytest.mark.parametrize("kind", ["RateLimitPolicy", "AuthPolicy"])
def test_a_target_that_is_not_there_is_told(
    kind: str, documents: list[Data], target: dict[str, str], place: str, message: str, refused: Refused
) -> None:
    document = policy(name="p", target=target, limits={"a": limit(1)}) if kind != "AuthPolicy" else auth("p", target)
    problems = refused(*documents, document)
    assert any(p.startswith(f"{kind} llm/p: spec.targetRef.{place}: {message}") for p in problems) or (
        place == "group" and "spec.targetRef.group" in problems[0]
    ), problems


def warnings(compiled: Compile, *documents: Data) -> list[str]:
    return [f"{warning.path}: {warning.message}" for warning in compiled(*documents).warnings]


def test_a_policy_that_counts_nowhere_is_told(compiled: Compile) -> None:
    """Silence would look like protection."""
    elsewhere = GATEWAY | {"metadata": {"name": "empty", "namespace": "llm"}}
    to_empty = {**TO_GATEWAY, "name": "empty"}
    assert warnings(compiled, elsewhere, policy(target=to_empty, limits={"a": limit(1)})) == [
        "RateLimitPolicy llm/p: spec.targetRef: counts nowhere: its target serves no host of any HTTPRoute"
    ]
    assert warnings(compiled, GATEWAY, route(), of_gateway("a"), of_route("b")) == [
        "RateLimitPolicy llm/general: spec.targetRef: counts nowhere: another policy has precedence wherever it could"
    ]


def test_what_is_wrong_in_a_policy_that_counts_nowhere_is_told_too(refused: Refused) -> None:
    opa = {"authorization": {"x": {"opa": {"rego": "allow { input.x }"}}}}
    (problem,) = refused(GATEWAY, route(), auth("who", TO_GATEWAY, **opa), auth("special"))
    assert problem.startswith("AuthPolicy llm/who: spec.rules.authorization.x.opa.rego: line 1: `input.x`")


LISTENERS = [{"name": "http", "port": 80}, {"name": "https", "port": 443}]


def test_listeners_with_the_same_hosts_are_one_when_policies_are_the_same(compiled: Compile) -> None:
    gateway = GATEWAY | {"spec": {"listeners": LISTENERS}}
    found = compiled(gateway, route(), policy(target=TO_GATEWAY, limits={"a": limit(1)}))
    assert [one["name"] for one in found.action_sets] == ["llm/chat/rule-1"]


def test_listeners_that_cannot_be_told_apart_are_refused(refused: Refused) -> None:
    gateway = GATEWAY | {"spec": {"listeners": LISTENERS}}
    target = {**TO_GATEWAY, "sectionName": "https"}
    (problem,) = refused(gateway, route(), policy(target=target, limits={"a": limit(1)}))
    assert problem.startswith(
        "HTTPRoute llm/chat: spec.hostnames: `a.example.com` is served by llm/gw/http and llm/gw/"
    )


def test_listeners_with_hosts_of_their_own_may_have_policies_of_their_own(compiled: Compile) -> None:
    listeners = [{"name": "one", "hostname": "a.ex.com"}, {"name": "two", "hostname": "b.ex.com"}]
    gateway = GATEWAY | {"spec": {"listeners": listeners}}
    target = {**TO_GATEWAY, "sectionName": "two"}
    found = compiled(gateway, route("chat", "*.ex.com"), policy(target=target, limits={"a": limit(1)}))
    assert {one["name"]: len(one["actions"]) for one in found.action_sets} == {
        "llm/chat/rule-1@llm/gw/one": 0,
        "llm/chat/rule-1@llm/gw/two": 1,
    }
