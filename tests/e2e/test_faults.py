"""What breaks between Envoy, us and the limiter, and what the client sees of it; all through the real Envoy."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.envoy_client import Answer, Client, assert_clean, client_of, ext_proc_counters
from support.harness import LIMITS, S0, configured
from support.limiters import (
    CHECK,
    GARBAGE,
    REPORT,
    UNKNOWN,
    ScriptedLimiter,
    after,
    hangs,
    scripted,
    served,
    unavailable,
)
from support.limiters import (
    Answer as Scripted,
)
from support.processes import Command, OutsideStack, write
from support.waiting import until

from extproc.config.model import Limit
from extproc.demo.stack import LOCAL, Stack
from extproc.gateway import EnvoyProcess, bootstrap
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.limits import LimitSet
from extproc.simulator import Simulator

pytestmark = pytest.mark.e2e

JSON: dict[str, Any] = {}
STREAM: dict[str, Any] = {
    "json": {"model": "m", "stream": True, "stream_options": {"include_usage": True}, "messages": []}
}
KINDS = pytest.mark.parametrize("kind", [JSON, STREAM], ids=["json", "sse"])
FAILED = b"Internal Server Error.\n"
EXAMPLE: dict[str, Any] = json.loads(json.dumps(S0).replace("request.path", "request.url_path"))
"""wasm-shim's example without what `check` warns of."""


def remote(address: str, *, timeout: str = "5s", mode: str = "deny", **sections: Any) -> dict[str, Any]:
    """The example configuration with its limiter elsewhere; the hosts of `allow` fail open."""
    config = configured(EXAMPLE, **sections)
    config["endpoints"] = {"limitador": address}
    for service in config["services"].values():
        service.update(timeout=timeout, failureMode=mode)
    return config


def both_modes(address: str, *, timeout: str) -> dict[str, Any]:
    """deny.example.com and allow.example.com, each with the failure mode of its name."""
    config = remote(address, timeout=timeout, report={"retryFor": "0s"})
    services, [action_set] = config["services"], config["actionSets"]
    config["actionSets"] = []
    for mode in ("deny", "allow"):
        own = deepcopy(action_set)
        own.update(name=mode, routeRuleConditions={"hostnames": [f"{mode}.example.com"]})
        for action in own["actions"]:
            services[f"{mode}-{action['service']}"] = {**services[action["service"]], "failureMode": mode}
            action["service"] = f"{mode}-{action['service']}"
        config["actionSets"].append(own)
    return config


@asynccontextmanager
async def gateway(config: dict[str, Any], **options: Any) -> AsyncIterator[tuple[Stack, Client]]:
    async with Stack(config, gateway=options) as stack, client_of(stack) as client:
        yield stack, client


def reports(stack: Stack, result: str) -> int:
    """Reports that ended so."""
    name = f'extproc_reports_total{{result="{result}"}} '
    [line] = [line for line in stack.server.metrics.render()[0].decode().splitlines() if line.startswith(name)]
    return int(float(line.removeprefix(name)))


