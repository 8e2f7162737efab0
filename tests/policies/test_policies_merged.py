"""What is compiled, added to what an operator wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from policies.samples import SECRET, Compile, auth, limit, policy, route

from extproc.config.errors import ConfigError
from extproc.config.schema import CONFIG
from extproc.config.validate import validate
from extproc.policies import Compiled, merged

DOCUMENTS = (route(), SECRET, auth(), policy(limits={"a": limit(1)}))
OWN = {"name": "mine", "routeRuleConditions": {"hostnames": ["own.example.com"]}, "actions": []}


def test_what_is_compiled_is_a_valid_configuration(compiled: Compile, tmp_path: Path) -> None:
    found = compiled(*DOCUMENTS)
    for data in (found.data, merged({}, found), merged({"services": {}, "actionSets": []}, found)):
        config = validate(CONFIG, data, base=tmp_path)
        assert [action_set.name for action_set in config.action_sets] == ["llm/chat/rule-1"]


def test_an_operator_decides_about_services_and_endpoints(compiled: Compile) -> None:
    limitador = {"type": "ratelimit", "endpoint": "limitador", "failureMode": "allow"}
    config = {"services": {"ratelimit-service": limitador}, "endpoints": {"limitador": "limitador:8081"}}
    found = merged(config, compiled(*DOCUMENTS))
    assert found["services"]["ratelimit-service"] == limitador
    assert found["services"]["auth-service"]["endpoint"] == "authorino"
    assert found["endpoints"] == {"limitador": "limitador:8081", "authorino": "embedded"}


def test_an_operators_action_sets_come_first(compiled: Compile) -> None:
    found = merged({"actionSets": [OWN]}, compiled(*DOCUMENTS))
    assert [action_set["name"] for action_set in found["actionSets"]] == ["mine", "llm/chat/rule-1"]


def test_limits_are_left_to_who_reads_the_limits_file(compiled: Compile) -> None:
    assert merged({"limits": "limits.yaml"}, compiled(*DOCUMENTS))["limits"] == "limits.yaml"


def test_nothing_compiled_changes_nothing() -> None:
    config: dict[str, Any] = {"endpoints": {}}
    assert merged(config, Compiled()) == config


def test_names_that_are_taken_are_told(compiled: Compile) -> None:
    config = {"actionSets": [OWN, OWN | {"name": "llm/chat/rule-1"}], "authConfigs": {"llm/who": {}}}
    with pytest.raises(ConfigError) as caught:
        merged(config, compiled(*DOCUMENTS))
    assert [str(problem) for problem in caught.value.problems] == [
        "actionSets[1].name: `policies` have an action set of that name",
        'authConfigs["llm/who"]: `policies` have one of that name',
    ]


@pytest.mark.parametrize("wrong", [None, 5, "x", [1], [{"name": ["x"]}]])
def test_fields_that_are_wrong_are_left_to_validation(wrong: Any, compiled: Compile) -> None:
    names = ("services", "endpoints", "authConfigs", "actionSets")
    found = merged(dict.fromkeys(names, wrong), compiled(*DOCUMENTS))
    assert [found[name] for name in names[:3]] == [wrong] * 3
