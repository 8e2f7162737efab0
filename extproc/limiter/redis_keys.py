"""Names of counters in Redis: `PREFIX:{NAMESPACE}:DIGEST:VALUES`, and `:PERIOD` for windows of the calendar.

The braces keep all counters of a namespace, and so all of one call, in one slot of a cluster. DIGEST is that of the
limit's identity: two limits never share a counter, and one that is defined anew finds its own again.
"""

from __future__ import annotations

import json
from hashlib import sha256

from extproc.limiter.limits import CompiledLimit, Values
from extproc.limiter.redis_link import slot_of
from extproc.limiter.redis_script import MAX_MILLISECONDS
from extproc.limiter.windows import OPENED

SLACK = 60.0
"""Seconds for which a counter of a calendar window outlives it: the clocks of servers differ."""


class CounterKeys:
    """The keys of one limit's counters: each begins with `head`, and `slot` is that of all of them."""

    __slots__ = ("_head", "_length", "head", "limit", "slot")

    def __init__(self, prefix: str, limit: CompiledLimit) -> None:
        tag = _escaped(limit.identity.namespace).replace("{", "%7B").replace("}", "%7D")
        self.limit = limit
        self.slot = slot_of(tag)
        self._head = f"{prefix}:{{{tag}}}:{_digest(limit)}:"
        self.head = _encoded(self._head)
        seconds = limit.window.seconds
        self._length = -1_000_000 * seconds if limit.steady else min(1000 * seconds, MAX_MILLISECONDS)

    def key(self, values: Values, wall: float) -> bytes:
        """The key of the counter of `values` at `wall`, in seconds since 1970."""
        return _encoded(f"{self._head}{':'.join(map(_escaped, values))}{self._tail(wall)}")

    def length(self, wall: float) -> int:
        """For how many milliseconds a window is kept that is opened at `wall`.

        Of a bucket what tells the script that it is one: less than nothing, microseconds in which it fills.
        """
        if self.limit.window.period(wall):
            return int((self.limit.window.ends_in(wall) + SLACK) * 1000)
        return self._length

    def most(self, age: float) -> int:
        """What the script is told of a counter that gives back hits of `age` seconds ago.

        The milliseconds that a window may have left which was open then (one of the calendar has its key), or a
        bucket's maximum.
        """
        limit = self.limit
        if limit.steady:
            return limit.max_value
        return MAX_MILLISECONDS if limit.window.period(0.0) else self._length - int((age - OPENED) * 1000)

    def values(self, key: bytes, wall: float) -> Values | None:
        """The inverse of `key`; None for what is not a key of this limit, or one of another period."""
        try:
            text = key.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return None
        tail = self._tail(wall)
        name = text.removeprefix(self._head).removesuffix(tail)
        values = tuple(map(_plain, name.split(":"))) if self.limit.variables else ()
        return values if len(values) == len(self.limit.variables) and self.key(values, wall) == key else None

    def _tail(self, wall: float) -> str:
        period = self.limit.window.period(wall)
        return f":{period}" if period else ""


def head_of(key: bytes, prefix: str) -> bytes:
    """What CounterKeys calls `head`, of a key that begins with `prefix`; b"" of one that is no counter's."""
    end_of_tag = key.find(b"}:", len(prefix)) + 1
    return key[: key.find(b":", end_of_tag + 1) + 1] if end_of_tag else b""


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace(":", "%3A")


def _plain(text: str) -> str:
    return text.replace("%3A", ":").replace("%25", "%")


def _encoded(text: str) -> bytes:
    """Lone surrogates too: whatever a limit matched, its counter has a name."""
    return text.encode("utf-8", "surrogatepass")


def _digest(limit: CompiledLimit) -> str:
    return sha256(json.dumps(limit.identity).encode()).hexdigest()[:12]