def complaints(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Level and text of each line from WARNING on, ours or not."""
    return [(r.levelname, r.getMessage()) for r in caplog.records if r.levelno >= logging.WARNING]


def seen_request_id(stack: Stack) -> str:
    """The id that Envoy gave the last request, as the model saw it."""
    return dict(stack.model.requests[-1].headers)["x-request-id"]


async def direct(stack: Any, client: Client, **options: Any) -> Answer:
    """The same request without a gateway."""
    return await Client(f"http://{stack.model.address}", client.session).send(**options)


# --- the limiter, when it is asked


async def gone(limiter: ScriptedLimiter) -> None:
    await limiter.stop()


def answers(check: Scripted) -> Callable[[ScriptedLimiter], Any]:
    async def set_answer(limiter: ScriptedLimiter) -> None:
        limiter.answers[CHECK] = check

    return set_answer


CHECK_FAULTS = {
    "down": (gone, "unreachable"),
    "hangs": (answers(hangs), "deadline"),
    "unavailable": (answers(unavailable), "refused"),
    "unknown": (answers(UNKNOWN), "UNKNOWN"),
    "garbage": (answers(GARBAGE), "nonsense"),
}


@pytest.mark.parametrize(("fault", "reason"), CHECK_FAULTS.values(), ids=CHECK_FAULTS)
async def test_a_check_without_an_answer(caplog, fault: Callable[[ScriptedLimiter], Any], reason: str) -> None:
    """S0.14, G2: the configured failure mode answers, in time, so that Envoy never has to."""
    async with scripted() as limiter, gateway(both_modes(limiter.address, timeout="200ms")) as (stack, client):
        await fault(limiter)
        denied = await client.send(host="deny.example.com")
        assert (denied.status, denied.body) == (500, FAILED)
        assert (stack.model.requests, limiter.of(REPORT)) == ([], [])

        allowed = await client.send(host="allow.example.com")
        assert allowed.status == 200
        assert len(stack.model.requests) == 1
        if limiter.running:
            assert [call.request.hits_addend for call in limiter.of(REPORT)] == [24]
        assert stack.server.metrics.errors == 2
        (denied_line, allowed_line, *_) = [r for r in caplog.records if r.name == "extproc.exchange" and r.levelno > 20]
        assert (denied_line.levelname, denied_line.getMessage()) == ("ERROR", "denied: no decision")
        assert (allowed_line.levelname, allowed_line.getMessage()) == ("WARNING", "allowed without a decision")
        assert reason in denied_line.fields["reason"]
        assert reason in allowed_line.fields["reason"]
        await assert_clean(stack)


async def test_a_client_that_leaves_during_the_check(caplog) -> None:
    """G12: the model is never called, nothing is reported, nothing is wrong."""
    async with (
        scripted(CheckRateLimit=hangs) as limiter,
        gateway(remote(limiter.address), message_timeout="10s") as (stack, client),
    ):
        leaving = asyncio.create_task(client.send())
        await limiter.called(CHECK)
        assert stack.server.metrics.exchanges_open == 1
        leaving.cancel()
        await until(lambda: stack.server.metrics.exchanges_open == 0)
        limiter.answers.clear()
        assert (await client.send()).status == 200
        assert len(stack.model.requests) == 1
        assert len(limiter.of(REPORT)) == 1
        assert complaints(caplog) == []
        await assert_clean(stack)


@KINDS
async def test_sequential_requests_through_a_remote_limiter_are_exact(kind: dict[str, Any]) -> None:
    """S0.7, S0.8, S0.D18: the last reply waits for the report, so the next check knows of it."""
    limiter = EmbeddedLimiter(LimitSet([Limit(**LIMITS["limits"][0])]))
    async with (
        served(limiter) as address,
        gateway(remote(address, report={"wait": "5s"}), message_timeout="10s") as (stack, client),
    ):
        assert await client.statuses(7, **kind) == [200] * 5 + [429] * 2
        assert [counter.used for counter in limiter.snapshot()] == [120]
        await assert_clean(stack)


async def test_a_reload_moves_new_requests_to_another_limiter() -> None:
    """S0.D19: what began with one limiter is reported to it, over a channel that is still there."""
    async with scripted() as old, scripted() as new, gateway(remote(old.address)) as (stack, client):
        async with client.open(headers={"x-sim-hold": "h"}, **STREAM) as response:
            await response.content.readuntil(b"\n\n")
            stack.configure(remote(new.address))
            assert await stack.server.reload() is True
            assert await client.statuses(2) == [200] * 2
            stack.model.release("h")
            await response.read()
        await until(lambda: reports(stack, "sent") == 3)
        assert [call.method for call in old.calls] == [CHECK, REPORT]
        assert [call.method for call in new.calls] == [CHECK, REPORT] * 2
        await assert_clean(stack)


async def test_calls_carry_the_identity_of_the_request() -> None:
    """S0.19: the limiter's log can be joined with the gateway's."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with scripted() as limiter, gateway(remote(limiter.address)) as (stack, client):
        for _ in range(2):
            limiter.calls.clear()
            await client.send(headers={"traceparent": trace})
            assert [call.method for call in limiter.calls] == [CHECK, REPORT]
            for call in limiter.calls:
                assert (call.metadata["x-request-id"], call.metadata["traceparent"]) == (seen_request_id(stack), trace)


# --- the limiter, when it is told


async def dies(limiter: ScriptedLimiter) -> None:
    """The report arrives, and then the connection is gone: it may have been counted."""

    async def close(_: Any) -> bytes:
        asyncio.get_running_loop().create_task(limiter.stop())
        await asyncio.Event().wait()
        return b""

    limiter.answers[REPORT] = close


def reports_answered(report: Scripted) -> Callable[[ScriptedLimiter], Any]:
    async def set_answer(limiter: ScriptedLimiter) -> None:
        limiter.answers[REPORT] = report

    return set_answer


REPORT_FAULTS = {
    "down": (gone, "unreachable", 0),
    "dies": (dies, "refused", 1),
    "hangs": (reports_answered(hangs), "deadline", 1),
    "unavailable": (reports_answered(unavailable), "refused", 1),
    "unknown": (reports_answered(UNKNOWN), "the limiter answered UNKNOWN", 1),
    "garbage": (reports_answered(GARBAGE), "nonsense", 1),
}


@KINDS
@pytest.mark.parametrize(("fault", "reason", "arrived"), REPORT_FAULTS.values(), ids=REPORT_FAULTS)
async def test_a_report_that_fails_is_the_clients_gain(
    caplog, kind: dict[str, Any], fault: Callable[[ScriptedLimiter], Any], reason: str, arrived: int
) -> None:
    """S0.15: the limiter fails between check and report. The answer is complete, one line tells, one metric counts."""
    async with (
        scripted() as limiter,
        gateway(remote(limiter.address, timeout="500ms", report={"retryFor": "0s"})) as (stack, client),
    ):
        expected = await direct(stack, client, **kind)
        async with client.open(headers={"x-sim-hold": "h"}, **kind) as response:
            assert response.status == 200
            await fault(limiter)
            assert stack.model.release("h") == 1
            assert await response.read() == expected.body
        await until(lambda: reports(stack, "failed") == 1)
        [line] = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert line.levelname == "WARNING"
        assert line.getMessage().startswith(f"rate limit report failed: {reason}")
        assert line.fields == {"request_id": seen_request_id(stack), "domain": "domain-a", "hits_addend": 24}
        assert len(limiter.of(REPORT)) == arrived
        assert (reports(stack, "sent"), reports(stack, "dropped")) == (0, 0)
        await assert_clean(stack)


async def test_a_limiter_that_comes_back_is_told_once(caplog, tmp_path: Path) -> None:
    """S0.D16: repeated while there is no connection, delivered exactly once; the client did not wait for it."""
    async with (
        scripted(f"unix:{tmp_path}/limiter.sock") as limiter,
        gateway(remote(limiter.address, report={"retryFor": "30s"})) as (stack, client),
    ):
        async with client.open(headers={"x-sim-hold": "h"}, **STREAM) as response:
            await limiter.stop()
            stack.model.release("h")
            assert (await response.read()).rstrip().endswith(b"data: [DONE]")
        await until(lambda: stack.server.metrics.report_retries >= 1)
        assert reports(stack, "sent") == 0
        await limiter.start()
        await limiter.called(REPORT)
        await until(lambda: reports(stack, "sent") == 1)
        [report] = limiter.of(REPORT)
        assert (report.request.hits_addend, report.metadata["x-request-id"]) == (24, seen_request_id(stack))
        assert complaints(caplog) == []
        assert (await client.send()).status == 200
        await until(lambda: reports(stack, "sent") == 2)
        await assert_clean(stack)


@KINDS
async def test_a_late_answer_to_a_report_holds_the_client_only_for_so_long(caplog, kind: dict[str, Any]) -> None:
    """S0.D18: the last reply is let go after `report.wait`, and the report still counts."""
    answered = asyncio.Event()
    async with (
        scripted(Report=after(answered)) as limiter,
        gateway(remote(limiter.address, timeout="30s", report={"wait": "100ms"})) as (stack, client),
    ):
        clock = asyncio.get_running_loop().time
        began = clock()
        answer = await client.send(**kind)
        assert clock() - began >= 0.1
        assert answer.status == 200
        assert len(limiter.of(REPORT)) == 1
        assert (stack.server.metrics.reports_pending, reports(stack, "sent")) == (1, 0)
        answered.set()
        await until(lambda: reports(stack, "sent") == 1)
        assert stack.server.metrics.reports_pending == 0
        assert complaints(caplog) == []
        await assert_clean(stack)


@pytest.mark.parametrize("mode", ["deny", "allow"])
async def test_a_report_is_never_a_guard(caplog, mode: str) -> None:
    """S0.15: its failure mode says nothing; a client is never denied for what comes after its answer."""
    async with scripted(Report=unavailable) as limiter, gateway(remote(limiter.address, mode=mode)) as (stack, client):
        assert await client.statuses(3) == [200] * 3
        await until(lambda: reports(stack, "failed") == 3)
        assert len(complaints(caplog)) == 3
        await assert_clean(stack)


# --- us: the crash and timeout matrix


async def expect(stack: Any, **counters: int) -> None:
    """Envoy's counters of faults are these, and 0 where they are not named."""
    names = ("streams_failed", "message_timeouts", "failure_mode_allowed")
    found = await ext_proc_counters(stack)
    assert {name: found[name] for name in names} == {**dict.fromkeys(names, 0), **counters}
    assert (found["spurious_msgs_received"], found["rejected_header_mutations"]) == (0, 0)


ALLOWS = pytest.mark.parametrize("allow", [False, True], ids=["fail closed", "fail open"])


@ALLOWS
async def test_we_are_not_there(allow: bool) -> None:
    """500 or as if there were no limits, at once in both cases."""
    async with Simulator() as model, aiohttp.ClientSession() as session:
        config = bootstrap(upstream=model.address, extproc="unix:/nonexistent/s.sock", failure_mode_allow=allow)
        async with EnvoyProcess(config) as envoy:
            answer = await Client(f"http://{envoy.address}", session).send()
            found = await envoy.stats("http.gateway.ext_proc.")
    assert (answer.status, len(model.requests)) == ((200, 1) if allow else (500, 0))
    counted = {name.rpartition(".")[2]: value for name, value in found.items() if value}
    assert counted["streams_failed"] == 1
    assert counted.get("failure_mode_allowed", 0) == allow
    assert "message_timeouts" not in counted


@ALLOWS
async def test_we_answer_too_late(allow: bool) -> None:
    """G2: what happens where a check may take longer than `message_timeout`: 504, or the request goes on unlimited."""
    async with (
        scripted(CheckRateLimit=hangs) as limiter,
        gateway(remote(limiter.address), message_timeout="0.2s", failure_mode_allow=allow) as (stack, client),
    ):
        answer = await client.send()
        assert (answer.status, len(stack.model.requests)) == ((200, 1) if allow else (504, 0))
        await until(lambda: stack.server.metrics.exchanges_open == 0)
        await expect(stack, message_timeouts=1, failure_mode_allowed=int(allow))
        limiter.answers.clear()
        assert (await client.send()).status == 200


@ALLOWS
async def test_we_are_killed_while_a_request_waits(allow: bool, tmp_path: Path) -> None:
    """SIGKILL during the check: Envoy tries again, finds nobody, and 500 or the model answers."""
    async with (
        scripted(CheckRateLimit=hangs) as limiter,
        OutsideStack(remote(limiter.address), tmp_path, failure_mode_allow=allow, message_timeout="10s") as stack,
        client_of(stack) as client,
    ):
        waiting = asyncio.create_task(client.send())
        await limiter.called(CHECK)
        stack.server.signal(signal.SIGKILL)
        answer = await waiting
        assert (answer.status, len(stack.model.requests)) == ((200, 1) if allow else (500, 0))
        if allow:
            assert answer.body == (await direct(stack, client)).body
        assert len(limiter.of(CHECK)) == 1
        await expect(stack, streams_failed=1, failure_mode_allowed=int(allow))


async def test_another_worker_takes_over(tmp_path: Path) -> None:
    """One of two servers is killed during a check: Envoy asks the other, and the client notices nothing."""
    gate = asyncio.Event()
    async with (
        scripted(CheckRateLimit=after(gate)) as limiter,
        Simulator() as model,
        aiohttp.ClientSession() as session,
    ):
        file = write(tmp_path / "c.json", {**LOCAL, **remote(limiter.address)})
        async with Command("serve", file) as killed, Command("serve", file) as other:
            servers = [(await command.until("ready"))["listeners"][0] for command in (killed, other)]
            config = bootstrap(upstream=model.address, extproc=servers, message_timeout="10s")
            async with EnvoyProcess(config) as envoy:
                client = Client(f"http://{envoy.address}", session)
                waiting = [asyncio.create_task(client.send()) for _ in range(2)]
                await limiter.called(CHECK, times=2)
                killed.signal(signal.SIGKILL)
                await limiter.called(CHECK, times=3)
                gate.set()
                assert [(await answer).status for answer in waiting] == [200, 200]
                assert await client.statuses(4) == [200] * 4
    assert [call.request.hits_addend for call in limiter.of(REPORT)] == [24] * 6


@ALLOWS
async def test_we_are_killed_while_a_stream_runs(allow: bool, tmp_path: Path) -> None:
    """SIGKILL in the middle of an SSE answer: cut, or to its last byte; nobody is told what it used."""
    async with (
        scripted() as limiter,
        OutsideStack(remote(limiter.address), tmp_path, failure_mode_allow=allow) as stack,
        client_of(stack) as client,
    ):
        expected = await direct(stack, client, **STREAM)
        async with client.open(headers={"x-sim-hold": "k"}, **STREAM) as response:
            received = await response.content.readuntil(b"\n\n")
            stack.server.signal(signal.SIGKILL)
            assert await stack.server.ended() == -signal.SIGKILL
            if allow:
                stack.model.release("k")
                assert received + await response.read() == expected.body
            else:
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.read()
                assert stack.model.release("k") == 0
        await expect(stack, streams_failed=1, failure_mode_allowed=int(allow))
        assert limiter.of(REPORT) == []


def reading_the_body(**sections: Any) -> dict[str, Any]:
    """A configuration whose check asks for the model's name."""
    config = configured(EXAMPLE, **LIMITS, **sections)
    data = config["actionSets"][0]["actions"][0]["conditionalData"][0]["data"]
    data.append({"expression": {"key": "model", "value": "requestBodyJSON('/model')"}})
    return config


def padded(size: int) -> dict[str, Any]:
    """A request with so large a body."""
    body = json.dumps({"model": "m", "messages": [], "x": "x" * size})
    return {"data": BytesIO(body.encode()), "headers": {"content-type": "application/json"}}


@ALLOWS
async def test_a_body_beyond_our_limit(allow: bool, caplog) -> None:
    """`bodies.message`: gRPC refuses the message, which ends that one stream and no other."""
    config = reading_the_body(bodies={"message": 100_000})
    async with gateway(config, failure_mode_allow=allow) as (stack, client):
        async with client.open(headers={"x-sim-hold": "other"}, **STREAM) as other:
            await other.content.readuntil(b"\n\n")
            assert (await client.send(**padded(200_000))).status == (200 if allow else 500)
            stack.model.release("other")
            assert (await other.read()).rstrip().endswith(b"[DONE]")
        assert len(stack.model.requests) == 1 + allow
        await until(lambda: stack.server.metrics.exchanges_open == 0)
        await expect(stack, streams_failed=1, failure_mode_allowed=int(allow))
        assert sum(counter.used for counter in stack.server.limiter.snapshot()) == 24
        assert complaints(caplog) == []


async def test_a_body_within_envoys_limit(caplog) -> None:
    """G14: a request body that is read must fit Envoy's buffer of 1 MiB; this one just does."""
    async with gateway(reading_the_body()) as (stack, client):
        assert (await client.send(**padded(900_000))).status == 200
        assert stack.model.requests[0].body_length > 900_000
        assert complaints(caplog) == []
        await assert_clean(stack)


async def test_a_body_beyond_envoys_limit() -> None:
    """G14: the client is told, instead of waiting for minutes."""
    async with gateway(reading_the_body()) as (stack, client):
        async with asyncio.timeout(10):
            answer = await client.send(**padded(5_000_000))
        assert (answer.status, answer.body) == (413, b"Payload Too Large\n")
        assert stack.model.requests == []


# --- requests


async def raw(stack: Stack, *headers: bytes) -> bytes:
    """The status line for a request with header lines as they are."""
    host, _, port = stack.envoy.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=2**20)
    body = b'{"model":"m","messages":[]}'
    lines = [
        b"POST /v1/chat/completions HTTP/1.1",
        b"host: trlp.example.com",
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        b"connection: close",
        *headers,
    ]
    writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return answer.partition(b"\r\n")[0]


