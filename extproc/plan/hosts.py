"""Finding the most specific hostname pattern for a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

T = TypeVar("T")
_MAX_KNOWN = 1024
_LONGEST = 260


def normalise_host(authority: str) -> str:
    """The host of an authority as patterns compare it: no port, however odd, no trailing dots, case folded.

    `[::1]:80` and `::1` are both `::1`.
    """
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    host = authority if authority.count(":") > 1 else authority.partition(":")[0]
    return host.rstrip(".").lower()


class HostTable(Generic[T]):
    """Patterns are exact hosts, `*.suffix` (any depth, not the suffix itself) and `*`.

    What an authority leads to is remembered; authorities longer than a host name can be are not.
    """

    __slots__ = ("_exact", "_known", "_wildcard")

    def __init__(self, patterns: Mapping[str, T]) -> None:
        self._exact: dict[str, T] = {}
        self._wildcard: dict[str, T] = {}
        self._known: dict[str, T | None] = {}
        for pattern, value in patterns.items():
            key = pattern.lower()
            if key == "*":
                self._wildcard[""] = value
            elif key.startswith("*."):
                self._wildcard[key[2:]] = value
            else:
                self._exact[normalise_host(key)] = value

    def find(self, authority: str) -> T | None:
        """The value of the most specific pattern that matches the host of `authority`."""
        if authority in self._known:
            return self._known[authority]
        found = self._search(normalise_host(authority))
        if len(authority) <= _LONGEST:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[authority] = found
        return found

    def _search(self, host: str) -> T | None:
        found = self._exact.get(host)
        rest = host
        while found is None and rest:
            rest = rest.partition(".")[2]
            found = self._wildcard.get(rest)
        return self._wildcard.get("") if found is None else found
