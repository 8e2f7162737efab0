"""A server whose configuration is exchanged while guards are at work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest
from support.guards import DENIED, DENY, chat, guarded
from support.http_peer import HttpPeer, Received, reply
from support.messages import request_body, request_headers
from support.processes import run, write
from support.waiting import until

from extproc.config.errors import ConfigError
from extproc.server import Server
from extproc.transport.process import SERVICE
from extproc.wire.external_processor_pb2 import ProcessingRequest, ProcessingResponse

LISTENING = {"listeners": [{"address": "127.0.0.1:0"}], "shutdown": {"delay": "0s", "deadline": "1s"}}
ALLOW = b'{"choices":[{"message":{"content":"{\\"result\\":\\"allow\\"}"}}]}'
MODEL = {"host": "127.0.0.1", "scheme": "http", "credential": "none"}

BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("a pattern", guarded(deny=["a(b"]), "error in compile regex a(b: "),
    ("a pattern for answers", guarded(answers={"deny": ["["]}), "error in compile regex [: "),
    ("no host", guarded(model={"host": "", "credential": "none"}), "intelligent guard cluster cannot be empty"),
    ("no key", guarded(model={"host": "guard"}), "intelligent guard api_key cannot be empty"),
    (
        "an empty key",
        guarded(model={"host": "guard", "credential": {"env": "EXTPROC_TEST_EMPTY"}}),
        "intelligent guard api_key cannot be empty",
    ),
    (
        "a key that is not there",
        guarded(model={"host": "guard", "credential": {"env": "EXTPROC_TEST_ABSENT"}}),
        "EXTPROC_TEST_ABSENT",
    ),
    ("a URL", guarded(webhook={"url": "ftp://x", "credential": "none"}), "guards.chat.webhook.url"),
    ("a misspelt field", guarded(denyy=[]), "guards.chat.denyy: unknown field"),
    ("a mode", guarded(mode="warn"), "guards.chat.mode"),
    ("no roles", guarded(checkRoles=[]), "guards.chat.checkRoles"),
    ("a status", guarded(denyWith={"status": 200}), "guards.chat.denyWith.status"),
    (
        "an unknown guard",
        {
            **guarded(),
            "actionSets": [
                {"name": "a", "routeRuleConditions": {"hostnames": ["*"]}, "actions": [], "guards": ["chta"]}
            ],
        },
        "actionSets[0].guards[0]: no guard is named `chta`, did you mean `chat`?",
    ),
]


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[Server]:
    """A server with the configuration at `path`, listening."""
    server = Server(path)
    server.load()
    await server.start()
    try:
        yield server
    finally:
        await server.drain()


async def ask(server: Server, *messages: ProcessingRequest) -> list[ProcessingResponse]:
    """What Envoy gets for `messages`, over a connection as its own."""
    async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
        call = channel.stream_stream(f"/{SERVICE}/Process")()
        replies: list[ProcessingResponse] = []
        for message in messages:
            await call.write(message.SerializeToString())
            replies.append(ProcessingResponse.FromString(await call.read()))
        await call.done_writing()
    return replies


async def status_of(server: Server, text: str) -> int:
    """Of the refusal, 0 where there is none."""
    replies = await ask(server, request_headers(), request_body(chat(text)))
    return int(replies[-1].immediate_response.status.code)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXTPROC_TEST_EMPTY", "")
    monkeypatch.delenv("EXTPROC_TEST_ABSENT", raising=False)


@pytest.mark.parametrize(("config", "told"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_server_does_not_start_with_a_broken_guard(tmp_path: Path, config: dict[str, Any], told: str) -> None:
    """S3.13, S3.D9, S3.D10."""
    with pytest.raises(ConfigError) as raised:
        Server(write(tmp_path / "extproc.json", {**LISTENING, **config})).load()
    assert told in str(raised.value)


async def test_a_broken_guard_keeps_the_old_configuration(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is wrong with it: what was refused is refused, and the log says why."""
    path = write(tmp_path / "extproc.json", {**LISTENING, **guarded()})
    async with serving(path) as server:
        assert await status_of(server, DENIED) == 403
        for name, config, told in BROKEN:
            caplog.clear()
            write(path, {**LISTENING, **config})
            assert await server.reload() is False, name
            (line,) = [r for r in caplog.records if r.message == "reload rejected, the old configuration stays"]
            assert all(part in str(line.fields["problems"]) for part in told.split(": "))
            assert line.levelno == logging.ERROR
            assert await status_of(server, DENIED) == 403
            assert await status_of(server, "hello") == 0
        write(path, {**LISTENING, **guarded(deny=["hello"])})
        assert await server.reload() is True
        assert await status_of(server, DENIED) == 0
        assert await status_of(server, "hello") == 403


