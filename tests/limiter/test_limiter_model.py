"""The embedded limiter against a model that is too simple to be wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extproc.config.model import Limit
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.limits import LimitSet
from extproc.limiter.seam import Code, Query

Key = tuple[int, str]


@dataclass
class Model:
    """Every hit ever, grouped into windows; a limit is (seconds, key whose value it counts by or "")."""

    limits: dict[Key, int]
    now: float = 0.0
    windows: dict[tuple[Key, str | None], tuple[float, int]] = field(default_factory=dict)

    def count(self, counter: tuple[Key, str | None]) -> int:
        start, used = self.windows.get(counter, (self.now, 0))
        return used if self.now < start + counter[0][0] else 0

    def touched(self, entries: dict[str, str]) -> list[tuple[Key, str | None]]:
        return [(key, entries.get(key[1])) for key in self.limits if not key[1] or key[1] in entries]

    def refuses(self, entries: dict[str, str], hits: int) -> bool:
        return any(self.count(c) + hits > self.limits[c[0]] for c in self.touched(entries))

    def add(self, entries: dict[str, str], hits: int) -> None:
        for counter in self.touched(entries):
            used = self.count(counter)
            start = self.windows[counter][0] if used else self.now
            self.windows[counter] = (start, used + hits)


keys = st.tuples(st.integers(1, 5), st.sampled_from(["", "user", "model"]))
limit_sets = st.dictionaries(keys, st.integers(0, 8), max_size=5)
entries = st.dictionaries(st.sampled_from(["user", "model"]), st.sampled_from("ab"))
operations = st.one_of(
    st.tuples(st.sampled_from(["check", "report", "should_rate_limit"]), entries, st.integers(0, 5)),
    st.tuples(st.just("advance"), st.floats(0, 3).map(lambda seconds: round(seconds * 4) / 4)),
    st.tuples(st.just("replace"), limit_sets),
    st.tuples(st.just("sweep")),
)


def compiled(limits: dict[Key, int]) -> LimitSet:
    return LimitSet(
        Limit(
            namespace="d",
            max_value=maximum,
            seconds=seconds,
            variables=[f"descriptors[0]['{key}']"] if key else [],
        )
        for (seconds, key), maximum in limits.items()
    )


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(limit_sets, st.lists(operations, max_size=40))
def test_any_sequence_of_calls_agrees_with_the_model(limits: dict[Key, int], steps: list[tuple]) -> None:
    model = Model(limits)
    limiter = EmbeddedLimiter(compiled(limits), clock=lambda: model.now)
    for step in steps:
        match step:
            case ("advance", seconds):
                model.now += seconds
            case ("replace", limits):
                model.limits = limits
                model.windows = {c: w for c, w in model.windows.items() if c[0] in limits}
                limiter.replace_limits(compiled(limits))
            case ("sweep",):
                limiter.sweep()
            case (method, found, hits):
                counted = 1 if method == "check" else hits or 1
                refused = method != "report" and model.refuses(found, counted)
                if method != "check" and not refused:
                    model.add(found, counted)
                decision = getattr(limiter, method)(Query("d", (tuple(found.items()),), hits))
                assert decision.code is (Code.OVER_LIMIT if refused else Code.OK)
        live = {c: model.count(c) for c in model.windows if model.count(c)}
        shown = {
            ((c.limit.window.seconds, (c.limit.identity.variables or ("['']",))[0].split("'")[1]), c.values): c.used
            for c in limiter.snapshot()
        }
        assert shown == {(key, (value,) if key[1] else ()): used for (key, value), used in live.items()}
        assert len(limiter) >= len({values for _, values in shown})
