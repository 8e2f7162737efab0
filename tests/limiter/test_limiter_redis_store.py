"""Connections to Redis: every way to be there, and every way to be away."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import uvloop
from support.pki import Pki
from support.redis_server import RedisServer, Sentinel, cluster, eventually
from support.waiting import until

from extproc.config.fields import ClientTls
from extproc.config.model import Limit, Storage
from extproc.limiter import redis_store, redis_wire
from extproc.limiter.limits import LimitSet
from extproc.limiter.redis_limiter import RedisLimiter
from extproc.limiter.redis_link import slot_of
from extproc.limiter.redis_store import RedisStore
from extproc.limiter.seam import Code, Decision, Limiter, LimiterError, Query

PATIENT = 5.0
SECRET = "hunter2"


def query(namespace: str = "d", hits: int = 1) -> Query:
    return Query(namespace, ((("user", "alice"),),), hits)


def limits(*namespaces: str, maximum: int = 100) -> LimitSet:
    return LimitSet(Limit(namespace=namespace, max_value=maximum, seconds=600) for namespace in namespaces or ("d",))


class Client:
    """A store, and a limiter in it."""

    def __init__(self, url: str, *namespaces: str, **fields: Any) -> None:
        self.store = RedisStore(Storage(url=url, **fields))
        self.limiter = RedisLimiter(self.store, limits(*namespaces))

    def view(self, timeout: float = PATIENT) -> Limiter:
        return self.limiter.view(timeout)

    async def report(self, namespace: str = "d", hits: int = 1, within: float = PATIENT) -> Decision:
        return await self.view(within).report(query(namespace, hits))

    async def used(self, namespace: str = "d") -> int:
        return sum(
            counter.used
            for counter in await self.limiter.counters(100)
            if counter.limit.identity.namespace == namespace
        )

    async def fails(self, reason: str, within: float = PATIENT) -> LimiterError:
        """The error of a report, which has this reason."""
        with pytest.raises(LimiterError) as caught:
            await self.report(within=within)
        assert caught.value.reason == reason
        return caught.value

    async def connected(self) -> None:
        await until(lambda: self.store.connected, 10)


Connect = Callable[..., Awaitable[Client]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Started clients, closed after the test."""
    async with AsyncExitStack() as stack:

        async def start(*arguments: str, **fields: Any) -> Client:
            client = Client(*arguments, **fields)
            stack.push_async_callback(client.store.close)
            await client.store.start()
            return client

        yield start


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, str]]]:
    """Level and text of what the links logged so far."""
    caplog.set_level(logging.INFO, "extproc.limiter")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


async def test_killed_and_restarted_in_the_middle(connect: Connect, tmp_path: Path, lines: Any) -> None:
    """Calls fail at once while it is away; then it works again, without the script that it has forgotten."""
    async with RedisServer(tmp_path) as redis:
        client = await connect(redis.url)
        await client.report()
        await redis.stop()
        await until(lambda: not client.store.connected)
        for _ in range(20):
            async with asyncio.timeout(0.1):
                await client.fails("unreachable")
        assert [level for level, _ in lines()] == ["WARNING"]
        await redis.start()
        await client.connected()
        await asyncio.gather(*(client.report() for _ in range(20)))
        assert await client.used() == 20
        assert [level for level, _ in lines()] == ["WARNING", "INFO"]
        assert all(redis.address in text for _, text in lines())


async def test_calls_under_way_when_it_is_killed(connect: Connect, tmp_path: Path) -> None:
    """They may have been counted: "refused", so that nobody repeats them."""
    async with RedisServer(tmp_path) as redis:
        client = await connect(redis.url)
        redis.signal(signal.SIGSTOP)
        calls = [asyncio.ensure_future(client.view().report(query())) for _ in range(5)]
        await asyncio.sleep(0)
        await redis.stop()
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert [error.reason for error in errors if isinstance(error, LimiterError)] == ["refused"] * 5


async def test_a_forgotten_script_is_brought_again(connect: Connect, tmp_path: Path) -> None:
    async with RedisServer(tmp_path) as redis:
        client = await connect(redis.url)
        for _ in range(3):
            await redis.do("SCRIPT", "FLUSH")
            await asyncio.gather(*(client.report() for _ in range(10)))
        assert await client.used() == 30
        assert b"number_of_cached_scripts:1" in await redis.do("INFO", "memory")


