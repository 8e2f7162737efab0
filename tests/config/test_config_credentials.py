"""Secrets of providers and guards: where they come from, and what is said, without them, of those that are missing."""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extproc.config.credentials import MAX_SECRET, credentials_of, read_credentials
from extproc.config.errors import ConfigError
from extproc.config.files import Files, take_snapshot
from extproc.config.model import Config
from extproc.config.schema import CONFIG
from extproc.config.secret_documents import Steps
from extproc.config.validate import validate

KEY = "sk-very-secret"
Read = Callable[..., dict[Steps, str]]
Lines = Callable[..., list[str]]


def config_of(base: Path, *credentials: Any, **sections: Any) -> Config:
    """A provider for each of `credentials`."""
    providers = [{"name": f"p{index}", "credential": item} for index, item in enumerate(credentials)]
    return validate(CONFIG, {"providers": providers, **sections}, base=base)


def secret(value: Any = KEY, *, section: str = "stringData", key: str = "api_key", **metadata: Any) -> dict[str, Any]:
    return {"kind": "Secret", "metadata": {"name": "openai"} | metadata, section: {key: value}}


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read_all(*credentials: Any, environ: dict[str, str] | None = None, **sections: Any) -> dict[Steps, str]:
        return read_credentials(config_of(tmp_path, *credentials, **sections), Files(), environ or {})

    return read_all


@pytest.fixture
def lines(read: Read, tmp_path: Path) -> Lines:
    """What is wrong; that no line shows the secret, or some of it, is seen to here."""

    def find(*credentials: Any, **more: Any) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            read(*credentials, **more)
        found = [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems]
        assert not [line for line in found if KEY in line or "very" in line or encoded(KEY)[:8] in line]
        return found

    return find


# --- where secrets come from


def test_a_secret_of_each_kind(read: Read, tmp_path: Path) -> None:
    """S2.5, S3.D17: from the environment, from a file, from a Secret; by the way to what has it."""
    (tmp_path / "key").write_text("from-file\n")
    (tmp_path / "secret.yaml").write_text(yaml.safe_dump(secret("from-secret")))
    model = {"host": "guard", "credential": {"env": "GUARD_KEY"}}
    webhook = {"url": "http://hook", "credential": {"file": "key", "header": "x-token"}}
    found = read(
        {"env": "OPENAI_KEY"},
        "none",
        {"file": "key"},
        "client",
        {"secret": {"file": "secret.yaml", "name": "openai"}},
        environ={"OPENAI_KEY": "from-environment", "GUARD_KEY": "of-the-guard"},
        guards={"chat": {"model": model, "webhook": webhook}, "patterns": {"deny": ["x"]}},
    )
    assert found == {
        ("providers", 0): "from-environment",
        ("providers", 2): "from-file",
        ("providers", 4): "from-secret",
        ("guards", "chat", "model"): "of-the-guard",
        ("guards", "chat", "webhook"): "from-file",
    }


def test_everything_that_may_have_a_credential_is_listed(tmp_path: Path) -> None:
    guards = {"chat": {"model": {"host": "guard", "credential": "none"}, "webhook": {"url": "http://hook"}}}
    listed = dict(credentials_of(config_of(tmp_path, "client", guards=guards)))
    assert listed == {
        ("providers", 0): "client",
        ("guards", "chat", "model"): "none",
        ("guards", "chat", "webhook"): None,
    }


