"""The first worker counts for the others: what they say to each other, and what happens when one is gone."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.config.model import Limit, Service
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.limits import LimitSet
from extproc.limiter.messages import Unreadable
from extproc.limiter.seam import Code, Decision, LimiterError, Query, Quota, Refunding
from extproc.transport.listener import ListenError
from extproc.workers.counters import CountersServer
from extproc.workers.shared import SharedCounters
from extproc.workers.wire import MAX_BODY, Frame, Frames, Kind, decode_decision, encode_decision, encode_frame

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NATURAL = st.integers(min_value=0, max_value=2**64 - 1)
QUOTAS = st.builds(Quota, TEXT, NATURAL, NATURAL, st.floats(0, 1e9), st.integers(1, 2**62))
DECISIONS = st.builds(
    Decision,
    st.sampled_from(Code),
    st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple),
    TEXT,
    st.lists(QUOTAS, max_size=3).map(tuple),
)


@settings(max_examples=50)
@given(DECISIONS)
def test_a_decision_loses_nothing_on_its_way(decision: Decision) -> None:
    """A refusal by the second worker has the headers and the body of one by the first."""
    assert decode_decision(encode_decision(decision)) == decision


def test_no_part_of_a_decision_is_forgotten() -> None:
    """A field that Decision gets one day has to travel too."""
    sample = Decision(Code.OVER_LIMIT, (("a", "b"),), "name", (Quota("name", 5, 0, 1.5, 60),), unlimited=True)
    plain = Decision(Code.OK)
    assert all(getattr(sample, field.name) != getattr(plain, field.name) for field in fields(Decision))
    assert decode_decision(encode_decision(sample)) == sample


@pytest.mark.parametrize(
    "data", [b"x", b"[]", b"{}", b'[9,[],"",[],true]', b'[1,[1],"",[],true]', b'[1,[],"",[[1]],true]']
)
def test_an_answer_that_is_none(data: bytes) -> None:
    with pytest.raises(Unreadable):
        decode_decision(data)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.sampled_from(Kind), st.binary(max_size=40))), st.data())
def test_frames_however_they_arrive(said: list[tuple[int, Kind, bytes]], data: st.DataObject) -> None:
    stream = b"".join(encode_frame(*frame) for frame in said)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    frames = Frames()
    found = [
        frame for start, end in itertools.pairwise([0, *cuts, len(stream)]) for frame in frames.feed(stream[start:end])
    ]
    assert found == [Frame(*frame) for frame in said]


def test_a_frame_without_end() -> None:
    with pytest.raises(Unreadable):
        list(Frames().feed(b"\xff" * 9))


QUERY = Query("d", ((("a", "1"),),))


def service(timeout: float = 5.0) -> Service:
    return Service(type="ratelimit", endpoint="embedded", timeout=timeout)


def embedded(maximum: int = 5) -> EmbeddedLimiter:
    limit = Limit(namespace="d", name="five", max_value=maximum, seconds=60, conditions=[], variables=[])
    return EmbeddedLimiter(LimitSet([limit]))


@asynccontextmanager
async def sharing(path: Path) -> AsyncIterator[SharedCounters]:
    counters = SharedCounters(path)
    try:
        await counters.connect(5)
        yield counters
    finally:
        await counters.close()


@asynccontextmanager
async def counting(path: Path, limiter: EmbeddedLimiter) -> AsyncIterator[None]:
    server = CountersServer(path, limiter)
    await server.start()
    try:
        yield
    finally:
        server.stop()


async def test_others_count_where_the_first_does(tmp_path: Path) -> None:
    """S1.25: 5 of 5 are admitted, whoever asks; each learns which limit refused."""
    path, first = tmp_path / "c.sock", embedded()
    async with counting(path, first), sharing(path) as one, sharing(path) as other:
        second, third = one.limiter_for(service()), other.limiter_for(service())
        await second.report(QUERY._replace(hits_addend=2))
        asked = await asyncio.gather(*(limiter.should_rate_limit(QUERY) for limiter in [second, third] * 10))
        assert [decision.code for decision in asked].count(Code.OK) == 3
        refusals = [await third.check(QUERY), await second.should_rate_limit(QUERY), first.check(QUERY)]
        assert [(refusal.code, refusal.limit) for refusal in refusals] == [(Code.OVER_LIMIT, "five")] * 3


async def test_what_another_worker_counted_can_be_given_back(tmp_path: Path) -> None:
    """By any of them, with the age that tells whose window it was."""
    path, first = tmp_path / "c.sock", embedded()
    async with counting(path, first), sharing(path) as one, sharing(path) as other:
        second, third = one.limiter_for(service()), other.limiter_for(service())
        await second.report(QUERY._replace(hits_addend=4))
        assert (await third.refund(QUERY._replace(hits_addend=3))).code is Code.OK
        assert [counter.used for counter in first.snapshot()] == [1]
        await third.refund(QUERY, age=3_600.0)
        await second.refund(QUERY._replace(hits_addend=0))
        assert [counter.used for counter in first.snapshot()] == [1]
        assert all(isinstance(limiter, Refunding) for limiter in (first, second, third))


async def test_the_first_comes_back(tmp_path: Path) -> None:
    """Without it nothing is counted, which is certain, so that reports are retried; then they are."""
    path = tmp_path / "c.sock"
    async with counting(path, embedded()):
        shared = SharedCounters(path)
        await shared.connect(5)
        limiter = shared.limiter_for(service())
        assert (await limiter.check(QUERY)).code is Code.OK
    reasons = []
    while "unreachable" not in reasons:
        with pytest.raises(LimiterError) as caught:
            await limiter.report(QUERY)
        reasons.append(caught.value.reason)
    async with counting(path, embedded(1)):
        await shared.connect(5)
        assert (await limiter.report(QUERY)).code is Code.OK
        assert (await limiter.check(QUERY)).code is Code.OVER_LIMIT
        await shared.close()


async def test_the_first_may_be_late(tmp_path: Path) -> None:
    """Nobody waits for it longer than told to."""
    shared = SharedCounters(tmp_path / "c.sock")
    await shared.connect(0.01)
    with pytest.raises(LimiterError, match="unreachable: the worker that counts is away"):
        await shared.limiter_for(service()).check(QUERY)
    await shared.close()


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def instead(path: Path, talk: Talk) -> AsyncIterator[SharedCounters]:
    """Somebody else where the first worker should be."""
    ends: list[asyncio.StreamWriter] = []

    async def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(writer)
        await talk(reader, writer)

    async with await asyncio.start_unix_server(taken, path, limit=1), sharing(path) as shared:
        yield shared
    for writer in ends:
        writer.close()


async def test_a_call_has_its_services_timeout(tmp_path: Path) -> None:
    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with instead(tmp_path / "c.sock", silence) as shared:
        with pytest.raises(LimiterError, match=r"deadline: no answer within 0.01 s"):
            await shared.limiter_for(service(0.01)).check(QUERY)


async def test_what_a_dying_worker_was_asked_may_have_been_counted(tmp_path: Path) -> None:
    """So it is not retried."""

    async def death(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(9)
        writer.close()

    async with instead(tmp_path / "c.sock", death) as shared:
        with pytest.raises(LimiterError, match="refused: the worker that counts went away during the call"):
            await shared.limiter_for(service()).report(QUERY)


async def test_nothing_piles_up_before_a_worker_that_is_stuck(tmp_path: Path) -> None:
    """Nothing is sent any more to one that does not read."""

    async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        return

    async with instead(tmp_path / "c.sock", stuck) as shared:
        limiter = shared.limiter_for(service(0.001))
        long = Query("d", ((("a", "x" * 100_000),),))
        reasons = []
        for _ in range(20):
            with pytest.raises(LimiterError) as caught:
                await limiter.check(long)
            reasons.append(caught.value.reason)
        assert (reasons[0], reasons[-1]) == ("deadline", "unreachable")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (encode_frame(1, Kind.UNREADABLE, b"what?"), "nonsense: what?"),
        (encode_frame(1, Kind.DECISION, b"{}"), "nonsense: not a decision"),
        (encode_frame(7, Kind.DECISION, b"") + b"\xff" * 9, "refused: the worker that counts went away"),
    ],
    ids=["a refusal", "no decision", "no frame"],
)
async def test_answers_that_are_none(tmp_path: Path, answer: bytes, reason: str) -> None:
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(9)
        writer.write(answer)

    async with instead(tmp_path / "c.sock", nonsense) as shared:
        with pytest.raises(LimiterError, match=re.escape(reason)):
            await shared.limiter_for(service()).check(QUERY)


async def test_questions_that_are_none(tmp_path: Path) -> None:
    """Each is answered; what is no frame ends the conversation, and no other one."""
    path = tmp_path / "c.sock"
    async with counting(path, embedded()), sharing(path) as shared:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(encode_frame(5, Kind.DECISION, b"") + encode_frame(6, Kind.CHECK, b"\xff"))
        writer.write(encode_frame(7, Kind.REFUND, b"age") + encode_frame(8, Kind.REFUND, b"\xff" * 9))
        frames = Frames()
        found: list[Frame] = []
        while len(found) < 4:
            found += frames.feed(await reader.read(1000))
        assert [(frame.number, frame.kind) for frame in found] == [(n, Kind.UNREADABLE) for n in (5, 6, 7, 8)]
        writer.write(b"\xff" * 9)
        assert await reader.read() == b""
        writer.close()
        limiter = shared.limiter_for(service())
        with pytest.raises(LimiterError, match="refused: a query of"):
            await limiter.check(Query("d", ((("a", "x" * MAX_BODY),),)))
        assert (await limiter.check(QUERY)).code is Code.OK


async def test_a_socket_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="the socket of the workers' counters"):
        await CountersServer(tmp_path / "none" / "c.sock", embedded()).start()
