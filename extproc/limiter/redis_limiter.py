"""Counters in Redis, which any number of servers share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import inf
from typing import NamedTuple

from extproc.limiter.embedded import Counter
from extproc.limiter.gcra import Pace
from extproc.limiter.limits import CompiledLimit, LimitSet, Touched
from extproc.limiter.redis_keys import CounterKeys
from extproc.limiter.redis_scan import scan
from extproc.limiter.redis_script import Call, Mode
from extproc.limiter.redis_store import RedisStore
from extproc.limiter.redis_wire import Argument, RedisError
from extproc.limiter.seam import Answer, Code, Decision, Limiter, LimiterError, Metadata, Query, Quota
from extproc.limiter.tally import Tally

_OLDEST = 1e10
"""Seconds, some 300 years: what is older is as good as that."""
_OK = Decision(Code.OK)
_UNLIMITED = Decision(Code.OK, unlimited=True)
_UNKNOWN = Decision(Code.UNKNOWN)


class RedisLimiter:
    """The embedded limiter's semantics, with counters in `store`: one atomic round trip a call.

    It is asked through a `view`, which has the deadline of its calls. `wall` gives seconds since 1970, which calendars
    go by; other windows and buckets go by the clock of Redis. `tells_quotas` has allowed decisions tell what remains
    too. `tally` counts the calls that were answered.
    """

    def __init__(self, store: RedisStore, limits: LimitSet, wall: Callable[[], float] = time.time) -> None:
        self.tells_quotas = False
        self.tally = Tally()
        self._store = store
        self._wall = wall
        self.replace_limits(limits)

    def view(self, timeout: float) -> Limiter:
        """This limiter, with `timeout` seconds for every call."""
        return _View(self, timeout)

    def replace_limits(self, limits: LimitSet) -> None:
        """Use `limits` from now on; counters of limits with an unchanged identity keep their hits."""
        self._limits = limits
        self._steady = any(limit.steady for limit in limits.limits)
        self._keys = {limit: CounterKeys(self._store.prefix, limit) for limit in limits.limits}

    async def counters(self, at_most: int) -> list[Counter]:
        """Those nearest to their maximum, those first, of a bounded number that is looked at. Raises LimiterError."""
        known = {keys.head: keys for keys in self._keys.values()}
        try:
            return await scan(self._store.wires(), self._store.prefix, known, self._wall(), at_most)
        except RedisError as error:
            raise LimiterError("unreachable", self._store.masked(str(error))) from None

    def ask(self, mode: Mode, query: Query, hits: int, timeout: float, age: float = 0.0) -> Answer:
        """Run the script for `hits`, of which a refund takes those that were counted `age` seconds ago.

        What it gives back raises LimiterError when awaited.
        """
        if not query.domain:
            return _UNKNOWN
        touched = self._limits.counters(query.domain, query.descriptors)
        asked = _Asked(self, mode, query.domain, touched, hits, self._wall())
        if not touched:
            return asked.decision(())
        counted = asked.wall - age
        keys: list[bytes] = []
        arguments: list[Argument] = [mode, hits]
        tells = self._steady or mode != "check"
        for limit, values in touched:
            counter = self._keys[limit]
            keys.append(counter.key(values, counted))
            if tells:
                arguments += (counter.length(counted), counter.most(age) if mode == "refund" else limit.max_value)
        if self._steady:
            arguments.append("gcra")
        call = Call(keys, arguments, counter.slot, asked.decision, self._store.unread, timeout)
        self._store.send(call)
        return call.answer


class _View:
    """One service's way to the limiter."""

    __slots__ = ("_ask", "_timeout")

    def __init__(self, limiter: RedisLimiter, timeout: float) -> None:
        self._ask = limiter.ask
        self._timeout = timeout

    def check(self, query: Query, metadata: Metadata = ()) -> Answer:
        """OVER_LIMIT when one more hit would exceed a limit, whatever `query.hits_addend` says."""
        return self._ask("check", query, 1, self._timeout)

    def report(self, query: Query, metadata: Metadata = ()) -> Answer:
        """Add the hits, also beyond a maximum; an addend of 0 counts as 1."""
        return self._ask("report", query, query.hits_addend or 1, self._timeout)

    def should_rate_limit(self, query: Query, metadata: Metadata = ()) -> Answer:
        """Add the hits unless that would exceed a limit: then nothing is added. 0 counts as 1."""
        return self._ask("both", query, query.hits_addend or 1, self._timeout)

    def refund(self, query: Query, metadata: Metadata = (), age: float = 0.0) -> Answer:
        """As Refunding's. The tally of hits does not fall."""
        if not query.hits_addend and query.domain:
            return _OK
        return self._ask("refund", query, query.hits_addend, self._timeout, min(max(0.0, age), _OLDEST))


class _Asked(NamedTuple):
    """What was asked, by which the answer is read."""

    limiter: RedisLimiter
    mode: Mode
    domain: str
    touched: Sequence[Touched]
    hits: int
    wall: float

    def decision(self, counts: Sequence[int]) -> Decision:
        """From hits before the call and milliseconds left, of every counter in turn.

        Raises TypeError or ValueError for anything else.
        """
        tally = self.limiter.tally
        found = tuple(zip(self.touched, counts[::2], counts[1::2], strict=True))
        if self.mode == "report":
            tally.counted(self.domain, self.hits)
        if self.mode in ("report", "refund"):
            return _OK
        refusing = [
            self._quota(limit, used, left, self.hits)
            for (limit, _), used, left in found
            if used + self.hits > limit.max_value
        ]
        if refusing:
            refusing.sort(key=lambda quota: quota.resets_in, reverse=True)
            tally.refused(self.domain, refusing[0].limit)
            return Decision(Code.OVER_LIMIT, limit=refusing[0].limit, quotas=tuple(refusing))
        tally.allowed(self.domain)
        added = 0
        if self.mode == "both":
            tally.counted(self.domain, self.hits)
            added = self.hits
        if not found:
            return _UNLIMITED
        if not self.limiter.tells_quotas:
            return _OK
        quotas = [self._quota(limit, used + added, left, 0) for (limit, _), used, left in found]
        quotas.sort(key=lambda quota: quota.remaining)
        return Decision(Code.OK, quotas=tuple(quotas))

    def _quota(self, limit: CompiledLimit, used: int, left: int, hits: int) -> Quota:
        """What is left to a call whose `hits` do not fit; 0 to one that was allowed.

        `left` is what the script says of a counter, before this call. Of a window's it says nothing of a calendar.
        """
        maximum, window = limit.max_value, limit.window
        if hits > maximum:
            resets_in = inf
        elif limit.steady:
            pace = Pace(maximum, window.seconds)
            missing = used - maximum + (hits or maximum)
            first = left / 1000 if left > 0 else pace.takes(1)
            resets_in = first + pace.takes(missing - 1) if missing else 0.0
        elif left < 0 or window.period(self.wall):
            resets_in = window.ends_in(self.wall)
        else:
            resets_in = left / 1000
        return Quota(limit.label, maximum, max(0, maximum - used), resets_in, window.seconds)
