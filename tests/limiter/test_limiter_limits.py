"""Which counters a call touches."""

from __future__ import annotations

import logging
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.config.model import Limit
from extproc.limiter.limits import InvalidLimit, LimitSet
from extproc.limiter.matching import context_of
from extproc.limiter.seam import Descriptor


def values(limits: LimitSet, *descriptors: Descriptor, domain: str = "domain-a"):
    return [found for _, found in limits.counters(domain, descriptors)]


A = (("a", "1"), ("user", "alice"), ("n", "5"))

CONDITIONS = [
    # conditions, applies
    ([], True),
    (["descriptors[0]['a'] == '1'"], True),
    (["descriptors[0].a == '1'"], True),
    (["descriptors[0]['a'] == '2'"], False),
    (["descriptors[0]['a'] == '1'", "descriptors[0]['user'] == 'alice'"], True),
    (["descriptors[0]['a'] == '1'", "descriptors[0]['user'] == 'bob'"], False),
    (["descriptors[0]['missing'] == '1'"], False),
    (["'missing' in descriptors[0]"], False),
    (["descriptors.exists(d, d['a'] == '1')"], True),
    (["int(descriptors[0]['n']) > 4"], True),
    (["limit.name == 'per-user'"], True),
    (["limit.id == 'other'"], False),
    (["descriptors[0]['a'][0] == '1'"], None),
    (["descriptors['a'] == '1'"], None),
    (["descriptors[0] == '1'"], False),
    (["descriptors[0]['a'] == 1"], None),
    (["'1' == descriptors[0]['a']"], True),
    (["descriptors[0]['a'] == '\\x31'"], True),
    ([" descriptors [ 0 ] [ \"a\" ]\n== '1' "], True),
]


@pytest.mark.parametrize(("conditions", "applies"), CONDITIONS)
def test_every_condition_must_hold(make, conditions: list[str], applies: bool | None) -> None:
    """None: it fails, as CEL has it, which knows no texts that can be indexed."""
    limits = make.limits(make.limit(name="per-user", id="one", conditions=conditions))
    assert values(limits, A) == ([()] if applies else [])


def test_a_counter_for_each_distinct_value_of_the_variables(make) -> None:
    limits = make.limits(make.limit(variables=["descriptors[0]['user']", "int(descriptors[0]['n']) * 2"]))
    assert [v.source for v in limits.limits[0].variables] == [
        "descriptors[0]['user']",
        "int(descriptors[0]['n']) * 2",
    ]
    assert values(limits, A) == [("alice", "10")]


def test_a_limit_whose_variable_is_not_among_the_descriptors_does_not_apply(make, caplog) -> None:
    """As in Limitador; it is ordinary life, so nothing is logged."""
    limits = make.limits(make.limit(variables=["descriptors[0]['tenant']"]), make.limit(seconds=3600))
    assert values(limits, A) == [()]
    assert caplog.records == []


def test_only_limits_of_the_domain(make) -> None:
    limits = make.limits(make.limit(), make.limit(namespace="domain-b"))
    assert [limit.identity.namespace for limit, _ in limits.counters("domain-b", (A,))] == ["domain-b"]
    assert limits.counters("domain-c", (A,)) == ()


BROKEN = [
    "descriptors[1]['a'] == '1'",
    "int(descriptors[0]['user']) > 1",
    "descriptors[0]['n'] + 1 == 6",
    "1 / 0 == 1",
    "'not a bool'",
]


@pytest.mark.parametrize("condition", BROKEN)
def test_a_failing_limit_is_skipped_and_logged_once(make, caplog, condition: str) -> None:
    """Limitador panics here; one broken limit must not take the others with it."""
    limits = make.limits(make.limit(name="broken", conditions=[condition]), make.limit(seconds=5))
    with caplog.at_level(logging.WARNING):
        for turn in range(3):
            assert values(limits, (*A, ("turn", str(turn)))) == [()]
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == 1
    assert "limit 'broken' of namespace 'domain-a'" in logged[0]


def test_text_that_is_not_utf8_is_no_way_around_a_limit(make) -> None:
    """A header byte that is not UTF-8 arrives as a lone surrogate."""
    limits = make.limits(make.limit(variables=["descriptors[0]['user']"]))
    assert values(limits, (("user", "al\udcffice"),)) == [("al?ice",)]


