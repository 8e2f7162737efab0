"""The connection alone, on a transport that the test controls: what a slow or greedy peer can make it hold."""

from __future__ import annotations

import asyncio
import json

import pytest

from extproc.simulator import connection as connection_module
from extproc.simulator.connection import Connection
from extproc.simulator.options import Options
from extproc.simulator.service import Service

HUGE = 200_000_000


class Pipe(asyncio.Transport):
    """Counts what is written, and asks to pause beyond `high` bytes that nobody read."""

    def __init__(self, high: int = 65_536) -> None:
        super().__init__()
        self.written = bytearray()
        self.total = 0
        self.gone = asyncio.Event()
        self.reading = True
        self.high = high

    def connect(self, connection: Connection) -> None:
        self.connection = connection
        connection.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data
        self.total += len(data)
        if len(self.written) > self.high:
            self.connection.pause_writing()

    def drain(self) -> bytes:
        data = bytes(self.written)
        self.written.clear()
        self.connection.resume_writing()
        return data

    def close(self) -> None:
        self.gone.set()

    abort = close

    def is_closing(self) -> bool:
        return self.gone.is_set()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


async def turns(count: int = 20) -> None:
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


def connect(options: Options | None = None, high: int = 65_536) -> Pipe:
    pipe = Pipe(high)
    pipe.connect(Connection(Service(options or Options()), set()))
    return pipe


def request(body: object, *headers: str) -> bytes:
    data = json.dumps(body).encode()
    fields = ["POST /v1/chat/completions HTTP/1.1", "host: m", f"content-length: {len(data)}", *headers]
    return "\r\n".join((*fields, "", "")).encode() + data


@pytest.mark.parametrize(("body", "frames"), [({}, 1), ({"stream": True}, 20_000)], ids=["json", "sse"])
async def test_d12_200_mb_wait_for_a_slow_reader(body: object, frames: int) -> None:
    """S0.D12: what is not read is not produced, however large the answer is."""
    pipe = connect(Options(size=HUGE, frames=frames))
    pipe.connection.data_received(request(body))
    held = 0
    while pipe.total < HUGE // 100:
        await turns()
        held = max(held, len(pipe.written))
        before = pipe.total
        await turns()
        assert pipe.total == before, "wrote to a transport that asked for a pause"
        pipe.drain()
    assert held < 4 * 65_536
    pipe.connection.connection_lost(None)


async def test_pipelined_requests_stop_when_answers_are_not_read() -> None:
    pipe = connect(high=2_000)
    pipe.connection.data_received(request({}) * 100)
    await turns()
    assert len(pipe.written) < 3_000
    assert not pipe.reading
    answers = b""
    while not pipe.reading:
        answers += pipe.drain()
        await turns()
    assert (answers + pipe.drain()).count(b"HTTP/1.1 200 OK") == 100


async def test_a_body_above_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "MAX_BODY", 1000)
    pipe = connect()
    pipe.connection.data_received(request({}).replace(b"length: 2", b"length: 2000") + b"x" * 500)
    assert pipe.total == 0
    pipe.connection.data_received(b"x" * 600)
    assert pipe.written.startswith(b"HTTP/1.1 413 ")
    assert pipe.is_closing()


async def test_endless_headers_are_refused() -> None:
    pipe = connect()
    pipe.connection.data_received(b"GET /health HTTP/1.1\r\nhost: m\r\nx: ")
    for _ in range(70):
        if not pipe.is_closing():
            pipe.connection.data_received(b"y" * 1024)
    assert pipe.written.startswith(b"HTTP/1.1 431 ")
    assert pipe.is_closing()


async def test_a_hold_is_cut_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "HOLD_LIMIT", 0.0)
    pipe = connect()
    pipe.connection.data_received(request({"stream": True}, "x-sim-hold: never"))
    async with asyncio.timeout(5):
        await pipe.gone.wait()
    assert b"[DONE]" not in pipe.written


async def test_a_hold_ends_with_its_connection() -> None:
    service = Service(Options(hold="a"))
    pipe = Pipe()
    pipe.connect(Connection(service, set()))
    pipe.connection.data_received(request({"stream": True}))
    pipe.connection.connection_lost(None)
    assert service.release("a") == 0


async def test_every_frame_is_a_write_of_its_own() -> None:
    """A frame leaves before the next one is made, so a gateway can see them one by one."""
    pipe = connect()
    pipe.connection.data_received(request({"stream": True}))
    seen = []
    while not pipe.written.endswith(b"0\r\n\r\n"):
        seen.append(pipe.written.count(b"data: "))
        await asyncio.sleep(0)
    assert seen[:4] == [1, 2, 3, 4]


async def test_nothing_is_written_after_the_connection_is_lost() -> None:
    pipe = connect(Options(frames=1000))
    pipe.connection.data_received(request({"stream": True}))
    await turns(3)
    pipe.connection.connection_lost(ConnectionResetError())
    before = pipe.total
    await turns()
    assert pipe.total == before
