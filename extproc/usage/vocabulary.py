"""The encodings that are on this machine, and which one a model has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from extproc.usage.vocabulary_files import DEFAULT_ENCODINGS, Definitions, VocabularyError

if TYPE_CHECKING:
    from tiktoken import Encoding

DIRECTORY_VARIABLE = "TIKTOKEN_CACHE_DIR"
DEFAULT_FALLBACK = "o200k_base"


class Vocabulary:
    """Encodings of one directory. `open` finds them, `load` makes them usable; neither raises nor downloads.

    `found`, `missing` and `corrupt` are names of encodings; `missing` only of those that are expected everywhere.
    `reason` says why there is none, "" when there is one.
    """

    __slots__ = ("_definitions", "_encodings", "_fallback", "corrupt", "directory", "found", "missing", "reason")

    def __init__(self, directory: Path | None, fallback: str, reason: str) -> None:
        self.directory = directory
        self.found: tuple[str, ...] = ()
        self.missing: tuple[str, ...] = ()
        self.corrupt: tuple[str, ...] = ()
        self.reason = reason
        self._fallback = fallback
        self._definitions: Definitions | None = None
        self._encodings: dict[str, Encoding] = {}

    @classmethod
    def open(cls, directory: Path | None = None, *, fallback: str = DEFAULT_FALLBACK) -> Vocabulary:
        """Look into a directory, by default TIKTOKEN_CACHE_DIR, and verify what is there (about 20 ms).

        `fallback` is the encoding of models that tiktoken does not know.
        """
        if directory is None:
            named = os.environ.get(DIRECTORY_VARIABLE)
            if not named:
                return cls(None, fallback, f"no vocabulary directory is configured and {DIRECTORY_VARIABLE} is not set")
            directory = Path(named)
        vocabulary = cls(directory, fallback, "")
        try:
            vocabulary._definitions = Definitions()
        except VocabularyError as error:
            vocabulary.reason = str(error)
        else:
            vocabulary._look(vocabulary._definitions, directory)
        return vocabulary

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the encodings that can be used."""
        return tuple(self._encodings)

    def load(self) -> None:
        """Make every encoding that was found usable; again is free.

        o200k_base and cl100k_base take 0.4 s and 70 MB, and twice hold the interpreter for 0.1 s at a stretch: before
        there is traffic, please, whether in a thread or not.
        """
        if self._definitions is None or self.directory is None:
            return
        twins: dict[tuple[str, str], Encoding] = {}
        for name in self.found:
            if name in self._encodings:
                continue
            file = self._definitions.file(name)
            twin = (file.sha256, self._definitions.pattern(name))
            try:
                if twin not in twins:
                    twins[twin] = self._definitions.encoding(name, file.read(self.directory))
            except (OSError, VocabularyError):
                self.found = tuple(other for other in self.found if other != name)
                self.corrupt += (name,)
            else:
                self._encodings[name] = twins[twin]
        self.reason = self._reason(self.directory)

    def encoding_for(self, model: str) -> Encoding | None:
        """The encoding of a model, also of `provider/model`; else the fallback, else any; None when none is loaded."""
        encodings = self._encodings
        if not encodings:
            return None
        found = encodings.get(_encoding_name(model)) or encodings.get(self._fallback)
        return found or next(iter(encodings.values()))

    def _look(self, definitions: Definitions, directory: Path) -> None:
        found, missing, corrupt = [], [], []
        for name, file in definitions.files.items():
            try:
                file.read(directory)
            except FileNotFoundError:
                if name in (*DEFAULT_ENCODINGS, self._fallback):
                    missing.append(name)
            except (OSError, VocabularyError):
                corrupt.append(name)
            else:
                found.append(name)
        self.found, self.missing, self.corrupt = tuple(found), tuple(missing), tuple(corrupt)
        self.reason = self._reason(directory)

    def _reason(self, directory: Path) -> str:
        if self.found:
            return ""
        bad = f" ({', '.join(self.corrupt)} corrupt)" if self.corrupt else ""
        return f"no vocabulary in {directory}{bad}: `extproc vocab {directory}` fills it"


def _encoding_name(model: str) -> str:
    """As tiktoken has it, "" for a model it does not know."""
    from tiktoken.model import encoding_name_for_model

    name = model.rpartition("/")[2].removeprefix("openai.")
    for candidate in dict.fromkeys((model, name, name.lower())):
        try:
            return encoding_name_for_model(candidate)
        except KeyError:
            continue
    return ""
