"""Secrets that providers and guards are called with: from the environment, from files, from Kubernetes Secrets.

No message holds a secret, nor what stands in the place of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from extproc.config.document import parse_documents
from extproc.config.errors import ConfigError, Problem, field_path, first_problems, quoted
from extproc.config.files import Files, Unreadable
from extproc.config.model import Config
from extproc.config.providers import Credential, CredentialChoice, SecretKey
from extproc.config.secret_documents import (
    DEFAULT_NAMESPACE,
    Steps,
    Unusable,
    check_carried,
    secrets_in,
    value_of,
)

MAX_SECRET: Final = 64 * 1024
"""Bytes."""
NO_GUARD_KEY: Final = "intelligent guard api_key cannot be empty"
"""The words of the ASM proxy (S3.13)."""

_NEWLINE = re.compile(r"\r?\n\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONGEST_PATH: Final = 250


def read_credentials(config: Config, files: Files, environ: Mapping[str, str]) -> dict[Steps, str]:
    """The secret of every `credential`, by the way to what has it: `("providers", 0)`, `("guards", "chat", "model")`.

    One newline at the end of a secret does not count. What a header cannot carry is refused, and what is not there.
    Raises ConfigError with all problems.
    """
    reading = _Reading(files, environ)
    if problems := first_problems(reading.problems(config)):
        raise ConfigError(problems)
    return reading.secrets


def credentials_of(config: Config) -> Iterator[tuple[Steps, CredentialChoice | None]]:
    """Of everything that may have one, with the way to it."""
    for index, provider in enumerate(config.providers):
        yield ("providers", index), provider.credential
    for name, guard in config.guards.items():
        if guard.model is not None:
            yield ("guards", name, "model"), guard.model.credential
        if guard.webhook is not None:
            yield ("guards", name, "webhook"), guard.webhook.credential


class _Reading:
    """Collects secrets, and yields what is wrong on the way."""

    def __init__(self, files: Files, environ: Mapping[str, str]) -> None:
        self.secrets: dict[Steps, str] = {}
        self._files = files
        self._environ = environ
        self._found: dict[str, list[Mapping[str, Any]]] = {}

    def problems(self, config: Config) -> Iterator[Problem]:
        for owner, credential in credentials_of(config):
            if not isinstance(credential, Credential):
                continue
            try:
                self.secrets[owner] = self._secret(credential)
            except Unusable as unusable:
                prefix = f"{NO_GUARD_KEY}: " if owner[0] == "guards" and owner[-1] == "model" else ""
                yield Problem.at((*owner, "credential", *unusable.steps), f"{prefix}{unusable}")

    def _secret(self, credential: Credential) -> str:
        """Raises Unusable, with the steps below the credential."""
        if credential.env is not None:
            return _checked(self._variable(credential.env), f"{quoted(credential.env)}: ", "env")
        if credential.file is not None:
            return _checked(self._content(credential.file, "file"), _in(credential.file), "file")
        assert credential.secret is not None
        return self._value(credential.secret)

    def _variable(self, name: str) -> bytes:
        """A text that cannot be a name may be the secret itself, so it is not shown."""
        if not _VARIABLE.fullmatch(name):
            raise Unusable("expected the name of a variable, not a secret", "env")
        if name not in self._environ:
            raise Unusable(f"{quoted(name)} is not set", "env")
        return self._environ[name].encode("utf-8", "surrogateescape")

    def _content(self, path: str, *steps: str) -> bytes:
        try:
            return self._files.read(Path(path))
        except Unreadable as error:
            raise Unusable(f"{_in(path)}{error}", *steps) from None

    def _value(self, wanted: SecretKey) -> str:
        matching = [secret for secret in self._secrets(wanted.file) if _is(secret, wanted)]
        if len(matching) != 1:
            there = "no Secret" if not matching else "more than one Secret"
            name = f"{quoted(wanted.name)} in the namespace {quoted(wanted.namespace)}"
            raise Unusable(f"{_in(wanted.file)}{there} is called {name}", "secret", "name")
        try:
            value, steps = value_of(matching[0], wanted.key)
        except Unusable as unusable:
            raise Unusable(f"{_in(wanted.file)}{field_path(unusable.steps)}: {unusable}", "secret", "key") from None
        return _checked(value, f"{_in(wanted.file)}{field_path(steps)}: ", "secret", "key")

    def _secrets(self, path: str) -> list[Mapping[str, Any]]:
        """All Secrets of a file, which is read once."""
        if path not in self._found:
            try:
                documents = parse_documents(_text(self._content(path, "secret", "file")), path)
            except UnicodeDecodeError:
                raise Unusable(f"{_in(path)}not UTF-8", "secret", "file") from None
            except ConfigError as error:
                problem = error.problems[0]
                at = f"{problem.path}: " if problem.path else ""
                raise Unusable(f"{_in(path)}{at}{problem.message}", "secret", "file") from None
            kinds = [document for document in documents if isinstance(document, dict) and "kind" in document]
            self._found[path] = [secret for document in kinds for _, secret in secrets_in(document)]
        return self._found[path]


def _is(secret: Mapping[str, Any], wanted: SecretKey) -> bool:
    metadata = secret.get("metadata")
    if not isinstance(metadata, dict):
        return False
    return (metadata.get("name"), metadata.get("namespace") or DEFAULT_NAMESPACE) == (wanted.name, wanted.namespace)


def _checked(value: bytes, where: str, *steps: str) -> str:
    """The secret that `value` is. Raises Unusable, whose text begins with `where`."""
    try:
        secret = _NEWLINE.sub("", _text(value))
        check_carried(secret.encode(), MAX_SECRET)
    except UnicodeDecodeError:
        raise Unusable(f"{where}not UTF-8", *steps) from None
    except Unusable as unusable:
        raise Unusable(f"{where}{unusable}", *steps) from None
    return secret


def _text(data: bytes) -> str:
    """Without a byte order mark; what is wrong with it does not matter, for that would show some of it."""
    return data.decode("utf-8-sig")


def _in(path: str) -> str:
    return f"{quoted(path, longest=_LONGEST_PATH)}: "
