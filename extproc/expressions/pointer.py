"""JSON pointers (RFC 6901)."""

from __future__ import annotations


def parse_pointer(text: str) -> tuple[str, ...]:
    """The reference tokens of `text`; raises ValueError unless it is "" or starts with `/`."""
    if not text:
        return ()
    if not text.startswith("/"):
        raise ValueError(f"a JSON pointer starts with `/`, found `{text}`")
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in text[1:].split("/"))
