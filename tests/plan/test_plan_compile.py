"""What a configuration is compiled to: hosts, attributes, needs, warnings."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.harness import LIMITS, S0, Gateway, RecordingLimiter, compiled, configured
from support.messages import request_headers

from extproc.config.errors import ConfigError
from extproc.expressions import Expression, ExpressionError, text_of
from extproc.expressions.functions import LIBRARY, query_map
from extproc.facts import RequestFacts
from extproc.plan.attributes import Attributes, host_of
from extproc.plan.bodies import BodyValues
from extproc.plan.hosts import HostTable, normalise_host
from extproc.plan.memo import MAX_ENTRIES, Memo
from extproc.plan.sight import ActionFailure, Scope


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("api.example.com", "api.example.com"),
        ("API.Example.COM:8080", "api.example.com"),
        ("api.example.com.", "api.example.com"),
        ("api.example.com.:80", "api.example.com"),
        ("[::1]:80", "::1"),
        ("[2001:DB8::1]", "2001:db8::1"),
        ("::1", "::1"),
        ("10.0.0.1:80", "10.0.0.1"),
        ("localhost:", "localhost"),
        ("api.example.com:abc", "api.example.com"),
        ("api.example.com..", "api.example.com"),
        ("", ""),
    ],
)
def test_hosts_are_compared_without_port_dot_and_case(authority: str, host: str) -> None:
    """S0.9, S0.D20."""
    assert normalise_host(authority) == host


@pytest.mark.parametrize(
    ("host", "pattern"),
    [
        ("a.b.example.com", "*.b.example.com"),
        ("x.a.b.example.com", "*.b.example.com"),
        ("c.example.com", "*.example.com"),
        ("www.example.com", "www.example.com"),
        ("b.example.com", "*.example.com"),
        ("example.com", "*"),
        ("other.org", "*"),
        ("", "*"),
    ],
)
def test_the_most_specific_pattern_wins(host: str, pattern: str) -> None:
    """S0.9."""
    patterns = ["*", "*.example.com", "*.b.example.com", "www.example.com"]
    assert HostTable({name: name for name in patterns}).find(host) == pattern


def test_no_pattern_no_route() -> None:
    assert HostTable({"*.example.com": 1}).find("example.com") is None
    assert HostTable[int]({}).find("example.com") is None


async def test_only_the_most_specific_host_is_asked() -> None:
    """S0.9: its predicates do not hold, and a wider pattern is not a fallback; order decides inside one host."""
    wide, narrow, second = (deepcopy(S0["actionSets"][0]) for _ in range(3))
    wide["routeRuleConditions"] = {"hostnames": ["*.example.com"]}
    narrow["routeRuleConditions"] = {"hostnames": ["api.example.com"], "predicates": ["request.method == 'PUT'"]}
    second["routeRuleConditions"] = {"hostnames": ["api.example.com"], "predicates": ["request.method != 'GET'"]}
    for index, action_set in enumerate((wide, narrow, second)):
        action_set["name"] = f"set-{index}"
        action_set["actions"][0]["scope"] = f"scope-{index}"
    for method, host, scopes in [
        ("GET", "api.example.com", []),
        ("PUT", "api.example.com", ["scope-1"]),
        ("POST", "api.example.com", ["scope-2"]),
        ("GET", "www.example.com", ["scope-0"]),
    ]:
        gateway = Gateway(configured(S0, actionSets=[wide, narrow, second]), RecordingLimiter())
        await gateway.exchange(request_headers(method=method, host=host))
        assert [call.query.domain for call in gateway.limiter.calls] == scopes


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("request.method", "POST"),
        ("request.path", "/v1/chat/completions?q=1&a=b"),
        ("request.url_path", "/v1/chat/completions"),
        ("request.query", "q=1&a=b"),
        ("request.host", "TRLP.example.com:80"),
        ("request.scheme", "http"),
        ("request.id", "rid-1"),
        ("request.useragent", "curl"),
        ("request.referer", "http://here"),
        ("request.headers['x-tenant']", "acme"),
        ("request.headers['user-agent'] + request.headers[':method']", "curlPOST"),
        ("size(request.headers) > 5", "true"),
        ("'x-none' in request.headers", "false"),
        ("has(request.headers.nope)", "false"),
        ("request.protocol", "HTTP/1.1"),
        ("request.nonsense == null", "true"),
        ("request.referer.contains('here')", "true"),
        ("request.time > timestamp('2020-01-01T00:00:00Z')", "true"),
        ("source.address", "[2001:db8::1]:4711"),
        ("source.remote_address", "2001:db8::1"),
        ("source.port", "4711"),
        ("destination.address", "10.0.0.1:80"),
        ("connection.mtls", "true"),
        ("connection.requested_server_name == null", "true"),
        ("metadata.filter_metadata['envoy.filters.http.jwt_authn'].principal.sub", "alice"),
        ("auth.identity.groups[1]", "b"),
        ("auth.identity.level", "3"),
        ("auth.identity.ratio", "0.5"),
        ("request.path.split('/')[1].upperAscii()", "V1"),
        ("queryMap(request.query)['a']", "b"),
        ("xds.route_name", "llm"),
    ],
)
def test_attributes(expression: str, expected: str) -> None:
    """Every root, from headers, from `request_attributes` and from metadata; what Envoy did not send is null."""
    compiled_expression = Expression(expression)
    message = request_headers(
        {"user-agent": "curl", "referer": "http://here", "x-tenant": "acme", "x-b": "1"},
        host="TRLP.example.com:80",
        path="/v1/chat/completions?q=1&a=b",
        attributes={
            "source.address": "[2001:db8::1]:4711",
            "source.port": 4711,
            "destination.address": "10.0.0.1:80",
            "request.protocol": "HTTP/1.1",
            "connection.mtls": True,
            "xds.route_name": "llm",
        },
        metadata={
            "envoy.filters.http.jwt_authn": {"principal": {"sub": "alice"}},
            "envoy.filters.http.ext_authz": {"identity": {"groups": ["a", "b"], "level": 3, "ratio": 0.5}},
        },
    )
    functions = compiled_expression.functions & LIBRARY.keys()
    scope = Scope(Attributes(compiled_expression.references.members), frozenset(functions), usage=False)
    assert text_of(compiled_expression.evaluate(scope.bind(RequestFacts(message), BodyValues()))) == expected


@pytest.mark.parametrize("address", ["1.2.3.4:5", "[::1]:5", "::1", "host", "host:80", "fe80::1%eth0"])
def test_addresses_lose_their_port(address: str) -> None:
    assert host_of(address) in ("1.2.3.4", "::1", "host", "fe80::1%eth0")


def test_query_map() -> None:
    """Vector 42."""
    assert query_map("a=1&b=%20x&c&a=2&=e") == {"a": "1", "b": " x", "c": "", "": "e"}
    assert query_map("a=1&a=2&a=3&b=1", True) == {"a": ["1", "2", "3"], "b": "1"}


@given(st.text(max_size=40))
def test_query_map_takes_any_text(query: str) -> None:
    query_map(query)
    query_map(query, True)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("1 +", "column"),
        ("a" * 20_000, "longer than"),
        ("[1, 2].fold(a, b)", "unknown function"),
        ("((((" * 200 + "1" + "))))" * 200, "recursion|limit|depth|column"),
    ],
)
def test_expressions_that_do_not_compile(source: str, complaint: str) -> None:
    with pytest.raises(ExpressionError, match=complaint):
        Expression(source)


@given(st.text(max_size=60))
def test_any_text_compiles_or_is_refused(source: str) -> None:
    try:
        assert Expression(source).source == source
    except ExpressionError:
        return


def warnings_of(config: dict[str, Any]) -> str:
    return "\n".join(map(str, compiled(config, RecordingLimiter()).warnings))


def predicate(source: str) -> dict[str, Any]:
    config = configured(deepcopy(S0), **LIMITS)
    for action in config["actionSets"][0]["actions"]:
        action["conditionalData"][0]["predicates"] = [source]
    return config


@pytest.mark.parametrize(
    ("source", "warning"),
    [
        ('request.path == "/v1/chat/completions"', "can be bypassed"),
        ('"/v1/chat/completions" == request.path', "can be bypassed"),
        ('request.path in ["/v1/chat/completions"]', "can be bypassed"),
        ('(request.path) == "/v1/chat/completions"', "can be bypassed"),
        ('!(request.path != "/v1/chat/completions")', "can be bypassed"),
        ('request["path"] == "/v1/chat/completions"', "can be bypassed"),
        ('request.path.matches("^/v1/chat/completions$")', "can be bypassed"),
        ('request.host == "a.example.com"', "`request.host` is as the client wrote it"),
        ("1", "always fails"),
        ("'x'.matches('(')", "always fails"),
        ('request.url_path == "/v1/chat/completions"', ""),
        ('request.path.startsWith("/v1/")', ""),
        ("request.pth == 'x'", "`request.pth` is no attribute Envoy knows"),
        ("request.headers['X-Tenant'] == 'x'", "lower case"),
    ],
)
def test_configurations_that_do_not_do_what_they_seem_to(source: str, warning: str) -> None:
    """S0.D9: valid, but worth a warning that names the field."""
    found = warnings_of(predicate(source))
    assert warning in found if warning else not found
    if warning:
        assert "actionSets[0].actions[0].conditionalData[0].predicates" in found


@pytest.mark.parametrize("value", ["null", "[1]", "1 / 0"])
def test_values_that_always_fail_are_warned_about(value: str) -> None:
    config = configured(deepcopy(S0))
    config["actionSets"][0]["actions"][0]["conditionalData"][0]["data"].append(
        {"expression": {"key": "k", "value": value}}
    )
    assert "conditionalData[0].data[1].expression.value: always fails" in warnings_of(config)


def test_the_routes_predicates_are_looked_at_too() -> None:
    """S0.D9."""
    config = configured(deepcopy(S0))
    config["actionSets"][0]["routeRuleConditions"]["predicates"] = ['request.path == "/v1"']
    assert "actionSets[0].routeRuleConditions.predicates: " in warnings_of(config)


def test_an_action_without_a_domain_is_refused() -> None:
    config = configured(deepcopy(S0))
    config["actionSets"][0]["actions"][0]["scope"] = ""
    with pytest.raises(ConfigError, match=r"actionSets\[0\]\.actions\[0\]\.scope: must not be empty"):
        compiled(config, RecordingLimiter())


async def test_an_attribute_with_a_structure_is_no_accident() -> None:
    """What cannot be remembered is computed."""
    config = predicate("source.labels['app'] == 'x'")
    gateway = Gateway(config)
    replies = await gateway.exchange(request_headers(attributes={"source.labels": {"app": "x"}}))
    assert not replies[0].HasField("immediate_response")
    assert len(gateway.limiter.calls) == 1


def test_a_check_that_needs_the_answer_is_warned_about() -> None:
    """G6: it cannot deny any more."""
    config = configured(deepcopy(S0))
    data = config["actionSets"][0]["actions"][0]["conditionalData"][0]["data"]
    data.append({"expression": {"key": "m", "value": "responseBodyJSON('/model')"}})
    assert "can deny nothing" in warnings_of(config)


def test_needs_are_known_before_the_first_request() -> None:
    """No body is asked for that no expression reads."""
    config = configured(deepcopy(S0))
    action_set = compiled(config, RecordingLimiter()).plan.action_sets[0]
    assert (action_set.request_reader is None, action_set.response_reader is None) == (True, False)
    config["actionSets"][0]["actions"].pop()
    action_set = compiled(config, RecordingLimiter()).plan.action_sets[0]
    assert action_set.response_reader is None


async def test_queries_are_remembered_by_what_they_depend_on() -> None:
    """Two requests alike in the named attributes share a query; others do not."""
    config = configured(deepcopy(S0))
    data = config["actionSets"][0]["actions"][0]["conditionalData"][0]["data"]
    data.append({"expression": {"key": "tenant", "value": "request.headers['x-tenant']"}})
    gateway = Gateway(config)
    for tenant in ("a", "b", "a"):
        await gateway.exchange(request_headers({"x-tenant": tenant, "x-other": tenant}))
    first, second, third = (call.query for call in gateway.limiter.calls)
    assert (first.descriptors, third.descriptors[0][1]) == (third.descriptors, ("tenant", "a"))
    assert second.descriptors[0][1] == ("tenant", "b")
    assert first.descriptors == third.descriptors


def test_what_is_remembered_is_bounded() -> None:
    """A client that sends another path every time fills nothing."""
    computed: list[str] = []

    def compute(facts: RequestFacts) -> tuple[None]:
        computed.append(facts.headers[":path"].decode())
        return (None,)

    memo = Memo(lambda facts: (facts.header(":path"),), compute)
    for number in range(3 * MAX_ENTRIES):
        memo.of(RequestFacts(request_headers(path=f"/{number}")))
    assert len(memo) <= MAX_ENTRIES
    long = RequestFacts(request_headers(path="/" + "x" * 10_000))
    before = len(memo)
    memo.of(long)
    assert len(memo) == before


async def test_a_remembered_failure_keeps_nothing_of_the_requests_that_failed() -> None:
    """Whoever leaves out a header as often as they like fills no memory."""
    config = configured(deepcopy(S0))
    data = config["actionSets"][0]["actions"][0]["conditionalData"][0]["data"]
    data.append({"expression": {"key": "tier", "value": "request.headers['x-tier'].lowerAscii()"}})
    config["actionSets"].insert(0, deepcopy(config["actionSets"][0]) | {"name": "route"})
    gateway = Gateway(config)
    for _ in range(3):
        await gateway.exchange(request_headers(ends=True))
    action_set = gateway.active.plan.action_sets[0]
    assert action_set.memo is not None
    failures = [each for each in action_set.memo.of(RequestFacts(request_headers())) if isinstance(each, ActionFailure)]
    assert failures
    assert all(failure.__traceback__ is None and failure.__context__ is None for failure in failures)
