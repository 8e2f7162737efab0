"""Log lines: one record is one bounded, readable line without secrets, whatever clients send."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import re
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.limiter.seam import Code
from extproc.telemetry import logs
from extproc.telemetry.decisions import DecisionLog

FORMATS: tuple[logs.Format, ...] = ("json", "console")
logger = logging.getLogger("extproc.test")


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root, factory, source = logging.getLogger(), logging.getLogRecordFactory(), logging._srcfile
    before = [(log, log.level) for log in (root, logging.getLogger("extproc"), logging.getLogger("cel"))]
    handlers = root.handlers[:]
    with warnings.catch_warnings():
        yield
        logging.captureWarnings(False)
    root.handlers[:] = handlers
    for log, level in before:
        log.setLevel(level)
    logging.setLogRecordFactory(factory)
    logging._srcfile = source


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def record(event: str = "consumed", fields: Any = None, level: int = logging.INFO, **more: Any) -> Any:
    return logging.makeLogRecord(
        {
            "name": "extproc.test",
            "levelno": level,
            "levelname": logging.getLevelName(level),
            "msg": event,
            "fields": fields,
            **more,
        }
    )


def rendered(fields: Any = None, event: str = "consumed", **more: Any) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(logs.render_json(record(event, fields, **more)))
    return line


def console(fields: Any = None, event: str = "consumed", **more: Any) -> str:
    return logs._Console(colour=False)(record(event, fields, **more)).decode()


def test_json_line_says_when_who_what() -> None:
    line = rendered({"request_id": "7b1c", "hits_addend": 42}, created=1_700_000_000.125)
    assert line == {
        "time": "2023-11-14T22:13:20.125Z",
        "level": "info",
        "logger": "extproc.test",
        "event": "consumed",
        "request_id": "7b1c",
        "hits_addend": 42,
    }
    assert list(line)[:4] == ["time", "level", "logger", "event"]


def test_console_line_is_aligned_and_readable() -> None:
    text = console({"request_id": "7b1c", "user": "Ann Lee", "hits_addend": 42}, created=1_700_000_000.125)
    assert text == (
        "22:13:20.125Z INFO    extproc.test               consumed            "
        " request_id=7b1c user='Ann Lee' hits_addend=42\n"
    )


@pytest.mark.parametrize("name", ["time", "level", "logger", "event", "error"])
def test_field_never_takes_the_place_of_ours(name: str) -> None:
    line = rendered({name: "forged"})
    assert line.get(name) != "forged"
    assert line[f"{name}_"] == "forged"


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Hostile(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("no keys")

    def __len__(self) -> int:
        return 1


def _deep(levels: int) -> Any:
    value: Any = "bottom"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        (True, True),
        (2**64 - 1, 2**64 - 1),
        (2**64, "0x10000000000000000"),
        (-(2**63) - 1, "-0x8000000000000001"),
        (1.5, 1.5),
        (float("nan"), None),
        (Code.OVER_LIMIT, "OVER_LIMIT"),
        (b"bytes\xff", "bytes\ufffd"),
        ("lone \ud800 surrogate", "lone ? surrogate"),
        ((1, "a"), [1, "a"]),
        ({"a": {1: None}}, {"a": {"1": None}}),
        (Path("/a/b"), "/a/b"),
        (Unprintable(), "<unprintable Unprintable>"),
        ({"nested": Unprintable()}, "<unprintable dict>"),
        (Hostile(), "<unprintable Hostile>"),
        (_deep(100), [[[["…"]]]]),
        (list(range(1000)), list(range(logs.MAX_ITEMS))),
        (10**5000, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_value_can_be_a_field(value: Any, shown: Any) -> None:
    line = rendered({"value": value})
    assert line["value"] == shown or (shown is None and line["value"].endswith("…"))


@pytest.mark.parametrize("fields", [None, "text", 7, [("a", 1)], Hostile()], ids=lambda fields: type(fields).__name__)
def test_fields_that_are_no_dict_are_left_out(fields: Any) -> None:
    assert set(rendered(fields)) == {"time", "level", "logger", "event"}


@pytest.mark.parametrize(
    ("message", "args", "event"),
    [
        ("took %d ms", (5,), "took 5 ms"),
        ("%(a)s", ({"a": "named"},), "named"),
        ("too %s few %s", ("args",), "too %s few %s"),
        ("%s", (Unprintable(),), "%s"),
        (Unprintable(), (), "<unprintable Unprintable>"),
        (Code.OK, (), "1"),
    ],
)
def test_event_is_the_message(message: Any, args: Any, event: str) -> None:
    made = logs.Record("extproc.test", logging.INFO, "", 0, message, args, None)
    assert json.loads(logs.render_json(made))["event"] == event


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.characters(),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers() | st.none(), inner)
    ),
    max_leaves=20,
)
controls = st.text(alphabet="\n\r\t\v\f\x00\x1b\x7f\x85\x9b\u2028\u2029\u202e\ud800\\\"'{}=| a", max_size=3000)


@given(st.dictionaries(st.text() | controls, anything | controls), st.text() | controls)
def test_any_content_is_one_bounded_json_line(fields: dict[str, Any], event: str) -> None:
    """S1.23: a client cannot begin a line, end one, or drive the terminal that shows it."""
    data = logs.render_json(record(event, fields))
    assert len(data) <= logs.MAX_LINE
    text = data.decode()
    assert text.endswith("\n")
    assert text.splitlines() == [text[:-1]]
    assert not re.search("[\x00-\x09\x0b-\x1f\x80-\x9f\u2028\u2029\u202e]", text)
    line = json.loads(text)
    assert (line["level"], line["logger"]) == ("info", "extproc.test")


@given(st.dictionaries(st.text() | controls, anything | controls), st.text() | controls)
def test_any_content_is_one_bounded_console_line(fields: dict[str, Any], event: str) -> None:
    data = logs._Console(colour=False)(record(event, fields))
    text = data.decode()
    assert len(data) <= logs.MAX_LINE
    assert text.splitlines() == [text[:-1]]
    assert text[:-1].isprintable()


def test_long_values_are_shortened() -> None:
    line = rendered({"prompt": "x" * 1_000_000, "hits_addend": 1})
    assert len(line["prompt"]) == logs.MAX_TEXT
    assert line["prompt"].endswith("…")
    assert line["hits_addend"] == 1


def test_line_with_too_much_in_it_keeps_what_comes_first() -> None:
    fields = {"request_id": "7b1c"} | {f"header-{number}": "\x01" * 1000 for number in range(60)}
    line = rendered(fields, "e" * 5000)
    assert line["truncated"] is True
    assert line["request_id"] == "7b1c"
    assert line["event"].startswith("e" * 500)
    assert len(logs.render_json(record(fields=fields))) <= logs.MAX_LINE


def _raised(error: Exception) -> Any:
    try:
        raise error
    except type(error):
        return sys.exc_info()


def test_exception_is_shown_with_its_trace() -> None:
    line = rendered({"request_id": "7b1c"}, exc_info=_raised(ValueError("no such limit")))
    assert line["error"].startswith("Traceback")
    assert line["error"].endswith("ValueError: no such limit")


def test_long_exception_keeps_its_reason() -> None:
    cause = ValueError("long " * 10_000 + "and the reason")
    line = rendered({"user": "x" * 1000, "path": "y" * 1000, "route": "z" * 1000}, exc_info=_raised(cause))
    assert line["error"].endswith("and the reason")


def test_credential_that_the_cut_splits_stays_hidden() -> None:
    """S2.D17"""
    token = "s3cr3t" * 200
    for beyond in range(0, logs.MAX_ERROR, 97):
        line = rendered(exc_info=_raised(ValueError(f"Bearer {token} {'x' * beyond}")))
        assert "s3cr3t" not in line["error"]
    for before in range(logs.MAX_TEXT - 100, logs.MAX_TEXT + 1, 7):
        assert "s3cr3t" not in rendered({"text": f"{'x' * before} sk-{token}"})["text"]


def test_unprintable_exception_is_named() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert "Mute" in rendered(exc_info=_raised(Mute()))["error"]


def test_console_trace_cannot_be_mistaken_for_a_line() -> None:
    """S1.23: what an exception says stays behind the margin."""
    forged = "oops\n22:13:20.123Z INFO extproc allowed\x1b[2J\x85x"
    first, *rest = console(exc_info=_raised(ValueError(forged))).splitlines()
    assert "consumed" in first
    assert rest
    assert all(line.startswith("    | ") and line.isprintable() for line in rest)


SECRET = "s3cr3t-0123456789"


@pytest.mark.parametrize("render", [logs.render_json, logs._Console(colour=False)], ids=FORMATS)
@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR])
@pytest.mark.parametrize(
    ("event", "fields"),
    [
        ("x", {"authorization": SECRET}),
        ("x", {"headers": {"X-Api-Key": SECRET, "cookie": [SECRET]}}),
        ("x", {"headers": [("authorization", SECRET), (b"cookie", SECRET.encode())]}),
        ("x", {"a": {"b": [{"password": {"deep": SECRET}}]}}),
        ("x", {"text": f"Bearer {SECRET}"}),
        ("x", {"text": f"APIKEY {SECRET}".encode()}),
        ("x", {"text": f"sk-{SECRET}"}),
        ("x", {f"Bearer {SECRET}": 1}),
        ("x", {"text": "x" * (logs.MAX_TEXT - 30) + f" Bearer {SECRET}" * 2}),
        ("x", {"n" * 100 + "-api-key": SECRET}),
        (f"sent Authorization: Bearer {SECRET}", {}),
        (f"{{'x-api-key': '{SECRET}'}}", None),
    ],
)
def test_secret_is_in_no_line_at_any_level(render: Callable[[Any], bytes], level: int, event: str, fields: Any) -> None:
    """S2.D17, S3.D8"""
    data = render(record(event, fields, level, exc_info=_raised(ValueError(f"password={SECRET}"))))
    assert b"s3cr3t" not in data
    assert b"***" in data


def test_token_counts_are_no_secrets() -> None:
    counts = {"hits": 1, "total_tokens": 42, "completion_tokens": 2, "tokens_remaining": 0}
    assert rendered(counts).items() >= counts.items()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("event", "fields", "patterns"),
    [
        ("allowed", {"action_set": "free", "limit": "free/hour"}, ("allowed", "limit", "token|rate|limit")),
        ("denied", {"code": Code.OVER_LIMIT, "limit": "free"}, ("denied", "OVER_LIMIT", "token|rate|limit")),
        ("consumed", {"total_tokens": 42, "model": "m"}, ("consumed", "token|rate|limit")),
        ("configuration loaded", {"rules": 3}, ("plugin|config|rule",)),
    ],
)
def test_greps_of_the_walkthrough_find_decisions(
    format: logs.Format, event: str, fields: dict[str, Any], patterns: tuple[str, ...]
) -> None:
    """S1.23"""
    out = io.StringIO()
    logs.configure("info", format, out)
    who = {"request_id": "7b1c", "user": "ann", "group": "free"}
    logger.info(event, extra={"fields": who | fields})
    for pattern in (*patterns, "7b1c", "ann", "free"):
        assert re.search(pattern, out.getvalue())


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["debug", "info", "warning", "error", "other warning", "other error"]),
        ("info", ["info", "warning", "error", "other warning", "other error"]),
        ("warning", ["warning", "error", "other warning", "other error"]),
        ("error", ["error", "other error"]),
    ],
)
def test_level_is_for_our_tree_and_others_only_warn(level: logs.Level, shown: list[str]) -> None:
    out = io.StringIO()
    logs.configure(level, "json", out)
    for log, prefix in ((logger, ""), (logging.getLogger("aiohttp.server"), "other ")):
        for name in ("debug", "info", "warning", "error"):
            getattr(log, name)(prefix + name)
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == shown


def test_configure_again_replaces() -> None:
    """A reload may ask for another level."""
    first, second = io.StringIO(), io.StringIO()
    logs.configure("error", "json", first)
    logs.configure("info", "json", second)
    logger.info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("\n") == 1


@pytest.mark.parametrize(
    ("format", "stream", "looks"),
    [
        ("auto", io.StringIO, r'\{"time"'),
        ("auto", Tty, r"\d\d:.*\x1b\["),
        ("json", Tty, r'\{"time"'),
        ("console", io.StringIO, r"\d\d:[^\x1b]*$"),
        ("console", Tty, r"\d\d:.*\x1b\["),
    ],
)
def test_format(format: logs.Format, stream: type[io.StringIO], looks: str, monkeypatch: Any) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = stream()
    logs.configure("info", format, out)
    logger.info("hello")
    assert re.match(looks, out.getvalue())


def test_no_color_is_honoured(monkeypatch: Any) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = Tty()
    logs.configure("info", "auto", out)
    logger.info("hello")
    assert "\x1b" not in out.getvalue()


def test_python_warnings_come_as_lines() -> None:
    out = io.StringIO()
    logs.configure("info", "json", out)
    warnings.simplefilter("always")
    warnings.warn("mind the gap", UserWarning, stacklevel=1)
    line = json.loads(out.getvalue())
    assert (line["level"], line["logger"]) == ("warning", "py.warnings")
    assert "mind the gap" in line["event"]


@pytest.mark.parametrize("used_before", [False, True])
def test_cel_does_not_repeat_what_it_raises(used_before: bool, capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ValueError(SECRET)

    context = cel.Context()
    context.add_function("fail", fail)
    program = cel.compile("fail()")
    if used_before:
        with pytest.raises(RuntimeError):
            program.execute(context)
    capfd.readouterr()
    logs.configure("debug", "json")
    with pytest.raises(RuntimeError):
        program.execute(context)
    assert capfd.readouterr() == ("", "")


def test_other_formatters_still_work_on_our_records() -> None:
    logs.configure("info", "json", io.StringIO())
    formatter = logging.Formatter(
        "%(asctime)s %(filename)s:%(lineno)d %(module)s %(pathname)s %(funcName)s %(levelname)s %(name)s "
        "%(process)s %(processName)s %(thread)s %(threadName)s %(relativeCreated)d %(taskName)s %(message)s"
    )
    text = formatter.format(logger.makeRecord("extproc.test", 20, "", 0, "took %d", (5,), None))
    assert text.endswith("took 5")


@pytest.fixture
def pipe() -> Iterator[tuple[int, Any]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with os.fdopen(writer, "w") as stream:
        yield reader, stream
    os.close(reader)


def _drained(reader: int) -> list[dict[str, Any]]:
    data = b""
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(reader, 65536):
            data += piece
    return [json.loads(line) for line in data.splitlines()]


def test_reader_that_stopped_costs_lines_and_no_time(pipe: tuple[int, Any]) -> None:
    """The event loop must not stand still because nobody reads standard error."""
    reader, stream = pipe
    logs.configure("info", "json", stream)
    began = time.monotonic()
    for number in range(2000):
        logger.info("filler", extra={"fields": {"number": number, "text": "x" * 900}})
    assert time.monotonic() - began < 2.0
    kept = _drained(reader)
    assert [line["number"] for line in kept] == list(range(len(kept)))
    logger.info("again")
    confession, again = _drained(reader)
    assert (confession["event"], confession["lost"]) == ("log lines lost", 2000 - len(kept))
    assert again["event"] == "again"
    logger.info("and on")
    assert [line["event"] for line in _drained(reader)] == ["and on"]


def test_threads_neither_mix_nor_lose_lines(pipe: tuple[int, Any]) -> None:
    reader, stream = pipe
    logs.configure("info", "json", stream)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: logger.info("line", extra={"fields": {"number": number}}), range(200)))
    assert sorted(line["number"] for line in _drained(reader)) == list(range(200))


def test_a_line_fits_a_pipe_in_one_piece() -> None:
    """Lines of several workers on one standard error do not mix."""
    reader, writer = os.pipe()
    try:
        assert os.fpathconf(writer, "PC_PIPE_BUF") >= logs.MAX_LINE
    finally:
        os.close(reader)
        os.close(writer)


def test_closed_and_broken_streams_raise_nothing(pipe: tuple[int, Any]) -> None:
    _, stream = pipe
    logs.configure("info", "json", stream)
    other, writer = os.pipe()
    os.close(other)
    with os.fdopen(writer, "w") as broken:
        logs.configure("info", "json", broken)
        logger.info("nobody reads")
    closed = io.StringIO()
    logs.configure("info", "json", closed)
    closed.close()
    logger.info("nobody listens")


def test_standard_error_is_the_default(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    logger.info("hello")
    out, err = capfd.readouterr()
    assert out == ""
    assert json.loads(err)["event"] == "hello"


def test_lines_reach_a_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w") as stream:
        assert stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
        logs.configure("info", "json", stream)
        logger.info("hello")
        assert json.loads(path.read_text())["event"] == "hello"


async def test_exception_of_a_forgotten_task_is_a_line() -> None:
    out = io.StringIO()
    logs.configure("info", "json", out)
    loop = asyncio.get_running_loop()
    loop.call_exception_handler({"message": "Task exception was never retrieved", "exception": ValueError("x")})
    assert json.loads(out.getvalue())["logger"] == "asyncio"


def test_decision_lines_are_written_together_in_pieces_that_a_pipe_takes_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line arrives, in order, with the time at which it was noted; no write is larger than a line may be."""
    writes: list[bytes] = []
    write = os.write
    monkeypatch.setattr(logs.os, "write", lambda fd, data: (writes.append(data), write(fd, data))[1])

    async def note() -> None:
        decisions = DecisionLog("extproc.test")
        for number in range(200):
            decisions.note("consumed", {"number": number, "text": "x" * 100})
        decisions.flush()

    with (tmp_path / "log").open("w") as stream:
        logs.configure("info", "json", stream)
        logging.getLogger().handlers = [h for h in logging.getLogger().handlers if isinstance(h, logs.LineHandler)]
        asyncio.run(note())
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(200))
    assert len(writes) < 20
    assert max(map(len, writes)) <= logs.MAX_LINE
    assert all(data.endswith(b"\n") for data in writes)


def test_decision_lines_reach_other_handlers_too() -> None:
    """A handler that somebody added sees every record."""
    seen: list[str] = []

    class Other(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    async def note() -> None:
        decisions = DecisionLog("extproc.test")
        decisions.note("consumed", {})
        decisions.note("denied", {})
        decisions.flush()

    stream = io.StringIO()
    logs.configure("info", "json", stream)
    logging.getLogger().addHandler(Other())
    asyncio.run(note())
    assert seen == ["consumed", "denied"]
    assert stream.getvalue().count("\n") == 2
