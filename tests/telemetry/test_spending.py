"""Numbers by user: what a bill, a dashboard and a chargeback rely on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from extproc.telemetry import spending as module
from extproc.telemetry.genai import MAX_MODELS
from extproc.telemetry.metrics import Metrics
from extproc.telemetry.names import OTHER
from extproc.telemetry.spending import Rejection, Spending, label_problem
from extproc.telemetry.spending_metrics import exposition
from extproc.usage.usage import Usage

ROUTE = "llm/simulator-domain-route"
FREE = ("freeuser1", "free")
LABELS = 'user="freeuser1",group="free"'


def usage(prompt: int = 20, completion: int = 10, model: str = "qwen", **more: Any) -> Usage:
    return Usage(prompt, completion, prompt + completion, model=model, source="reported", **more)


def spending(*labels: str, capacity: int = 100, families: Iterable[str] = ()) -> Spending:
    return Spending(labels or ("user", "group"), capacity, families, clock=lambda: 1.0)


def text(counted: Spending, openmetrics: bool = False) -> str:
    return "".join(exposition(counted, openmetrics))


def samples(counted: Spending) -> dict[tuple[Any, ...], float]:
    """Name and labels as they stand in the text to the value; two of the same are refused, as Prometheus does."""
    found: dict[tuple[Any, ...], float] = {}
    for family in parse_openmetrics(text(counted, openmetrics=True) + "# EOF\n"):
        for sample in family.samples:
            key = (sample.name, *sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def total(counted: Spending, name: str, **labels: str) -> float:
    return sum(
        value for (found, *pairs), value in samples(counted).items() if found == name and labels.items() <= set(pairs)
    )


def one_day(counted: Spending) -> Spending:
    """Four answers of 30 tokens, and three refusals."""
    for _ in range(4):
        counted.allowed(FREE, ROUTE)
        counted.used(FREE, ROUTE, usage(cost=7), 30, "openai")
    for _ in range(3):
        counted.refused(FREE, ROUTE, "free-user-tokens")
    return counted


class TestOurNames:
    @pytest.mark.parametrize(
        "line",
        [
            f'tokens_total{{{LABELS},namespace="{ROUTE}",model="qwen",direction="input"}} 80',
            f'tokens_total{{{LABELS},namespace="{ROUTE}",model="qwen",direction="output"}} 40',
            f'charged_tokens_total{{{LABELS},namespace="{ROUTE}"}} 120',
            f'cost_total{{{LABELS},model="qwen"}} 28',
            f'requests_total{{{LABELS},namespace="{ROUTE}",decision="allowed",limit=""}} 4',
            f'requests_total{{{LABELS},namespace="{ROUTE}",decision="refused",limit="free-user-tokens"}} 3',
        ],
    )
    def test_who_spent_what(self, line: str) -> None:
        """S1.20, S1.D6: real labels."""
        assert f"\nextproc_user_{line}\n" in text(one_day(spending()))

    def test_openmetrics_has_the_same_samples(self) -> None:
        """Prometheus asks for OpenMetrics first; the series must not change with it."""
        counted = one_day(spending(families=["maas", "gloo"]))
        ours, theirs = (
            [line for line in text(counted, openmetrics).splitlines() if not line.startswith("#")]
            for openmetrics in (False, True)
        )
        assert ours == theirs
        assert len(samples(counted)) == len(ours) > 15

    def test_types_as_each_format_has_them(self) -> None:
        """OpenMetrics has no counter without `_total`, and leaves it out of the name."""
        counted = spending(families=["maas"])
        assert "# TYPE extproc_user_tokens_total counter\n" in text(counted)
        assert "# TYPE token_usage_with_user_and_group counter\n" in text(counted)
        assert "# TYPE extproc_user_tokens counter\n" in text(counted, openmetrics=True)
        assert "# TYPE token_usage_with_user_and_group unknown\n" in text(counted, openmetrics=True)

    def test_charged_is_what_limits_were_told(self) -> None:
        counted = spending()
        counted.used(FREE, ROUTE, usage(), None)
        assert total(counted, "extproc_user_charged_tokens_total") == 0
        counted.used(FREE, ROUTE, usage(), 7)
        assert total(counted, "extproc_user_charged_tokens_total") == 7
        assert total(counted, "extproc_user_tokens_total") == 60

    def test_without_a_price_there_is_no_cost(self) -> None:
        counted = spending()
        counted.used(FREE, ROUTE, usage(), 30)
        assert "extproc_user_cost_total{" not in text(counted)
        counted.used(FREE, ROUTE, usage(cost=0), 30)
        assert total(counted, "extproc_user_cost_total") == 0
        assert "extproc_user_cost_total{" in text(counted)

    def test_one_model_of_two_providers_is_one_series(self) -> None:
        counted = spending()
        counted.used(FREE, ROUTE, usage(1, 2), 3, "openai")
        counted.used(FREE, ROUTE, usage(10, 20), 30, "azure")
        assert total(counted, "extproc_user_tokens_total", model="qwen", direction="output") == 22

    @pytest.mark.parametrize("reason", get_args(Rejection))
    def test_rejections_start_at_zero_and_move_alone(self, reason: Rejection) -> None:
        counted = spending()
        counted.rejected(reason)
        for other in get_args(Rejection):
            assert total(counted, "extproc_rejections_total", reason=other) == (other == reason)

    def test_without_labels_there_is_one_user(self) -> None:
        counted = Spending((), 10)
        counted.allowed((), ROUTE)
        assert f'extproc_user_requests_total{{namespace="{ROUTE}",decision="allowed",limit=""}} 1\n' in text(counted)


class TestNamesOfOthers:
    @pytest.mark.parametrize(
        "line",
        [
            f'token_usage_with_user_and_group{{user="freeuser1",group="free",namespace="{ROUTE}"}} 120',
            f'authorized_calls_with_user_and_group{{user="freeuser1",group="free",namespace="{ROUTE}"}} 4',
            f'limited_calls_with_user_and_group{{user="freeuser1",group="free",namespace="{ROUTE}"}} 3',
            "token_usage_total 120",
        ],
    )
    def test_models_as_a_service(self, line: str) -> None:
        """S1.20, to the letter."""
        assert f"\n{line}\n" in text(one_day(spending(families=["maas"])))
        assert line.split(" ")[0] not in text(one_day(spending()))

    def test_a_bill_of_two_tiers(self) -> None:
        """S1.20: what `sum(...{group="premium"})*0.008 + sum(...{group="free"})*0.005` adds up."""
        counted = one_day(spending(families=["maas"]))
        counted.used(("premiumuser1", "premium"), ROUTE, usage(900, 100), 1000)
        premium, free = (
            total(counted, "token_usage_with_user_and_group", group=group) for group in ("premium", "free")
        )
        assert premium * 0.008 + free * 0.005 == pytest.approx(8.6)

    def test_models_as_a_service_with_other_labels(self) -> None:
        counted = spending("team", "user", families=["maas"])
        counted.allowed(("red", "ann"), "ns")
        line = 'authorized_calls_with_user_and_group{user="ann",group="",namespace="ns",team="red"} 1'
        assert f"\n{line}\n" in text(counted)

    def test_gloo(self) -> None:
        """S4.12: Alice's one call."""
        counted = spending("team", "org", "id", families=["gloo"])
        alice = ("dev", "solo.io", "alice")
        counted.used(alice, "ai", usage(59, 26, "qwen:0.5b"), 85, "openai")
        counted.used(alice, "ai", Usage(model="qwen:0.5b", ending="error"), None, "openai")
        labels = 'llm="openai",model="qwen:0.5b",team="dev",org="solo.io",id="alice"'
        page = text(counted)
        for name, value in (
            ("ai_prompt_tokens_total", 59),
            ("ai_completion_tokens_total", 26),
            ("ai_rate_limited_tokens_total", 85),
            ("ai_exception_raised_total", 1),
        ):
            assert f"\n{name}{{{labels}}} {value}\n" in page


