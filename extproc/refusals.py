"""Answers in the model's place, as clients of different APIs understand them.

A profile decides what a body looks like; statuses and the headers that gateways look at are the same in all of them.
`openai` and `anthropic` are the error objects of those APIs, so that their SDKs raise their own errors and wait as
long as `retry-after` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import orjson

from extproc import replies
from extproc.limiter.quotas import ratelimit_headers, retry_after
from extproc.limiter.seam import Decision

Headers = tuple[tuple[str, str], ...]
Profile = Literal["kuadrant", "gloo", "openai", "anthropic"]
Rejection = Literal["unauthenticated", "unauthorized", "model", "no_limit"]
"""Caller unknown; caller known and refused; model not allowed; no limit for the caller."""
Kind = Literal[Rejection, "limited"]

LONGEST_WAIT: Final = 60
"""Seconds that the SDKs of OpenAI and Anthropic wait at most; told to wait longer they try again at once."""

_REASON: Final[Mapping[Kind, str]] = {
    "unauthorized": "Unauthorized",
    "model": "the model is not allowed",
    "no_limit": "no limit applies",
}
"""`x-ext-auth-reason` of refusals that no authenticator worded."""
_TEXT: Final[Mapping[Kind, str]] = {
    "limited": "Too Many Requests\n",
    "unauthenticated": "",
    "unauthorized": "",
    "model": "RBAC: access denied",
    "no_limit": "Forbidden\n",
}
_MESSAGE: Final[Mapping[Kind, str]] = {
    "limited": "Rate limit reached.",
    "unauthenticated": "Incorrect or missing credentials.",
    "unauthorized": "You are not allowed to use this service.",
    "model": "You are not allowed to use this model, or it does not exist.",
    "no_limit": "No quota is assigned to you.",
}
_OPENAI: Final[Mapping[Kind, tuple[str, str]]] = {
    "limited": ("rate_limit_error", "rate_limit_exceeded"),
    "unauthenticated": ("invalid_request_error", "invalid_api_key"),
    "unauthorized": ("invalid_request_error", "permission_denied"),
    "model": ("invalid_request_error", "model_not_found"),
    "no_limit": ("insufficient_quota", "insufficient_quota"),
}
"""`type` and `code`."""
_ANTHROPIC: Final[Mapping[Kind, str]] = {
    "limited": "rate_limit_error",
    "unauthenticated": "authentication_error",
    "unauthorized": "permission_error",
    "model": "permission_error",
    "no_limit": "permission_error",
}


def _openai(kind: Kind, message: str) -> bytes:
    error_type, code = _OPENAI[kind]
    param = "model" if kind == "model" else None
    return orjson.dumps({"error": {"message": message, "type": error_type, "param": param, "code": code}})


def _anthropic(kind: Kind, message: str) -> bytes:
    return orjson.dumps({"type": "error", "error": {"type": _ANTHROPIC[kind], "message": message}})


_JSON: Final[Mapping[Profile, Callable[[Kind, str], bytes]]] = {"openai": _openai, "anthropic": _anthropic}


@dataclass(frozen=True, slots=True)
class Refusals:
    """How an action set refuses. `body` replaces that of the profile for requests over a limit.

    With `tells_limits` such a refusal says how long it lasts, where the limiter knows.
    """

    profile: Profile = "kuadrant"
    status: int = 429
    headers: Headers = (("x-envoy-ratelimited", "true"),)
    body: bytes | None = None
    tells_limits: bool = True

    def limited(self, decision: Decision, headers: Headers = ()) -> bytes:
        """The serialised reply to a request over its limit; `headers` are what earlier answers wanted shown."""
        quotas = decision.quotas if self.tells_limits else ()
        wait = retry_after(quotas)
        told = ratelimit_headers(quotas)
        if wait is not None:
            told += (("retry-after", str(wait)),)
        never = bool(quotas) and wait is None
        if self.profile in _JSON and (never or (wait or 0) > LONGEST_WAIT):
            told += (("x-should-retry", "false"),)
        body = self._body("limited", _limited_message(decision, wait)) if self.body is None else self.body
        return replies.immediate(
            self.status,
            body,
            _merged(self._content_type(), self.headers, told, headers, decision.headers),
            details="over_limit",
        )

    def rejected(
        self, kind: Rejection, status: int, headers: Headers = (), body: bytes | None = None, shown: Headers = ()
    ) -> bytes:
        """The serialised reply to a caller who is not let in.

        `headers` are the authenticator's, or the usual one; a `body` of None is that of the profile. `shown` are what
        earlier answers wanted the client to see.
        """
        if not headers and kind in _REASON:
            headers = (("x-ext-auth-reason", _REASON[kind]),)
        content_type = self._content_type() if body is None else ()
        body = self._body(kind, _MESSAGE[kind]) if body is None else body
        return replies.immediate(status, body, _merged(content_type, headers, shown), details=f"auth_{kind}")

    def _body(self, kind: Kind, message: str) -> bytes:
        write = _JSON.get(self.profile)
        if write is not None:
            return write(kind, message)
        if self.profile == "gloo" and kind in ("limited", "no_limit"):
            return b""
        return _TEXT[kind].encode()

    def _content_type(self) -> Headers:
        return (("content-type", "application/json"),) if self.profile in _JSON else ()


def _limited_message(decision: Decision, wait: int | None) -> str:
    """What a person reads in a stack trace: which limit, how large, and until when."""
    quota = decision.quotas[0] if decision.quotas else None
    name = f" `{decision.limit}`" if decision.limit else ""
    size = f": {quota.maximum} in {quota.window} s" if quota is not None else ""
    again = f" Please try again in {wait} s." if wait is not None else ""
    return f"Rate limit{name} reached{size}.{again}"


def _merged(*groups: Iterable[tuple[str, str]]) -> Headers:
    """Headers of all groups; of the same name the last counts but for those that may repeat within their group."""
    merged: dict[str, list[tuple[str, str]]] = {}
    for group in groups:
        names: dict[str, list[tuple[str, str]]] = {}
        for name, value in group:
            names.setdefault(name.lower(), []).append((name.lower(), value))
        merged.update(names)
    return tuple(header for headers in merged.values() for header in headers)
