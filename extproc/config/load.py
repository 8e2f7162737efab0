"""From a file, or its text, to a configuration that can be used."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from extproc.config.check import find_problems, find_warnings
from extproc.config.credentials import read_credentials
from extproc.config.document import parse_document
from extproc.config.errors import ConfigError, Problem, Snapshot, first_problems, shown
from extproc.config.files import Files, Unreadable
from extproc.config.keys import KeyEntry, read_keys
from extproc.config.masking import without_userinfo
from extproc.config.model import Config, Limit
from extproc.config.schema import CONFIG, LIMITS
from extproc.config.secret_documents import Steps
from extproc.config.validate import validate
from extproc.policies import Compiled, compile_policies, merged, read_policies

_PURPOSES = ("actionSets", "providers", "guards", "policies")
"""Sections of which a configuration needs one."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration whose names and files lead somewhere; its `limits` are a list, its paths absolute.

    What `policies` say is part of it. `keys` are the API keys of each source of `authConfigs`, by the names of both,
    `credentials` the secrets of providers and guards, by where they are configured.
    `files` are the files it was read from: itself, the limits file, policies, keys files, TLS files.
    """

    config: Config
    files: Snapshot
    warnings: tuple[Problem, ...] = ()
    keys: Mapping[tuple[str, str], Sequence[KeyEntry]] = field(default_factory=dict)
    credentials: Mapping[Steps, str] = field(default_factory=dict, repr=False)


def load_config(path: Path, *, credentials: bool = True) -> Loaded:
    """Reads a configuration file. Raises ConfigError, whose `files` are those read until then.

    Without `credentials` neither those of providers and guards nor API keys are read, so that they need not be there:
    for those who only look at what is configured.
    """
    files = Files()
    try:
        text = _read(path, str(path), files)
        return _parsed(text, str(path), path.parent, files, credentials=credentials)
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


def _parsed(text: str, name: str, base: Path, files: Files, *, credentials: bool = True) -> Loaded:
    data = parse_document(text, name)
    if not isinstance(data, dict):
        message = f"expected an object with `actionSets`, `providers` or `guards`, found {shown(data)}"
        raise ConfigError([Problem("", message, name)])
    if data.keys().isdisjoint(_PURPOSES):
        message = f"expected one of {', '.join(f'`{name}`' for name in _PURPOSES)}: nothing would be done"
        raise ConfigError([Problem("", message, name)])
    policies = _policies(data, base, files)
    config = validate(CONFIG, merged(data, policies), base=base)
    limits_problems: tuple[Problem, ...] = ()
    if isinstance(config.limits, str):
        try:
            limits = _limits(base / config.limits, config.limits, files)
            config = config.model_copy(update={"limits": limits})
        except ConfigError as error:
            # Of a file that cannot be read at all, the field that names it is what is wrong.
            limits_problems = tuple(
                problem if problem.path else Problem("limits", f"{without_userinfo(problem.file)}: {problem.message}")
                for problem in error.problems
            )
    if policies.limits and not limits_problems:
        added = validate(LIMITS, list(policies.limits), base=base)
        config = config.model_copy(update={"limits": [*config.embedded_limits, *added]})
    if problems := first_problems(chain(limits_problems, find_problems(config, files))):
        raise ConfigError(problems)
    warnings = (*policies.warnings, *find_warnings(config))
    if not credentials:
        return Loaded(config, files.snapshot, warnings)
    keys = _keys(config, files)
    secrets = read_credentials(config, files, os.environ)
    return Loaded(config, files.snapshot, (*warnings, *_unused(keys)), keys, secrets)


def _unused(keys: Mapping[tuple[str, str], Sequence[KeyEntry]]) -> Iterator[Problem]:
    for (scope, name), found in keys.items():
        if not found:
            steps = ("authConfigs", scope, "authentication", name, "apiKeys")
            yield Problem.at(steps, "no key is there: nobody is let in by it")


def _policies(data: dict[str, Any], base: Path, files: Files) -> Compiled:
    """What the documents that a configuration names come to; what is wrong with the field itself is told later."""
    paths = data.get("policies")
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        return Compiled()
    return compile_policies(read_policies([base / path for path in paths], files))


def _keys(config: Config, files: Files) -> dict[tuple[str, str], Sequence[KeyEntry]]:
    """The API keys of every source. Raises ConfigError with the problems of all of them."""
    found: dict[tuple[str, str], Sequence[KeyEntry]] = {}
    problems: list[Problem] = []
    for scope, auth in config.auth_configs.items():
        for name, source in auth.authentication.items():
            if source.api_keys is None:
                continue
            try:
                found[scope, name] = read_keys(source.api_keys, files)
            except ConfigError as error:
                problems.extend(error.problems)
    if problems:
        raise ConfigError(first_problems(problems))
    return found


def _limits(path: Path, name: str, files: Files) -> list[Limit]:
    data = parse_document(_read(path, name, files), name)
    return validate(LIMITS, data, base=path.parent, file=name)


def _read(path: Path, name: str, files: Files) -> str:
    try:
        return files.read_text(path)
    except Unreadable as error:
        raise ConfigError([Problem("", str(error), name)]) from None