IDENTITIES = [
    # fields of the second limit, is it another limit?
    ({"max_value": 7}, False),
    ({"name": "another"}, False),
    ({"id": "another"}, False),
    ({"conditions": ["descriptors[0].b == '1'", "descriptors[0].a == '1'"]}, False),
    ({"seconds": 59}, True),
    ({"algorithm": "fixed"}, False),
    ({"algorithm": "gcra"}, True),
    ({"seconds": None, "calendar": "minute"}, True),
    ({"namespace": "domain-b"}, True),
    ({"conditions": ["descriptors[0].a == '1'"]}, True),
    ({"variables": ["descriptors[0].user"]}, True),
]


@pytest.mark.parametrize(("fields", "another"), IDENTITIES)
def test_identity_of_a_limit(make, fields: dict, another: bool) -> None:
    """Limitador: namespace, window, conditions and variables; of equal ones the last counts."""
    first = {
        "max_value": 5,
        "name": "first",
        "conditions": ["descriptors[0].a == '1'", "descriptors[0].b == '1'"],
    }
    limits = make.limits(make.limit(**first), make.limit(**(first | fields)))
    assert len(limits.limits) == (2 if another else 1)
    assert limits.limits[-1].max_value == fields.get("max_value", 5)
    replaced = [warning for warning in limits.warnings if "replaces" in warning]
    assert replaced == (
        [] if another else ["limits[1] replaces limits[0]: namespace, window, conditions and variables are the same"]
    )


INVALID = [
    ({"conditions": ["true", "descriptors[0"]}, r"^limits\[1\]\.conditions\[1\]: "),
    ({"variables": ["nosuch(1)"]}, r"^limits\[1\]\.variables\[0\]: unknown function `nosuch`"),
    ({"variables": ["user_id"]}, r"^limits\[1\]\.variables\[0\]: unknown variable `user_id`"),
]


@pytest.mark.parametrize(("fields", "message"), INVALID)
def test_an_expression_that_cannot_work_is_an_error_with_its_place(make, fields: dict, message: str) -> None:
    with pytest.raises(InvalidLimit, match=message):
        make.limits(make.limit(), make.limit(**fields))


CALENDARS = [
    # fields of two limits, are they one?
    ({"calendar": "day"}, {"calendar": "day", "time_zone": "UTC"}, True),
    ({"calendar": "day"}, {"calendar": "day", "time_zone": "Asia/Tokyo"}, False),
    ({"calendar": "day"}, {"calendar": "week"}, False),
    ({"calendar": "day"}, {"seconds": 86_400}, False),
]


@pytest.mark.parametrize(("one", "other", "same"), CALENDARS)
def test_a_calendar_and_its_zone_belong_to_the_identity(one: dict, other: dict, same: bool) -> None:
    limits = LimitSet(Limit(namespace="d", max_value=5 + n, **fields) for n, fields in enumerate([one, other]))
    assert len(limits.limits) == (1 if same else 2)


def limit(maximum: int, seconds: int = 60, **fields) -> Limit:
    return Limit(namespace=fields.pop("namespace", "d"), max_value=maximum, seconds=seconds, **fields)


USER = {"variables": ["descriptors[0].user"]}
FREE = {"conditions": ["descriptors[0].tier == 'free'"]}
ZERO = "limits[0].max_value: 0 refuses every call that the limit applies to"
NEEDLESS = "limits[{}] hardly ever matters: limits[{}] allows the same calls no more than {} in a longer window"
DOUBTS = [
    ([limit(0)], [ZERO]),
    ([limit(1)], []),
    ([limit(150), limit(300, 3600), limit(800, 86_400)], []),
    ([limit(150), limit(150, 3600)], [NEEDLESS.format(0, 1, 150)]),
    ([limit(800, 86_400), limit(1_000, 3600)], [NEEDLESS.format(1, 0, 800)]),
    ([limit(150), limit(100, 3600), limit(90, 7200)], [NEEDLESS.format(0, 1, 100), NEEDLESS.format(1, 2, 90)]),
    ([limit(150), Limit(namespace="d", max_value=100, calendar="day")], [NEEDLESS.format(0, 1, 100)]),
    ([limit(150), limit(100, 3600, **USER)], []),
    ([limit(150, **USER), limit(100, 3600, **USER)], [NEEDLESS.format(0, 1, 100)]),
    ([limit(150, **FREE), limit(100, 3600)], []),
    ([limit(150), limit(100, 3600, namespace="e")], []),
]


