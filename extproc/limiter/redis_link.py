"""Staying connected: a link to one server, and the links to the servers of a storage."""

from __future__ import annotations

import asyncio
import logging
import random
from binascii import crc_hqx
from collections.abc import Awaitable, Callable

from extproc.config.address import Address, Tcp, parse_address
from extproc.config.storage import RedisAddress
from extproc.limiter.redis_connect import Door, Unwelcome, described
from extproc.limiter.redis_wire import RedisError, Reply, Wire

logger = logging.getLogger(__name__)

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 5.0
SLOTS = 16384
"""Of a Redis cluster; a key's slot is a checksum of what stands between its first braces (cluster specification)."""


def slot_of(tag: str) -> int:
    """The slot of the keys with this hash tag."""
    return crc_hqx(tag.encode("utf-8", "surrogatepass"), 0) % SLOTS


class Link:
    """A connection to one server, made again whenever it is lost; `wire` is None meanwhile and `why` says why.

    Attempts go on for ever, with pauses that grow to some LONGEST_PAUSE seconds. One line is logged when the server
    goes, one more if it is back and refuses us, and one when it serves again.
    """

    def __init__(
        self, name: str, connect: Callable[[], Awaitable[Wire]], lost: Callable[[], None] = lambda: None
    ) -> None:
        self.name = name
        self.wire: Wire | None = None
        self.why = "not connected yet"
        self.attempted = asyncio.Event()
        self._connect = connect
        self._lost = lost
        self._told: set[type[Exception]] = set()
        self._task = asyncio.create_task(self._keep())

    async def close(self) -> None:
        await _end(self._task)
        if self.wire is not None:
            self.wire.abort("closed")
            await self.wire.closed.wait()

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE
        while True:
            try:
                self.wire = await self._connect()
            except (OSError, RedisError, TimeoutError) as error:
                self._away(error)
            else:
                self._back()
                since = loop.time()
                await self.wire.closed.wait()
                self._away(RedisError(self.wire.why))
                if loop.time() - since > LONGEST_PAUSE:
                    pause = FIRST_PAUSE
            self.wire = None
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads replicas, no secret
            pause = min(2 * pause, LONGEST_PAUSE)

    def _away(self, error: Exception) -> None:
        self.why = described(error)
        kind = Unwelcome if isinstance(error, Unwelcome) else RedisError
        if not self._told or (kind is Unwelcome and kind not in self._told):
            logger.warning("Redis at %s %s: %s", self.name, "refuses us" if kind is Unwelcome else "is away", self.why)
        self._told.add(kind)
        self.attempted.set()
        self._lost()

    def _back(self) -> None:
        if self._told:
            logger.info("Redis at %s is back", self.name)
        self._told.clear()
        self.attempted.set()


class OneServer:
    """A server by itself, or whichever the Sentinels name."""

    def __init__(self, door: Door, address: RedisAddress) -> None:
        async def connect() -> Wire:
            return await door.server(await door.master() if address.kind == "sentinel" else address.nodes[0])

        self._link = Link(str(address), connect)

    def link(self, _slot: int) -> Link:
        """The one that has the slot: it has all."""
        return self._link

    def all(self) -> list[Link]:
        """Every link."""
        return [self._link]

    async def attempted(self) -> None:
        """Return when it was tried once."""
        await self._link.attempted.wait()

    async def close(self) -> None:
        await self._link.close()


class Cluster:
    """The masters of a Redis cluster.

    Who has which slot is asked of the nodes at the start and whenever one is lost or says that slots have moved.
    """

    def __init__(self, door: Door, address: RedisAddress) -> None:
        self._door = door
        self._seeds = address.nodes
        self._name = str(address)
        self._links: dict[Address, Link] = {}
        self._by_slot: list[Link | None] = [None] * SLOTS
        self._stale = asyncio.Event()
        self._asked_once = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()
        self._task = asyncio.create_task(self._keep())

    def link(self, slot: int) -> Link | None:
        """The one that has the slot; None where no node has, as far as is known."""
        return self._by_slot[slot]

    def moved(self, slot: int, address: str) -> Link | None:
        """The link to `address`, `host:port`, which a node said has the slot now; None for nonsense."""
        self._stale.set()
        if (link := self._link_to(address)) is not None:
            self._by_slot[slot] = link
        return link

    def asked(self, address: str) -> Link | None:
        """The link to `address`, which a node said to ask this time; None for nonsense."""
        return self._link_to(address)

    def all(self) -> list[Link]:
        """Every link."""
        return list(self._links.values())

    async def attempted(self) -> None:
        """Return when every node was tried once."""
        await self._asked_once.wait()
        for link in self.all():
            await link.attempted.wait()

    async def close(self) -> None:
        await _end(self._task)
        await asyncio.gather(*(link.close() for link in self.all()), *self._closing)

    async def _keep(self) -> None:
        pause = FIRST_PAUSE
        told = False
        while True:
            self._stale.clear()
            try:
                self._use(await self._slots())
            except RedisError as error:
                if not told:
                    logger.warning("no node of the Redis cluster at %s tells who has which slot: %s", self._name, error)
                told = True
                self._stale.set()
            else:
                if told:
                    logger.info("the Redis cluster at %s is back", self._name)
                told = False
            self._asked_once.set()
            if not self._stale.is_set():
                pause = FIRST_PAUSE
            await self._stale.wait()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads replicas, no secret
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _slots(self) -> list[tuple[int, int, Address]]:
        """First and last slot of every range, and its master. Raises RedisError when no node tells."""
        problems = []
        for node in dict.fromkeys((*self._links, *self._seeds)):
            try:
                return _ranges(await self._ask(node), node)
            except (OSError, RedisError, TimeoutError) as error:
                problems.append(f"{node}: {described(error)}")
        raise RedisError("; ".join(problems[:3]))

    async def _ask(self, node: Address) -> Reply:
        link = self._links.get(node)
        if link is not None and link.wire is not None:
            return await link.wire.ask("CLUSTER", "SLOTS")
        wire = await self._door.server(node)
        try:
            return await wire.ask("CLUSTER", "SLOTS")
        finally:
            wire.abort("asked")

    def _use(self, ranges: list[tuple[int, int, Address]]) -> None:
        by_slot: list[Link | None] = [None] * SLOTS
        for first, last, node in ranges:
            by_slot[first : last + 1] = [self._to(node)] * (last + 1 - first)
        self._by_slot = by_slot
        for node in self._links.keys() - {node for _, _, node in ranges}:
            closing = asyncio.create_task(self._links.pop(node).close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _link_to(self, address: str) -> Link | None:
        """Servers write IPv6 without brackets."""
        host, _, port = address.rpartition(":")
        try:
            return self._to(parse_address(f"[{host}]:{port}" if ":" in host else address))
        except ValueError:
            return None

    def _to(self, node: Address) -> Link:
        link = self._links.get(node)
        if link is None:

            async def connect() -> Wire:
                return await self._door.server(node)

            link = self._links[node] = Link(str(node), connect, self._stale.set)
        return link


def _ranges(reply: Reply, asked: Address) -> list[tuple[int, int, Address]]:
    """What CLUSTER SLOTS answers: a server that does not know its own name means the one that was asked."""
    try:
        found: list[tuple[int, int, Address]] = []
        for first, last, master, *_ in reply:
            host = master[0].decode() if master[0] else getattr(asked, "host", "")
            found.append((int(first), int(last), Tcp(host, int(master[1]))))
    except (TypeError, ValueError, IndexError, AttributeError):
        raise RedisError("CLUSTER SLOTS was answered with something else") from None
    if not found:
        raise RedisError("no node has slots")
    return found


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))
