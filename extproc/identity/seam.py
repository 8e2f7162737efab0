"""The seam between an exchange and whoever knows its caller.

Like a limiter, an authenticator answers at once when it can (the embedded one does) and hands back an awaitable when
it must wait (an ext_authz server). Callers test the answer with `isinstance(answer, Verdict)`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from extproc.facts import RequestFacts

Headers = tuple[tuple[str, str], ...]
Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an authenticator says of one request.

    A refusal has a `status`, with `headers` and a `body` for the client; a body of None is that of the `denyWith`
    profile. Otherwise `status` is 0, and
    - `auth` is what expressions see as `auth`; the same object for the same caller where it can be;
    - `set_headers` and `remove_headers` change the request on its way to the model, and what expressions see of it;
    - `models`, when it is not None, are the only ones the caller may ask for.

    `reason` is for the log, and holds no secret.
    """

    status: int = 0
    reason: str = ""
    headers: Headers = ()
    body: bytes | None = None
    auth: Mapping[str, Any] = field(default_factory=dict)
    set_headers: Headers = ()
    remove_headers: tuple[str, ...] = ()
    models: frozenset[str] | None = None


class AuthError(Exception):
    """No verdict was reached: no connection, no answer in time, nonsense."""


AuthAnswer = Verdict | Awaitable[Verdict]


class Authenticator(Protocol):
    """Tells who calls."""

    def authenticate(self, facts: RequestFacts, scope: str, metadata: Metadata = ()) -> AuthAnswer:
        """The verdict on a request by the rules of `scope`. May raise AuthError, at once or when awaited."""
