"""Answers to callers who are not let in, with the statuses and headers of Authorino."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

from extproc.config.model import Denial
from extproc.identity.seam import Headers, Verdict
from extproc.identity.sources import CallerSource

REASON: Final = "x-ext-auth-reason"
UNAUTHORIZED: Final = "Unauthorized"
NO_USER: Final = "no user"
NO_RULES: Final = Verdict(404, "Service not found", headers=((REASON, "Service not found"),))
"""Authorino's answer where no AuthConfig is found."""

_QUOTED = re.compile(r'(["\\])')
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


class Denials:
    """The refusals of one AuthConfig; few, so each is made once."""

    def __init__(self, sources: Sequence[CallerSource], unauthenticated: Denial, unauthorized: Denial) -> None:
        self._names = [source.name for source in sources]
        self._challenges = tuple(("www-authenticate", _challenge(source)) for source in sources)
        self._unauthenticated = unauthenticated
        self._unauthorized = unauthorized
        self._made: dict[tuple[int, Sequence[str]], Verdict] = {}

    def unauthenticated(self, reasons: tuple[str, ...]) -> Verdict:
        """No source knows the caller, each for one of `reasons`, which are a few constants."""
        verdict = self._made.get((401, reasons))
        if verdict is None:
            reason = reasons[0] if len(reasons) == 1 else _as_json(dict(zip(self._names, reasons, strict=True)))
            verdict = self._made[401, reasons] = _denial(401, reason, self._unauthenticated, self._challenges)
        return verdict

    def unauthorized(self, reason: str = UNAUTHORIZED) -> Verdict:
        """The caller is known, and refused."""
        verdict = self._made.get((403, reason))
        if verdict is None:
            verdict = self._made[403, reason] = _denial(403, reason, self._unauthorized, ())
        return verdict


def _denial(status: int, reason: str, configured: Denial, challenges: Headers) -> Verdict:
    own = tuple((name.lower(), value) for name, value in configured.headers.items())
    replaced = {name for name, _ in own}
    usual = tuple(header for header in (*challenges, (REASON, reason)) if header[0] not in replaced)
    body = None if configured.body is None else configured.body.encode()
    return Verdict(configured.status or status, reason, headers=(*usual, *own), body=body)


def _challenge(source: CallerSource) -> str:
    realm = _QUOTED.sub(r"\\\1", _UNPRINTABLE.sub("?", source.name))
    return f'{source.scheme} realm="{realm}"'


def _as_json(reasons: Mapping[str, str]) -> str:
    return json.dumps(reasons, sort_keys=True, separators=(",", ":"))
