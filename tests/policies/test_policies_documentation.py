"""The worked example of docs/policies.md is what `extproc compile` says."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from policies.samples import Compile

PAGE = Path(__file__).parents[2] / "docs" / "policies.md"


def test_the_worked_example(compiled: Compile) -> None:
    _, documents, printed = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    found = compiled(*yaml.safe_load_all(documents))
    (expected,) = yaml.safe_load(printed)["actionSets"]
    (action_set,) = found.action_sets
    assert {**action_set, "actions": action_set["actions"][:1]} == {**expected, "actions": expected["actions"][:1]}
    assert [action["service"] for action in action_set["actions"]] == [a["service"] for a in expected["actions"]]
    assert found.limits == yaml.safe_load(printed)["limits"]
    assert found.endpoints == {"limitador": "embedded"}
