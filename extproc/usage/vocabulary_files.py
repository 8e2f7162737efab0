"""Files with the vocabularies of tiktoken's encodings, in the layout of its cache. Nothing here reaches the network."""

from __future__ import annotations

import binascii
import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from tiktoken import Encoding

DEFAULT_ENCODINGS = ("cl100k_base", "o200k_base")
"""What OpenAI's models since GPT-3.5 use."""

MAX_FILE = 32 << 20
"""Bytes. The largest vocabulary has 3.6 million."""

_LOADER = "load_tiktoken_bpe"
_OLD_LOADER = "data_gym_to_mergeable_bpe_ranks"


class VocabularyError(Exception):
    """A vocabulary cannot be used; the message says why in words."""


class VocabularyFile(NamedTuple):
    """Where tiktoken has it from, and the SHA-256 it insists on."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """As tiktoken names it in its cache."""
        return hashlib.sha1(self.url.encode(), usedforsecurity=False).hexdigest()

    def verified(self, content: bytes) -> bool:
        """Is this what the file has to hold?"""
        return hashlib.sha256(content).hexdigest() == self.sha256

    def read(self, directory: Path) -> bytes:
        """Its verified content; FileNotFoundError, another OSError, or VocabularyError for anything else in it."""
        with (directory / self.name).open("rb") as file:
            content = file.read(MAX_FILE + 1)
        if not self.verified(content):
            raise VocabularyError(f"{directory / self.name} is not what its SHA-256 promises")
        return content


class Definitions:
    """tiktoken's own table of encodings: pattern, special tokens and file of each.

    It is a private copy of tiktoken's module in which reading a file, or else downloading it, is replaced.
    """

    def __init__(self) -> None:
        """VocabularyError when tiktoken is not installed or not as it is known here."""
        self._module = _private_copy()
        setattr(self._module, _OLD_LOADER, _unknown_layout)
        self.files: dict[str, VocabularyFile] = {}
        for name in self._module.ENCODING_CONSTRUCTORS:
            try:
                self.files[name] = self._file(name)
            except VocabularyError:
                continue

    def file(self, encoding: str) -> VocabularyFile:
        """VocabularyError for an encoding that is not known."""
        try:
            return self.files[encoding]
        except KeyError:
            raise VocabularyError(f"unknown encoding `{encoding}`; known: {', '.join(sorted(self.files))}") from None

    def pattern(self, encoding: str) -> str:
        """How it splits text. Encodings with the same file and pattern count the same."""
        return str(self._arguments(encoding, {})["pat_str"])

    def encoding(self, name: str, content: bytes) -> Encoding:
        """Build it from the verified content of its file. Holds the interpreter for about 0.1 s."""
        import tiktoken

        ranks = _parse(content)
        encoding = tiktoken.Encoding(**self._arguments(name, ranks))
        # What counts has a copy of its own; this one is for pickling.
        ranks.clear()
        return encoding

    def _file(self, name: str) -> VocabularyFile:
        files: list[VocabularyFile] = []

        def note(url: str, expected_hash: str) -> dict[bytes, int]:
            files.append(VocabularyFile(url, expected_hash))
            return {}

        self._construct(name, note)
        return files[0]

    def _arguments(self, name: str, ranks: dict[bytes, int]) -> dict[str, Any]:
        def give(url: str, expected_hash: str) -> dict[bytes, int]:
            return ranks

        return self._construct(name, give)

    def _construct(self, name: str, loader: Any) -> dict[str, Any]:
        setattr(self._module, _LOADER, loader)
        arguments: dict[str, Any] = self._module.ENCODING_CONSTRUCTORS[name]()
        return arguments


def _private_copy() -> ModuleType:
    try:
        spec = importlib.util.find_spec("tiktoken_ext.openai_public")
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError:
        raise VocabularyError("tiktoken is not installed: pip install 'extproc[tokens]'") from None
    if not all(hasattr(module, name) for name in (_LOADER, _OLD_LOADER, "ENCODING_CONSTRUCTORS")):
        raise VocabularyError("this version of tiktoken reads its files in a way that is not known")
    return module


def _unknown_layout(*_: object, **__: object) -> NoReturn:
    raise VocabularyError("has two files of an older format")


def _parse(content: bytes) -> dict[bytes, int]:
    return {binascii.a2b_base64(token): int(rank) for token, rank in map(bytes.split, content.splitlines())}
