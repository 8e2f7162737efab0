"""Where callers are known from: API keys that were read from files, and claims of tokens that Envoy has verified."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from extproc.config.keys import MAX_KEY, KeyEntry
from extproc.config.model import Credentials, Jwt
from extproc.facts import RequestFacts, plain
from extproc.identity.seam import Verdict

NOT_FOUND: Final = "credential not found"
INVALID: Final = "the API Key provided is invalid"
"""Authorino's words, for `x-ext-auth-reason`."""
FOREIGN: Final = "the token is from another issuer"
EVERLASTING: Final = "the token does not expire"

REMEMBERED: Final = 1024
"""Callers with claims that are remembered, each with at most so many bytes of them: see below."""
MAX_REMEMBERED_CLAIMS: Final = 4096

_NOBODY: Final = KeyEntry(secrets.token_bytes(32), {})


class Caller:
    """Somebody whom a source knows, with room for what rules find out about them once and for all."""

    __slots__ = ("identity", "known", "verdict")

    def __init__(self, identity: Mapping[str, Any]) -> None:
        self.identity = identity
        self.verdict: Verdict | None = None
        self.known: dict[str, Any] | None = None


class CallerSource(Protocol):
    """One entry of `authentication`."""

    name: str
    scheme: str
    """What a client is challenged for in `www-authenticate`."""
    header: str
    """The request header with a credential of ours, in lower case; "" where it is Envoy's business."""

    def find(self, facts: RequestFacts) -> Caller | str:
        """Who calls, or why that is not known. Never raises."""


class KeySource:
    """API keys in a header.

    Who tries keys learns nothing from the time it takes: what is looked up is a hash, which nobody can approach
    letter by letter, and a forged key takes the same way as a real one. Nothing is remembered of it.
    The scheme in front of a key counts in any case, as in all of HTTP (RFC 9110, section 11.1).
    """

    def __init__(self, name: str, credentials: Credentials, entries: Iterable[KeyEntry]) -> None:
        self.name = name
        self.header = credentials.header.lower()
        own = credentials.header if self.header != "authorization" else "APIKEY"
        self.scheme = credentials.scheme or own
        self._prefix = f"{credentials.scheme} ".lower().encode() if credentials.scheme else b""
        self._entries = {entry.digest: entry for entry in entries}
        self._callers: dict[bytes, Caller] = {}

    def find(self, facts: RequestFacts) -> Caller | str:
        presented = self._presented(facts)
        if not presented:
            return NOT_FOUND
        if len(presented) > MAX_KEY:
            return INVALID
        digest = hashlib.sha256(presented).digest()
        entry = self._entries.get(digest, _NOBODY)
        if not hmac.compare_digest(entry.digest, digest):
            return INVALID
        caller = self._callers.get(entry.digest)
        if caller is None:
            caller = self._callers[entry.digest] = Caller(entry.identity)
        return caller

    def _presented(self, facts: RequestFacts) -> bytes:
        """The key in the request, b"" when there is none."""
        value = facts.headers.get(self.header, b"")
        length = len(self._prefix)
        return value[length:] if value[:length].lower() == self._prefix else b""


class JwtSource:
    """Claims that Envoy's `jwt_authn` left in the dynamic metadata.

    Reading claims takes longer than all the rest, so callers are remembered by the bytes of their claims. Only
    tokens that Envoy has verified come here: nobody can fill this with what they made up.
    """

    header = ""
    scheme = "Bearer"

    def __init__(self, name: str, config: Jwt) -> None:
        self.name = name
        self._config = config
        self._callers: dict[bytes, Caller] = {}

    def find(self, facts: RequestFacts) -> Caller | str:
        metadata = facts.metadata
        if self._config.namespace not in metadata:
            return NOT_FOUND
        found = metadata[self._config.namespace].fields
        if self._config.payload not in found:
            return NOT_FOUND
        payload = found[self._config.payload]
        data = payload.SerializeToString(deterministic=True)
        caller = self._callers.get(data)
        if caller is not None:
            return caller
        claims = plain(payload)
        if not isinstance(claims, dict):
            return NOT_FOUND
        if fault := self._fault(claims):
            return fault
        caller = Caller(claims)
        if len(data) <= MAX_REMEMBERED_CLAIMS:
            if len(self._callers) >= REMEMBERED:
                self._callers.clear()
            self._callers[data] = caller
        return caller

    def _fault(self, claims: Mapping[str, Any]) -> str:
        """Why `claims` are not enough, "" when they are. A claim of another type than it should have is none."""
        if self._config.issuer is not None and claims.get("iss") != self._config.issuer:
            return FOREIGN
        if self._config.require_expiration and type(claims.get("exp")) not in (int, float):
            return EVERLASTING
        return ""
