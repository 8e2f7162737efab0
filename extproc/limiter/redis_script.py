"""The one script, and the calls that run it: every counter of a call in one atomic round trip."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from hashlib import sha1
from typing import Literal

from extproc.limiter.gcra import MOST, TOLERANCE
from extproc.limiter.redis_wire import Argument, Reply, packed
from extproc.limiter.seam import Decision, LimiterError, Reason

MAX_COUNT = MOST
"""Counts stop here: what Lua can tell apart."""
MAX_MILLISECONDS = 10**15
"""The longest window, some 30,000 years: what Redis can add to a clock."""
MAX_SENT = 4
"""How often one call is sent at most: a script that is not there, a slot that moves."""

Mode = Literal["check", "report", "both", "refund"]

SCRIPT = f"""\
-- extproc: KEYS are counters; ARGV is the mode, the hits, then two numbers for every counter, and something more where
-- there may be buckets; a check of windows alone needs none of these.
--   of a window   its milliseconds and its maximum; of a refund the milliseconds that it may have left at most
--   of a bucket   less than nothing: the microseconds in which it fills; its maximum
-- A window is its hits, and expires. A bucket is the hits that are taken and when that was, in microseconds of TIME; it
-- expires when it is full.
-- The answer is the hits of every counter before this call, and the milliseconds left: to a window; of a bucket until
-- one hit less is taken; -2 when there was no such counter. It is the number of the first key that is no counter, when
-- there is one; then nothing is done.
local answer, steady = {{}}, ARGV[3 + 2 * #KEYS]
local taken, pace, now = steady and {{}}, steady and {{}}, nil
for i, key in ipairs(KEYS) do
  local value = redis.pcall('GET', key)
  local used, left = 0, -2
  if type(value) == 'table' then
    if string.find(value.err, 'WRONGTYPE', 1, true) then return i end
    return value
  end
  local length = steady and tonumber(ARGV[1 + 2 * i])
  if steady and length < 0 then
    if not now then
      local time = redis.call('TIME')
      now = time[1] * 1000000 + time[2]
    end
    pace[i] = tonumber(ARGV[2 + 2 * i]) / -length
    taken[i] = 0
    if value then
      local was, at = string.match(value, '^(%d[%d.e-]*) (%d+)$')
      was, at = tonumber(was or ''), tonumber(at or '')
      if not was or was > {MAX_COUNT} or at > {MAX_COUNT} then return i end
      taken[i] = math.max(0, was - math.max(0, now - at) * pace[i])
      used = math.max(0, math.ceil(taken[i] - {TOLERANCE!r}))
      left = used > 0 and math.ceil(math.min((taken[i] - used + 1) / pace[i] / 1000, {MAX_MILLISECONDS})) or 0
    end
  elseif value then
    used = (value == '0' or string.match(value, '^[1-9]%d*$')) and tonumber(value)
    if not used or used > {MAX_COUNT} then return i end
    left = redis.call('PTTL', key)
  end
  answer[2 * i - 1], answer[2 * i] = used, left
end
local mode = ARGV[1]
if mode == 'check' then return answer end
local hits = tonumber(ARGV[2])
if mode == 'both' then
  for i = 1, #KEYS do
    if answer[2 * i - 1] + hits > tonumber(ARGV[2 + 2 * i]) then return answer end
  end
end
for i, key in ipairs(KEYS) do
  local used, left = answer[2 * i - 1], answer[2 * i]
  if steady and pace[i] then
    local missing = mode == 'refund' and math.max(0, taken[i] - hits) or math.min(taken[i] + hits, {MAX_COUNT})
    if missing == 0 then
      redis.call('DEL', key)
    elseif pace[i] > 0 then
      local full = math.ceil(math.min(missing / pace[i] / 1000, {MAX_MILLISECONDS}))
      redis.call('SET', key, string.format('%.17g %.0f', missing, now), 'PX', full)
    end
  elseif mode == 'refund' then
    if used > 0 and left <= tonumber(ARGV[2 + 2 * i]) then redis.call('DECRBY', key, math.min(hits, used)) end
  else
    redis.call('INCRBY', key, math.min(hits, {MAX_COUNT} - used))
    if left < 0 then redis.call('PEXPIRE', key, ARGV[1 + 2 * i]) end
  end
end
return answer
"""

_EVALSHA = (b"EVALSHA", sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest())
_EVAL = (b"EVAL", SCRIPT)

Read = Callable[[Sequence[int]], Decision]
"""From what the script answers to the decision; it may raise TypeError or ValueError for what it cannot read."""


class Call:
    """The script, run once for one caller, who awaits `answer`.

    `slot` is that of all its keys. `unread` gets every reply that is no list of numbers.
    """

    __slots__ = (
        "_arguments",
        "_command",
        "_read",
        "_sent",
        "_timeout",
        "_timer",
        "_unread",
        "_written",
        "answer",
        "slot",
    )

    def __init__(
        self,
        keys: Sequence[bytes],
        arguments: Sequence[Argument],
        slot: int,
        read: Read,
        unread: Callable[[Call, Reply], None],
        timeout: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._command: tuple[Argument, ...] = _EVALSHA
        self._arguments: tuple[Argument, ...] = (len(keys), *keys, *arguments)
        self._read = read
        self._unread = unread
        self._timeout = timeout
        self._timer = loop.call_later(timeout, self._expire)
        self._sent = 1
        self.slot = slot
        self._written = False
        self.answer: asyncio.Future[Decision] = loop.create_future()

    def packed(self) -> bytes | None:
        if self.answer.done():
            return None
        self._written = True
        return packed(self._command + self._arguments)

    def replied(self, reply: Reply) -> None:
        if self.answer.done():
            return
        if not isinstance(reply, list):
            self._unread(self, reply)
            return
        try:
            decision = self._read(reply)
        except (TypeError, ValueError):
            self.lost("nonsense", "Redis answered something else than counters")
        else:
            self._timer.cancel()
            self.answer.set_result(decision)

    def lost(self, reason: Reason, detail: str) -> None:
        self._timer.cancel()
        if not self.answer.done():
            self.answer.set_exception(LimiterError(reason, detail))

    def again(self, *, with_script: bool = False) -> bool:
        """Make ready to be sent once more, which must be certain to count once; False after some times.

        `with_script` sends the script itself, and the server keeps it.
        """
        if with_script:
            self._command = _EVAL
        self._written = False
        self._sent += 1
        return self._sent <= MAX_SENT

    def _expire(self) -> None:
        if self._written:
            self.lost("deadline", f"no answer within {self._timeout:g} s")
        else:
            self.lost("unreachable", f"not sent within {self._timeout:g} s")
