"""RateLimitPolicy and TokenRateLimitPolicy: names, limits, actions, and what is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policies.samples import GATEWAY, TO_GATEWAY, Compile, Refused, auth, limit, policy, route

from extproc.policies.rate_limits import window_seconds

TOKENS = 'responseBodyJSON("/usage/total_tokens")'


@pytest.mark.parametrize(
    ("namespace", "name", "expected"),
    [
        # What Kuadrant's operator made of the policy `basic-rate-limits`, in two namespaces.
        ("llm-d", "free-user-requests", "limit.free_user_requests__3a36ecc2"),
        ("llm-d", "premium-user-requests", "limit.premium_user_requests__4f559388"),
        ("llm", "free-user-requests", "limit.free_user_requests__323789ab"),
        ("llm", "premium-user-requests", "limit.premium_user_requests__465980c1"),
    ],
)
def test_limits_have_the_names_that_kuadrant_gives_them(
    namespace: str, name: str, expected: str, compiled: Compile
) -> None:
    documents = [GATEWAY, route(), policy(name="basic-rate-limits", limits={name: limit(2, "2m")})]
    for document in documents:
        document["metadata"] = {**document["metadata"], "namespace": namespace}
    (found,) = compiled(*documents).limits
    assert found == {
        "namespace": f"{namespace}/chat",
        "max_value": 2,
        "seconds": 120,
        "name": name,
        "conditions": [f'descriptors[0]["{expected}"] == "1"'],
        "variables": [],
    }


def test_names_that_look_alike_are_told_apart_by_their_hash(compiled: Compile) -> None:
    found = compiled(route(), policy(limits={"a b": limit(1), "a-b": limit(1), "ä.1": limit(1)}))
    keys = [one["conditions"][0].split('"')[1] for one in found.limits]
    assert [key.rpartition("__")[0] for key in keys] == ["limit.a_b", "limit.a_b", "limit.ä_1"]
    assert len(set(keys)) == 3


def test_a_rate_limit_is_one_call_with_an_entry_for_each_limit(compiled: Compile) -> None:
    found = compiled(
        route(),
        policy(
            when=[{"predicate": "request.method == 'POST'\n"}],
            limits={
                "b": limit(5, "1m", "auth.identity.userid", 'request.headers["x-team"]', when=("true", "1 < 2")),
                "a": limit(9),
            },
        ),
    )
    (action_set,) = found.action_sets
    (action,) = action_set["actions"]
    first, second = action.pop("conditionalData")
    assert action == {
        "service": "ratelimit-service",
        "scope": "llm/chat",
        "sources": ["ratelimitpolicy.kuadrant.io:llm/p"],
    }
    assert first["predicates"] == ["request.method == 'POST'"]
    assert second["predicates"] == ["request.method == 'POST'", "true", "1 < 2"]
    assert [entry["expression"]["key"] for entry in second["data"]] == [
        found.limits[1]["conditions"][0].split('"')[1],
        "auth.identity.userid",
        'request.headers["x-team"]',
    ]
    assert all(e["expression"]["value"] == e["expression"]["key"] for e in second["data"][1:])
    assert second["data"][0]["expression"]["value"] == "1"
    assert found.limits[1]["variables"] == [
        'descriptors[0]["auth.identity.userid"]',
        'descriptors[0]["request.headers[\\"x-team\\"]"]',
    ]


def test_tokens_are_checked_before_and_reported_after(compiled: Compile) -> None:
    found = compiled(route(), policy("TokenRateLimitPolicy", limits={"free": limit(100, "1m", "source.address")}))
    check, report = found.action_sets[0]["actions"]
    assert (check["service"], report["service"]) == ("ratelimit-check-service", "ratelimit-report-service")
    entries = [
        {e["expression"]["key"]: e["expression"]["value"] for e in action["conditionalData"][0]["data"]}
        for action in (check, report)
    ]
    name = found.limits[0]["conditions"][0].split('"')[1]
    assert name.startswith("tokenlimit.free__")
    assert entries[0] == {name: "1", "source.address": "source.address", "ratelimit.hits_addend": "0"}
    assert entries[1] == {name: "1", "source.address": "source.address", "ratelimit.hits_addend": TOKENS}


def services(compiled: Compile, *documents: Any) -> list[str]:
    (action_set,) = compiled(route(), *documents).action_sets
    return [action["service"].removesuffix("-service") for action in action_set["actions"]]


def test_a_token_denial_uses_up_no_request(compiled: Compile) -> None:
    """S1.29: first who calls, then the tokens, then the request; the report comes when all is over."""
    by_user = limit(5, "1m", "auth.identity.userid")
    documents = [auth(), policy(limits={"a": by_user}), policy("TokenRateLimitPolicy", limits={"a": by_user})]
    assert services(compiled, *documents) == ["auth", "ratelimit-check", "ratelimit", "ratelimit-report"]


def test_a_stranger_uses_up_no_limit_for_everybody(compiled: Compile) -> None:
    """S1.12: 401 and 403 move no counters, also those that need no caller."""
    everybody = {"all": limit(99)}
    documents = [auth(), policy(limits=everybody), policy("TokenRateLimitPolicy", limits=everybody)]
    assert services(compiled, *documents) == ["auth", "ratelimit-check", "ratelimit", "ratelimit-report"]


def test_only_services_that_are_called_are_there_and_both_endpoints_are_this_process(compiled: Compile) -> None:
    found = compiled(route(), policy(limits={"a": limit(1)}))
    assert found.services == {
        "ratelimit-service": {
            "type": "ratelimit",
            "endpoint": "limitador",
            "failureMode": "deny",
            "timeout": "100ms",
        }
    }
    assert found.endpoints == {"limitador": "embedded"}
    assert compiled(route(), auth()).endpoints == {"authorino": "embedded"}


def test_several_rates_are_several_limits(compiled: Compile) -> None:
    rates = [{"limit": 150, "window": "1m"}, {"limit": 300, "window": "1h"}, {"limit": 800, "window": "24h"}]
    found = compiled(route(), policy("TokenRateLimitPolicy", limits={"free": {"rates": rates}}))
    assert [(one["max_value"], one["seconds"]) for one in found.limits] == [(150, 60), (300, 3600), (800, 86400)]
    assert len({one["conditions"][0] for one in found.limits}) == 1


def test_every_route_of_a_gateway_counts_by_itself(compiled: Compile) -> None:
    """S1.26."""
    found = compiled(
        GATEWAY, route("one", "1.ex.com"), route("two", "2.ex.com"), policy(target=TO_GATEWAY, limits={"a": limit(1)})
    )
    assert [one["namespace"] for one in found.limits] == ["llm/one", "llm/two"]


@pytest.mark.parametrize(
    ("window", "seconds"), [("10s", 10), ("2m", 120), ("1h30m", 5400), ("24h", 86400), ("1000ms", 1), ("1m1s", 61)]
)
def test_windows(window: str, seconds: int) -> None:
    assert window_seconds(window) == seconds


@given(st.text("0123456789hms.- ", max_size=12))
def test_a_window_is_whole_seconds_or_refused(text: str) -> None:
    try:
        assert window_seconds(text) >= 1
    except ValueError:
        return


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"rates": []}, "rates: expected at least one entry"),
    ({}, "rates: missing"),
    ({"rates": [{"limit": -1, "window": "1m"}]}, "rates[0].limit: expected an integer of at least 0, found -1"),
    ({"rates": [{"limit": 1, "window": "0s"}]}, "rates[0].window: expected whole seconds, at least one"),
    ({"rates": [{"limit": 1, "window": "1500ms"}]}, "rates[0].window: expected whole seconds, at least one: Kuadrant"),
    ({"rates": [{"limit": 1, "window": "2 m"}]}, "rates[0].window: expected a window such as `30s`"),
    ({"rates": [{"limit": 1, "window": "1d"}]}, "rates[0].window: expected a window"),
    ({"rates": [{"limit": 1, "window": 60}]}, "rates[0].window: expected a string, found 60"),
    ({"rates": [{"limit": 1, "duration": 10, "unit": "second"}]}, "rates[0].duration: not supported: an older form"),
    (
        {"rates": [{"limit": 1, "window": "60s"}, {"limit": 2, "window": "1m"}]},
        "rates[1].window: as long as rates[0].window",
    ),
    (limit(1) | {"counters": ["auth.identity.userid"]}, "counters[0]: an older form; write `expression: "),
    (limit(1, "1m", "auth.identity.("), "counters[0].expression: invalid CEL expression"),
    (limit(1, "1m", "identity.userid"), "counters[0].expression: unknown variable `identity`, known are auth,"),
    (limit(1, "1m", TOKENS), "counters[0].expression: reads the answer, which is not there"),
    (limit(1, when=(f"{TOKENS} > 5",)), "when[0].predicate: reads the answer"),
    (limit(1) | {"when": ["true"]}, "when[0]: expected an object"),
    (limit(1) | {"when": [{"selector": "a", "operator": "eq", "value": "b"}]}, "when[0].selector: not supported: an"),
    (limit(1) | {"routeSelectors": [{}]}, "routeSelectors: not supported: an older form; target a rule"),
    (limit(1) | {"rate": []}, "rate: unknown field, did you mean `rates`?"),
]


@pytest.mark.parametrize(("broken", "expected"), BROKEN, ids=[expected for _, expected in BROKEN])
@pytest.mark.parametrize("kind", ["RateLimitPolicy", "TokenRateLimitPolicy"])
def test_what_is_wrong_with_a_limit_is_told_with_its_place(
    kind: str, broken: dict[str, Any], expected: str, refused: Refused
) -> None:
    """S0.D19, issue's bad input: unknown keys, overlapping windows, older spellings."""
    problems = refused(route(), policy(kind, name="x", limits={"free": broken}))
    place = f"{kind} llm/x: spec.limits.free.{expected}"
    assert any(problem.startswith(place) for problem in problems), problems


