"""Log lines: one record, one bounded line, as JSON or for the eye.

    logger = logging.getLogger(__name__)
    logger.info("consumed", extra={"fields": {"request_id": "7b1c", "hits_addend": 42}})

The message names the event, `fields` says the rest. A field cannot take the place of `time`, `level`, `logger`,
`event` or `error`; it is shown with an underscore appended. Secrets are masked (`extproc.telemetry.redact`).
"""

from __future__ import annotations

import logging
import os
import re
import select
import stat
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from enum import Enum
from functools import lru_cache
from itertools import islice
from typing import Any, Literal, TextIO

import orjson

from extproc.telemetry.redact import MASK, is_secret, mask

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]
Line = dict[str, Any]
Render = Callable[[logging.LogRecord], bytes]

MAX_LINE = 4096
"""Bytes of a line with its newline. Linux writes up to this much (PIPE_BUF) to a pipe in one piece, so that
lines of several workers never mix, and promises room for it whenever the pipe polls as writable."""
MAX_TEXT = 1024
"""Characters of one text."""
MAX_ERROR = 2048
"""Characters of an exception with its traceback; the end is kept, where the reason is."""
MAX_NAME = 64
MAX_ITEMS = 64
MAX_DEPTH = 4

_PATIENCE_MS = 2
_NAME_LIKE = 32
"""Characters; a UUID has 36, and caching what is never said twice only costs."""
_PAST_THE_CUT = 64
_ROOM_FOR_A_NAME = 16 * MAX_NAME
_RESERVED = ("time", "level", "logger", "event", "error")
_LEVELS: dict[Level, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_SILENT = logging.CRITICAL + 1
_MILLISECONDS = tuple(f".{number:03d}Z" for number in range(1000))
_COLOURS = {logging.DEBUG: "2", logging.INFO: "32", logging.WARNING: "33", logging.ERROR: "31"}

# Legal inside JSON, yet a terminal obeys them and some readers see the end of a line.
_UNRULY = re.compile("[\x80-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_BARE = re.compile(r"[\w./:@%+*,-]+", re.A)

_always: Line = {}


def say_always(**fields: int) -> None:
    """Begin the fields of every line of this process with `fields`, for example which of several workers it is."""
    _always.update(fields)


def configure(level: Level, format: Format, stream: TextIO | None = None) -> None:
    """Log the `extproc` tree from `level` on, and everybody else's warnings, to `stream` (standard error).

    May be called again, for instance when a reloaded configuration asks for another level. It also stops
    looking up the caller of every record (a third of the price of a line, and no line shows it), sends Python
    warnings the same way, and silences CEL, which repeats exceptions that reach the caller anyway.
    """
    stream = sys.stderr if stream is None else stream
    console = format == "console" or (format == "auto" and stream.isatty())
    render = _Console(stream.isatty() and "NO_COLOR" not in os.environ) if console else render_json
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, LineHandler):
            root.removeHandler(handler)
    root.addHandler(LineHandler(render, stream))
    root.setLevel(max(_LEVELS[level], logging.WARNING))
    logging.getLogger("extproc").setLevel(_LEVELS[level])
    logging.getLogger("cel").setLevel(_SILENT)
    logging.captureWarnings(True)
    logging._srcfile = None
    logging.setLogRecordFactory(Record)


class Record(logging.LogRecord):
    """A record of what a line shows; the base class also looks up file, module, thread, task and process."""

    def __init__(
        self,
        name: str,
        level: int,
        pathname: str,
        lineno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        sinfo: str | None = None,
        **kwargs: Any,
    ) -> None:
        if args and len(args) == 1 and isinstance(args[0], Mapping) and args[0]:
            args = args[0]  # logging's own rule, for messages with %(name)s
        self.name = name
        self.levelno = level
        self.levelname = logging.getLevelName(level)
        self.msg = msg
        self.args = args
        self.exc_info = exc_info
        self.stack_info = sinfo
        self.created = time.time()
        # For other handlers, whose formats may name any of these.
        self.exc_text = self.thread = self.threadName = None
        self.process = self.processName = self.taskName = None
        self.pathname = self.filename = self.module = self.funcName = ""
        self.lineno = 0
        self.msecs = self.relativeCreated = 0.0


class LineHandler(logging.Handler):
    """Writes each record at once; drops it rather than wait for a reader that has stopped reading.

    The kernel's pipe buffer is the only buffer. How many lines were lost is said when writing works again.
    """

    def __init__(self, render: Render, stream: TextIO) -> None:
        super().__init__()
        self._render = render
        self._stream = stream
        self._lost = 0
        self._fd = _descriptor(stream)
        self._poll = _poll(self._fd)

    def emit(self, record: logging.LogRecord) -> None:
        """Write `record` as one line. Never raises."""
        try:
            if self._lost and self._write(self._render(_confession(self._lost))):
                self._lost = 0
            if not self._write(self._render(record)):
                self._lost += 1
        except Exception:  # noqa: BLE001 a log line is never worth an exchange
            self._lost += 1

    def emit_all(self, records: Iterable[logging.LogRecord]) -> None:
        """Write many records with few calls of the system, each of whole lines and small enough for a pipe."""
        waiting: list[bytes] = []
        size = 0
        with self.lock or nullcontext():
            for record in records:
                try:
                    line = self._render(record)
                except Exception:  # noqa: BLE001 as in `emit`
                    self._lost += 1
                    continue
                if size + len(line) > MAX_LINE:
                    self._emit_lines(waiting)
                    waiting, size = [], 0
                waiting.append(line)
                size += len(line)
            if waiting:
                self._emit_lines(waiting)

    def _emit_lines(self, lines: list[bytes]) -> None:
        try:
            if self._lost and self._write(self._render(_confession(self._lost))):
                self._lost = 0
            if not self._write(b"".join(lines)):
                self._lost += len(lines)
        except Exception:  # noqa: BLE001 as in `emit`
            self._lost += len(lines)

    def _write(self, data: bytes) -> bool:
        if self._fd < 0:
            self._stream.write(data.decode())
            self._stream.flush()
            return True
        # A reader that is merely slow gets a moment, once; a stuck one must not cost every line that moment.
        if self._poll is not None and not self._poll(0 if self._lost else _PATIENCE_MS):
            return False
        os.write(self._fd, data)
        return True


def sole_line_handler(logger: logging.Logger) -> LineHandler | None:
    """The handler that all records of `logger` go to and nothing else does, None when that is not so."""
    handlers: list[logging.Handler] = []
    current: logging.Logger | None = logger
    while current is not None:
        if current.filters:
            return None
        handlers += current.handlers
        current = current.parent if current.propagate else None
    only = handlers[0] if len(handlers) == 1 else None
    return only if isinstance(only, LineHandler) and not only.filters else None


def _descriptor(stream: TextIO) -> int:
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):
        return -1