@pytest.mark.parametrize("content", [KEY, f"{KEY}\n", f"{KEY}\r\n", f"\N{BYTE ORDER MARK}{KEY}\n"])
def test_one_newline_at_the_end_of_a_file_does_not_count(read: Read, tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_bytes(content.encode())
    assert read({"file": "key"}) == {("providers", 0): KEY}


DOCUMENTS: list[tuple[str, list[Any], dict[str, str]]] = [
    ("data is base64", [secret(encoded(KEY), section="data")], {}),
    ("as `echo key | base64` makes it", [secret(encoded(KEY + "\n"), section="data")], {}),
    ("stringData counts before data", [secret() | {"data": {"api_key": encoded("other")}}], {}),
    ("another key", [secret(key="token")], {"key": "token"}),
    ("of several documents", [secret("other", name="azure"), {"kind": "ConfigMap"}, ["no object"], secret()], {}),
    ("in a list", [{"kind": "List", "items": [secret("other", name="azure"), secret()]}], {}),
    ("in a list of Secrets", [{"kind": "SecretList", "items": [secret()]}], {}),
    ("the namespace `default` need not be written", [secret("other", namespace="prod"), secret()], {}),
    ("of another namespace", [secret("other"), secret(namespace="prod")], {"namespace": "prod"}),
]


@pytest.mark.parametrize(("documents", "wanted"), [case[1:] for case in DOCUMENTS], ids=[case[0] for case in DOCUMENTS])
def test_a_secret_document(read: Read, tmp_path: Path, documents: list[Any], wanted: dict[str, str]) -> None:
    (tmp_path / "secrets.yaml").write_text(yaml.safe_dump_all(documents))
    assert read({"secret": {"file": "secrets.yaml", "name": "openai"} | wanted}) == {("providers", 0): KEY}


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    """S2.D26: who watches what was read learns of a new key, and of one that appears where none was."""
    (tmp_path / "key").write_text("old")
    files = Files()
    with suppress(ConfigError):
        read_credentials(config_of(tmp_path, {"file": "key"}, {"file": "later"}), files, {})
    assert take_snapshot(files.snapshot) == files.snapshot
    (tmp_path / "later").write_text("new")
    changed = {path for path, digest in take_snapshot(files.snapshot).items() if digest != files.snapshot[path]}
    assert changed == {tmp_path / "later"}


# --- what is wrong


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({}, "`OPENAI_KEY` is not set"),
        ({"OPENAI_KEY": ""}, "`OPENAI_KEY`: empty"),
        ({"OPENAI_KEY": "\n"}, "`OPENAI_KEY`: empty"),
        ({"OPENAI_KEY": f" {KEY}"}, "`OPENAI_KEY`: no header can carry it: white space around it, a line break or a "),
        ({"OPENAI_KEY": f"{KEY}\r\nx-evil: 1"}, "`OPENAI_KEY`: no header can carry it"),
        ({"OPENAI_KEY": f"{KEY}\x7f"}, "`OPENAI_KEY`: no header can carry it"),
        ({"OPENAI_KEY": f"{KEY}\udcff"}, "`OPENAI_KEY`: not UTF-8"),
        ({"OPENAI_KEY": "k" * (MAX_SECRET + 1)}, f"`OPENAI_KEY`: longer than {MAX_SECRET} bytes"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(lines: Lines, environ: dict[str, str], told: str) -> None:
    [line] = lines({"env": "OPENAI_KEY"}, environ=environ)
    assert line.startswith(f"providers[0].credential.env: {told}")


def test_a_secret_in_place_of_the_name_of_a_variable_is_not_shown(lines: Lines) -> None:
    assert lines({"env": KEY}) == ["providers[0].credential.env: expected the name of a variable, not a secret"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read: no such file or directory"),
        (b"", "empty"),
        (b"\n", "empty"),
        (f"{KEY}\n\n".encode(), "no header can carry it"),
        (f"{KEY}\nsecond line".encode(), "no header can carry it"),
        (f"{KEY}\0".encode(), "no header can carry it"),
        (f"{KEY}\xff".encode("latin-1"), "not UTF-8"),
        (b"k" * (MAX_SECRET + 1), f"longer than {MAX_SECRET} bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(lines: Lines, tmp_path: Path, content: bytes | None, told: str) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    [line] = lines({"file": "key"})
    assert line.startswith(f"providers[0].credential.file: `key`: {told}")


BAD_DOCUMENTS: list[tuple[bytes, str]] = [
    (b"", "name: `s.yaml`: no Secret is called `openai` in the namespace `default`"),
    (b"[]", "name: `s.yaml`: no Secret is called"),
    (b"kind: Secret\nmetadata: openai", "name: `s.yaml`: no Secret is called"),
    (yaml.safe_dump(secret(namespace="prod")).encode(), "name: `s.yaml`: no Secret is called"),
    (yaml.safe_dump_all([secret(), secret()]).encode(), "name: `s.yaml`: more than one Secret is called `openai`"),
    (yaml.safe_dump(secret(key="token")).encode(), "key: `s.yaml`: data.api_key: missing"),
    (yaml.safe_dump(secret(12)).encode(), "key: `s.yaml`: stringData.api_key: expected a string, found a number"),
    (yaml.safe_dump(secret(KEY, section="data")).encode(), "key: `s.yaml`: data.api_key: expected base64"),
    (yaml.safe_dump(secret("")).encode(), "key: `s.yaml`: stringData.api_key: empty"),
    (yaml.safe_dump(secret(f"{KEY}\n{KEY}")).encode(), "key: `s.yaml`: stringData.api_key: no header can carry it"),
    (f"kind: Secret\nstringData: {KEY}: {KEY}".encode(), "file: `s.yaml`: line 2"),
    (f"kind: Secret\nstringData: {KEY}\xff".encode("latin-1"), "file: `s.yaml`: not UTF-8"),
]


@pytest.mark.parametrize(("content", "told"), BAD_DOCUMENTS)
def test_a_secret_document_that_cannot_be_used_is_named(
    lines: Lines, tmp_path: Path, content: bytes, told: str
) -> None:
    (tmp_path / "s.yaml").write_bytes(content)
    [line] = lines({"secret": {"file": "s.yaml", "name": "openai"}})
    assert line.startswith(f"providers[0].credential.secret.{told}")


def test_the_key_of_a_guard_may_not_be_empty(lines: Lines) -> None:
    """S3.13, S3.D10"""
    guards = {"chat": {"model": {"host": "guard", "credential": {"env": "GUARD_KEY"}}}}
    assert lines(guards=guards, environ={"GUARD_KEY": ""}) == [
        "guards.chat.model.credential.env: intelligent guard api_key cannot be empty: `GUARD_KEY`: empty"
    ]


def test_all_problems_are_told_at_once(lines: Lines) -> None:
    guards = {"chat": {"webhook": {"url": "http://hook", "credential": {"env": "HOOK"}}}}
    assert lines({"env": "A"}, {"file": "b"}, guards=guards) == [
        "providers[0].credential.env: `A` is not set",
        "providers[1].credential.file: `b`: cannot be read: no such file or directory",
        "guards.chat.webhook.credential.env: `HOOK` is not set",
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(content=st.binary(max_size=200) | st.text(max_size=60).map(str.encode))
def test_whatever_a_file_holds_it_is_a_header_value_or_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "any").write_bytes(content)
    for credential in ({"file": "any"}, {"secret": {"file": "any", "name": "openai"}}):
        try:
            found = read_credentials(config_of(tmp_path, credential), Files(), {})
        except ConfigError:
            continue
        value = found["providers", 0].encode()
        assert value == value.strip()
        assert not set(value) & set(b"\r\n\0")
