"""One input of the fuzzer, and how it is kept for later."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Case:
    """A body, mostly of an answer, and the pieces in which it comes."""

    content_type: str
    content_encoding: str
    body: bytes = field(repr=False)
    cuts: tuple[int, ...] = field(default=(), repr=False)
    """Offsets between 0 and the length of the body, ascending."""
    limit: int = 1024
    """Of the readers: bytes of a JSON body that is parsed whole, and of an event."""
    is_request: bool = False
    """Whether it is a request instead, which is edited."""
    is_guarded: bool = False
    """Whether a guard looks at the answer, which is a stream."""

    def pieces(self) -> list[bytes]:
        """The body, cut; some pieces may be empty."""
        return [self.body[start:end] for start, end in pairwise((0, *self.cuts, len(self.body)))]

    def save(self, folder: Path) -> Path:
        """Write it into `folder` under a name of its own; the file."""
        text = json.dumps(
            {
                "content_type": self.content_type,
                "content_encoding": self.content_encoding,
                "limit": self.limit,
                "is_request": self.is_request,
                "is_guarded": self.is_guarded,
                "cuts": self.cuts,
                "body": base64.b64encode(self.body).decode(),
            },
            indent=1,
        )
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"case-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
        path.write_text(text + "\n")
        return path

    @classmethod
    def load(cls, path: Path) -> Case:
        """Read what `save` wrote. Raises OSError, or for what is no case ValueError, KeyError or TypeError."""
        saved = json.loads(path.read_text())
        return cls(
            content_type=saved["content_type"],
            content_encoding=saved["content_encoding"],
            body=base64.b64decode(saved["body"]),
            cuts=tuple(saved["cuts"]),
            limit=saved["limit"],
            is_request=saved.get("is_request", False),
            is_guarded=saved.get("is_guarded", False),
        )
