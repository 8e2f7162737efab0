"""From a file, or its text, to a configuration that can be used."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from extproc.config.check import find_problems, find_warnings
from extproc.config.document import parse_document
from extproc.config.errors import ConfigError, Problem, Snapshot, first_problems, shown
from extproc.config.files import Files, Unreadable
from extproc.config.model import Config, Limit
from extproc.config.schema import CONFIG, LIMITS
from extproc.config.validate import validate


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration whose names and files lead somewhere; its `limits` are a list, its paths absolute.

    `files` are the files it was read from: itself, the limits file, TLS files.
    """

    config: Config
    files: Snapshot
    warnings: tuple[Problem, ...] = ()


def load_config(path: Path) -> Loaded:
    """Reads a configuration file. Raises ConfigError, whose `files` are those read until then."""
    files = Files()
    try:
        text = _read(path, str(path), files)
        return _parsed(text, str(path), path.parent, files)
    except ConfigError as error:
        raise ConfigError(error.problems, files=files.snapshot) from None


def parse_config(text: str, *, name: str, base: Path) -> Loaded:
    """The same for the text of a file called `name`, with paths relative to the directory `base`."""
    files = Files()
    try:
        return _parsed(text, name, base, files)
    except ConfigError as error:
        raise ConfigError(error.problems, files=files.snapshot) from None


def load_limits(path: Path) -> list[Limit]:
    """Reads a limits file as Limitador does (a list, YAML or JSON). Raises ConfigError."""
    files = Files()
    try:
        return _limits(path, str(path), files)
    except ConfigError as error:
        raise ConfigError(error.problems, what="limits file", files=files.snapshot) from None


def _parsed(text: str, name: str, base: Path, files: Files) -> Loaded:
    data = parse_document(text, name)
    if not isinstance(data, dict):
        message = f"expected an object with `services` and `actionSets`, found {shown(data)}"
        raise ConfigError([Problem("", message, name)])
    config = validate(CONFIG, data, base=base)
    limits_problems: tuple[Problem, ...] = ()
    if isinstance(config.limits, str):
        try:
            limits = _limits(base / config.limits, config.limits, files)
            config = config.model_copy(update={"limits": limits})
        except ConfigError as error:
            # Of a file that cannot be read at all, the field that names it is what is wrong.
            limits_problems = tuple(
                problem if problem.path else Problem("limits", f"{problem.file}: {problem.message}")
                for problem in error.problems
            )
    if problems := first_problems(chain(limits_problems, find_problems(config, files))):
        raise ConfigError(problems)
    return Loaded(config, files.snapshot, tuple(find_warnings(config)))


def _limits(path: Path, name: str, files: Files) -> list[Limit]:
    data = parse_document(_read(path, name, files), name)
    return validate(LIMITS, data, base=path.parent, file=name)


def _read(path: Path, name: str, files: Files) -> str:
    try:
        return files.read_text(path)
    except Unreadable as error:
        raise ConfigError([Problem("", str(error), name)]) from None
