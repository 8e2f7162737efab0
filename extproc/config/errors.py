"""What is wrong with a configuration, and where."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

Step = str | int
Snapshot = Mapping[Path, str]
"""Files that were read, each with a digest of its content; "" when it could not be read."""

MAX_PROBLEMS = 100
"""Problems beyond these are not listed."""

_MAX_SHOWN = 60
_MAX_NAMES = 30
_USERINFO = re.compile(r"(?<=://)[^/\s]*@")
"""A URL where a name belongs must not tell its password."""
_PLAIN_STEP = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to correct: `path` is a field such as `actionSets[0].name`, or a line and column.

    `file` is set where the path alone does not say which file is meant.
    """

    path: str
    message: str
    file: str = ""

    @classmethod
    def at(cls, steps: Sequence[Step], message: str, file: str = "") -> Problem:
        """A problem at the field that `steps` lead to, e.g. `("actionSets", 0, "name")`."""
        return cls(_USERINFO.sub("***@", field_path(steps)), message, file)

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.path, self.message) if part)


class ConfigError(Exception):
    """A configuration that cannot be used. `str()` has one line for each problem.

    `files` are the files that were read before it failed: a change to one of them is worth another try.
    """

    def __init__(
        self, problems: Iterable[Problem], *, what: str = "plugin config", files: Snapshot | None = None
    ) -> None:
        self.problems = tuple(problems)
        self.what = what
        self.files: Snapshot = files or {}
        super().__init__(self.problems)

    def __str__(self) -> str:
        return f"failed to parse {self.what}: " + "\n".join(map(str, self.problems))


def first_problems(problems: Iterable[Problem]) -> list[Problem]:
    """At most MAX_PROBLEMS of `problems`, and a last one that says so when there are more."""
    iterator = iter(problems)
    found = list(islice(iterator, MAX_PROBLEMS))
    if next(iterator, None) is not None:
        found.append(Problem("", f"more problems follow these {MAX_PROBLEMS}"))
    return found


def field_path(steps: Sequence[Step]) -> str:
    """`("services", "a.b", "x", 0)` as `services["a.b"].x[0]`."""
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _PLAIN_STEP.fullmatch(step):
            text += f".{step}" if text else step
        else:
            text += f"[{shown(step)}]"
    return text


def shown(value: object) -> str:
    """A scalar as JSON, on one line and shortened; a list or an object is only named."""
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        return f'"{_escaped(value)}"'
    return _shortened(json.dumps(value))


def quoted(name: str, longest: int = _MAX_SHOWN) -> str:
    """A name between backticks, escaped and shortened as by `shown`."""
    return f"`{_escaped(name, longest)}`"


def listed(names: Iterable[str]) -> str:
    """Names between backticks, the first 30 of them; `none` when there are none."""
    first = list(islice(names, _MAX_NAMES + 1))
    text = ", ".join(quoted(name) for name in first[:_MAX_NAMES])
    return (text or "none") + (", …" if len(first) > _MAX_NAMES else "")


def similar(name: str, names: Iterable[str]) -> str:
    """`, did you mean ...?` when one of the first thousand names is close, otherwise an empty string."""
    matches = difflib.get_close_matches(name[:80], list(islice(names, 1000)), n=1)
    return f", did you mean {quoted(matches[0])}?" if matches else ""


def _escaped(text: str, longest: int = _MAX_SHOWN) -> str:
    short = _shortened(text, longest)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short)


def _shortened(text: str, longest: int = _MAX_SHOWN) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
