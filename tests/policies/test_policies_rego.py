"""The Rego that is understood, compared with what it means, and all other Rego, which is refused."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import cel
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from extproc.expressions.functions import LIBRARY
from extproc.expressions.program import Expression, ExpressionError
from extproc.policies.cel_text import Unsupported, check_caller_expression
from extproc.policies.rego import rego_as_cel

OBJECT_GET = 'groups := split(object.get(input.auth.identity.metadata.annotations, "kuadrant.io/groups", ""), ",")\n'
REFERENCE = 'groups := split(input.auth.identity.metadata.annotations["kuadrant.io/groups"], ",")'
TIERS = '{"free", "premium", "enterprise"}'
THREE_TIERS = [
    OBJECT_GET
    + 'allow { groups[_] == "free" }\nallow { groups[_] == "premium" }\nallow { groups[_] == "enterprise" }\n',
    f"{REFERENCE}\nallowed := {TIERS}\ndefault allow = false\nallow {{ groups[_] == allowed[_] }}",
    f"allow {{ {REFERENCE}; allowed := {TIERS}; allowed[groups[_]] }}",
    f"# who may\nallow if {{\n  {REFERENCE}\n  allowed := {TIERS} # tiers\n\n  groups[_] == allowed[_]\n}}\n",
]
ALWAYS = ["allow = true", "allow := true", "allow { true }", "default allow = true", "allow { true }\nallow { false }"]
NEVER = ["", "allow { false }", "default allow = false", "# nothing"]


def allowed(rego: str, identity: dict[str, Any]) -> Any:
    source = rego_as_cel(rego)
    check_caller_expression(source)
    context = cel.Context(variables={"auth": {"identity": identity}}, functions=dict(LIBRARY))
    return Expression(source).evaluate(context)


def with_groups(groups: str) -> dict[str, Any]:
    return {"metadata": {"annotations": {"kuadrant.io/groups": groups}}}


@pytest.mark.parametrize("rego", THREE_TIERS)
@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        (with_groups("free"), True),
        (with_groups("beta,premium"), True),
        (with_groups("enterprise,free"), True),
        (with_groups(""), False),
        (with_groups("freeloader"), False),
        (with_groups("Free"), False),
        ({"metadata": {"annotations": {}}}, False),
        ({"metadata": {}}, False),
        ({}, False),
    ],
)
def test_three_tiers(rego: str, identity: dict[str, Any], expected: bool) -> None:
    """S1.5: a key whose groups have none of the tiers gets nowhere."""
    assert allowed(rego, identity) is expected


@pytest.mark.parametrize("rego", ALWAYS)
def test_everybody(rego: str) -> None:
    assert rego_as_cel(rego) == "true"


@pytest.mark.parametrize("rego", NEVER)
def test_nobody(rego: str) -> None:
    assert rego_as_cel(rego) == "false"


def test_a_text_of_the_identity_and_several_conditions() -> None:
    rego = f'{OBJECT_GET}allow {{ input.auth.identity.org == "solo.io"; groups[_] == "free" }}'
    assert allowed(rego, with_groups("free") | {"org": "solo.io"}) is True
    assert allowed(rego, with_groups("free") | {"org": "other"}) is False
    assert allowed(rego, with_groups("free")) is False


@pytest.mark.parametrize(
    ("rego", "line", "what"),
    [
        ("allow { not blocked }", 1, "`not`"),
        (OBJECT_GET + "allow { count(groups) > 0 }", 2, "`count`"),
        ('allow { input.context.request.http.method == "GET" }', 1, "`input.context.request.http.method`"),
        ("allow { input.auth.metadata.x }", 1, "`input.auth.metadata.x`"),
        ('package x\nallow { true }', 1, "`package`"),
        ('allow { true }\ndeny { true }', 2, "`deny`"),
        ('allow { groups[_] == "free" }', 1, "`groups`"),
        (OBJECT_GET + 'allow { groups[0] == "free" }', 2, "`groups`"),
        (OBJECT_GET + 'allow { groups[_] != "free" }', 2, "`!`"),
        ("allow { true } allow { true }", 1, "`allow`"),
        ("allow { true", 1, "the end of the line"),
        ("allow { }", 1, "`}`"),
        ("allow", 1, "the end of the line"),
        ("allow = maybe", 1, "`maybe`"),
        ("default deny = true", 1, "`deny`"),
        ('allow { true } else = false { true }', 1, "`else`"),
        ('allow { x := "\\u0041"; x == "A" }', 1, '`"`'),
        ('allow := true if { false }', 1, "`if`"),
        (OBJECT_GET + 'allow {\n tiers := ["free"]\n tiers[groups[_]] }', 4, "`tiers`"),
        ('allow { g := split(input.auth.identity.g, ""); g[_] == "a" }', 1, '`""`'),
        ('in := "a"\nallow { true }', 1, "`in`"),
    ],
)  # fmt: skip
def test_other_rego_is_refused_with_its_line(rego: str, line: int, what: str) -> None:
    with pytest.raises(Unsupported) as caught:
        rego_as_cel(rego)
    assert str(caught.value).startswith(f"line {line}: {what} is not understood; write `patternMatching`")


ORG = "input.auth.identity.org"
ROLE = 'object.get(input.auth.identity.metadata.annotations, "role", "admin")'


@pytest.mark.parametrize(
    ("rego", "identity", "expected"),
    [
        (f'allow {{ {ORG} == "" }}', {}, False),
        (f'allow {{ {ORG} == "" }}', {"org": None}, False),
        (f'allow {{ {ORG} == "" }}', {"org": ""}, True),
        (f'allow {{ "" == {ORG} }}', {}, False),
        (f"allow {{ {ORG} == input.auth.identity.metadata.labels.org }}", {}, False),
        (f"allow {{ {ORG} == input.auth.identity.metadata.labels.org }}", {"metadata": {"labels": {}}}, False),
        (f"allow {{ {ORG} == {ORG} }}", {}, False),
        (f"allow {{ {ORG} == {ORG} }}", {"org": 5}, True),
        (f"allow {{ org := {ORG}; true }}", {}, False),
        (f"allow {{ org := {ORG}; true }}", {"org": "a"}, True),
        (f"org := {ORG}\nallow {{ true }}", {}, True),
        (f'allow {{ {ORG} == "" }}\nallow {{ input.auth.identity.plan == "x" }}', {"plan": "x"}, True),
        (f'g := split({ORG}, ",")\nallow {{ g[_] == "" }}', {}, False),
        (f'g := split({ORG}, ",")\nallow {{ h := g; h[_] == "" }}', {}, False),
        (f'g := split({ORG}, ",")\nallow {{ g[_] == "" }}', {"org": ""}, True),
        (f'g := split({ORG}, ",")\nt := {{"free", ""}}\nallow {{ t[g[_]] }}', {}, False),
        (f'g := split({ORG}, ",")\nt := {{"free", ""}}\nallow {{ g[_] == t[_] }}', {}, False),
        (f'g := split("a", ",")\nallow {{ g[_] == {ORG} }}', {}, False),
        (f'allow {{ {ROLE} == "admin" }}', {"metadata": {"annotations": {"a": "b"}}}, True),
        (f'allow {{ {ROLE} == "admin" }}', {"metadata": {"annotations": {"role": None}}}, False),
        (f'allow {{ {ROLE} == "admin" }}', {"metadata": {"annotations": {}}}, False),
        (f'allow {{ {ROLE} == "admin" }}', {"metadata": {}}, False),
        (f'allow {{ {ROLE} == "admin" }}', {}, False),
    ],
)
def test_what_is_missing_has_no_value(rego: str, identity: dict[str, Any], expected: bool) -> None:
    """As in Rego, where a rule does not allow in which something is undefined; null is a value."""
    assert allowed(rego, identity) is expected


@pytest.mark.parametrize("found", [None, 5, 1.5, True, ["free"], {"free": 1}, {"free": "free"}])
@pytest.mark.parametrize(
    "rego",
    [
        f'allow {{ {ORG} == "free" }}',
        f'g := split({ORG}, ",")\nallow {{ g[_] == "free" }}',
        f'g := split({ORG}, ",")\nt := {{"free", ""}}\nallow {{ t[g[_]] }}',
        f'allow {{ {ORG}.plan == "free" }}',
        f'allow {{ {ORG}["a/b"] == "free" }}',
        f'allow {{ object.get({ORG}, "role", "free") == "x" }}',
    ],
)
def test_what_is_no_text_allows_nobody(rego: str, found: Any) -> None:
    """What has no value is refused as well."""
    with suppress(ExpressionError):
        assert allowed(rego, {"org": found}) is False


@pytest.mark.parametrize("found", [None, 5, "admin", ["a/b"], []])
def test_object_get_looks_into_objects_only(found: Any) -> None:
    rego = f'allow {{ object.get({ORG}, "a/b", "admin") == "admin" }}'
    with suppress(ExpressionError):
        assert allowed(rego, {"org": found}) is False


@pytest.mark.parametrize(
    ("rego", "problem"),
    [
        ("default allow = true\nallow = false", "line 2: `allow = false` contradicts every rule that allows; write"),
        ("allow { true }\n\nallow := false", "line 3: `allow = false` contradicts every rule that allows; write"),
        ("default allow = true\ndefault allow = false", "line 2: `default allow` is given a second time"),
        ('x := "a"\nx := "b"\nallow { true }', "line 2: `x` is defined a second time"),
        ('x := "a"\nallow { x := "b"; true }', "line 2: `x` is defined a second time"),
        ('allow {\nx := "a"\nx := "a"\ntrue }', "line 3: `x` is defined a second time"),
    ],
)
def test_what_contradicts_itself_is_refused_with_its_line(rego: str, problem: str) -> None:
    with pytest.raises(Unsupported) as caught:
        rego_as_cel(rego)
    assert str(caught.value).startswith(problem)


def test_rules_may_use_the_same_names() -> None:
    rego = 'allow { x := "a"; input.auth.identity.org == x }\nallow { x := "b"; input.auth.identity.org == x }'
    assert [allowed(rego, {"org": org}) for org in "abc"] == [True, True, False]


WORDS = ["allow", "{", "}", "true", "groups", "[_]", "==", ":=", '"free"', "\n", ";", "input.auth.identity.x", "if"]


@settings(deadline=None)
@example("allow")
@given(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join) | st.text(max_size=30))
def test_any_text_is_cel_or_refused(rego: str) -> None:
    try:
        source = rego_as_cel(rego)
    except Unsupported:
        return
    check_caller_expression(source)
