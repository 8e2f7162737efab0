"""Fill a directory with the vocabularies that token estimates need, and verify it.

A vocabulary that is in the directory already stays. One that is not comes from the package bpe-openai where that is
installed, else it is downloaded. Set `estimates.vocabulary` in the configuration, or TIKTOKEN_CACHE_DIR, to the
directory: the server itself never downloads anything. Exit status 1 when a vocabulary is missing or corrupt in the end.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import importlib.resources
import os
import sys
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path

from extproc.usage.vocabulary_files import (
    DEFAULT_ENCODINGS,
    MAX_FILE,
    Definitions,
    VocabularyError,
    VocabularyFile,
)

_TIMEOUT = 30.0
"""Seconds of silence after which a download is given up."""

Fetch = Callable[[str, VocabularyFile], bytes | None]
"""The content of an encoding's file, None where there is none. Unverified; OSError when it cannot be had."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `extproc vocab`."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="created if need be")
    parser.add_argument("--check", action="store_true", help="only verify what is there")
    parser.add_argument(
        "--encoding",
        action="append",
        default=[],
        metavar="NAME",
        help=f"one more beside {' and '.join(DEFAULT_ENCODINGS)}; may be repeated",
    )


def run(options: argparse.Namespace) -> int:
    """Print a line for each encoding; 0 when all of them are there and verified, else 1."""
    try:
        definitions = Definitions()
        files = {name: definitions.file(name) for name in (*DEFAULT_ENCODINGS, *options.encoding)}
    except VocabularyError as error:
        sys.stderr.write(f"extproc: {error}\n")
        return 1
    complete = True
    for name, file in files.items():
        try:
            done = _check(file, options.directory) if options.check else fill(name, file, options.directory)
        except (OSError, VocabularyError) as error:
            complete = False
            sys.stderr.write(f"extproc: {name}: {error}\n")
        else:
            sys.stdout.write(f"{name}: {done}\n")
    return 0 if complete else 1


def fill(name: str, file: VocabularyFile, directory: Path, sources: dict[str, Fetch] | None = None) -> str:
    """Have a verified file in the directory, and say in a few words what was done.

    VocabularyError or OSError when that cannot be; a file that is there is replaced only by a verified one.
    """
    try:
        file.read(directory)
    except FileNotFoundError:
        state = ""
    except VocabularyError:
        state = ", in place of a corrupt file"
    else:
        return "verified, was there already"
    for words, fetch in (_SOURCES if sources is None else sources).items():
        content = fetch(name, file)
        if content is None:
            continue
        if not file.verified(content):
            raise VocabularyError(f"{words}, but not what its SHA-256 promises")
        _write(directory, file.name, content)
        return f"verified, {words}{state}"
    raise VocabularyError("found nowhere")


def _check(file: VocabularyFile, directory: Path) -> str:
    try:
        file.read(directory)
    except FileNotFoundError:
        raise VocabularyError(f"missing: no {file.name} in {directory}") from None
    return "verified"


def _from_package(name: str, file: VocabularyFile) -> bytes | None:
    try:
        packed = importlib.resources.files("bpe_openai").joinpath("data", f"{name}.tiktoken.gz")
        with packed.open("rb") as compressed, gzip.open(compressed) as content:
            data = content.read(MAX_FILE)
    except (ImportError, OSError, EOFError, zlib.error):
        return None
    return data if file.verified(data) else None


def _from_network(name: str, file: VocabularyFile) -> bytes | None:
    if not file.url.startswith("https://"):
        raise VocabularyError(f"{file.url} is not downloaded")
    try:
        with urllib.request.urlopen(file.url, timeout=_TIMEOUT) as answer:  # noqa: S310 - https alone, see above
            content: bytes = answer.read(MAX_FILE)
    except (OSError, http.client.HTTPException) as error:
        raise VocabularyError(f"download of {file.url} failed: {error}") from error
    return content


_SOURCES: dict[str, Fetch] = {"copied from bpe-openai": _from_package, "downloaded": _from_network}


def _write(directory: Path, name: str, content: bytes) -> None:
    """All or nothing: a server may be reading."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".", delete=False) as file:
        try:
            file.write(content)
            file.close()
            # Written for whoever runs the server, not only for who runs this.
            Path(file.name).chmod(0o644)
            os.replace(file.name, directory / name)
        except OSError:
            Path(file.name).unlink(missing_ok=True)
            raise