def _poll(fd: int) -> Callable[[int], object] | None:
    """Waits at most so many milliseconds for room in `fd`; None for what never makes a writer wait."""
    if fd < 0 or stat.S_ISREG(os.fstat(fd).st_mode) or not hasattr(select, "poll"):
        return None
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return poll.poll


def render_json(record: logging.LogRecord) -> bytes:
    """One JSON object and a newline, at most MAX_LINE bytes."""
    line = _line(record)
    data = _dumps(line)
    if len(data) >= MAX_LINE:
        data = _dumps(_fitted(line))
    return data + b"\n"


class _Console:
    """One aligned line; an exception follows on lines that begin with `    | `."""

    def __init__(self, colour: bool) -> None:
        self._colour = colour

    def __call__(self, record: logging.LogRecord) -> bytes:
        line = _line(record)
        when, level, name, event = (_visible(line.pop(key)) for key in _RESERVED[:4])
        trace = line.pop("error", "").splitlines()
        level = f"{level.upper():<7}"
        if self._colour:
            level = f"\x1b[{_COLOURS.get(record.levelno, '31')}m{level}\x1b[0m"
        fields = "".join(f" {_visible(key)}={_value(value)}" for key, value in line.items())
        text = f"{when[11:]} {level} {name:<26} {event:<20}{fields}".rstrip()
        if not trace:
            return _cut(text, MAX_LINE - 1) + b"\n"
        below = "\n".join(f"    | {_visible(part)}" for part in trace)
        return _cut(text, MAX_LINE // 2 - 1) + b"\n" + _cut(below, MAX_LINE // 2 - 1) + b"\n"


def _line(record: logging.LogRecord) -> Line:
    """What a record says, in order, cleaned: bounded texts without secrets, JSON values only."""
    line: Line = {
        "time": _timestamp(record.created),
        "level": _lowered(record.levelname),
        "logger": _text(record.name),
        "event": _event(record),
        **_always,
    }
    fields = getattr(record, "fields", None)
    if type(fields) is dict:
        if len(fields) > MAX_ITEMS:
            fields = dict(islice(fields.items(), MAX_ITEMS))
        for name, value in fields.items():
            shown, secret = _field(name)
            if secret:
                line[shown] = MASK
            elif type(value) is str:
                line[shown] = _text(value)
            else:
                line[shown] = _clean(value)
    if record.exc_info and record.exc_info[1] is not None:
        line["error"] = _error(record.exc_info[1])
    return line


def _timestamp(seconds: float) -> str:
    """RFC 3339, UTC, milliseconds."""
    whole = int(seconds)
    return _second(whole) + _MILLISECONDS[int((seconds - whole) * 1000)]


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


@lru_cache(maxsize=16)
def _lowered(level: str) -> str:
    return level.lower()


def _event(record: logging.LogRecord) -> str:
    if type(record.msg) is str and not record.args:
        return _text(record.msg)
    try:
        return _text(record.getMessage())
    except Exception:  # noqa: BLE001 arguments that do not fit the message, or cannot be printed
        return _text(record.msg) if isinstance(record.msg, str) else _unprintable(record.msg)


@lru_cache(maxsize=256)
def _field(name: Any) -> tuple[str, bool]:
    """The name a field is shown by, and whether its value is a secret. Cached: such names are ours."""
    shown, secret = _label(name)
    return (f"{shown}_" if shown in _RESERVED else shown), secret


def _label(name: Any) -> tuple[str, bool]:
    name = _text(str(name))
    return name[:MAX_NAME], is_secret(name)


def _clean(value: Any) -> Any:
    kind = type(value)
    if kind is int and -(2**63) <= value < 2**64:
        return value
    if kind is str:
        return _text(value)
    if kind is float or kind is bool or value is None:
        return value
    try:
        return _clean_other(value, MAX_DEPTH)
    except Exception:  # noqa: BLE001 the value's own code failed
        return _unprintable(value)


def _clean_other(value: Any, depth: int) -> Any:
    if isinstance(value, Enum):
        return _text(value.name)
    if isinstance(value, bool | None):
        return value
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**64 else _text(hex(value))
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return _text(bytes(value[: MAX_TEXT + _PAST_THE_CUT]).decode("utf-8", "replace"))
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return _clean_items(value, depth - 1) if depth else "…"
    return _text(str(value))


def _clean_items(value: Mapping[Any, Any] | Iterable[Any], depth: int) -> Any:
    if isinstance(value, Mapping):
        labelled = ((*_label(name), item) for name, item in islice(value.items(), MAX_ITEMS))
        return {name: MASK if secret else _clean_other(item, depth) for name, secret, item in labelled}
    items = list(islice(value, MAX_ITEMS))
    if len(items) == 2 and isinstance(items[0], str | bytes) and _label(_clean(items[0]))[1]:
        return [_clean(items[0]), MASK]
    return [_clean_other(item, depth) for item in items]


def _text(text: str) -> str:
    if len(text) <= _NAME_LIKE:
        return _name_text(text)
    if len(text) <= MAX_TEXT:
        return mask(_encodable(text))
    # A token that the cut would split must still be recognised as one, so look a little further.
    return mask(_encodable(text[: MAX_TEXT + _PAST_THE_CUT]))[: MAX_TEXT - 1] + "…"


@lru_cache(maxsize=1024)
def _name_text(text: str) -> str:
    """Short texts are said again and again: events, domains, limits, models, users."""
    return mask(_encodable(text))


def _encodable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _error(error: BaseException) -> str:
    try:
        text = "".join(traceback.format_exception(error, limit=-16)).rstrip("\n")
    except Exception:  # noqa: BLE001 an exception whose own text fails
        return _unprintable(error)
    # What comes before the part that is shown may say that it begins inside a credential.
    text = mask(_encodable(text[-8 * MAX_ERROR :]))
    return text if len(text) <= MAX_ERROR else "…" + text[-MAX_ERROR + 1 :]


def _unprintable(value: object) -> str:
    return f"<unprintable {type(value).__name__}>"


def _dumps(line: Line) -> bytes:
    data = orjson.dumps(line)
    if data.isascii():
        return data
    return _UNRULY.sub(lambda found: f"\\u{ord(found[0]):04x}", data.decode()).encode()


def _fitted(line: Line) -> Line:
    """`line` cut to MAX_LINE: the fixed names first, then fields, none with more than half of the room left."""
    room = MAX_LINE - len('{"truncated":true}\n')
    fitted: Line = {}
    for name in (*_RESERVED, *line):
        if name not in line or name in fitted:
            continue
        if room < _ROOM_FOR_A_NAME:
            break
        value = line[name]
        while (size := len(_dumps({name: value}))) > room // 2:
            text = value if isinstance(value, str) else _dumps(value).decode()
            keep = len(text) * 3 // 4
            value = text[-keep:] if name == "error" else text[:keep]
        fitted[name] = value
        room -= size
    return fitted | {"truncated": True}


def _visible(text: str) -> str:
    return text if text.isprintable() else repr(text)[1:-1]


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) else repr(value)
    return str(value)


def _cut(text: str, size: int) -> bytes:
    data = text.encode()
    if len(data) <= size:
        return data
    return data[: size - len("…".encode())].decode("utf-8", "ignore").encode() + "…".encode()


def _confession(lost: int) -> logging.LogRecord:
    return logging.makeLogRecord(
        {
            "name": __name__,
            "levelno": logging.WARNING,
            "levelname": "WARNING",
            "msg": "log lines lost",
            "fields": {"lost": lost},
        }
    )
