"""Coroutines that begin at once: nobody who awaits them can tell the difference, and nobody has to."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import pytest

from extproc.eager import begin

Steps = list[str]


async def now(value: Any = "value") -> Any:
    if isinstance(value, Exception):
        raise value
    return value


async def later(*futures: asyncio.Future[Any]) -> list[Any]:
    return [await future for future in futures]


def pending(answer: Any) -> Awaitable[Any]:
    """What `begin` gives for a coroutine that waits."""
    assert isinstance(answer, Awaitable)
    return answer


def test_a_result_is_there_at_once() -> None:
    """No loop runs, and none is needed."""
    assert begin(now()) == "value"
    assert begin(now(None)) is None


def test_so_is_what_is_raised() -> None:
    with pytest.raises(KeyError, match="x"):
        begin(now(KeyError("x")))


def test_it_runs_through_coroutines_that_do_not_wait() -> None:
    async def outer() -> Any:
        return [await now(1), await now(2)]

    assert begin(outer()) == [1, 2]


async def test_what_is_done_needs_no_waiting_of_ours() -> None:
    done = asyncio.get_running_loop().create_future()
    done.set_result(1)
    assert begin(later(done, done)) == [1, 1]


@pytest.mark.parametrize("early", [False, True])
async def test_futures_are_awaited_one_after_the_other(early: bool) -> None:
    """Also those that are done before anybody awaits the rest."""
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(3)]
    rest = pending(begin(later(*futures)))
    for index, future in enumerate(futures):
        if early:
            future.set_result(index)
        else:
            loop.call_soon(future.set_result, index)
    assert await rest == [0, 1, 2]


async def test_others_run_meanwhile() -> None:
    steps: Steps = []

    async def yields() -> None:
        for _ in range(3):
            steps.append("ours")
            await asyncio.sleep(0)

    rest = pending(begin(yields()))
    assert steps == ["ours"]

    async def theirs() -> None:
        for _ in range(2):
            steps.append("theirs")
            await asyncio.sleep(0)

    await asyncio.gather(asyncio.ensure_future(theirs()), _awaited(rest))
    assert steps[0] == "ours"
    assert sorted(steps) == ["ours"] * 3 + ["theirs"] * 2


async def _awaited(rest: Awaitable[Any]) -> Any:
    return await rest


async def test_an_exception_of_what_it_waits_for_may_be_caught() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def catches() -> str:
        try:
            return str(await future)
        except KeyError as error:
            return f"caught {error}"

    rest = pending(begin(catches()))
    future.set_exception(KeyError("x"))
    assert await rest == "caught 'x'"


async def test_and_what_it_raises_later_arrives() -> None:
    async def raises() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    rest = pending(begin(raises()))
    with pytest.raises(KeyError, match="x"):
        await rest


@asynccontextmanager
async def noted(steps: Steps) -> AsyncIterator[None]:
    try:
        yield
    except BaseException as error:
        steps.append(type(error).__name__)
        raise
    finally:
        steps.append("left")


async def waits_forever(steps: Steps) -> None:
    async with noted(steps):
        await asyncio.get_running_loop().create_future()


async def test_a_cancellation_gets_to_where_it_waits() -> None:
    steps: Steps = []
    begun = asyncio.Event()

    async def stream() -> None:
        rest = pending(begin(waits_forever(steps)))
        begun.set()
        await rest

    task = asyncio.create_task(stream())
    await begun.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["CancelledError", "left"]


async def test_it_may_go_on_after_a_cancellation_if_it_has_to() -> None:
    """As a report that is flushed."""
    done: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def stubborn() -> str:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            return await done
        raise AssertionError

    async def stream() -> str:
        found: str = await pending(begin(stubborn()))
        return found

    task = asyncio.create_task(stream())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    done.set_result("done")
    assert await task == "done"


async def test_a_deadline_holds() -> None:
    """`asyncio.timeout` cancels the task in which it was entered, which is the one that awaits the rest."""

    async def limited() -> str:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            return "too late"
        raise AssertionError

    assert await pending(begin(limited())) == "too late"
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0


async def test_a_deadline_around_it_holds() -> None:
    steps: Steps = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await pending(begin(waits_forever(steps)))
    assert steps == ["CancelledError", "left"]


async def test_what_is_never_awaited_is_closed_without_a_word() -> None:
    """A stream that ends between a message and its reply leaves nothing behind."""
    steps: Steps = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rest = begin(waits_forever(steps))
        assert steps == []
        del rest
        gc.collect()
    assert steps == ["GeneratorExit", "left"]


async def test_closing_whoever_awaits_closes_it() -> None:
    steps: Steps = []
    outer = _awaited(pending(begin(waits_forever(steps))))
    outer.send(None)
    outer.close()
    assert steps == ["GeneratorExit", "left"]


async def test_it_sees_the_context_of_whoever_began_it() -> None:
    name: ContextVar[str] = ContextVar("name")
    name.set("stream")

    async def tells() -> list[str]:
        before = name.get()
        await asyncio.sleep(0)
        return [before, name.get()]

    assert await pending(begin(tells())) == ["stream", "stream"]


async def test_begun_coroutines_nest() -> None:
    """A limiter that is begun at once inside of an exchange that is."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def inner(wait: bool) -> int:
        return await future if wait else 1

    async def outer() -> int:
        total = 0
        for wait in (False, True, False, True):
            answer = begin(inner(wait))
            total += answer if isinstance(answer, int) else await answer
        return total

    rest = pending(begin(outer()))
    future.set_result(10)
    assert await rest == 22


def test_a_stop_iteration_is_no_result_either() -> None:
    """Python turns one that leaves a coroutine into a RuntimeError, so it cannot be mistaken for a return."""
    with pytest.raises(RuntimeError, match="StopIteration"):
        begin(now(StopIteration("x")))
