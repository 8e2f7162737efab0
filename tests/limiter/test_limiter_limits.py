"""Which counters a call touches."""

from __future__ import annotations

import logging
import tracemalloc

import pytest

from extproc.config.model import Limit
from extproc.limiter.limits import InvalidLimit, LimitSet
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
]


@pytest.mark.parametrize(("conditions", "applies"), CONDITIONS)
def test_every_condition_must_hold(make, conditions: list[str], applies: bool) -> None:
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
    ({"seconds": 61}, True),
    ({"namespace": "domain-b"}, True),
    ({"conditions": ["descriptors[0].a == '1'"]}, True),
    ({"variables": ["descriptors[0].user"]}, True),
]


@pytest.mark.parametrize(("fields", "another"), IDENTITIES)
def test_identity_of_a_limit(make, fields: dict, another: bool) -> None:
    """Limitador: namespace, seconds, conditions and variables; of equal ones the last counts."""
    first = {
        "max_value": 5,
        "name": "first",
        "conditions": ["descriptors[0].a == '1'", "descriptors[0].b == '1'"],
    }
    limits = make.limits(make.limit(**first), make.limit(**(first | fields)))
    assert len(limits.limits) == (2 if another else 1)
    assert limits.limits[-1].max_value == fields.get("max_value", 5)
    assert limits.warnings == (
        () if another else ("limits[1] replaces limits[0]: namespace, seconds, conditions and variables are the same",)
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


def test_repeated_calls_are_answered_from_a_bounded_memory(make) -> None:
    limits = LimitSet([make.limit(variables=["descriptors[0].user"])], memo_size=2)
    alice = limits.counters("domain-a", ((("user", "alice"),),))
    assert limits.counters("domain-a", ((("user", "alice"),),)) is alice
    for user in ("bob", "carol"):
        limits.counters("domain-a", ((("user", user),),))
    assert limits.counters("domain-a", ((("user", "alice"),),)) is not alice


def test_long_values_cost_no_memory_and_stay_distinct() -> None:
    """Clients may choose descriptor values: they are neither remembered nor kept, and still told apart."""
    limits = LimitSet([Limit(namespace="d", max_value=1, seconds=60, variables=["descriptors[0]['user']"])])
    tracemalloc.start()
    found = {limits.counters("d", ((("user", f"{number}" + "x" * 100_000),),))[0][1] for number in range(300)}
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(found) == 300
    assert kept < 1_000_000
