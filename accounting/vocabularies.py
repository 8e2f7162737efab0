"""Where the vocabularies come from that transcripts are counted with."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from extproc.usage.vocabulary import DIRECTORY_VARIABLE
from extproc.usage.vocabulary_cli import fill
from extproc.usage.vocabulary_files import DEFAULT_ENCODINGS, Definitions


@contextmanager
def directory_of(given: Path | None) -> Iterator[Path | None]:
    """`given`, else TIKTOKEN_CACHE_DIR, else one made for the while from bpe-openai, else None: nothing is downloaded.

    Raises VocabularyError or OSError when the package does not hold what tiktoken expects.
    """
    named = os.environ.get(DIRECTORY_VARIABLE)
    if given is not None or named:
        yield given or Path(named or "")
        return
    if not all(importlib.util.find_spec(package) for package in ("tiktoken", "bpe_openai")):
        yield None
        return
    with TemporaryDirectory(prefix="accounting-") as temporary:
        directory = Path(temporary)
        definitions = Definitions()
        for name in DEFAULT_ENCODINGS:
            fill(name, definitions.file(name), directory)
        yield directory
