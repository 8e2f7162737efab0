"""The life of an Envoy process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from extproc.gateway import EnvoyFailed, EnvoyNotFound, EnvoyProcess, PortInUse, bootstrap

pytestmark = pytest.mark.e2e

CONFIG = bootstrap(upstream="127.0.0.1:1", extproc=None)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def script(directory: Path, text: str) -> Path:
    """Something in Envoy's place."""
    path = directory / "envoy"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


async def test_it_runs_inside_the_block_and_not_after() -> None:
    async with EnvoyProcess(CONFIG) as envoy:
        assert (await envoy.stats("server.live"))["server.live"] == 1
    assert gone(envoy.pid)


async def test_an_error_in_the_block_stops_it_too() -> None:
    with pytest.raises(ZeroDivisionError):
        async with EnvoyProcess(CONFIG) as envoy:
            raise ZeroDivisionError
    assert gone(envoy.pid)


async def test_cancelling_the_block_stops_it_too() -> None:
    entered: asyncio.Future[EnvoyProcess] = asyncio.get_running_loop().create_future()

    async def hold() -> None:
        async with EnvoyProcess(CONFIG) as envoy:
            entered.set_result(envoy)
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    envoy = await entered
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(envoy.pid)


async def test_many_run_side_by_side() -> None:
    async with EnvoyProcess(CONFIG) as one, EnvoyProcess(CONFIG, concurrency=2) as two:
        assert len({one.address, one.admin, two.address, two.admin}) == 4
        assert [(await envoy.stats("server.concurrency"))["server.concurrency"] for envoy in (one, two)] == [1, 2]


async def test_stats_are_chosen_by_prefix() -> None:
    async with EnvoyProcess(CONFIG) as envoy:
        stats = await envoy.stats("listener_manager.")
    assert stats["listener_manager.total_listeners_active"] == 1
    assert all(name.startswith("listener_manager.") for name in stats)


async def test_the_log_outlives_the_process() -> None:
    async with EnvoyProcess(CONFIG, log_level="info") as envoy:
        assert "starting main dispatch loop" in envoy.log_tail()
    assert "SIGTERM" in envoy.log_tail()


async def test_its_own_death_can_be_awaited() -> None:
    async with EnvoyProcess(CONFIG) as envoy:
        os.kill(envoy.pid, signal.SIGKILL)
        assert await envoy.wait() == -signal.SIGKILL


async def test_a_bad_configuration_is_explained_by_envoy_itself() -> None:
    with pytest.raises(EnvoyFailed, match=r"(?s)ended with status 1.*no\s+such\s+field:\s+'not_a_field'"):
        async with EnvoyProcess({**CONFIG, "not_a_field": 1}):
            pass


@pytest.mark.parametrize("place", ["listen", "admin"])
async def test_a_port_in_use_is_refused_before_envoy_shares_it(place: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = bootstrap(upstream="127.0.0.1:1", extproc=None, **{place: f"127.0.0.1:{port}"})  # type: ignore[arg-type]
        with pytest.raises(PortInUse, match=f"port {port}"):
            async with EnvoyProcess(config):
                pass


async def test_a_missing_binary_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVOY_BINARY", "/nowhere/envoy")
    with pytest.raises(EnvoyNotFound):
        async with EnvoyProcess(CONFIG):
            pass


async def test_one_that_never_becomes_ready_is_given_up(tmp_path: Path) -> None:
    silent = script(tmp_path, "echo still thinking >&2; exec sleep 60")
    with pytest.raises(EnvoyFailed, match=r"not ready in 0\.2 s\nstill thinking"):
        async with EnvoyProcess(CONFIG, binary=silent, start_timeout=0.2):
            pass


async def test_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    stubborn = script(tmp_path, f"trap '' TERM; echo $$ > {pid}; while :; do sleep 0.05; done")
    with pytest.raises(EnvoyFailed):
        async with EnvoyProcess(CONFIG, binary=stubborn, start_timeout=0.2, stop_timeout=0.1):
            pass
    assert gone(int(pid.read_text()))