UNUSUAL = [
    [
        b"x-user: caf\xe9",
        b"accept-encoding: \xff",
        b"traceparent: \x80\x81",
        b"x-request-id: \xc3\x28",
        b"user-agent: \xff",
    ],
    [b"baggage: " + b"k=v," * 5000, b"tracestate: " + b"t=1," * 5000],
    [b"x-filler-%d: " % number + b"v" * 700 for number in range(80)],
    [b"x-wide: " + b"w" * 55_000],
    [b"x-empty:", b"x-same: 1", b"x-same: 2", b"content-encoding: \xff", b"traceparent:"],
]


@pytest.mark.parametrize("headers", UNUSUAL, ids=["not UTF-8", "long baggage", "many", "wide", "odd"])
async def test_unusual_headers_change_nothing(caplog, headers: list[bytes]) -> None:
    """G9: bytes that are not UTF-8, nearly 60 KB of headers: checked, answered, counted like any other request."""
    async with scripted() as limiter, gateway(remote(limiter.address)) as (stack, _):
        assert await raw(stack, *headers) == b"HTTP/1.1 200 OK"
        assert [call.request.hits_addend for call in limiter.calls] == [1, 24]
        assert complaints(caplog) == []
        await assert_clean(stack)


@pytest.mark.parametrize("where", ["embedded", "remote"])
async def test_two_hundred_at_once(where: str, caplog) -> None:
    """Streams and whole answers interleaved on one connection; every token is counted, none twice."""
    plenty = Limit(**{**LIMITS["limits"][0], "max_value": 1_000_000})
    elsewhere = EmbeddedLimiter(LimitSet([plenty]))
    async with served(elsewhere) as address:
        if where == "remote":
            config = remote(address, timeout="20s")
        else:
            config = configured(EXAMPLE, limits=[plenty.model_dump(by_alias=True, exclude_none=True)])
        async with gateway(config, message_timeout="20s") as (stack, client):
            expected = [(await direct(stack, client, **kind)).body for kind in (JSON, STREAM)]
            sent = (client.send(**(JSON, STREAM)[number % 2]) for number in range(200))
            for number, answer in enumerate(await asyncio.gather(*sent)):
                assert (answer.status, answer.body) == (200, expected[number % 2])
            limiter = elsewhere if where == "remote" else stack.server.limiter
            await until(lambda: reports(stack, "sent") == 200)
            assert [counter.used for counter in limiter.snapshot()] == [200 * 24]
            assert stack.server.metrics.tokens_reported == 200 * 24
            await until(lambda: stack.server.metrics.exchanges_open == 0)
            assert complaints(caplog) == []
            await assert_clean(stack)
            assert (await ext_proc_counters(stack))["streams_started"] == 200


