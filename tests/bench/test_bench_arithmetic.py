"""What the benchmark computes from what it measures. Wrong arithmetic here is a wrong claim in public."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import proc
from bench.clients import Reader
from bench.errors import BenchError
from bench.load import find_h2load, parse, percentile
from bench.results import Run, median, ratio, rows, save, table
from bench.stack import Counts, checking, parse_lost, parse_metered

TICKS = os.sysconf("SC_CLK_TCK")
STAT = "4242 (python -m (x) y) S 1 4242 4242 0 -1 4194560 9 0 0 0 {utime} {stime} 7 8 20 0 12 0 1 2 3"
STATUS = "Name:\tpython\nVmPeak:\t  999999 kB\nVmHWM:\t   51200 kB\nVmRSS:\t   40960 kB\nThreads:\t3\n"


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_cpu_is_user_and_system_time(utime: int, stime: int) -> None:
    """A process name with spaces and parentheses does not shift the fields."""
    assert proc.parse_cpu(STAT.format(utime=utime, stime=stime)) == (utime + stime) / TICKS


def test_memory_is_resident_and_peak() -> None:
    assert proc.parse_memory(STATUS) == proc.Memory(rss=40960, peak=51200)


def test_a_process_that_has_ended_has_no_memory() -> None:
    with pytest.raises(ValueError, match="has ended"):
        proc.parse_memory("Name:\tpython\nState:\tZ (zombie)\n")


def test_a_peak_is_remembered_until_it_is_reset() -> None:
    pid, size = os.getpid(), 64 * 1024
    before = proc.memory(pid).rss
    bytearray(b"x" * (size * 1024))
    assert proc.memory(pid).peak - before > size / 2
    proc.reset_peak(pid)
    assert proc.memory(pid).peak - before < size / 2
    assert proc.cpu_seconds(pid) > 0


@pytest.mark.parametrize(
    ("values", "expected"), [([3.0, 1.0, 2.0], 2.0), ([1.0, None, 3.0], 2.0), ([None], None), ([], None)]
)
def test_median(values: list[float | None], expected: float | None) -> None:
    assert median(values) == expected


@pytest.mark.parametrize(
    ("value", "floor", "expected"), [(3.0, 2.0, 1.5), (3.0, 0.0, None), (None, 2.0, None), (3.0, None, None)]
)
def test_ratio(value: float | None, floor: float | None, expected: float | None) -> None:
    assert ratio(value, floor) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_a_percentile_is_one_of_the_values(values: list[float], percent: float) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100


def test_percentiles_by_nearest_rank() -> None:
    values = [float(value) for value in range(1, 101)]
    assert (percentile(values, 50), percentile(values, 99), percentile(values, 100)) == (50, 99, 100)
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def run(server: str, repetition: int, cpu: float | None) -> Run:
    return Run("json", server, repetition, {"requests_per_s": 1000.0, "cpu_us_per_request": cpu})


def test_ratios_are_of_the_same_repetition() -> None:
    """Noise that hits both servers of one repetition leaves the ratio alone."""
    runs = [
        *(run("direct", n, None) for n in range(3)),
        *(run("floor", n, cpu) for n, cpu in enumerate([100.0, 1000.0, 200.0])),
        *(run("embedded", n, cpu) for n, cpu in enumerate([150.0, 1500.0, 300.0])),
    ]
    direct, floor, embedded = rows(runs)
    assert (floor["cpu_us_per_request"], embedded["cpu_us_per_request"]) == (200.0, 300.0)
    assert embedded["ratio_to_floor"] == {
        "requests_per_s": 1.0, "cpu_us_per_request": 1.5, "cpu_us_per_chunk": None
    }  # fmt: skip
    assert "ratio_to_floor" not in direct
    assert direct["cpu_us_per_request"] is None


@pytest.mark.parametrize(("chunks", "expected"), [(20.0, 2.0), (21.0, 2.0), (10.0, None)])
def test_chunks_are_compared_only_where_there_are_as_many(chunks: float, expected: float | None) -> None:
    """Envoy joins what arrives together: half as many chunks make each look twice as dear."""
    measured = [("floor", 50.0, 20.0), ("embedded", 100.0, chunks)]
    runs = [
        Run("sse", server, 0, {"cpu_us_per_chunk": cpu, "chunks_per_request": count}) for server, cpu, count in measured
    ]
    _, embedded = rows(runs)
    assert embedded["ratio_to_floor"] == {
        "requests_per_s": None, "cpu_us_per_request": None, "cpu_us_per_chunk": expected
    }  # fmt: skip


@pytest.mark.parametrize("key", ["kb_per_exchange", "cpu_us_per_request", "added_p99_ms"])
def test_what_lies_above_the_floor_is_of_the_same_repetition(key: str) -> None:
    measured = [(0, "floor", 30.0), (0, "embedded", 41.5), (1, "floor", 130.0), (1, "embedded", 140.5)]
    runs = [Run("idle", server, number, {key: value}) for number, server, value in measured]
    assert [row[f"{key}_above_floor"] for row in rows(runs)] == [0.0, 11.0]
    assert [f"{key}_above_floor" in row for row in rows(runs[1:2])] == [False]


def test_the_table_shows_what_was_measured_and_nothing_else() -> None:
    shown = table(rows([run("floor", 0, 200.0), run("embedded", 0, 300.0), run("direct", 0, None)]))
    head, floor, embedded, direct = shown.splitlines()
    assert head.split("  ")[0] == "json"
    assert "CPU us/request" in head
    assert "p99" not in head
    assert floor.split()[-2:] == ["200", "0"]
    assert embedded.split()[-3:] == ["300", "(1.50x)", "100"]
    assert direct.endswith("-")


def test_the_file_holds_the_rows(tmp_path: Path) -> None:
    found = rows([run("floor", 0, 200.0)])
    save(found, tmp_path / "results" / "latest.json")
    assert json.loads((tmp_path / "results" / "latest.json").read_text()) == found


H2LOAD = (
    "finished in 1.50s, {rate} req/s, 1.2MB/s\n"
    "requests: 3 total, 3 started, 3 done, {succeeded} succeeded, 0 failed, 0 errored, 0 timeout\n"
)


def test_h2loads_summary_and_log() -> None:
    found = parse(H2LOAD.format(rate="2.00", succeeded=3), "1\t200\t1000\n2\t200\t3000\n3\t200\t2000\n", 3)
    assert (found.requests_per_s, found.p50_ms, found.p99_ms) == (2.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("output", "log", "says"),
    [
        (H2LOAD.format(rate="2.00", succeeded=2), "1\t200\t1\n2\t200\t1\n3\t500\t1\n", "2 of 3 .* statuses: 500"),
        (H2LOAD.format(rate="2.00", succeeded=3), "1\t200\t1\n2\t200\t1\n", "3 of 3"),
        ("Could not connect", "", "something unexpected:\nCould not connect"),
    ],
    ids=["status", "lost", "no-summary"],
)
def test_a_run_with_failed_requests_is_no_result(output: str, log: str, says: str) -> None:
    with pytest.raises(BenchError, match=says):
        parse(output, log, 3)


def test_a_missing_load_generator_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BenchError, match="apt-get install nghttp2-client"):
        find_h2load()


BEFORE = Counts(started=10, closed=10, sent=40, metered=7, faults={"streams_failed": 1})


def test_counters_of_earlier_runs_do_not_count() -> None:
    since = Counts(15, 15, 60, 12, {"streams_failed": 1}).since(BEFORE)
    assert since == Counts(5, 5, 20, 5, {"streams_failed": 0})
    since.check(5)


def test_waiting_exchanges_are_open_and_not_metered() -> None:
    Counts(5, 0, 5, 0).check(5, closed=0)
    with pytest.raises(BenchError, match="2 closed"):
        Counts(5, 2, 5, 0).check(5, closed=0)


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (Counts(15, 15, 60, 12, {"streams_failed": 2}), "streams_failed 1"),
        (Counts(14, 14, 60, 12, {"streams_failed": 1}), "5 requests, but 4 streams started"),
        (Counts(15, 14, 60, 12, {"streams_failed": 1}), "4 closed"),
        (Counts(16, 16, 60, 12, {"streams_failed": 1}), "6 streams started"),
        (Counts(15, 15, 60, 7, {"streams_failed": 1}), "usage was read in 0: the server did not meter"),
    ],
)
def test_a_run_with_failed_streams_is_no_result(after: Counts, says: str) -> None:
    """A gateway that fails open, and a server whose host name does not match, are fast."""
    with pytest.raises(BenchError, match=says):
        after.since(BEFORE).check(5)


def test_metered_answers_are_read_from_the_metrics() -> None:
    metrics = '# HELP x\nextproc_usage_total{source="none"} 3.0\nextproc_usage_total{source="reported"} 1e+06\n'
    assert parse_metered(metrics) == 1_000_000
    with pytest.raises(BenchError, match="no usage"):
        parse_metered("")


def test_lost_reports_are_read_from_the_metrics() -> None:
    """A report that never arrives costs little: a run with one is no result."""
    metrics = "".join(
        f'extproc_reports_total{{result="{result}"}} {count}.0\n'
        for result, count in {"sent": 9, "dropped": 0, "failed": 2}.items()
    )
    assert parse_lost(metrics) == {"reports_dropped": 0, "reports_failed": 2}
    with pytest.raises(BenchError, match="reports_failed 2"):
        Counts(5, 5, 20, 5, parse_lost(metrics)).check(5)


def test_our_server_takes_the_configuration() -> None:
    from extproc.config.model import Config

    read = Config.model_validate(checking())
    assert read.endpoints["limiter"].address == "embedded"
    assert len(read.embedded_limits) == 1


async def test_frames_are_found_however_they_are_split() -> None:
    """G17: the age of every frame counts once, also when a read ends inside of it."""
    stream = b"HTTP/1.1 200 OK\r\n\r\n" + b"".join(b'{"content":"%d"}\n' % (10**9 + n) for n in range(5))
    for size in (1, 7, 40, len(stream)):
        reader = Reader(b"")
        for start in range(0, len(stream), size):
            reader.data_received(stream[start : start + size])
        assert len(reader.ages) == 5