async def test_a_request_under_way_keeps_the_guard_that_it_began_with(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def later(_: Received, writer: Any) -> None:
        await go.wait()
        writer.write(reply(ALLOW))

    peer = await HttpPeer(later).start()
    model = {**MODEL, "port": peer.port}
    path = write(tmp_path / "extproc.json", {**LISTENING, **guarded(model=model)})
    async with serving(path) as server:
        asking = asyncio.create_task(status_of(server, "hello"))
        await until(lambda: peer.received)
        write(path, {**LISTENING, **guarded(deny=["hello"])})
        assert await server.reload() is True
        assert await status_of(server, "hello") == 403
        go.set()
        assert await asking == 0
    await peer.stop()


async def test_a_server_that_stops_leaves_no_connection_to_a_guard(tmp_path: Path) -> None:
    peer = await HttpPeer(reply(ALLOW)).start()
    path = write(tmp_path / "extproc.json", {**LISTENING, **guarded(model={**MODEL, "port": peer.port})})
    async with serving(path) as server:
        assert await status_of(server, "hello") == 0
        assert not peer.left.is_set()
    await asyncio.wait_for(peer.left.wait(), 5)
    await peer.stop()


async def test_a_client_that_leaves_takes_its_question_with_it(tmp_path: Path) -> None:
    """Over the wire, as Envoy resets a stream (G12)."""

    async def never(_: Received, writer: Any) -> None:
        await asyncio.Event().wait()

    peer = await HttpPeer(never).start()
    path = write(tmp_path / "extproc.json", {**LISTENING, **guarded(model={**MODEL, "port": peer.port})})
    async with serving(path) as server:
        asking = asyncio.create_task(status_of(server, "hello"))
        await until(lambda: peer.received)
        assert server.metrics.exchanges_open == 1
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.wait_for(peer.left.wait(), 5)
        await until(lambda: server.metrics.exchanges_open == 0)
    await peer.stop()


async def test_the_command_says_what_is_wrong_and_nothing_of_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`extproc check`: one line for each problem, no traceback (S3.D17)."""
    monkeypatch.setenv("EXTPROC_TEST_KEY", "sk-very-secret-key-0123456789\n\nx")
    config = guarded(model={"host": "guard", "credential": {"env": "EXTPROC_TEST_KEY"}}, deny=[*DENY, "("])
    status, out, err = await run("check", write(tmp_path / "extproc.json", config))
    assert status != 0
    assert "guards.chat" in out + err
    assert "Traceback" not in out + err
    assert "sk-very" not in out + err


def test_a_masked_configuration_shows_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3.D17: what the admin port shows."""
    monkeypatch.setenv("EXTPROC_TEST_KEY", "sk-very-secret-key-0123456789")
    config = guarded(model={"host": "guard", "credential": {"env": "EXTPROC_TEST_KEY"}})
    server = Server(write(tmp_path / "extproc.json", {**LISTENING, **config}))
    server.load()
    assert b"sk-very" not in orjson.dumps(server._masked())
