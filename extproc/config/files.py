"""Reading files: regular ones, up to a size, and folders of them, remembered by their digest."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

MAX_BYTES = 10_000_000
"""A larger configuration, limits or PEM file is refused."""
MAX_FILES = 1000
"""A folder with more is refused."""


class Unreadable(Exception):
    """A file cannot be used; the text says why, without its name."""


class Files:
    """Reads files and remembers what was read, for whoever wants to notice a change."""

    def __init__(self) -> None:
        self.snapshot: dict[Path, str] = {}

    def read(self, path: Path) -> bytes:
        """The content of a regular file of at most MAX_BYTES. Raises Unreadable."""
        path = path.absolute()
        if "\0" in str(path):
            raise Unreadable("not the name of a file")
        self.snapshot[path] = ""
        try:
            data = _read(path)
        except OSError as error:
            raise Unreadable(f"cannot be read: {(error.strerror or 'unknown error').lower()}") from None
        self.snapshot[path] = _digest(data)
        if len(data) > MAX_BYTES:
            raise Unreadable(f"larger than {MAX_BYTES // 10**6} MB")
        return data

    def list(self, path: Path, suffixes: tuple[str, ...]) -> list[Path]:
        """Files to read for `path`: itself, or of a folder those with one of `suffixes`, by name. Raises Unreadable.

        A folder is remembered by the names in it, so that one more file is a change.
        """
        path = path.absolute()
        if "\0" in str(path) or not path.is_dir():
            return [path]
        try:
            names = _names(path)
        except OSError as error:
            raise Unreadable(f"cannot be read: {(error.strerror or 'unknown error').lower()}") from None
        self.snapshot[path] = _digest("\0".join(names).encode())
        found = [path / name for name in names if name.endswith(suffixes) and not name.startswith(".")]
        if len(found) > MAX_FILES:
            raise Unreadable(f"a folder with more than {MAX_FILES} files")
        return found

    def read_text(self, path: Path) -> str:
        """The same as text; a byte order mark is dropped. Raises Unreadable when it is not UTF-8."""
        data = self.read(path)
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise Unreadable(f"not UTF-8: byte {data[error.start]:#04x} in line {line}") from None


def take_snapshot(paths: Iterable[Path]) -> dict[Path, str]:
    """What `paths` hold now, comparable with `Files.snapshot`. Never raises."""
    found: dict[Path, str] = {}
    for path in paths:
        try:
            found[path] = _digest("\0".join(_names(path)).encode() if path.is_dir() else _read(path))
        except OSError:
            found[path] = ""
    return found


def _read(path: Path) -> bytes:
    """One byte more than allowed at most, so that a caller can tell."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(0, "is a directory" if path.is_dir() else "not a regular file")
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
