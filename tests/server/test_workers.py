"""Several workers: where they serve, how they count together, how they live and end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.grpc_client import EXCHANGE, Stream, connected, converse
from support.harness import LIMITS, S0, configured
from support.processes import Command, run, write

from extproc.cli import main
from extproc.config.errors import ConfigError
from extproc.config.load import parse_config
from extproc.config.model import Config
from extproc.gateway.bootstrap import extproc_cluster
from extproc.workers.process import Pauses
from extproc.workers.seats import Ready, Refused, Seat, parse_answer, reachable, seats, shifted

NOW = {"delay": "0s", "deadline": "5s"}


def example(**sections: Any) -> dict[str, Any]:
    """wasm-shim's example on free ports, with nothing to warn of and time for a busy machine."""
    config: dict[str, Any] = json.loads(json.dumps(configured(S0)).replace("request.path", "request.url_path"))
    for service in config["services"].values():
        service["timeout"] = "5s"
    local = {"listeners": ["127.0.0.1:0"], "admin": {"address": "127.0.0.1:0"}, "shutdown": NOW}
    return {**config, **LIMITS, **local, **sections}


# --- where they serve


class Pipe:
    reading, writing = 3, 4


def planned(count: int, *listeners: Any, admin: str | None = None) -> list[Seat]:
    return seats(loaded(listeners, admin), count, counters="/run/c.sock", company=Pipe())


def loaded(listeners: Any, admin: str | None) -> Config:
    config = example(listeners=list(listeners), admin=None if admin is None else {"address": admin})
    return parse_config(json.dumps(config), name="c.json", base=Path.cwd()).config


@pytest.mark.parametrize(
    ("address", "third"),
    [
        ("127.0.0.1:50051", "127.0.0.1:50053"),
        ("[::1]:50051", "[::1]:50053"),
        ("extproc.internal:1", "extproc.internal:3"),
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("127.0.0.1:65533", "127.0.0.1:65535"),
        ("unix:/run/extproc.sock", "unix:/run/extproc-2.sock"),
        ("unix:/run/ext.proc.sock", "unix:/run/ext.proc-2.sock"),
        ("unix:/run/extproc", "unix:/run/extproc-2"),
    ],
)
def test_the_address_of_a_worker(address: str, third: str) -> None:
    assert (shifted(address, 0), shifted(address, 2)) == (address, third)


def test_every_worker_has_its_own_listeners_and_admin_port() -> None:
    """The rest of a listener, TLS for instance, is the same for all; the pipe has two ends."""
    found = planned(3, "127.0.0.1:50051", "unix:/run/x.sock", admin="127.0.0.1:9090")
    places = [[listener.address for listener in seat.listeners] for seat in found]
    assert places == [
        ["127.0.0.1:50051", "unix:/run/x.sock"],
        ["127.0.0.1:50052", "unix:/run/x-1.sock"],
        ["127.0.0.1:50053", "unix:/run/x-2.sock"],
    ]
    assert [seat.admin and seat.admin.address for seat in found] == [f"127.0.0.1:{9090 + index}" for index in range(3)]
    assert [seat.company for seat in found] == [Pipe.reading, Pipe.writing, Pipe.writing]


REFUSED: dict[str, tuple[list[str], str | None, str]] = {
    "two listeners": (
        ["127.0.0.1:50051", "127.0.0.1:50052"],
        None,
        "listeners[0].address: `127.0.0.1:50052`, for worker 1 of 3 (--workers), is listeners[1].address of worker 0",
    ),
    "the admin port": (
        ["127.0.0.1:9088"],
        "127.0.0.1:9090",
        "listeners[0].address: `127.0.0.1:9090`, for worker 2 of 3 (--workers), is admin.address of worker 0",
    ),
    "every interface": (
        ["127.0.0.1:9088"],
        "0.0.0.0:9089",
        "listeners[0].address: `127.0.0.1:9089`, for worker 1 of 3 (--workers), is admin.address of worker 0",
    ),
    "sockets": (
        ["unix:/run/x.sock", "unix:/run/x-1.sock"],
        None,
        "listeners[0].address: `unix:/run/x-1.sock`, for worker 1 of 3 (--workers), is listeners[1].address of",
    ),
    "no such port": (
        ["127.0.0.1:65534"],
        None,
        "listeners[0].address: worker 2 of 3 (--workers) cannot have a place: its port would be 65536, and 65535 is",
    ),
    "a long path": (
        ["unix:/" + "x" * 105],
        None,
        "listeners[0].address: worker 1 of 3 (--workers) cannot have a place: the path of a socket has at most 107",
    ),
}