WHO = st.tuples(st.text("ab\n(other)", max_size=3), st.sampled_from(["free", "premium", OTHER]))
NAMESPACE = st.sampled_from(["one", "two\x00", 'th"ree'])
EVENT = st.one_of(
    st.tuples(st.just("allowed"), WHO, NAMESPACE),
    st.tuples(st.just("refused"), WHO, NAMESPACE, st.sampled_from(["", "minute", "day\t"])),
    st.tuples(st.just("used"), WHO, NAMESPACE, st.integers(0, 2**32), st.integers(0, 99), st.sampled_from("abcd\x01")),
    st.tuples(st.just("reconfigured"), st.sampled_from([("user", "group"), ("group", "user")]), st.integers(1, 6)),
)


class TestSums:
    @given(st.lists(EVENT, max_size=60), st.integers(1, 5))
    def test_nothing_is_lost_whatever_the_bounds(self, events: list[Any], capacity: int) -> None:
        """Every number that was put in is in exactly one series, however many users there are for how many places."""
        counted = spending(capacity=capacity, families=["maas", "gloo"])
        put: Counter[str] = Counter()
        for kind, *event in events:
            if kind == "allowed":
                counted.allowed(*event)
            elif kind == "refused":
                counted.refused(*event)
            elif kind == "reconfigured":
                counted.reconfigure(*event, families=["maas", "gloo"])
            else:
                who, namespace, prompt, completion, model = event
                counted.used(who, namespace, usage(prompt, completion, model, cost=3), completion, "p")
                put.update(input=prompt, output=completion, answers=1)
            put[kind] += 1
            assert counted.told_apart <= counted.capacity
        sums: Counter[str] = Counter()
        for (name, *pairs), value in samples(counted).items():
            labels = dict(pairs)
            sums[name + labels.get("direction", "") + labels.get("decision", "")] += int(value)
        for name, expected in {
            "extproc_user_tokens_totalinput": put["input"],
            "extproc_user_tokens_totaloutput": put["output"],
            "extproc_user_charged_tokens_total": put["output"],
            "extproc_user_cost_total": 3 * put["answers"],
            "extproc_user_requests_totalallowed": put["allowed"],
            "extproc_user_requests_totalrefused": put["refused"],
            "token_usage_with_user_and_group": put["input"] + put["output"],
            "token_usage_total": put["input"] + put["output"],
            "authorized_calls_with_user_and_group": put["allowed"],
            "limited_calls_with_user_and_group": put["refused"],
            "ai_prompt_tokens_total": put["input"],
            "ai_completion_tokens_total": put["output"],
            "ai_rate_limited_tokens_total": put["output"],
        }.items():
            assert sums[name] == expected, name


