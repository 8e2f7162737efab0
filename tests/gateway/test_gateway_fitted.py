"""From a configuration to the settings of Envoy that fit it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.config.errors import ConfigError
from extproc.config.load import parse_config
from extproc.config.model import Config
from extproc.gateway.buffers import Buffers
from extproc.gateway.fitted import Fitted, Unfit, fit
from extproc.gateway.processor import IDENTITIES, REQUEST_ATTRIBUTES
from extproc.gateway.waiting import PATTERNS
from extproc.guards.offload import PatternWorker

MIB = 1024 * 1024
GPT: dict[str, Any] = {"name": "gpt", "credential": "none", "address": "https://a.example", "default": True}
MODEL = {"host": "guard.example", "credential": "none"}
SERVICES = {
    "who": {"type": "auth", "endpoint": "embedded", "timeout": "200ms"},
    "left": {"type": "ratelimit-check", "endpoint": "embedded", "timeout": "1s"},
    "used": {"type": "ratelimit-report", "endpoint": "embedded", "timeout": "7s"},
    "both": {"type": "ratelimit", "endpoint": "embedded", "timeout": "3s"},
}
AUTH: dict[str, Any] = {"s": {"authentication": {"t": {"jwt": {}}}}}


def configured(**fields: Any) -> Config:
    return parse_config(yaml.safe_dump({"actionSets": [], **fields}), name="extproc.yaml", base=Path("/nowhere")).config


def fitted(**fields: Any) -> Fitted:
    return fit(configured(**fields))


def action_set(*services: str, **fields: Any) -> dict[str, Any]:
    actions = [{"service": service, "scope": "s"} for service in services]
    name = "-".join(services) or "none"
    return {"name": name, "routeRuleConditions": {"hostnames": ["*"]}, "actions": actions, **fields}


class TestMessageTimeout:
    """G2: Envoy must never decide before the server does."""

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            pytest.param({}, "1s", id="nothing to wait for"),
            pytest.param({"report": {"wait": "10s"}}, "11s", id="the report"),
            pytest.param({"actionSets": [action_set("left")]}, "2s", id="a check"),
            pytest.param({"actionSets": [action_set("who", "left", "used")]}, "2s", id="reports are not waited for"),
            pytest.param({"actionSets": [action_set("left", "both", "left")]}, "6s", id="one after the other"),
            pytest.param({"actionSets": [action_set("left"), action_set("both")]}, "4s", id="the slowest action set"),
            pytest.param({"guards": {"g": {"hosts": ["*"], "model": MODEL}}}, "11s", id="a guard's model"),
            pytest.param({"guards": {"g": {"hosts": ["*"], "deny": ["x"]}}}, "3s", id="a guard's patterns"),
            pytest.param({"guards": {"g": {"hosts": ["*"], "allow": ["x"], "model": MODEL}}}, "13s", id="both"),
            pytest.param({"guards": {"g": {"model": MODEL}}}, "1s", id="a guard of nothing"),
            pytest.param({"guards": {"g": {"hosts": ["*"], "answers": {"deny": ["x"]}}}}, "3s", id="answers"),
            pytest.param(
                {"guards": {"g": {"hosts": ["*"], "deny": ["x"], "answers": {}}}}, "3s", id="or answers, which is later"
            ),
            pytest.param({"precharge": "prompt", "actionSets": [action_set("left")]}, "2s", id="counting prompts"),
            pytest.param(
                {"guards": {"g": {"model": MODEL}}, "actionSets": [action_set(guards=["g"])]}, "11s", id="by its name"
            ),
            pytest.param(
                {"guards": {"g": {"hosts": ["*"], "model": MODEL}}, "actionSets": [action_set(guards=["g"])]},
                "11s",
                id="a guard is asked once",
            ),
            pytest.param(
                {"guards": {"g": {"hosts": ["*"], "webhook": {"url": "http://h", "timeout": "2s"}, "model": MODEL}}},
                "13s",
                id="a webhook after the model",
            ),
            pytest.param(
                {"promptLimits": {"service": "both", "limits": [{"model": "m", "tokens": 1}]}}, "4s", id="prompts"
            ),
            pytest.param(
                {
                    "promptLimits": {"service": "both", "limits": [{"model": "m", "tokens": 1}]},
                    "precharge": "prompt",
                    "report": {"wait": "250ms"},
                },
                "4s",
                id="prompts are counted once",
            ),
        ],
    )
    def test_it_is_longer_than_all_that_is_waited_for(self, fields: dict[str, Any], expected: str) -> None:
        fields = {"services": SERVICES, "authConfigs": AUTH, "providers": [GPT], **fields}
        assert fitted(**fields).options["message_timeout"] == expected

    def test_patterns_take_as_long_as_guards_let_them(self) -> None:
        assert inspect.signature(PatternWorker).parameters["deadline"].default == PATTERNS

    def test_it_says_how_it_was_reckoned(self) -> None:
        guards = {"pii": {"hosts": ["*"], "model": MODEL}}
        first = next(fitted(services=SERVICES, actionSets=[action_set("left")], guards=guards).reasons())
        assert first == (
            "message_timeout 12s: services.left.timeout 1s, guards.pii.model.timeout 10s, report.wait 100ms, "
            "and 500ms for the rest."
        )

    def test_more_than_envoy_waits_for_is_refused_by_the_longest(self) -> None:
        services = {"slow": {"type": "ratelimit-check", "endpoint": "embedded", "timeout": "2h"}}
        with pytest.raises(Unfit, match=r"^services\.slow\.timeout: "):
            fitted(services=services, actionSets=[action_set("slow")])


class TestBodies:
    """G5, S2.9: what is edited or may change the route has to be held until all of it is there."""

    @pytest.mark.parametrize(
        ("fields", "readers"),
        [
            pytest.param({}, (), id="nothing"),
            pytest.param({"providers": [GPT]}, ("providers",), id="providers"),
            pytest.param({"guards": {"g": {"hosts": ["*"], "deny": ["x"]}}}, ("guards",), id="guards"),
            pytest.param({"guards": {"g": {"deny": ["x"]}}}, (), id="guards of nothing"),
            pytest.param(
                {"providers": [GPT], "promptLimits": {"limits": [{"model": "m", "tokens": 1}]}},
                ("providers", "promptLimits"),
                id="promptLimits",
            ),
            pytest.param({"actionSets": [action_set("left")], "precharge": "prompt"}, ("precharge",), id="precharge"),
            pytest.param({"precharge": "prompt"}, (), id="precharge of nothing"),
            pytest.param(
                {"actionSets": [action_set("left", precharge="none")], "precharge": "prompt"}, (), id="not precharged"
            ),
            pytest.param({"includeUsage": {"enabled": True}}, ("includeUsage",), id="includeUsage"),
            pytest.param({"requestData": {"m": "requestBodyJSON('/model')"}}, ("requestData",), id="expressions"),
            pytest.param({"requestData": {"m": "responseBodyJSON('/model')"}}, (), id="expressions over answers"),
            pytest.param({"requestData": {"m": "request.body"}}, ("requestData",), id="the whole body"),
            pytest.param({"authConfigs": {"s": {**AUTH["s"], "models": "['m']"}}}, ("authConfigs",), id="models"),
        ],
    )
    def test_room_is_made_where_somebody_reads_them(self, fields: dict[str, Any], readers: tuple[str, ...]) -> None:
        found = fitted(services=SERVICES, **fields)
        assert found.readers == readers
        assert found.buffers.request == (MIB if readers else None)

    @pytest.mark.parametrize("fields", [{}, {"providers": [GPT], "guards": {"g": {"hosts": ["*"], "answers": {}}}}])
    def test_they_are_asked_for_request_by_request(self, fields: dict[str, Any]) -> None:
        """A mode that is configured holds everybody's requests, and Envoy would refuse the large ones itself."""
        assert "processing_mode" not in fitted(**fields).options

    @pytest.mark.parametrize(
        ("bodies", "field"),
        [({"buffer": 2 * MIB}, r"bodies\.buffer"), ({"message": MIB}, r"bodies\.message")],
    )
    def test_sizes_that_do_not_fit_each_other_are_refused(self, bodies: dict[str, int], field: str) -> None:
        config = configured(bodies=bodies)
        with pytest.raises(Unfit, match=rf"^{field}: .*--request-buffer"):
            fit(config, request_buffer=MIB)

    def test_a_larger_buffer_makes_room(self) -> None:
        found = fit(configured(bodies={"buffer": 2 * MIB}), request_buffer=4 * MIB)
        assert found.buffers == Buffers(request=4 * MIB)

    def test_answers_that_guards_hold_need_room_too(self) -> None:
        """S3: of the largest, of those that are bound to something."""
        guards = {
            "a": {"hosts": ["*"], "answers": {"maxBody": 3 * MIB}},
            "b": {"hosts": ["*"], "answers": {"maxBody": 2 * MIB}},
            "c": {"hosts": ["*"]},
            "d": {"answers": {"maxBody": 9 * MIB}},
        }
        found = fitted(guards=guards)
        assert (found.buffers.answer, found.answers) == (
            3 * MIB,
            ("guards.a.answers.maxBody", "guards.b.answers.maxBody"),
        )

    def test_an_answer_has_to_fit_into_a_message(self) -> None:
        guards = {"a": {"hosts": ["*"], "answers": {"maxBody": 2 * MIB}}}
        with pytest.raises(Unfit, match=r"^guards\.a\.answers\.maxBody: .*`bodies\.message`"):
            fitted(guards=guards, bodies={"message": 2 * MIB})


