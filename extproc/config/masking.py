"""What may be shown of a configuration."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from extproc.config.errors import Step
from extproc.config.model import Config
from extproc.config.secret_headers import secret_headers

MASK = "***"

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
_SECRET_WORDS = frozenset(
    {"key", "keys", "secret", "secrets", "password", "passwords", "passwd", "passphrase", "token", "tokens"}
    | {"credential", "credentials", "authorization", "authentication", "cookie", "jwt", "apikey", "bearer"}
)
_PLAIN_KEYS = frozenset({"static", "expression", "tls"})
_NAMED_BY_OPERATOR = frozenset({"services", "endpoints", "guards"})
_NO_SECRETS = frozenset({"authConfigs"})
"""Sections that only say where secrets are: in which files, in which header."""
_REFERENCE_DEPTH = {"providers": 2, "guards": 3}
"""How far down the `credential` of a provider, and of a guard's model or webhook, is; it says where a secret is."""
_USERINFO = re.compile(r"(?<=://)[^/\s]*@")


def masked(config: Config) -> dict[str, Any]:
    """The configuration as JSON-able data in the form it is written, each secret replaced by `***`.

    Secret are strings at or below a field whose name says so (`apiKey`, `set-cookie`) and user information in
    addresses and URLs, and what prompt limits expect of a header of keys. The paths of TLS key files and the keys of
    descriptor entries are shown.
    """
    data = _mask(config.model_dump(mode="json", by_alias=True), (), secret=False)
    assert isinstance(data, dict)
    _mask_selectors(data.get("promptLimits"), secret_headers(config))
    return data


def holds_secret(steps: Sequence[Step]) -> bool:
    """Whether the value that `steps` lead to, or one above it, is secret as far as names tell."""
    return any(_is_secret(steps[: end + 1]) for end in range(len(steps)))


def without_userinfo(text: str, *, address: bool = False) -> str:
    """`text` with `user:password@` masked in URLs, and in front of the host of a bare `address`."""
    text = _USERINFO.sub(f"{MASK}@", text)
    if address and "://" not in text and "@" in text:
        return f"{MASK}@{text.rpartition('@')[2]}"
    return text


def _mask_selectors(limits: dict[str, Any] | None, secret: Collection[str]) -> None:
    """What a header of keys is to say for a prompt limit is a key."""
    for limit in [] if limits is None else limits["limits"]:
        selector = limit["selector"]
        if selector is not None and selector["value"] and selector["header"] in secret:
            selector["value"] = MASK


def _mask(value: Any, steps: tuple[Step, ...], *, secret: bool) -> Any:
    secret = secret or (_is_secret(steps) and steps[0] not in _NO_SECRETS and not _refers(steps))
    if isinstance(value, dict):
        return {key: _mask(item, (*steps, key), secret=secret) for key, item in value.items()}
    if isinstance(value, list):
        return [_mask(item, (*steps, index), secret=secret) for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    return MASK if secret else without_userinfo(value, address=steps[-1] == "address")


def _is_secret(steps: Sequence[Step]) -> bool:
    """Whether the last of `steps` is a secret's name; its last word decides, so `tokenCount` is none."""
    name = steps[-1] if steps else 0
    parent = steps[-2] if len(steps) > 1 else ""
    if isinstance(name, int) or (name == "key" and parent in _PLAIN_KEYS):
        return False
    if parent in _NAMED_BY_OPERATOR and len(steps) == 2:
        return False
    if steps[0] == "promptLimits" and name == "tokens":
        return False
    words = _WORD.findall(name)
    return bool(words) and words[-1].lower() in _SECRET_WORDS


def _refers(steps: Sequence[Step]) -> bool:
    """Whether `steps` lead into the `credential` of a provider or guard, not into what an operator called so."""
    depth = _REFERENCE_DEPTH.get(str(steps[0]))
    return depth is not None and len(steps) > depth and steps[depth] == "credential"
