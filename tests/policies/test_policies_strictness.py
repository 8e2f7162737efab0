"""Nothing in a policy is ever ignored: a key that means nothing is told, wherever it stands."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from policies.samples import GATEWAY, SECRET, TO_GATEWAY, Data, auth, limit, policy, route

from extproc.config.document import parse_documents
from extproc.config.errors import ConfigError
from extproc.policies import Document, compile_policies
from extproc.policies.documents import documents_in

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"
STRANGE = "zzz"
_FREE = {"labels", "annotations", "stringData", "data", "matchLabels", "backendRefs", "managedFields", "status"}
"""Below these anything may stand: names are an operator's, or it is nothing to us."""

RICH: list[Data] = [
    GATEWAY,
    route(matches=[{"path": {"value": "/v1"}, "method": "POST", "headers": [{"name": "a", "value": "b"}]}]),
    SECRET,
    policy(target=TO_GATEWAY, defaults={"strategy": "merge", "limits": {"a": limit(1, "1m", "source.address")}}),
    policy("TokenRateLimitPolicy", when=[{"predicate": "true"}], limits={"a": limit(1, when=("true",))}),
    auth(
        authentication={
            "keys": {
                "apiKey": {"allNamespaces": True, "selector": {"matchLabels": {"app": "llm"}}},
                "credentials": {"customHeader": {"name": "x-key"}},
                "overrides": {"userid": {"expression": "auth.identity.metadata.name"}},
            }
        },
        authorization={
            "p": {"patternMatching": {"patterns": [{"any": [{"predicate": "true"}]}]}, "when": [{"predicate": "true"}]},
            "o": {"opa": {"rego": "allow = true"}},
        },
        response={
            "unauthorized": {"code": 403, "body": {"value": "no"}, "headers": {"x": {"value": "y"}}},
            "success": {
                "headers": {"x-user": {"plain": {"selector": "auth.identity.userid"}}},
                "filters": {"identity": {"json": {"properties": {"userid": {"selector": "auth.identity.userid"}}}}},
            },
        },
    ),
]


def shipped() -> list[list[Data]]:
    folders = sorted(EXAMPLES.glob("*/policies"))
    return [
        [d for file in sorted(folder.iterdir()) for d in yaml.safe_load_all(file.read_text())] for folder in folders
    ]


SETS = [RICH, *shipped()]


def compiled(documents: list[Data]) -> Any:
    problems: list[Any] = []
    found: list[Document] = []
    for data in documents:
        found += documents_in(data, "document", Path("x.yaml"), "x.yaml", problems)
    assert not problems
    return compile_policies(found)


def objects(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where an object is to which a key could be added."""
    if isinstance(value, dict):
        yield path
        for name, item in value.items():
            if name not in _FREE:
                yield from objects(item, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from objects(item, (*path, index))


@pytest.mark.parametrize("documents", SETS)
def test_the_documents_of_this_test_are_right(documents: list[Data]) -> None:
    assert compiled(documents).action_sets


@settings(deadline=None)
@given(st.data())
def test_a_key_that_means_nothing_is_told_wherever_it_stands(data: st.DataObject) -> None:
    documents = copy.deepcopy(data.draw(st.sampled_from(SETS)))
    document = data.draw(st.sampled_from([d for d in documents if d["kind"] != "Secret"]))
    place = data.draw(st.sampled_from(list(objects(document))))
    target = document
    for step in place:
        target = target[step]
    target[STRANGE] = data.draw(st.sampled_from([{}, 1, "x", [], {"a": 1}]))
    with pytest.raises(ConfigError) as caught:
        compiled(documents)
    assert any(STRANGE in str(problem) for problem in caught.value.problems), str(caught.value)


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_documents_in_which_anything_is_replaced_are_compiled_or_refused(seed: int) -> None:
    """Whatever stands in a document, nothing but ConfigError comes out of it."""
    chance = random.Random(seed)
    documents = copy.deepcopy(chance.choice(SETS))
    document = chance.choice(documents)
    place = chance.choice(list(objects(document)))
    target = document
    for step in place:
        target = target[step]
    if target:
        target[chance.choice(list(target))] = chance.choice(
            [None, {}, [], "", "x", 0, True, [{}], {"a": {}}, [[1]], 1.5]
        )
    try:
        compiled(documents)
    except (ConfigError, AssertionError):
        return


def test_what_kubernetes_adds_to_an_object_is_fine() -> None:
    """`kubectl get -o yaml` can be used as it is."""
    metadata = """
      annotations: {kubectl.kubernetes.io/last-applied-configuration: "{}"}
      creationTimestamp: "2025-01-01T00:00:00Z"
      generation: 3
      managedFields: [{manager: x, fieldsV1: {"f:spec": {}}}]
      ownerReferences: []
      finalizers: [x]
      resourceVersion: "5"
      uid: 0-1
    """
    documents = copy.deepcopy(RICH)
    for document in documents:
        document["metadata"] |= parse_documents(metadata, "x.yaml")[0]
        document["status"] = {"conditions": [{"type": "Accepted", "status": "True", "message": None}]}
    assert compiled(documents).action_sets
