"""What must not be read by whoever reads logs: the values of secret names, and tokens inside text."""

from __future__ import annotations

import re

MASK = "***"

_NAMES = (
    r"authorization|cookie|credentials?|passw(?:or)?d|passphrase|secret|jwt"
    r"|(?:api|access|private|secret|signing|subscription)[-_.]?key"
    r"|(?<!first[-_])(?<!per[-_])token"
)
_SECRET_NAME = re.compile(rf"(?:{_NAMES})$|authorization|cookie|credential|passw(?:or)?d|secret|api[-_.]?key", re.I)
_SECRET_TEXT = re.compile(
    rf"""
    \b(?P<scheme>(?:bearer|basic|apikey)\s+)[^\s"',;]+
    | (?-i:\bsk-)[\w-]{{8,}}
    | (?-i:\beyJ)[\w-]{{8,}}\.[\w.-]+
    | (?P<name>(?:{_NAMES})
        (?: ["']\s*,\s*b?(?=["']) | ["']\s*(?:raw_)?value:\s*(?=["']) | ["']?\s*[:=]\s*(?:b(?=["']))? )
      )
      (?: "(?:[^"\\]|\\.)*"? | '(?:[^'\\]|\\.)*'?
        | (?:(?:bearer|basic|apikey)\s+)?[^\s"',;&]+(?:;\s*[^\s"',;&]+)* )
    """,
    re.I | re.X,
)
_HINTS = (
    "bearer", "basic", "key", "token", "secret", "pass", "cookie", "credential", "authorization", "jwt"
)  # fmt: skip


def is_secret(name: str) -> bool:
    """Whether the value called `name` is a credential, as far as its name tells.

    `access_token` is one; `total_tokens` and `time_to_first_token` are counts and times.
    """
    return _SECRET_NAME.search(name) is not None


def mask(text: str) -> str:
    """`text` without the credentials that can be recognised in it, each replaced by `***`.

    Recognised are `Bearer`, `Basic` and `APIKEY` credentials, `sk-...` keys, JSON Web Tokens, and what follows
    a secret name in the ways headers, queries, JSON, Python and protobuf text write a name and its value.
    """
    return _SECRET_TEXT.sub(_masked, text) if _suspicious(text) else text


def _suspicious(text: str) -> bool:
    """Whether the pattern might match; it costs some 75 ns a character, this a tenth of that."""
    if "sk-" in text or "eyJ" in text:
        return True
    if " " in text or ":" in text or "=" in text or "'" in text or '"' in text or "\t" in text or "\n" in text:
        lower = text.lower()
        for hint in _HINTS:  # any() would cost as much again
            if hint in lower:
                return True
    return False


def _masked(found: re.Match[str]) -> str:
    return (found["scheme"] or found["name"] or "") + MASK
