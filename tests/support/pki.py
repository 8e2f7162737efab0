"""Certificates for tests, made by the `openssl` command."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


class Pki:
    """An authority, and certificates that it signs, as PEM files `NAME.crt` and `NAME.key` in a folder.

    Skips the test where there is no `openssl`.
    """

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("needs openssl to make certificates")
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._make("ca")

    def __truediv__(self, name: str) -> str:
        return str(self.folder / name)

    def sign(self, name: str) -> None:
        """A certificate for 127.0.0.1, of this authority; anew when it exists."""
        signed = ["-CA", self / "ca.crt", "-CAkey", self / "ca.key"]
        self._make(name, *signed, "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost")

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def spoil(self, name: str) -> None:
        """Leave half of a file."""
        (self.folder / name).write_bytes(self.read(name)[:100])

    def _make(self, name: str, *extra: str) -> None:
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        files = ["-keyout", self / f"{name}.key", "-out", self / f"{name}.crt"]
        command = ["openssl", "req", "-x509", "-days", "2", *key, "-subj", f"/CN={name}", *files, *extra]
        subprocess.run(command, check=True, capture_output=True)