class TestBounds:
    def test_first_come(self) -> None:
        """S1.D6: those who were there stay apart, all others are one."""
        counted = spending("user", capacity=2)
        for user in ("ann", "bob", "eve", "mallory", "ann", "eve"):
            counted.allowed((user,), "ns")
        found = [total(counted, "extproc_user_requests_total", user=user) for user in ("ann", "bob", "eve", OTHER)]
        assert found == [2, 1, 0, 3]
        assert total(counted, "extproc_users") == total(counted, "extproc_users_max") == 2

    def test_many_models_of_many_users(self) -> None:
        """S4.D8: clients choose both."""
        counted = spending("user", capacity=20)
        for user in range(20):
            for model in range(300):
                counted.used((str(user),), "ns", usage(1, 0, f"model-{model}"), None)
        found = [key for key in samples(counted) if key[0] == "extproc_user_tokens_total"]
        assert len(found) / 2 <= 20 * module.MODELS_PER_USER + 20
        assert len({dict(key[1:])["model"] for key in found}) <= MAX_MODELS + 1
        assert total(counted, "extproc_user_tokens_total", direction="input") == 6000

    def test_namespaces_and_limits_of_reloads(self) -> None:
        counted = spending("user")
        for number in range(module.MAX_LIMITS + 10):
            counted.refused(("ann",), f"ns-{number}", f"limit-{number}")
        found = [dict(key[1:]) for key in samples(counted) if key[0] == "extproc_user_requests_total"]
        refused = [labels for labels in found if labels["decision"] == "refused"]
        assert len({labels["namespace"] for labels in refused}) == module.MAX_NAMESPACES + 1
        assert len({labels["limit"] for labels in refused}) == module.MAX_LIMITS + 1
        assert total(counted, "extproc_user_requests_total", limit=OTHER) == 10

    def test_hostile_names_are_shown_and_cut(self) -> None:
        counted = spending("user")
        for name in ('a"b\\c', "line\nbreak\x1b[31m", "\ud800", "x" * 1000, "‮evil"):
            counted.allowed((name,), "ns")
        users = {dict(key[1:])["user"] for key in samples(counted) if key[0] == "extproc_user_requests_total"}
        assert users == {'a"b\\c', "line?break?[31m", "?", "x" * 128, "?evil"}

    def test_names_that_look_the_same_are_one(self) -> None:
        """Two series of the same name would cost the whole page."""
        counted = spending("user")
        counted.allowed(("a\n",), "n\x00")
        counted.allowed(("a\t",), "n\x01")
        assert total(counted, "extproc_user_requests_total", user="a?", namespace="n?") == 2

    def test_a_user_called_other_gets_no_place(self) -> None:
        counted = spending("user", capacity=1)
        counted.allowed((OTHER,), "ns")
        counted.allowed(("ann",), "ns")
        counted.allowed(("bob",), "ns")
        assert total(counted, "extproc_user_requests_total", user=OTHER) == 2
        assert total(counted, "extproc_user_requests_total", user="ann") == 1