def test_a_limit_of_nothing_is_a_limit(compiled: Compile) -> None:
    assert compiled(route(), policy(limits={"none": limit(0)})).limits[0]["max_value"] == 0


def test_reservations_are_refused(refused: Refused) -> None:
    (problem,) = refused(route(), policy("TokenRateLimitPolicy", limits={"a": limit(1) | {"reservation": {}}}))
    assert problem.startswith(
        "TokenRateLimitPolicy llm/p: spec.limits.a.reservation: not supported: tokens are counted"
    )


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, "spec.limits: missing, or empty"),
        ({"limits": {}}, "spec.limits: missing, or empty"),
        ({"defaults": {"limits": {}}}, "spec.defaults.limits: missing, or empty"),
        ({"defaults": {"limits": {"a": limit(1)}}, "limits": {"a": limit(1)}}, "spec.limits: belongs into `defaults`"),
        ({"overrides": {"limits": {"a": limit(1)}}, "when": []}, "spec.when: belongs into `overrides`"),
        (
            {"defaults": {"limits": {"a": limit(1)}}, "overrides": {"limits": {"a": limit(1)}}},
            "spec.overrides: `defaults` and `overrides` exclude one another",
        ),
        ({"defaults": {"strategy": "replace", "limits": {}}}, "spec.defaults.strategy: unknown variant `replace`"),
    ],
)
def test_sections_exclude_one_another(spec: dict[str, Any], expected: str, refused: Refused) -> None:
    assert any(problem.startswith(f"RateLimitPolicy llm/p: {expected}") for problem in refused(route(), policy(**spec)))


@pytest.mark.parametrize(
    ("kind", "version", "accepted"),
    [
        ("RateLimitPolicy", "v1", True),
        ("RateLimitPolicy", "v1beta3", True),
        ("RateLimitPolicy", "v1beta2", False),
        ("TokenRateLimitPolicy", "v1alpha1", True),
        ("TokenRateLimitPolicy", "v1", True),
        ("TokenRateLimitPolicy", "v2", False),
    ],
)
def test_versions(kind: str, version: str, accepted: bool, compiled: Compile, refused: Refused) -> None:
    document = policy(kind, limits={"a": limit(1)}) | {"apiVersion": f"kuadrant.io/{version}"}
    if accepted:
        assert compiled(route(), document).limits
    else:
        (problem,) = refused(route(), document)
        assert f"`apiVersion: kuadrant.io/{version}` is not supported; write `apiVersion: kuadrant.io/v1`" in problem
        assert "`window: 10s`" in problem