async def test_one_round_trip_of_one_command_for_all_counters(connect: Connect, tmp_path: Path) -> None:
    async with RedisServer(tmp_path) as redis:
        client = await connect(redis.url)
        client.limiter.replace_limits(LimitSet(Limit(namespace="d", max_value=9, seconds=s) for s in (60, 600, 6000)))
        await client.report()
        await redis.do("CONFIG", "RESETSTAT")
        await client.view().check(query())
        await client.report()
        stats = (await redis.do("INFO", "commandstats")).decode()
        assert "cmdstat_evalsha:calls=2," in stats
        assert await client.limiter.counters(9)
        assert all(counter.used == 2 for counter in await client.limiter.counters(9))


async def test_a_paused_server_is_a_deadline_and_nothing_is_doubled(connect: Connect, tmp_path: Path) -> None:
    async with RedisServer(tmp_path) as redis:
        client = await connect(redis.url)
        await client.report()
        redis.signal(signal.SIGSTOP)
        for _ in range(3):
            await client.fails("deadline", within=0.02)
        redis.signal(signal.SIGCONT)
        await client.report()
        assert await client.used() == 5
        assert client.limiter.tally.authorized_hits == {"d": 2}


async def test_a_server_that_says_nothing_for_long_is_given_up(
    connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a node that vanished: calls fail at once then, without waiting for their deadline."""
    monkeypatch.setattr(redis_wire, "SILENCE", 0.05)
    monkeypatch.setattr(redis_wire, "LOOK", 0.02)
    async with RedisServer(tmp_path) as redis:
        client = await connect(redis.url)
        redis.signal(signal.SIGSTOP)
        error = await client.fails("refused")
        assert "no answer for 0.05 s" in error.detail
        await client.fails("unreachable")
        redis.signal(signal.SIGCONT)
        await client.connected()
        await client.report()


async def test_an_idle_connection_is_tried_now_and_then(
    connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_wire, "IDLE", 0.02)
    monkeypatch.setattr(redis_wire, "LOOK", 0.01)
    async with RedisServer(tmp_path) as redis:
        await connect(redis.url)
        await redis.do("CONFIG", "RESETSTAT")

        async def pinged() -> bool:
            return b"cmdstat_ping:" in await redis.do("INFO", "commandstats")

        await eventually(pinged, "no PING arrived")


async def test_no_more_calls_wait_than_there_is_room_for(
    connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "MAX_WAITING", 5)
    async with RedisServer(tmp_path) as redis:
        client = await connect(redis.url)
        redis.signal(signal.SIGSTOP)
        calls = [asyncio.ensure_future(client.view().report(query())) for _ in range(5)]
        error = await client.fails("unreachable")
        assert "5 calls wait already" in error.detail
        redis.signal(signal.SIGCONT)
        await asyncio.gather(*calls)
        assert await client.used() == 5


async def test_what_is_given_up_before_it_was_sent_is_never_counted(connect: Connect, tmp_path: Path) -> None:
    """Its caller went away, or its deadline passed, while the socket took nothing more."""
    async with RedisServer(tmp_path) as redis:
        client = await connect(redis.url)
        await client.report()
        (wire,) = client.store.wires()
        wire.pause_writing()
        given_up = asyncio.ensure_future(client.view().report(query()))
        given_up.cancel()
        await client.fails("unreachable", within=0.01)
        wire.resume_writing()
        await client.report()
        assert await client.used() == 2


async def test_more_than_the_socket_takes(connect: Connect, tmp_path: Path) -> None:
    """What cannot leave yet waits here, and leaves in order when there is room."""
    async with RedisServer(tmp_path) as redis:
        client = await connect(redis.url)
        redis.signal(signal.SIGSTOP)
        await client.fails("deadline", within=0.01)
        long = Query("d", ((("user", "x" * 400),),) * 2, 1)
        client.limiter.replace_limits(
            LimitSet(
                Limit(namespace="d", max_value=9, seconds=60 + n, variables=["descriptors[0]['user'] + string(1)"])
                for n in range(9)
            )
        )
        calls = [asyncio.ensure_future(client.view().report(long)) for _ in range(1_000)]
        await asyncio.sleep(0)
        redis.signal(signal.SIGCONT)
        await asyncio.gather(*calls)
        assert {counter.used for counter in await client.limiter.counters(9)} == {1_000}


async def test_closed(connect: Connect, tmp_path: Path) -> None:
    async with RedisServer(tmp_path) as redis:
        client = await connect(redis.url)
        redis.signal(signal.SIGSTOP)
        call = asyncio.ensure_future(client.view().report(query()))
        await asyncio.sleep(0)
        await client.store.close()
        with pytest.raises(LimiterError, match="refused: closed"):
            await call
        await client.fails("unreachable")
        with pytest.raises(LimiterError, match="unreachable: "):
            await client.limiter.counters(9)


async def test_a_wrong_password_is_told_once_and_not_shown(connect: Connect, tmp_path: Path, lines: Any) -> None:
    async with RedisServer(tmp_path, requirepass="right") as redis:
        client = await connect(f"redis://admin:{SECRET}@{redis.address}/2")
        error = await client.fails("unreachable")
        assert "WRONGPASS" in error.detail
        ((level, text),) = lines()
        assert level == "WARNING"
        assert "refuses us" in text
        for shown in (text, str(error), repr(client.store)):
            assert SECRET not in shown
            assert "admin" not in shown


async def test_a_password_that_is_replaced_in_its_file(connect: Connect, tmp_path: Path) -> None:
    """It is read for every connection; a file that cannot be read is said so."""
    file = tmp_path / "password"
    async with RedisServer(tmp_path, requirepass="new") as redis:
        client = await connect(redis.url, password_file=str(file))
        assert f"cannot read passwordFile `{file}`" in (await client.fails("unreachable")).detail
        file.write_text("old\n")
        await asyncio.sleep(0)
        file.write_text("new\n")
        await client.connected()
        await client.report()


async def test_a_user_of_its_own(connect: Connect, tmp_path: Path) -> None:
    """What it must be allowed, and what the error says when it is not, without the name."""
    async with RedisServer(tmp_path) as redis:
        may = "+ping +select +evalsha +eval +get +incrby +pexpire +pttl +scan +mget".split()
        await redis.do("ACL", "SETUSER", "meter", "on", f">{SECRET}", "~extproc:*", *may)
        client = await connect(f"redis://meter:{SECRET}@{redis.address}")
        await client.report()
        assert await client.used() == 1
        await redis.do("ACL", "SETUSER", "meter", "-incrby")
        error = await client.fails("refused")
        assert "meter" not in str(error)


@pytest.mark.parametrize("database", [0, 3])
async def test_a_unix_socket(connect: Connect, tmp_path: Path, database: int) -> None:
    async with RedisServer(tmp_path) as redis:
        client = await connect(f"unix://{redis.socket}?db={database}")
        await client.report()
        assert f"db{database}:keys=1".encode() in await redis.do("INFO", "keyspace")


async def test_tls(connect: Connect, tmp_path: Path, lines: Any) -> None:
    """With an authority that is known it works; with another, or without TLS, it is away."""
    ours, theirs = Pki(tmp_path / "ours"), Pki(tmp_path / "theirs")
    async with RedisServer(tmp_path, pki=ours) as redis:
        good = await connect(f"rediss://{redis.address}", tls=ClientTls(ca=ours / "ca.crt"))
        await good.report()
        named = await connect(f"rediss://{redis.address}", tls=ClientTls(ca=ours / "ca.crt", server_name="localhost"))
        await named.report()
        assert lines() == []
        wrong = await connect(f"rediss://{redis.address}", tls=ClientTls(ca=theirs / "ca.crt"))
        assert "its certificate is not trusted" in (await wrong.fails("unreachable")).detail
        plain = await connect(redis.url)
        await plain.fails("unreachable")
        assert len(lines()) == 2


def test_tls_files_are_looked_at_before_anything_is_connected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tls\.ca: cannot load"):
        RedisStore(Storage(url="rediss://a", tls=ClientTls(ca=str(tmp_path / "none"))))
    pki = Pki(tmp_path / "pki")
    pki.sign("client")
    pki.spoil("client.key")
    with pytest.raises(ValueError, match=r"tls\.cert, tls\.key: cannot load"):
        RedisStore(Storage(url="rediss://a", tls=ClientTls(cert=pki / "client.crt", key=pki / "client.key")))


async def test_what_is_no_redis(connect: Connect) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        client = await connect(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        assert "does not speak the protocol" in (await client.fails("unreachable")).detail


async def test_sentinels_name_the_server(connect: Connect, tmp_path: Path) -> None:
    """The first that answers is believed, and asked again when its server is no master any more."""
    async with RedisServer(tmp_path) as old, RedisServer(tmp_path) as new, Sentinel(tmp_path, old) as sentinel:
        client = await connect(f"redis+sentinel://127.0.0.1:1,{sentinel.address}/counters/1")
        await client.report()
        assert await old.do("INFO", "keyspace") != await new.do("INFO", "keyspace")
        await sentinel.do("SENTINEL", "REMOVE", "counters")
        await sentinel.do("SENTINEL", "MONITOR", "counters", "127.0.0.1", new.port, 1)
        await old.do("REPLICAOF", "127.0.0.1", new.port)
        error = await client.fails("unreachable")
        assert "READONLY" in error.detail
        await client.connected()
        await client.report(hits=7)
        assert b"db1:keys=1" in await new.do("INFO", "keyspace")


async def test_a_service_that_no_sentinel_knows(connect: Connect, tmp_path: Path, lines: Any) -> None:
    async with RedisServer(tmp_path) as redis, Sentinel(tmp_path, redis, requirepass=SECRET) as sentinel:
        client = await connect(f"redis+sentinel://:{SECRET}@{sentinel.address}/other")
        assert "knows no service `other`" in (await client.fails("unreachable")).detail
        assert len(lines()) == 1
        assert SECRET not in str(lines())


async def test_a_replica_counts_nothing(connect: Connect, tmp_path: Path) -> None:
    async with RedisServer(tmp_path) as redis:
        await redis.do("REPLICAOF", "127.0.0.1", 1)
        client = await connect(redis.url)
        assert "replica" in (await client.fails("unreachable")).detail


async def test_a_cluster_of_one(connect: Connect, tmp_path: Path) -> None:
    """Any of its nodes may be named, also one that is a replica by now."""
    async with cluster(tmp_path) as (node,), RedisServer(tmp_path, cluster_enabled="yes") as replica:
        await replica.do("CLUSTER", "MEET", "127.0.0.1", node.port)
        master = await node.do("CLUSTER", "MYID")

        async def met() -> bool:
            return master in await replica.do("CLUSTER", "NODES")

        async def told() -> bool:
            return bool(await replica.do("CLUSTER", "SLOTS"))

        await eventually(met, "the nodes did not meet")
        await replica.do("CLUSTER", "REPLICATE", master)
        await eventually(told, "the replica was not told who has the slots")
        client = await connect(f"redis+cluster://127.0.0.1:1,{replica.address}")
        await client.report(hits=3)
        assert await client.used() == 3
        await node.stop()
        await until(lambda: not client.store.connected)
        await client.fails("unreachable")


async def test_a_cluster_whose_slots_move(connect: Connect, tmp_path: Path) -> None:
    """Calls go where their namespace is; those that meet a moved or moving slot are sent again, and counted once."""
    names = [f"n{number}" for number in range(8)]
    async with cluster(tmp_path, 2) as (first, second):
        client = await connect(f"redis+cluster://{first.address}", *names)
        for name in names:
            await client.report(name)
        counted = [len(await node.do("KEYS", "*")) for node in (first, second)]
        assert sum(counted) == 8
        assert all(counted)

        single = await connect(first.url, *names)
        with pytest.raises(LimiterError, match="write `redis\\+cluster://`"):
            await asyncio.gather(*(single.view().check(query(name)) for name in names))
        slot = next(slot for name in names if (slot := slot_of(name)) < 8192)
        name = next(name for name in names if slot_of(name) == slot)
        ids = [(await node.do("CLUSTER", "MYID")).decode() for node in (first, second)]
        await second.do("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        await first.do("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        (key,) = await first.do("CLUSTER", "GETKEYSINSLOT", slot, 9)
        await first.do("MIGRATE", "127.0.0.1", second.port, key, 0, 1_000)
        await client.report(name)
        for node in (second, first):
            await node.do("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
        await asyncio.gather(*(client.report(name) for _ in range(5)))
        assert await client.used(name) == 7


def test_the_same_on_the_event_loop_of_the_server(tmp_path: Path) -> None:
    """uvloop's transports are no asyncio.Transport, and write at other moments."""

    async def story() -> None:
        pki = Pki(tmp_path / "pki")
        async with RedisServer(tmp_path) as redis, RedisServer(tmp_path, pki=pki) as secure:
            tls = {"tls": ClientTls(ca=pki / "ca.crt")}
            for url, fields in (
                (redis.url, {}),
                (f"unix://{redis.socket}?db=1", {}),
                (f"rediss://{secure.address}", tls),
            ):
                client = Client(url, **fields)
                await client.store.start()
                await asyncio.gather(*(client.report() for _ in range(50)))
                assert await client.used() == 50
                decision = await client.view().should_rate_limit(query(hits=51))
                assert decision.code is Code.OVER_LIMIT
                server = secure if fields else redis
                await server.stop()
                await until(lambda client=client: not client.store.connected)
                await client.fails("unreachable")
                await server.start()
                await client.connected()
                await client.report()
                assert await client.used() == 1
                await client.store.close()

    uvloop.run(story())
