"""Vocabularies on this machine: found, verified, filled; and never a download but by `extproc vocab`."""

from __future__ import annotations

import argparse
import io
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from support.vocabularies import fill_directory, loaded_vocabulary

from extproc.usage import vocabulary_cli
from extproc.usage.vocabulary import DIRECTORY_VARIABLE, Vocabulary
from extproc.usage.vocabulary_cli import fill, run
from extproc.usage.vocabulary_files import DEFAULT_ENCODINGS, Definitions, VocabularyError, VocabularyFile

pytest.importorskip("tiktoken", reason="needs tiktoken")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill_directory(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return loaded_vocabulary(tmp_path_factory.mktemp("loaded"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        pytest.fail("reached for the network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("tiktoken.load.read_file", refuse)


def path_of(directory: Path, encoding: str) -> Path:
    return directory / Definitions().file(encoding).name


def options(directory: Path, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    vocabulary_cli.add_arguments(parser)
    return parser.parse_args([str(directory), *words])


# --- what is there ---------------------------------------------------------------------------------------------------


def test_a_filled_directory_is_found_and_nothing_is_missing(filled: Path) -> None:
    vocabulary = Vocabulary.open(filled)
    assert set(DEFAULT_ENCODINGS) <= set(vocabulary.found)
    assert (vocabulary.missing, vocabulary.corrupt, vocabulary.reason) == ((), (), "")
    assert vocabulary.encoding_for("gpt-4o") is None, "not before it was loaded"


def test_the_directory_of_tiktoken_is_the_default(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(filled))
    assert Vocabulary.open().directory == filled


def test_the_layout_is_that_of_tiktokens_cache(filled: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    from tiktoken.load import read_file_cached

    monkeypatch.setenv(DIRECTORY_VARIABLE, str(filled))
    for encoding in DEFAULT_ENCODINGS:
        file = Definitions().file(encoding)
        assert read_file_cached(file.url, file.sha256) == (filled / file.name).read_bytes()


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_directory_there_is_none_and_the_reason(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv(DIRECTORY_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(DIRECTORY_VARIABLE, value)
    vocabulary = Vocabulary.open()
    vocabulary.load()
    assert (vocabulary.found, vocabulary.encoding_for("gpt-4o")) == ((), None)
    assert DIRECTORY_VARIABLE in vocabulary.reason


def test_without_tiktoken_there_is_none_and_the_reason(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken_ext.openai_public", None)
    vocabulary = Vocabulary.open(filled)
    vocabulary.load()
    assert vocabulary.encoding_for("gpt-4o") is None
    assert "tiktoken is not installed" in vocabulary.reason


def test_another_tiktoken_is_not_trusted_to_stay_off_the_network(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extproc.usage.vocabulary_files._LOADER", "load_in_some_other_way")
    assert "not known" in Vocabulary.open(filled).reason


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("state", ["absent", "empty", "corrupt", "cut", "folder"])
def test_nothing_is_downloaded_or_removed_whatever_is_there(tmp_path: Path, state: str) -> None:
    directory = tmp_path / "vocabulary"
    file = path_of(directory, "o200k_base")
    if state != "absent":
        directory.mkdir()
    if state == "corrupt":
        file.write_bytes(b"IQ== 0\n")
    elif state == "cut":
        fill_directory(directory)
        file.write_bytes(file.read_bytes()[:-1])
        path_of(directory, "cl100k_base").unlink()
    elif state == "folder":
        file.mkdir()
    vocabulary = Vocabulary.open(directory)
    vocabulary.load()
    assert vocabulary.encoding_for("gpt-4o") is None
    assert "extproc vocab" in vocabulary.reason
    assert "cl100k_base" in vocabulary.missing
    assert ("o200k_base" in vocabulary.corrupt) == (state in {"corrupt", "cut", "folder"})
    assert file.exists() == (state in {"corrupt", "cut", "folder"})


@pytest.mark.usefixtures("no_network")
def test_a_file_that_changes_after_it_was_found_is_not_loaded(tmp_path: Path) -> None:
    fill_directory(tmp_path)
    vocabulary = Vocabulary.open(tmp_path)
    path_of(tmp_path, "cl100k_base").write_bytes(b"IQ== 0\n")
    vocabulary.load()
    assert "cl100k_base" in vocabulary.corrupt
    assert "cl100k_base" not in vocabulary.found
    encoding = vocabulary.encoding_for("gpt-4")
    assert encoding is not None
    assert encoding.name == "o200k_base"


def test_a_directory_that_goes_away_after_it_was_looked_at_is_the_reason(tmp_path: Path) -> None:
    fill_directory(tmp_path, ("cl100k_base",))
    vocabulary = Vocabulary.open(tmp_path)
    path_of(tmp_path, "cl100k_base").unlink()
    vocabulary.load()
    assert (vocabulary.loaded, vocabulary.found) == ((), ())
    assert "cl100k_base corrupt" in vocabulary.reason


# --- which encoding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4o", "o200k_base"),
        ("gpt-4o-mini-2024-07-18", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("gpt-35-turbo-16k", "cl100k_base"),
        ("text-embedding-3-large", "cl100k_base"),
        ("ft:gpt-4:acme::1", "cl100k_base"),
        ("openai/gpt-4", "cl100k_base"),
        ("openrouter/openai/gpt-3.5-turbo", "cl100k_base"),
        ("GPT-4", "cl100k_base"),
        ("openai.gpt-oss-120b-1:0", "o200k_base"),
        ("gpt2", "o200k_base"),
        ("claude-sonnet-4-5", "o200k_base"),
        ("meta-llama/Llama-3.1-8B-Instruct", "o200k_base"),
        ("", "o200k_base"),
        ("/", "o200k_base"),
    ],
)
def test_encoding_of_a_model(vocabulary: Vocabulary, model: str, encoding: str) -> None:
    """S2.D9: a model that nobody knows has the fallback's."""
    found = vocabulary.encoding_for(model)
    assert found is not None
    assert found.name == encoding


def test_the_fallback_is_configurable_and_anything_is_better_than_nothing(tmp_path: Path) -> None:
    fill_directory(tmp_path, ("cl100k_base",))
    vocabulary = Vocabulary.open(tmp_path)
    vocabulary.load()
    assert vocabulary.missing == ("o200k_base",)
    for model in ("gpt-4o", "mystery"):
        encoding = vocabulary.encoding_for(model)
        assert encoding is not None
        assert encoding.name == "cl100k_base"


def test_loading_again_keeps_what_there_is(vocabulary: Vocabulary) -> None:
    before = vocabulary.encoding_for("gpt-4o")
    vocabulary.load()
    assert vocabulary.encoding_for("gpt-4o") is before


def test_tokens_are_those_of_tiktoken(filled: Path, monkeypatch: pytest.MonkeyPatch, vocabulary: Vocabulary) -> None:
    import tiktoken

    monkeypatch.setenv(DIRECTORY_VARIABLE, str(filled))
    text = "Grüße aus 東京! def f(x): return x**2  # <|endoftext|> 😀"
    for model, name in (("gpt-4", "cl100k_base"), ("gpt-4o", "o200k_base")):
        encoding = vocabulary.encoding_for(model)
        assert encoding is not None
        assert encoding.encode_ordinary(text) == tiktoken.get_encoding(name).encode_ordinary(text)


# --- extproc vocab ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_network")
def test_vocab_fills_a_directory_and_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("bpe_openai", reason="needs the vocabularies of bpe-openai")
    directory = tmp_path / "deep" / "vocabulary"
    assert run(options(directory)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "cl100k_base: verified, copied from bpe-openai",
        "o200k_base: verified, copied from bpe-openai",
    ]
    path_of(directory, "cl100k_base").write_bytes(b"broken")
    assert run(options(directory)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "cl100k_base: verified, copied from bpe-openai, in place of a corrupt file",
        "o200k_base: verified, was there already",
    ]
    assert len(list(directory.iterdir())) == 2, "nothing else is left behind"
    assert path_of(directory, "cl100k_base").stat().st_mode & 0o777 == 0o644


@pytest.mark.usefixtures("no_network")
def test_vocab_check_changes_nothing(filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(options(filled, "--check")) == 0
    path_of(tmp_path, "cl100k_base").write_bytes(b"broken")
    assert run(options(tmp_path, "--check")) == 1
    told = capsys.readouterr().err
    assert "cl100k_base" in told
    assert "SHA-256" in told
    assert "o200k_base: missing" in told
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"broken"]


def test_vocab_of_an_unknown_encoding_names_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(options(tmp_path, "--encoding", "klingon")) == 1
    told = capsys.readouterr().err
    assert "`klingon`" in told
    assert "p50k_base" in told


def test_vocab_without_tiktoken_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken_ext.openai_public", None)
    assert run(options(tmp_path)) == 1
    assert "pip install" in capsys.readouterr().err


@pytest.mark.parametrize("failure", [urllib.error.URLError("no route"), TimeoutError("timed out")])
def test_vocab_without_a_network_names_the_encoding_it_could_not_get(
    filled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failure: Exception
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise failure

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    assert run(options(filled, "--encoding", "p50k_base")) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2, "the others are fine"
    assert "p50k_base: download of https://" in err


def test_vocab_downloads_what_no_package_has(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Definitions().file("cl100k_base")
    content = (filled / file.name).read_bytes()
    asked: list[str] = []

    def answer(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    assert fill("not in the package", file, tmp_path) == "verified, downloaded"
    assert asked == [file.url]
    assert file.read(tmp_path) == content


def test_a_download_that_is_not_what_it_should_be_is_not_written(tmp_path: Path) -> None:
    file = VocabularyFile("https://example.test/a", "0" * 64)
    with pytest.raises(VocabularyError, match="SHA-256"):
        fill("a", file, tmp_path, {"downloaded": lambda _name, _file: b"something else"})
    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("bpe_openai", reason="needs the vocabularies of bpe-openai")
    taken = tmp_path / "file"
    taken.write_text("")
    assert run(options(taken)) == 1
    assert str(taken) in capsys.readouterr().err