@pytest.mark.parametrize(("listeners", "admin", "message"), REFUSED.values(), ids=REFUSED)
def test_places_that_cannot_be(listeners: list[str], admin: str | None, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(3, *listeners, admin=admin)
    assert str(caught.value.problems[0]).startswith(message)
    planned(1, *listeners, admin=admin)


def test_free_ports_never_collide() -> None:
    planned(3, "127.0.0.1:0", "127.0.0.1:0", admin="127.0.0.1:0")


@pytest.mark.parametrize(
    ("address", "from_here"),
    [("0.0.0.0:5", "127.0.0.1:5"), ("[::]:5", "[::1]:5"), ("10.0.0.7:5", "10.0.0.7:5"), ("unix:/s", "unix:/s")],
)
def test_what_envoy_is_told(address: str, from_here: str) -> None:
    """An endpoint has to be an address that can be connected to."""
    assert reachable(address) == from_here


def test_a_seat_and_its_answers_survive_the_pipe() -> None:
    """TLS files and all; a worker that starts again keeps the ports that it was given."""
    tls = {"cert": "/etc/tls/a.crt", "key": "/etc/tls/a.key", "clientCa": None}
    [seat] = seats(
        Config.model_validate(example(listeners=[{"address": "127.0.0.1:0", "tls": tls}])),
        1,
        counters=None,
        company=Pipe(),
    )
    assert Seat.model_validate_json(seat.line()) == seat
    ready = Ready(listeners=("127.0.0.1:7",), admin="127.0.0.1:8")
    assert parse_answer(ready.line()) == ready
    assert parse_answer(Refused(problem="a\nb").line()) == Refused(problem="a\nb")
    assert parse_answer(b"") is None
    again = seat.at(ready)
    assert again.admin is not None
    assert (again.listeners[0].address, again.listeners[0].tls) == ("127.0.0.1:7", seat.listeners[0].tls)
    assert again.admin.address == "127.0.0.1:8"


def test_a_worker_that_keeps_dying_is_started_more_and_more_slowly() -> None:
    pauses = Pauses()
    assert [pauses.after(1) for _ in range(9)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
    assert [pauses.after(60), pauses.after(1)] == [0.1, 0.2]


# --- as processes


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where supervisors make their private folders."""
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


async def test_three_workers_from_start_to_end(tmp_path: Path, folders: Path) -> None:
    """Ready when all are; the printed cluster has them all; SIGHUP reaches each; SIGTERM lets each finish.

    The first counts for the others until the last of them is done: its exchange ends long after the first's drain.
    """
    config = write(tmp_path / "c.json", example(listeners=[f"unix:{tmp_path}/s.sock", "127.0.0.1:0"]))
    with (tmp_path / "out").open("w+") as out:
        async with Command("serve", config, "--workers", 3, stdout=out) as group:
            ready = await group.until("ready", workers=3)
            sockets = [f"unix:{tmp_path}/s.sock", f"unix:{tmp_path}/s-1.sock", f"unix:{tmp_path}/s-2.sock"]
            assert ready["listeners"][::2] == sockets
            assert len(set(ready["admin"])) == 3
            assert [group.of("ready", worker=index)[0]["listeners"][0] for index in range(3)] == sockets
            out.seek(0)
            assert yaml.safe_load(out) == [extproc_cluster(sockets)]
            [name] = os.listdir(folders)
            folder = os.path.join(folders, name)
            assert (os.stat(folder).st_mode & 0o777, os.listdir(folder)) == (0o700, ["counters.sock"])

            group.signal(signal.SIGHUP)
            for index in range(3):
                await group.until("reloaded", worker=index)

            async with connected(sockets[2]) as channel, Stream(channel) as stream:
                for message in EXCHANGE[:-1]:
                    await stream.send(message)
                group.signal(signal.SIGTERM)
                await group.until("stopped", worker=0)
                await group.until("stopped", worker=1)
                await stream.send(EXCHANGE[-1])
            assert await group.ended() == 0
    assert [group.of("stopped", worker=index)[0]["reports_lost"] for index in range(3)] == [0] * 3
    assert [line["hits_addend"] for line in group.of("consumed", worker=2)] == [24]
    assert [line for line in group.lines if "text" in line or line["level"] in ("warning", "error")] == []
    assert os.listdir(folders) == []
    assert [name for name in os.listdir(tmp_path) if name.endswith(".sock")] == []


async def test_a_worker_comes_back_and_none_outlives_its_supervisor(tmp_path: Path, folders: Path) -> None:
    """Killed, a worker has its port again, which Envoy knows. Without a supervisor all drain, and nothing is left."""
    async with Command("serve", write(tmp_path / "c.json", example()), "--workers", 2) as group:
        ready = await group.until("ready", workers=2)
        os.kill((await group.until("worker started", worker=1))["pid"], signal.SIGKILL)
        ended = await group.until("worker ended")
        assert (ended["level"], ended["worker"], ended["signal"]) == ("error", 1, "SIGKILL")
        again = await group.until("ready", worker=1, times=2)
        assert [again["listeners"][0], again["admin"]] == [ready["listeners"][1], ready["admin"][1]]
        async with connected(again["listeners"][0]) as channel:
            assert None not in await converse(channel)

        group.signal(signal.SIGKILL)
        # Whoever is left would still hold the other end of standard error.
        assert await group.ended() == -signal.SIGKILL
        for index in range(2):
            assert group.of("stopped", worker=index)[0]["reports_lost"] == 0
    assert os.listdir(folders) == []


async def test_a_second_signal_ends_all_at_once(tmp_path: Path, folders: Path) -> None:
    """Whoever cannot wait need not."""
    patient = example(shutdown={"delay": "1h"})
    async with Command("serve", write(tmp_path / "c.json", patient), "--workers", 2) as group:
        await group.until("ready", workers=2)
        group.signal(signal.SIGINT)
        for index in range(2):
            await group.until("draining", worker=index)
        group.signal(signal.SIGINT)
        assert await group.ended() == 128 + signal.SIGINT
    assert os.listdir(folders) == []


# --- what is refused


async def test_what_workers_refuse_is_told_once(tmp_path: Path, folders: Path) -> None:
    """S0.D19: an expression is wrong for each of them; the end is that of a single server."""
    config = example()
    config["actionSets"][0]["routeRuleConditions"]["predicates"] = ["request.url_path =="]
    path = write(tmp_path / "c.json", config)
    status, out, error = await run("serve", path, "--workers", 2)
    assert (status, out) == (2, "")
    [refusal] = [line for line in error.splitlines() if not line.startswith("{")]
    assert refusal.startswith("extproc: failed to parse plugin config: actionSets[0].routeRuleConditions.predicates[0]")
    assert "worker ended" not in error
    assert os.listdir(folders) == []


async def test_a_port_that_somebody_has(tmp_path: Path) -> None:
    """The second worker's port is taken: nothing is started for ever."""
    socket = tmp_path / "s-1.sock"
    server = await asyncio.start_unix_server(lambda _, writer: writer.close(), socket)
    async with server:
        path = write(tmp_path / "c.json", example(listeners=[f"unix:{tmp_path}/s.sock"]))
        status, out, error = await run("serve", path, "--workers", 2)
    assert (status, out) == (2, "")
    assert f"extproc: listeners[0].address: cannot listen on `unix:{socket}`: another process does\n" in error


def test_a_wrong_file_starts_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for config, message in (
        ({"actionSets": [], "services": 1}, "failed to parse plugin config: services"),
        (example(listeners=["127.0.0.1:65535"]), "failed to parse plugin config: listeners[0].address: worker 1 of 2"),
    ):
        assert main(["serve", str(write(tmp_path / "c.json", config)), "--workers", "2"]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith(f"extproc: {message}")


@pytest.mark.parametrize("count", ["0", "-1", "65", "two", "2.0"])
def test_a_number_of_workers_that_is_none(capsys: pytest.CaptureFixture[str], count: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "c.json", f"--workers={count}"])
    assert ended.value.code == 2
    assert f"argument --workers: expected a number from 1 to 64, found `{count}`" in capsys.readouterr().err
