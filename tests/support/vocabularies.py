"""Vocabulary directories made from the package bpe-openai, without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from extproc.usage.vocabulary import Vocabulary
from extproc.usage.vocabulary_cli import fill
from extproc.usage.vocabulary_files import DEFAULT_ENCODINGS, Definitions


def fill_directory(directory: Path, encodings: tuple[str, ...] = DEFAULT_ENCODINGS) -> Path:
    """Put vocabularies into a directory; the test is skipped where the packages are not installed."""
    pytest.importorskip("tiktoken", reason="needs tiktoken")
    pytest.importorskip("bpe_openai", reason="needs the vocabularies of bpe-openai")
    definitions = Definitions()
    for name in encodings:
        fill(name, definitions.file(name), directory)
    return directory


def loaded_vocabulary(directory: Path) -> Vocabulary:
    """cl100k_base and o200k_base, ready to count; takes half a second."""
    vocabulary = Vocabulary.open(fill_directory(directory))
    vocabulary.load()
    return vocabulary