async def test_faults_of_some_are_no_faults_of_others(caplog) -> None:
    """Clients leave at every moment, the model breaks off, and 40 answers in between stay exact."""
    async with scripted() as limiter, gateway(remote(limiter.address, timeout="20s")) as (stack, client):
        expected = (await direct(stack, client, **STREAM)).body
        stack.model.forget()

        async def leaves(after_ms: int) -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(after_ms / 1000):
                    await client.send(headers={"x-sim-frame-ms": "50"}, **STREAM)

        async def broken_off() -> None:
            with pytest.raises(aiohttp.ClientPayloadError):
                await client.send(headers={"x-sim-cut-frames": "2", "x-sim-frame-ms": "5"}, **STREAM)

        good = [client.send(**STREAM) for _ in range(40)]
        bad = [leaves(10 * number) for number in range(1, 21)] + [broken_off() for _ in range(10)]
        answers = (await asyncio.gather(*good, *bad))[:40]
        assert {answer.body for answer in answers if answer is not None} == {expected}
        await until(lambda: stack.server.metrics.exchanges_open == 0 and stack.server.metrics.reports_pending == 0)
        exact = [call for call in limiter.of(REPORT) if call.request.hits_addend == 24]
        assert len(exact) >= 40
        assert len(limiter.of(REPORT)) <= 70
        assert complaints(caplog) == []
        await assert_clean(stack)
