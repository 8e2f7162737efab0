"""Answers in the model's place, as clients of different APIs understand them.

A profile decides what a body looks like; statuses and the headers that gateways look at are the same in all of them.
`openai` and `anthropic` are the error objects of those APIs, with the request's id where their SDKs look for it, so
that these raise their own errors. As long as `retry-after` says they wait with any profile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import orjson

from extproc import replies
from extproc.limiter.quotas import ratelimit_headers, retry_after
from extproc.limiter.seam import Decision, Quota
from extproc.telemetry.names import printable
from extproc.telemetry.spending import Rejection

Headers = tuple[tuple[str, str], ...]
Profile = Literal["kuadrant", "gloo", "asm", "openai", "anthropic"]
Kind = Literal[Rejection, "limited"]

LONGEST_WAIT: Final = 60
"""Seconds that a client is left to wait by itself. Told to wait longer, older SDKs of OpenAI and Anthropic try again
within seconds, and newer ones of Anthropic sleep as long as they are told, be it a day."""

_DETAILS: Final[Mapping[Kind, str]] = {
    "no_provider": "no_provider",
    "no_selector": "no_selector",
    "body": "request_body_unreadable",
    "encoding": "request_body_unreadable",
    "too_large": "request_body_too_large",
    "guard": "guard",
    "failure": "extproc_failure",
}
"""Response code details for Envoy's access log, of refusals that have nothing to do with who calls."""
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
    "no_match": "Not Found\n",
    "no_provider": "Bad Request\n",
    "no_selector": "Forbidden\n",
    "body": "Bad Request\n",
    "encoding": "Unsupported Media Type\n",
    "too_large": "Payload Too Large\n",
    "failure": "Internal Server Error.\n",
    "guard": "Forbidden\n",
}
_MESSAGE: Final[Mapping[Kind, str]] = {
    "limited": "Rate limit reached.",
    "unauthenticated": "Incorrect or missing credentials.",
    "unauthorized": "You are not allowed to use this service.",
    "model": "You are not allowed to use this model, or it does not exist.",
    "no_limit": "No quota is assigned to you.",
    "no_match": "There is nothing at this address.",
    "no_provider": "No provider serves this request.",
    "no_selector": "A header is missing by which requests are told apart.",
    "body": "The body of the request cannot be read.",
    "encoding": "The body of the request is in an encoding that is not read here.",
    "too_large": "The body of the request is too large.",
    "failure": "The request could not be checked. Please try again.",
    "guard": "The request was refused because of its content.",
}
_OPENAI: Final[Mapping[Kind, tuple[str, str]]] = {
    "limited": ("rate_limit_error", "rate_limit_exceeded"),
    "unauthenticated": ("invalid_request_error", "invalid_api_key"),
    "unauthorized": ("invalid_request_error", "permission_denied"),
    "model": ("invalid_request_error", "model_not_found"),
    "no_limit": ("insufficient_quota", "insufficient_quota"),
    "no_match": ("invalid_request_error", "not_found"),
    "no_provider": ("invalid_request_error", "model_not_found"),
    "no_selector": ("invalid_request_error", "permission_denied"),
    "body": ("invalid_request_error", "invalid_body"),
    "encoding": ("invalid_request_error", "unsupported_encoding"),
    "too_large": ("invalid_request_error", "request_too_large"),
    "failure": ("server_error", "internal_error"),
    "guard": ("invalid_request_error", "content_filter"),
}
"""`type` and `code`."""
_REQUEST_ID: Final[Mapping[Profile, str]] = {"openai": "x-request-id", "anthropic": "request-id"}
"""The header in which an SDK looks for it."""
_ANTHROPIC: Final[Mapping[Kind, str]] = {
    "limited": "rate_limit_error",
    "unauthenticated": "authentication_error",
    "unauthorized": "permission_error",
    "model": "permission_error",
    "no_limit": "permission_error",
    "no_match": "not_found_error",
    "no_provider": "invalid_request_error",
    "no_selector": "permission_error",
    "body": "invalid_request_error",
    "encoding": "invalid_request_error",
    "too_large": "request_too_large",
    "failure": "api_error",
    "guard": "invalid_request_error",
}


