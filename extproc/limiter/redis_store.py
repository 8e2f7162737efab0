"""Counters in Redis: sending calls to the server that holds them, and understanding what it will not do."""

from __future__ import annotations

import asyncio

import hiredis

from extproc.config.model import Storage
from extproc.config.storage import parse_storage
from extproc.limiter.redis_connect import Door
from extproc.limiter.redis_link import Cluster, Link, OneServer
from extproc.limiter.redis_script import Call
from extproc.limiter.redis_wire import RedisError, Reply, Unheard, Wire

MAX_WAITING = 10_000
"""Calls that wait for one server at most."""
START = 3.0
"""Seconds that a start waits for connections."""

_CLOSED = "the connections to Redis are closed"
_UNTOUCHED = ("LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "READONLY", "NOAUTH")
"""Errors of a server that has not looked at the script, or has written nothing: it is safe to try again."""
_UNFIT = ("READONLY", "NOAUTH")
"""Of these, those that another connection may mend: it has become a replica, or wants another password."""


class RedisStore:
    """The connections to one Redis, Sentinel group or cluster. Confined to one event loop.

    Raises ConfigError for an address that cannot be understood, ValueError (naming the field) for TLS files that
    cannot be used, both before anything is connected.
    """

    def __init__(self, storage: Storage) -> None:
        address = parse_storage(storage)
        if address is None:
            raise ValueError("url: expected an address of Redis")
        self.prefix = storage.prefix
        self._address = address
        self._door = Door(storage, address)
        self._links: OneServer | Cluster | None = None

    @property
    def connected(self) -> bool:
        """Whether every server is there now."""
        links = self._links.all() if self._links is not None else []
        return bool(links) and all(link.wire is not None and link.wire.usable for link in links)

    def wires(self) -> list[Wire]:
        """A connection to every server. Raises RedisError while one is away."""
        if self._links is None:
            raise RedisError(_CLOSED)
        wires = []
        for link in self._links.all():
            if link.wire is None:
                raise RedisError(f"Redis at {link.name}: {link.why}")
            wires.append(link.wire)
        return wires

    def masked(self, text: str) -> str:
        """`text` of a server as it may be shown: without the user's name, and not too long."""
        return self._door.masked(text)

    async def start(self) -> None:
        """Connect; returns once that was tried, for at most some seconds. It goes on in the background."""
        kind = Cluster if self._address.kind == "cluster" else OneServer
        self._links = kind(self._door, self._address)
        try:
            async with asyncio.timeout(START):
                await self._links.attempted()
        except TimeoutError:
            return

    async def close(self) -> None:
        """Give up every call that waits, and every connection."""
        links, self._links = self._links, None
        if links is not None:
            await links.close()

    def send(self, call: Call) -> None:
        """Send `call`, which is told what became of it; one that cannot be sent at once has failed at once."""
        if self._links is None:
            call.lost("unreachable", _CLOSED)
        else:
            self._send(call, self._links.link(call.slot))

    def unread(self, call: Call, reply: Reply) -> None:
        """Do what an answer asks for that is no list of numbers: send `call` again, elsewhere, or give it up."""
        if isinstance(reply, int):
            call.lost("nonsense", f"keys that begin with `{self.prefix}:` are not all counters: another program's?")
        elif isinstance(reply, hiredis.ReplyError):
            self._refused(call, str(reply))
        else:
            call.lost("nonsense", "Redis answered something else than counters")

    def _refused(self, call: Call, error: str) -> None:
        code, _, rest = error.partition(" ")
        if code == "NOSCRIPT" and call.again(with_script=True):
            self.send(call)
        elif code in ("MOVED", "ASK") and call.again():
            self._redirected(call, rest.rpartition(" ")[2], asking=code == "ASK")
        elif code in _UNTOUCHED:
            call.lost("unreachable", f"Redis did nothing: {self.masked(error)}")
            if code in _UNFIT:
                self._leave(call.slot, code)
        else:
            call.lost("refused", f"Redis answered {self.masked(error)}")

    def _redirected(self, call: Call, address: str, *, asking: bool) -> None:
        match self._links:
            case Cluster() as nodes:
                link = nodes.asked(address) if asking else nodes.moved(call.slot, address)
                self._send(call, link, asking=asking)
            case _:
                call.lost("refused", f"Redis at {self._address} is a node of a cluster: write `redis+cluster://`")

    def _leave(self, slot: int, code: str) -> None:
        """Connect anew, once the others on this connection have their answers."""
        link = self._links.link(slot) if self._links is not None else None
        if link is not None and link.wire is not None:
            link.wire.finish(f"it answers {code}")

    def _send(self, call: Call, link: Link | None, *, asking: bool = False) -> None:
        if link is None:
            call.lost("unreachable", f"no node of the Redis at {self._address} has this counter")
        elif link.wire is None:
            call.lost("unreachable", f"Redis at {link.name}: {link.why}")
        elif len(link.wire) >= MAX_WAITING:
            call.lost("unreachable", f"Redis at {link.name}: {MAX_WAITING} calls wait already")
        else:
            if asking:
                link.wire.submit(Unheard("ASKING"))
            link.wire.submit(call)