@pytest.mark.parametrize(("limits", "warnings"), DOUBTS)
def test_limits_that_are_hardly_meant_are_told(limits: list[Limit], warnings: list[str]) -> None:
    """A limit of 0, and a window that a longer one with the same maximum makes needless."""
    assert list(LimitSet(limits).warnings) == warnings


PLAIN = [
    "descriptors[0]['a'] == '1'",
    'descriptors[0]["a"] == "1"',
    "descriptors[0].a == ''",
    "descriptors[1]['b'] == 'é'",
    "descriptors[0]['?'] == '1'",
    "descriptors[0]['a'] == '?'",
    "descriptors[0].b == '1'",
]
VARIABLES = ["descriptors[0]['a']", "descriptors[0].b", "descriptors[1]['a']", "descriptors[0]['?']"]
texts = st.sampled_from(["1", "", "?", "é", "\ud800", "\0", "1\ud8001", "x" * 257, "é" * 257]) | st.text(max_size=3)
entries = st.lists(st.tuples(st.sampled_from(["a", "b", "?", "\ud800"]), texts), max_size=4).map(tuple)
calls = st.lists(entries, max_size=3).map(tuple)
lists = st.lists(
    st.tuples(st.lists(st.sampled_from(PLAIN), max_size=2), st.lists(st.sampled_from(VARIABLES), max_size=2)),
    min_size=1,
    max_size=4,
)


def by_cel(source: str, condition: bool) -> str:
    """The same to CEL, and no lookup."""
    return f"({source}) && true" if condition else f"({source})"


@settings(deadline=None, max_examples=400)
@given(lists, calls)
def test_what_needs_no_cel_is_decided_as_cel_would(sources: list, descriptors: tuple) -> None:
    """Keys that are missing or come twice, odd characters, texts that are no text: the same counters."""

    def compiled(translate) -> LimitSet:
        return LimitSet(
            Limit(
                namespace="d",
                max_value=1,
                seconds=1 + number,
                conditions=[translate(condition, True) for condition in conditions],
                variables=[translate(variable, False) for variable in variables],
            )
            for number, (conditions, variables) in enumerate(sources)
        )

    def counters(limits: LimitSet) -> list:
        return [(limit.window.seconds, values) for limit, values in limits.counters("d", descriptors)]

    with_cel = compiled(by_cel)
    assert all(group.matcher.needs_cel for group in with_cel.groups if group.limits[0].identity[2:] != ((), ()))
    assert counters(compiled(lambda source, _: source)) == counters(with_cel)


def test_repeated_calls_that_need_cel_are_answered_from_a_bounded_memory(make, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("extproc.limiter.limits.context_of", lambda calls: asked.append(calls) or context_of(calls))
    limits = LimitSet([make.limit(variables=["descriptors[0].user + '!'"])], memo_size=2)
    users = ["alice", "alice", "bob", "carol", "carol", "alice"]
    found = [limits.counters("domain-a", ((("user", user),),))[0][1] for user in users]
    assert found == [(user + "!",) for user in users]
    assert [call[0][0][1] for call in asked] == ["alice", "bob", "carol", "alice"]


def test_limits_that_only_look_need_neither_cel_nor_memory(make, monkeypatch) -> None:
    """So that their cost does not grow with the number of users."""
    monkeypatch.setattr("extproc.limiter.limits.context_of", pytest.fail)
    conditions = ["descriptors[0]['tier'] == 'free'"]
    limits = LimitSet([make.limit(conditions=conditions, variables=["descriptors[0].user"])], memo_size=0)
    assert values(limits, (("tier", "free"), ("user", "alice"))) == [("alice",)]
    assert values(limits, (("tier", "free"),)) == []
    assert values(limits, (("tier", "premium"), ("user", "alice"))) == []


def test_long_values_cost_no_memory_and_stay_distinct() -> None:
    """Clients may choose descriptor values: they are neither remembered nor kept, and still told apart."""
    limits = LimitSet([Limit(namespace="d", max_value=1, seconds=60, variables=["descriptors[0]['user']"])])
    tracemalloc.start()
    found = {limits.counters("d", ((("user", f"{number}" + "x" * 100_000),),))[0][1] for number in range(300)}
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(found) == 300
    assert kept < 1_000_000
