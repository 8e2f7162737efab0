"""What limits tell clients: draft-03 of the RateLimit header fields, as Limitador and Envoy write it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import ceil, isfinite
from typing import Final

from extproc.limiter.seam import Quota

MAX_LISTED: Final = 10
"""Limits in `x-ratelimit-limit`."""
MAX_NAME: Final = 128
_UNSAFE = re.compile(r"[^ !#-\[\]-~]")


def ratelimit_headers(quotas: Sequence[Quota]) -> tuple[tuple[str, str], ...]:
    """`x-ratelimit-limit`, `-remaining` and `-reset` of the first quota; the first header lists the others too.

    Without `-reset` where waiting does not help; nothing for no quotas.
    """
    if not quotas:
        return ()
    first = quotas[0]
    policies = ", ".join([str(first.maximum), *map(_policy, quotas[:MAX_LISTED])])
    headers = (("x-ratelimit-limit", policies), ("x-ratelimit-remaining", str(first.remaining)))
    return (*headers, ("x-ratelimit-reset", str(ceil(first.resets_in)))) if isfinite(first.resets_in) else headers


def retry_after(quotas: Sequence[Quota]) -> int | None:
    """Seconds until all of `quotas`, those that refuse, have started anew; None when that may never be."""
    longest = max((quota.resets_in for quota in quotas), default=float("inf"))
    return max(1, ceil(longest)) if isfinite(longest) else None


def _policy(quota: Quota) -> str:
    """A limit of unknown window or without a name tells neither."""
    window = f";w={quota.window}" if quota.window else ""
    name = f';name="{_UNSAFE.sub("?", quota.limit[:MAX_NAME])}"' if quota.limit else ""
    return f"{quota.maximum}{window}{name}"