class TestExpressions:
    @pytest.mark.parametrize(
        ("expression", "attributes"),
        [
            ("connection.mtls", ("connection.mtls",)),
            ("source.remote_address == '10.0.0.1'", ()),
            ("source.address != ''", ()),
            ("request.size > 10", ()),
            ("request.total_size > 10", ("request.total_size",)),
            ("request.headers['x-a'] == xds.route_name", ("xds.route_name",)),
            ("'connection.id' == 'a'", ()),
        ],
    )
    def test_attributes_that_they_name_are_sent(self, expression: str, attributes: tuple[str, ...]) -> None:
        conditions = {"hostnames": ["*"], "predicates": [expression]}
        found = fitted(actionSets=[action_set(routeRuleConditions=conditions)])
        assert found.options["request_attributes"] == (*REQUEST_ATTRIBUTES, *attributes)

    @pytest.mark.parametrize(
        "fields",
        [
            pytest.param({"requestData": {"a": "connection.id"}}, id="requestData"),
            pytest.param({"metrics": {"labels": {"a": ["connection.id"]}}}, id="metrics"),
            pytest.param(
                {"providers": [GPT], "routing": {"rules": [{"when": "connection.id == 1", "provider": "gpt"}]}},
                id="rules",
            ),
            pytest.param(
                {"authConfigs": {"s": {**AUTH["s"], "authorization": ["connection.id == 1"]}}}, id="authorization"
            ),
            pytest.param({"authConfigs": {"s": {**AUTH["s"], "headers": {"x-a": "connection.id"}}}}, id="headers"),
            pytest.param(
                {"authConfigs": {"s": {**AUTH["s"], "filters": {"identity": {"a": "connection.id"}}}}}, id="filters"
            ),
            pytest.param({"authConfigs": {"s": {**AUTH["s"], "models": "connection.id"}}}, id="models"),
            pytest.param(
                {
                    "guards": {
                        "g": {
                            "hosts": ["*"],
                            "model": {
                                **MODEL,
                                "report": {"service": "used", "scope": "s", "labels": {"a": "connection.id"}},
                            },
                        }
                    }
                },
                id="guards",
            ),
            pytest.param(
                {
                    "actionSets": [
                        action_set(
                            actions=[
                                {
                                    "service": "left",
                                    "scope": "s",
                                    "conditionalData": [
                                        {"data": [{"expression": {"key": "a", "value": "connection.id"}}]}
                                    ],
                                }
                            ]
                        )
                    ]
                },
                id="data",
            ),
        ],
    )
    def test_wherever_they_are(self, fields: dict[str, Any]) -> None:
        assert fitted(services=SERVICES, **fields).attributes == ("connection.id",)

    def test_identities_that_are_named_are_forwarded(self) -> None:
        auth = {"s": {"authentication": {"t": {"jwt": {"namespace": "com.example.tokens"}}}}}
        conditions = {"hostnames": ["*"], "predicates": ["metadata.filter_metadata['com.example.other'].a == 'b'"]}
        found = fitted(authConfigs=auth, actionSets=[action_set(routeRuleConditions=conditions)])
        assert found.options["forwarded"] == (*IDENTITIES, "com.example.other", "com.example.tokens")

    def test_one_that_does_not_compile_is_refused_by_its_field(self) -> None:
        with pytest.raises(Unfit, match=r"^routing\.rules\[0\]\.when: "):
            fitted(providers=[GPT], routing={"rules": [{"when": "a ==", "provider": "gpt"}]})


