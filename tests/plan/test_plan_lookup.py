"""What is looked up without CEL is what CEL would have found."""

from __future__ import annotations

from typing import Any

import cel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.messages import request_headers

from extproc.expressions import Expression, ExpressionError
from extproc.expressions.lookup import Comparison, Lookup, NotThere
from extproc.facts import RequestFacts
from extproc.plan.attributes import Attributes, getter_of, key_of
from extproc.plan.bodies import BodyValues
from extproc.plan.sight import Condition, Scope, Sight

NAMES = st.sampled_from(["identity", "userid", "groups", "a-b", "x y", "0", "'", '"', "\\"])
SCALARS = st.one_of(st.text(max_size=5), st.integers(-3, 3), st.booleans(), st.none())
TREES = st.recursive(
    SCALARS,
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(NAMES, below, max_size=3)),
    max_leaves=8,
)
STEPS = st.lists(st.one_of(NAMES, st.integers(0, 2)), max_size=3)
MISSING = object()


def written(root: str, steps: list[str | int]) -> str:
    """The steps as CEL; names that are none in brackets."""
    text = root
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step.isidentifier():
            text += f".{step}"
        else:
            text += "['" + step.replace("\\", "\\\\").replace("'", "\\'") + "']"
    return text


def by_cel(source: str, root: str, value: Any) -> Any:
    try:
        return Expression(source).evaluate(cel.Context(variables={root: value}))
    except ExpressionError:
        return MISSING


@given(TREES, STEPS)
def test_a_lookup_is_what_cel_finds(tree: Any, steps: list[str | int]) -> None:
    """But for the index 0 of a text, which is the text: a claim of one value comes either way (S1.16)."""
    source = written("auth", steps)
    lookup = Lookup.of(source)
    assert lookup is not None
    assert lookup.steps == tuple(steps)
    try:
        found = lookup.find(tree)
    except NotThere:
        found = MISSING
    expected = by_cel(source, "auth", tree)
    if expected is MISSING and 0 in steps:
        return
    assert found is expected or (type(found), found) == (type(expected), expected)


@given(TREES, STEPS, st.text(max_size=4))
def test_a_comparison_is_what_cel_says(tree: Any, steps: list[str | int], literal: str) -> None:
    text = "'" + literal.encode("unicode_escape").decode().replace("'", "\\'") + "'"
    source = f"{written('auth', steps)} == {text}"
    comparison = Comparison.of(source)
    if comparison is None:
        return
    try:
        found: Any = comparison.lookup.find(tree) == comparison.literal
    except NotThere:
        found = MISSING
    expected = by_cel(source, "auth", tree)
    if expected is MISSING and 0 in steps:
        return
    assert found == expected


@pytest.mark.parametrize(
    "source",
    ["a.b()", "size(a)", "true", "a ? b : c", "a.b == 'x' && c", "a[b]", "a[-1]", 'a.b == "\\q"', "'a'", "[a]"],
)
def test_everything_else_is_left_to_cel(source: str) -> None:
    assert Lookup.of(source) is None
    assert Comparison.of(source) is None


METADATA = {"envoy.filters.http.jwt_authn": {"principal": {"sub": "alice", "tier": ["free"]}}}


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("metadata.filter_metadata['envoy.filters.http.jwt_authn'].principal.sub", "alice"),
        ("metadata.filter_metadata['envoy.filters.http.jwt_authn'].principal.tier[0]", "free"),
        ("request.headers['x-user']", "bob"),
        ("request.method", "POST"),
        ("request.url_path", "/v1/chat/completions"),
        ("request.host", "trlp.example.com"),
        ("source.address", None),
    ],
)
def test_attributes_without_cel(source: str, value: Any) -> None:
    """S4.6: `metadata` paths are looked up, too."""
    facts = RequestFacts(request_headers({"x-user": "bob"}, metadata=METADATA))
    lookup = Lookup.of(source)
    assert lookup is not None
    get = getter_of(lookup)
    assert get is not None
    assert get(facts) == value
    expression = Expression(source)
    scope = Scope(Attributes(expression.references.members), frozenset(), usage=False)
    assert expression.evaluate(Sight(scope, facts, BodyValues()).context) == value


def test_a_missing_header_is_missing() -> None:
    lookup = Lookup.of("request.headers['x-user']")
    assert lookup is not None
    get = getter_of(lookup)
    assert get is not None
    with pytest.raises(NotThere):
        get(RequestFacts(request_headers()))


def test_one_and_true_are_not_remembered_as_the_same() -> None:
    """`1 == True` in Python; a claim of one kind must not get the answer of another."""
    key = key_of(Lookup("auth", ("identity", "level")))
    keys = set()
    for value in (1, True, 1.5, "1", [1], {"a": 1}, None):
        facts = RequestFacts(request_headers())
        facts.auth = {"identity": {"level": value}}
        keys.add(key(facts))
    assert len(keys) == 7


def test_a_predicate_of_another_kind_is_cel_s() -> None:
    condition = Condition.of(Expression("request.method in ['POST']"))
    assert condition.equality is None
