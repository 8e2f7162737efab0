"""From runs to rows: medians, ratios to the floor of the same repetition, the table, the file."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Value = float | None
Row = dict[str, object]
FLOOR = "floor"
BLIND = "blind"
_SAME_CHUNKS = 0.1
_ABOVE = ("cpu_us_per_request", "added_p99_ms", "kb_per_exchange")
"""Of these, what lies above the floor of the same repetition."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A column: its key in the file, its head in the table, digits after the point."""

    key: str
    head: str
    digits: int
    compared: bool = False
    """Is its ratio to the floor shown?"""


MEASURES = (
    Measure("requests_per_s", "requests/s", 0, compared=True),
    Measure("cpu_us_per_request", "CPU us/request", 0, compared=True),
    Measure("cpu_us_per_request_above_floor", "above floor", 0),
    Measure("cpu_us_per_chunk", "CPU us/chunk", 1, compared=True),
    Measure("reading_us_per_chunk", "reading us/chunk", 1),
    Measure("chunks_per_request", "chunks/request", 1),
    Measure("p50_ms", "p50 ms", 2),
    Measure("p99_ms", "p99 ms", 2),
    Measure("added_p50_ms", "added p50 ms", 2),
    Measure("added_p99_ms", "added p99 ms", 2),
    Measure("added_p99_ms_above_floor", "above floor", 2),
    Measure("prompt_p50_ms", "prompt p50 ms", 1),
    Measure("prompt_p99_ms", "prompt p99 ms", 1),
    Measure("rss_mb", "RSS MB", 1),
    Measure("peak_mb", "peak MB", 1),
    Measure("limiter_cpu_us_per_request", "limiter us/request", 0),
    Measure("redis_cpu_us_per_request", "redis us/request", 0),
    Measure("one_user_us", "one user us", 0),
    Measure("new_users_us", "new users us", 0),
    Measure("new_to_one", "new/one", 2),
    Measure("known_users_us", "known users us", 0),
    Measure("known_to_one", "known/one", 2),
    Measure("bytes_per_user", "bytes/user", 0),
    Measure("bytes_per_user_beyond_metrics", "beyond metrics", 0),
    Measure("redis_bytes_per_user", "redis bytes/user", 0),
    Measure("kb_per_exchange", "KB/exchange", 1),
    Measure("kb_per_exchange_above_floor", "above floor", 1),
    Measure("growth_mb", "growth MB", 1),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run: what `values` names; None where a server has no such number."""

    scenario: str
    server: str
    repetition: int
    values: Mapping[str, Value]


def rows(runs: Sequence[Run]) -> list[Row]:
    """One row for each scenario and server, in the order of their first runs."""
    keys = dict.fromkeys((run.scenario, run.server) for run in runs)
    return [_row(scenario, server, runs) for scenario, server in keys]


def _row(scenario: str, server: str, runs: Sequence[Run]) -> Row:
    same = [run for run in runs if run.scenario == scenario]
    own = [run for run in same if run.server == server]
    row: Row = {"scenario": scenario, "server": server}
    row |= {key: median(run.values[key] for run in own) for key in own[0].values}
    floors = {run.repetition: run for run in same if run.server == FLOOR}
    if floors and server != "direct":
        row["ratio_to_floor"] = {
            measure.key: median(
                _ratio(measure.key, run.values, floors[run.repetition].values)
                for run in own
                if run.repetition in floors
            )
            for measure in MEASURES
            if measure.compared
        }
        row |= _above(own, floors)
    blinds = {run.repetition: run for run in same if run.server == BLIND}
    if blinds and server not in ("direct", FLOOR, BLIND):
        row["reading_us_per_chunk"] = median(
            _difference("cpu_us_per_chunk", run.values, blinds[run.repetition].values)
            for run in own
            if run.repetition in blinds
        )
    row["repetitions"] = len(own)
    return row


def _ratio(key: str, own: Mapping[str, Value], floor: Mapping[str, Value]) -> Value:
    """Where Envoy cut the answers into different numbers of chunks, the cost of one cannot be compared."""
    chunks = ratio(own.get("chunks_per_request"), floor.get("chunks_per_request"))
    if key == "cpu_us_per_chunk" and (chunks is None or abs(chunks - 1) > _SAME_CHUNKS):
        return None
    return ratio(own.get(key), floor.get(key))


def _difference(key: str, own: Mapping[str, Value], other: Mapping[str, Value]) -> Value:
    value, less = own.get(key), other.get(key)
    return None if value is None or less is None else value - less


def _above(own: Sequence[Run], floors: Mapping[int, Run]) -> Row:
    """What there is beyond the floor's, where that was measured."""
    pairs = [(run.values, floors[run.repetition].values) for run in own if run.repetition in floors]
    found = {key: median(_difference(key, values, floor) for values, floor in pairs) for key in _ABOVE}
    return {f"{key}_above_floor": value for key, value in found.items() if value is not None}


def median(values: Iterable[Value]) -> Value:
    """The median of the values that exist; None without any."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def ratio(value: Value, floor: Value) -> Value:
    """`value` / `floor`; None where one is missing or the floor is 0."""
    return value / floor if value is not None and floor else None


def table(found: Sequence[Row]) -> str:
    """The rows of each scenario below each other; a ratio to the floor in parentheses."""
    blocks = []
    for scenario in dict.fromkeys(str(row["scenario"]) for row in found):
        block = [row for row in found if row["scenario"] == scenario]
        shown = [measure for measure in MEASURES if any(row.get(measure.key) is not None for row in block)]
        cells = [[scenario, *(measure.head for measure in shown)]]
        cells += [[str(row["server"]), *(_cell(row, measure) for measure in shown)] for row in block]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        blocks.append("\n".join(_line(line, widths) for line in cells))
    return "\n\n".join(blocks)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.rjust(width) if index else cell.ljust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join((first, *others))


def _cell(row: Row, measure: Measure) -> str:
    value = row.get(measure.key)
    if not isinstance(value, int | float):
        return "-"
    ratios = row.get("ratio_to_floor")
    relative = ratios.get(measure.key) if isinstance(ratios, dict) and row["server"] != FLOOR else None
    return f"{value:,.{measure.digits}f}" + (f" ({relative:.2f}x)" if relative is not None else "")


def save(found: Sequence[Row], path: Path) -> None:
    """The rows as a JSON list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
