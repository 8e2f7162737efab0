"""What `tiers` and `users` measure is what they say: a key, one request limit and three token windows a user."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.harness import Gateway, kinds
from support.messages import request_headers, response_body, response_headers

from bench import tiers
from bench.__main__ import available
from bench.clients import in_turn
from bench.errors import BenchError
from bench.load import HOST
from bench.scenarios import SCENARIOS, Length
from bench.stack import asking, missing
from bench.users import Round, bytes_each, mean_us
from extproc.config.load import parse_config
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.limits import LimitSet

ANSWER = b'{"usage":{"prompt_tokens":12,"completion_tokens":12,"total_tokens":24}}'


@pytest.fixture
def limiter() -> EmbeddedLimiter:
    return EmbeddedLimiter(LimitSet())


@pytest.fixture
def gateway(tmp_path: Path, limiter: EmbeddedLimiter) -> Gateway:
    gateway = Gateway(asking(6, tmp_path), limiter)
    limiter.replace_limits(gateway.active.limits)
    return gateway


async def ask(gateway: Gateway, header: str) -> list[str | None]:
    name, _, value = header.partition(": ")
    replies = await gateway.exchange(
        request_headers({name: value}, host=HOST), response_headers(), response_body(ANSWER, ends=True)
    )
    return kinds(replies)


@pytest.mark.parametrize("number", range(6))
async def test_a_request_counts_in_four_windows_of_its_user(
    gateway: Gateway, limiter: EmbeddedLimiter, number: int
) -> None:
    """Whatever the tier: one request in a minute, and its tokens in a minute, an hour and a day."""
    answered = await ask(gateway, tiers.credential(number))
    assert answered == ["request_headers", "response_headers", "response_body"]
    counted = sorted(
        (counter.limit.window.seconds, counter.used, counter.limit.name, counter.values)
        for counter in limiter.snapshot()
    )
    mine = (tiers.TIERS[number % 3], (f"user-{number:05}",))
    assert counted == [(60, 1, *mine), (60, 24, *mine), (3600, 24, *mine), (86400, 24, *mine)]


async def test_a_caller_without_a_key_of_the_run_is_refused(gateway: Gateway) -> None:
    """So a run that asks with wrong keys fails, and is not fast."""
    assert await ask(gateway, tiers.credential(6)) == ["immediate_response"]


def test_every_user_has_a_key_of_their_own_and_no_file_holds_it(tmp_path: Path) -> None:
    document = asking(6, tmp_path)
    credentials = [tiers.credential(number) for number in range(6)]
    text = Path(document["policies"][0]).read_text()
    assert len(set(credentials)) == 6
    assert text.count("sha256:") == 6
    assert not any(credential.removeprefix("authorization: APIKEY ") in text for credential in credentials)


def test_no_limit_makes_another_needless(tmp_path: Path) -> None:
    """A configuration with a doubt about it is not what an operator would run."""
    loaded = parse_config(json.dumps(asking(3, tmp_path)), name="bench.json", base=tmp_path)
    assert LimitSet(loaded.config.embedded_limits).warnings == ()


@pytest.mark.parametrize(("share", "known"), [(1.0, 10_000), (0.1, 1_000)])
def test_a_short_run_has_fewer_users(share: float, known: int) -> None:
    assert SCENARIOS["users"].users(Length(1.0, share)) == known


def test_a_server_that_cannot_run_is_left_out_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert available(SCENARIOS["tiers"], ["floor", "redis"]) == ["floor"]
    assert "tiers: left out redis: redis-server is not installed: apt-get install" in capsys.readouterr().err
    assert not missing("embedded")


class Model:
    """Answers HTTP/1.1 requests, and counts them by their authorization."""

    def __init__(self, answer: bytes) -> None:
        self.seen: Counter[str] = Counter()
        self.connections = 0
        self._answer = answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while head := await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b"":
            headers = dict(line.split(": ", 1) for line in head.decode().splitlines()[1:] if line)
            await reader.readexactly(int(headers["content-length"]))
            self.seen[headers["authorization"]] += 1
            writer.write(self._answer)
        writer.close()


@pytest.fixture
async def model(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Model, str]]:
    model = Model(request.param)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await model.serve(reader, writer)
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield model, f"{host}:{port}"


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


@pytest.mark.parametrize("model", [OK], indirect=True)
async def test_every_header_is_sent_once(model: tuple[Model, str]) -> None:
    seen, address = model
    headers = [f"authorization: APIKEY {number}" for number in range(20)]
    latencies, seconds = await in_turn(address, "/", b"{}", headers, rate=10_000, connections=4)
    assert (len(latencies), seen.connections) == (20, 4)
    assert seen.seen == Counter(header.partition(": ")[2] for header in headers)
    assert seconds >= 19 / 10_000  # no faster than asked for


@pytest.mark.parametrize(
    "model", [b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"], indirect=True
)
async def test_a_refused_request_is_no_result(model: tuple[Model, str]) -> None:
    with pytest.raises(BenchError, match="an answer failed"):
        await in_turn(model[1], "/", b"{}", ["authorization: APIKEY 1"], rate=1000, connections=1)


@pytest.mark.parametrize(
    ("before", "after", "count", "expected"), [(1000, 1400, 1024, 400.0), (None, None, 10, None), (5, 5, 0, None)]
)
def test_bytes_of_a_user(before: int | None, after: int | None, count: int, expected: float | None) -> None:
    assert bytes_each(before, after, count) == expected


def test_a_request_of_several_rounds_costs_the_mean_of_all_requests() -> None:
    """Not of the rounds: the first of them may be short."""
    assert mean_us([Round(300.0, [1.0], 1.0), Round(100.0, [1.0, 1.0, 1.0], 1.0)]) == 150.0
