"""What /metrics says of the embedded limiter: Limitador's own counters, and how near limits are to their end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from extproc.telemetry import nearness
from extproc.telemetry.metrics import Metrics
from extproc.telemetry.names import OTHER
from extproc.telemetry.nearness import LimitUse, LimitWatch
from extproc.telemetry.paced import FRESH, SHARE, Paced

ROUTE = "llm/simulator-domain-route"
OPENMETRICS = "application/openmetrics-text;version=1.0.0"


def tally(**counts: Any) -> Any:
    return SimpleNamespace(**{"authorized_calls": {}, "limited_calls": {}, "authorized_hits": {}, **counts})


def use(used: int, maximum: int = 100, limit: str = "minute", value: str = "ann") -> LimitUse:
    return LimitUse("ns", limit, (value,), used, maximum, 30.0, 60)


class TestTally:
    COUNTS = tally(
        authorized_calls={ROUTE: 100},
        limited_calls={(ROUTE, "free"): 4, (ROUTE, "premium"): 12, ("other", ""): 1},
        authorized_hits={ROUTE: 3000},
    )

    @pytest.mark.parametrize(
        "line",
        [
            f'authorized_calls{{limitador_namespace="{ROUTE}"}} 100',
            f'limited_calls{{limitador_namespace="{ROUTE}"}} 16',
            'limited_calls{limitador_namespace="other"} 1',
            f'authorized_hits{{limitador_namespace="{ROUTE}"}} 3000',
            f'extproc_limit_refusals_total{{namespace="{ROUTE}",limit="premium"}} 12',
            'extproc_limit_refusals_total{namespace="other",limit=""} 1',
        ],
    )
    @pytest.mark.parametrize("accept", ["", OPENMETRICS])
    def test_limitadors_numbers(self, line: str, accept: str) -> None:
        """S1.11, to the letter, in both formats."""
        assert f"\n{line}\n" in Metrics(tally=self.COUNTS).render(accept)[0].decode()

    def test_openmetrics_is_well_formed(self) -> None:
        page = Metrics(tally=self.COUNTS).render(OPENMETRICS)[0].decode()
        types = {family.name: family.type for family in parse_openmetrics(page)}
        assert types["authorized_calls"] == types["limited_calls"] == types["authorized_hits"] == "unknown"
        assert types["extproc_limit_refusals"] == "counter"

    def test_names_that_look_the_same_are_added(self) -> None:
        page = Metrics(tally=tally(authorized_calls={"a\x00": 1, "a\x01": 2})).render()[0].decode()
        assert 'authorized_calls{limitador_namespace="a?"} 3\n' in page

    def test_without_an_embedded_limiter_nothing_is_claimed(self) -> None:
        assert "limitador_namespace" not in Metrics().render()[0].decode()


def watch(*counters: LimitUse) -> LimitWatch:
    async def nearest(at_most: int) -> list[LimitUse]:
        return sorted(counters, key=lambda counter: -counter.ratio)[:at_most]

    return LimitWatch(nearest)


class TestWatch:
    async def test_the_highest_of_each_limit(self) -> None:
        near = await watch(use(10), use(107, value="bob"), use(90, limit="day"), use(80, value="eve")).look()
        assert [counter.used for counter in near.counters] == [107, 90, 80, 10]
        assert near.ratios == {("ns", "minute"): 1.07, ("ns", "day"): 0.9}

    async def test_overshoot_in_metrics(self) -> None:
        metrics = Metrics(limits=watch(use(107), use(50, limit="day")))
        assert "extproc_limit_used_ratio{" not in metrics.render()[0].decode()
        page = (await metrics.page())[0].decode()
        assert '\nextproc_limit_used_ratio{namespace="ns",limit="minute"} 1.07\n' in page
        assert '\nextproc_limit_used_ratio{namespace="ns",limit="day"} 0.5\n' in page

    async def test_a_limit_of_nothing_is_always_at_its_end(self) -> None:
        near = await watch(use(0, 0), use(2, 0), use(99)).look()
        assert [counter.ratio for counter in near.counters] == [3.0, 1.0, 0.99]

    async def test_many_counters_of_many_limits(self) -> None:
        near = await watch(*(use(number, 20_000, f"l{number % 700}") for number in range(5_000))).look()
        assert [counter.used for counter in near.counters] == list(range(4_999, 4_999 - nearness.LOOKED_AT, -1))
        assert len(near.ratios) == nearness.MAX_LIMITS + 1
        assert (OTHER, OTHER) in near.ratios

    @pytest.mark.parametrize("failure", [ConnectionError("redis is away"), None], ids=["away", "silent"])
    async def test_other_metrics_do_not_go_with_a_storage(
        self, failure: Exception | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(nearness, "PATIENCE", 0.01)

        async def nearest(at_most: int) -> list[LimitUse]:
            if failure is not None:
                raise failure
            await asyncio.Event().wait()
            return []

        page = (await Metrics(limits=LimitWatch(nearest)).page())[0].decode()
        assert "extproc_exchanges_open" in page
        (record,) = caplog.records
        assert record.getMessage() == f"counters cannot be shown: {failure or 'TimeoutError'}"


class TestPaced:
    @pytest.fixture
    def time(self) -> list[float]:
        return [0.0]

    async def test_fresh_answers_are_given_again(self, time: list[float]) -> None:
        asked: list[float] = []

        async def work() -> int:
            asked.append(time[0])
            return len(asked)

        paced = Paced(work, lambda: time[0])
        assert [await paced(), await paced()] == [1, 1]
        time[0] += FRESH
        assert await paced() == 2

    async def test_long_work_is_done_the_less_often(self, time: list[float]) -> None:
        """A million counters, looked at by a browser every two seconds, must not take the process."""
        done = 0

        async def work() -> None:
            nonlocal done
            done += 1
            time[0] += 2.0

        paced = Paced(work, lambda: time[0])
        while time[0] < 1000:
            await paced()
            time[0] += 1.0
        assert done * 2.0 <= 1000 / SHARE

    async def test_who_asks_meanwhile_waits_for_the_same(self, time: list[float]) -> None:
        done = 0

        async def work() -> int:
            nonlocal done
            await asyncio.sleep(0)
            done += 1
            return done

        paced = Paced(work, lambda: time[0])
        assert await asyncio.gather(paced(), paced(), paced()) == [1, 1, 1]

    async def test_a_failure_is_told_and_tried_again(self, time: list[float]) -> None:
        failures = [ConnectionError("away")]

        async def work() -> str:
            if failures:
                raise failures.pop()
            return "there"

        paced = Paced(work, lambda: time[0])
        with pytest.raises(ConnectionError):
            await paced()
        assert await paced() == "there"