def test_the_namespace_of_the_usage_is_that_of_the_configuration() -> None:
    assert fitted(metadataNamespace="ai.example").options["namespace"] == "ai.example"


def test_hosts_can_be_set_where_a_header_says_so_and_only_there() -> None:
    headers = {"s": {**AUTH["s"], "headers": {"Host": "auth.identity.host"}}}
    assert fitted(authConfigs=headers).options["mutation_rules"] == {"allow_all_routing": True}
    assert "mutation_rules" not in fitted(authConfigs=AUTH).options


class TestProviders:
    def test_requests_that_name_none_are_the_defaults(self) -> None:
        other = {**GPT, "name": "other", "default": False}
        found = fitted(providers=[other, GPT])
        assert ([placed.name for placed in found.providers], found.default) == (["other", "gpt"], found.providers[1])

    def test_a_cluster_stands_for_the_name(self) -> None:
        assert fitted(providers=[{**GPT, "cluster": "openai"}]).providers[0].name == "openai"

    def test_two_of_one_cluster_share_its_address(self) -> None:
        shared = [{**GPT, "cluster": "c"}, {**GPT, "name": "b", "default": False, "cluster": "c"}]
        assert len(fitted(providers=shared).providers) == 1

    @pytest.mark.parametrize(
        ("provider", "problem"),
        [
            ({"cluster": "extproc"}, "providers[0].cluster: `extproc` is another cluster"),
            ({"name": "upstream"}, "providers[0].name: `upstream` is another cluster"),
        ],
    )
    def test_what_cannot_be_is_refused_by_its_field(self, provider: dict[str, str], problem: str) -> None:
        with pytest.raises(Unfit) as raised:
            fitted(providers=[{**GPT, **provider}])
        assert str(raised.value).startswith(problem)

    def test_one_cluster_cannot_have_two_addresses(self) -> None:
        other = {**GPT, "name": "b", "cluster": "gpt", "default": False, "address": "https://b.example"}
        with pytest.raises(ConfigError, match=r"providers\[1\]\.address: providers\[0\] .* says another address"):
            fitted(providers=[GPT, other])