def _openai(kind: Kind, message: str, request_id: str) -> bytes:
    error_type, code = _OPENAI[kind]
    param = "model" if kind == "model" else None
    return orjson.dumps({"error": {"message": message, "type": error_type, "param": param, "code": code}})


def _anthropic(kind: Kind, message: str, request_id: str) -> bytes:
    error = {"type": "error", "error": {"type": _ANTHROPIC[kind], "message": message}}
    return orjson.dumps({**error, "request_id": request_id} if request_id else error)


_JSON: Final[Mapping[Profile, Callable[[Kind, str, str], bytes]]] = {"openai": _openai, "anthropic": _anthropic}


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

    def limited(
        self, decision: Decision, headers: Headers = (), body: bytes | None = None, *, request_id: str = ""
    ) -> bytes:
        """The serialised reply to a request over its limit; `headers` are what earlier answers wanted shown.

        A `body` is in place of the configured one.
        """
        given = self.body if body is None else body
        limit, quotas = (decision.limit, decision.quotas) if self.tells_limits else ("", ())
        wait = retry_after(quotas)
        told = ratelimit_headers(quotas)
        if wait is not None:
            told += (("retry-after", str(wait)),)
        never = bool(quotas) and wait is None
        if never or (wait or 0) > LONGEST_WAIT:
            told += (("x-should-retry", "false"),)
        body = self._body("limited", _limited_message(limit, quotas, wait), request_id, given)
        own = self._own_headers(request_id, given)
        return replies.immediate(
            self.status, body, _merged(own, self.headers, told, headers, decision.headers), details="over_limit"
        )

    def rejected(
        self,
        kind: Rejection,
        status: int,
        headers: Headers = (),
        body: bytes | None = None,
        shown: Headers = (),
        *,
        request_id: str = "",
        message: str = "",
    ) -> bytes:
        """The serialised reply to a caller who is not let in.

        `headers` are the authenticator's, or the usual one; a `body` of None is that of the profile. `shown` are what
        earlier answers wanted the client to see. A `message` is said in place of the profile's, but in JSON profiles
        a guard says nothing more.
        """
        if not headers and kind in _REASON:
            headers = (("x-ext-auth-reason", _REASON[kind]),)
        own = self._own_headers(request_id, body)
        if body is None and message and self.profile not in _JSON:
            body = message.encode("utf-8", "replace")
        said = _MESSAGE[kind] if kind == "guard" or not message else message
        body = self._body(kind, said, request_id, body)
        return replies.immediate(status, body, _merged(own, headers, shown), details=_DETAILS.get(kind, f"auth_{kind}"))

    def _body(self, kind: Kind, message: str, request_id: str, given: bytes | None) -> bytes:
        if given is not None:
            return given
        write = _JSON.get(self.profile)
        if write is not None:
            return write(kind, message, request_id)
        if self.profile == "gloo" and kind in ("limited", "no_limit"):
            return b""
        return _TEXT[kind].encode()

    def _own_headers(self, request_id: str, given: bytes | None) -> Headers:
        """Those of the profile; of what a body is that was `given`, its giver may tell."""
        if self.profile not in _JSON:
            return ()
        content_type: Headers = (("content-type", "application/json"),) if given is None else ()
        return (*content_type, (_REQUEST_ID[self.profile], request_id)) if request_id else content_type


def _limited_message(limit: str, quotas: Sequence[Quota], wait: int | None) -> str:
    """What a person reads in a stack trace: which limit, how large, and until when; as far as that is known."""
    name = f" `{printable(limit)}`" if limit else ""
    size = f": {quotas[0].maximum}" if quotas else ""
    window = f" in {quotas[0].window} s" if quotas and quotas[0].window else ""
    again = f" Please try again in {wait} s." if wait is not None else ""
    if window and wait is None:
        again = " The request needs more than all of it."
    return f"Rate limit{name} reached{size}{window}.{again}"


def _merged(*groups: Iterable[tuple[str, str]]) -> Headers:
    """Headers of all groups; of the same name the last counts but for those that may repeat within their group."""
    merged: dict[str, list[tuple[str, str]]] = {}
    for group in groups:
        names: dict[str, list[tuple[str, str]]] = {}
        for name, value in group:
            names.setdefault(name.lower(), []).append((name.lower(), value))
        merged.update(names)
    return tuple(header for headers in merged.values() for header in headers)
