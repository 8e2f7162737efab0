"""One connection to a Redis server: commands in, replies out, in the order of the commands.

Commands of one turn of the event loop leave together, and none waits for the reply to another. A client library's
pool of connections, with a task and a coroutine for every command, costs five to ten times as much for one call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, cast

import hiredis

from extproc.limiter.seam import Reason

Argument = str | bytes | int
Reply = Any
"""None, an int, bytes, a list of replies, or a hiredis.ReplyError."""

SILENCE = 3.0
"""Seconds after which a server that owes a reply is given up: a node that vanished says nothing."""
IDLE = 15.0
"""Seconds after which a connection is tried that nobody needed."""
LOOK = 1.0
"""Seconds between two looks at whether that is so."""


packed = cast(Callable[[tuple[Argument, ...]], bytes], hiredis.pack_command)
"""A command as it is written; the library's own annotation knows commands of one word only."""


class RedisError(Exception):
    """Why there is no connection, or no result."""


class ErrorReply(RedisError):
    """What a server answered in place of a result."""


class Waiting(Protocol):
    """A command, and whoever waits for its reply."""

    def packed(self) -> bytes | None:
        """The command as it is written, which happens now; None when nobody waits any more."""

    def replied(self, reply: Reply, /) -> None:
        """The reply is there. Does not raise."""

    def lost(self, reason: Reason, detail: str, /) -> None:
        """There will be no reply; "unreachable" when the command was never written. Does not raise."""


class Wire(asyncio.Protocol):
    """A connection, usable once it is connected and until `closed` is set.

    `why` then says what ended it.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._unwritten: list[Waiting] = []
        self._unanswered: deque[Waiting] = deque()
        self._writable = True
        self._open = False
        self._quiet_since = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self.closed = asyncio.Event()
        self.why = "the connection was lost"

    def __len__(self) -> int:
        """Commands whose reply is not there yet."""
        return len(self._unwritten) + len(self._unanswered)

    @property
    def usable(self) -> bool:
        """Whether it takes commands."""
        return self._open

    def submit(self, waiting: Waiting) -> None:
        """Write the command of `waiting` in this turn of the event loop."""
        if not self._open:
            waiting.lost("unreachable", self.why)
            return
        if not self._unwritten:
            self._loop.call_soon(self._write)
        self._unwritten.append(waiting)

    async def ask(self, *command: Argument) -> Reply:
        """The reply to one command; raises ErrorReply when it is one, RedisError when none comes."""
        asked = _Asked(self._loop, command)
        self.submit(asked)
        return await asked.reply

    def abort(self, why: str) -> None:
        """Close at once."""
        self.finish(why)
        self._transport.abort()

    def finish(self, why: str) -> None:
        """Take nothing more, and close when every reply is there."""
        if self._open:
            self._open = False
            self.why = why
        if not self._unanswered:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not all event loops derive theirs from asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)
        self._open = True
        self._quiet_since = self._loop.time()
        self._watch = self._loop.call_later(LOOK, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._open and exc is not None:
            self.why = str(exc)
        self._open = False
        if self._watch is not None:
            self._watch.cancel()
        unanswered, unwritten = self._unanswered, self._unwritten
        self._unanswered, self._unwritten = deque(), []
        for waiting in unanswered:
            waiting.lost("refused", f"{self.why}; it may have been counted")
        for waiting in unwritten:
            waiting.lost("unreachable", self.why)
        self.closed.set()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._write()

    def data_received(self, data: bytes) -> None:
        self._quiet_since = self._loop.time()
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                if not self._unanswered:
                    raise hiredis.ProtocolError
                self._unanswered.popleft().replied(reply)
        except hiredis.ProtocolError:
            self.abort("it does not speak the protocol of Redis")
        if not self._open:
            self.finish(self.why)

    def _write(self) -> None:
        """Hand what is unwritten to the transport; what cannot leave now stays, and still counts as unwritten."""
        if not (self._writable and self._open):
            return
        if not self._unanswered:
            self._quiet_since = self._loop.time()
        unwritten, self._unwritten = self._unwritten, []
        commands = []
        for waiting in unwritten:
            if (command := waiting.packed()) is not None:
                commands.append(command)
                self._unanswered.append(waiting)
        if commands:
            self._transport.write(b"".join(commands))

    def _look(self) -> None:
        quiet = self._loop.time() - self._quiet_since
        if self._unanswered and quiet > SILENCE:
            self.abort(f"no answer for {SILENCE:g} s")
            return
        if not len(self) and quiet > IDLE:
            self.submit(Unheard("PING"))
        self._watch = self._loop.call_later(LOOK, self._look)


class Unheard:
    """A command whose reply does not matter."""

    __slots__ = ("_command",)

    def __init__(self, *command: Argument) -> None:
        self._command = command

    def packed(self) -> bytes:
        return packed(self._command)

    def replied(self, reply: Reply) -> None:
        pass

    def lost(self, reason: Reason, detail: str) -> None:
        pass


class _Asked:
    """A command of our own, such as AUTH."""

    __slots__ = ("_command", "reply")

    def __init__(self, loop: asyncio.AbstractEventLoop, command: tuple[Argument, ...]) -> None:
        self._command = command
        self.reply: asyncio.Future[Reply] = loop.create_future()

    def packed(self) -> bytes | None:
        return None if self.reply.done() else packed(self._command)

    def replied(self, reply: Reply) -> None:
        if self.reply.done():
            return
        if isinstance(reply, hiredis.ReplyError):
            self.reply.set_exception(ErrorReply(str(reply)))
        else:
            self.reply.set_result(reply)

    def lost(self, reason: Reason, detail: str) -> None:
        if not self.reply.done():
            self.reply.set_exception(RedisError(detail))