class TestReconfiguring:
    def test_same_labels_keep_everything(self) -> None:
        counted = one_day(spending())
        before = samples(counted)
        counted.reconfigure(("user", "group"), 100)
        assert samples(counted) == before

    def test_a_label_less_adds_users_up(self) -> None:
        counted = one_day(spending())
        counted.used(("freeuser2", "free"), ROUTE, usage(), 30)
        counted.reconfigure(("group",), 100)
        assert total(counted, "extproc_user_tokens_total", group="free") == 150
        assert total(counted, "extproc_users") == 1

    def test_a_new_label_begins_anew_but_refusals_and_rejections_stay(self) -> None:
        counted = one_day(spending())
        counted.rejected("unauthorized")
        counted.reconfigure(("user", "team"), 100)
        assert total(counted, "extproc_user_tokens_total") == 0
        assert total(counted, "extproc_rejections_total") == 1
        assert counted.refusals == {(ROUTE, "free-user-tokens"): 3}

    def test_less_room_folds_the_last_ones(self) -> None:
        counted = spending("user", capacity=3)
        for user in ("ann", "bob", "eve"):
            counted.allowed((user,), "ns")
        counted.reconfigure(("user",), 1)
        assert total(counted, "extproc_user_requests_total", user="ann") == 1
        assert total(counted, "extproc_user_requests_total", user=OTHER) == 2

    def test_a_request_that_began_under_other_labels_fails_nothing(self) -> None:
        counted = spending("user")
        counted.reconfigure(("user", "team"), 100)
        counted.allowed(("ann",), "ns")
        counted.used(("ann",), "ns", usage(), 30)
        assert total(counted, "extproc_user_requests_total", user=OTHER, team=OTHER) == 1

    def test_families_come_and_go(self) -> None:
        counted = one_day(spending())
        counted.reconfigure(("user", "group"), 100, families=["maas"])
        assert "\ntoken_usage_total 120\n" in text(counted)
        counted.reconfigure(("user", "group"), 100)
        assert "token_usage_total" not in text(counted)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("user", "group", "x_1"), None),
        ((), None),
        (("a-b",), "`a-b` cannot be the name of a label"),
        (("1a",), "`1a` cannot be"),
        (("__a",), "`__a` cannot be"),
        (("é",), "`é` cannot be"),
        (("user", "model"), "`model` is a label of the metrics already"),
        (("user", "user"), "`user` is there twice"),
    ],
)
def test_label_names(names: tuple[str, ...], problem: str | None) -> None:
    found = label_problem(names)
    assert (found is None) if problem is None else (found or "").startswith(problem)


async def test_a_page_with_many_users_gives_others_their_turn() -> None:
    """Prometheus must not hold up requests: no piece of work lasts as long as the whole."""
    counted = spending("user", capacity=5000)
    for user in range(5000):
        counted.used((str(user),), "ns", usage(), 30)
    metrics = Metrics(spending=counted)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(others())
    page, content_type = await metrics.page()
    task.cancel()
    assert turns > 50
    assert text(counted) in page.decode()
    assert content_type == metrics.render()[1]
