"""The main job through the real Envoy: check before, report after, streams that stream (S0)."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.envoy_client import Client, assert_clean, client_of, ext_proc_counters
from support.harness import ENDPOINTS, LIMITS, S0, configured
from support.waiting import until

from extproc.demo.stack import Stack

pytestmark = pytest.mark.e2e

STREAM = {"json": {"model": "m", "stream": True, "stream_options": {"include_usage": True}, "messages": []}}


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with Stack(configured(**LIMITS)) as running:
        yield running


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[Client]:
    async with client_of(stack) as found:
        yield found


def used(stack: Stack) -> int:
    """What the embedded limiter has counted."""
    return sum(counter.used for counter in stack.server.limiter.snapshot())


async def test_json_answer_is_counted_and_untouched(stack: Stack, client: Client) -> None:
    """S0.1, S1.27: 24 tokens, the same bytes, the same content-length."""
    direct = await Client(f"http://{stack.model.address}", client.session).send()
    answer = await client.send()
    assert answer.status == 200
    assert answer.body == direct.body
    assert answer.headers["content-length"] == str(len(direct.body))
    assert used(stack) == 24
    assert stack.server.metrics.tokens_reported == 24
    await assert_clean(stack)


async def test_streamed_answer_is_counted_once_and_untouched(stack: Stack, client: Client) -> None:
    """S0.2, S0.5: the frames are the model's."""
    direct = await Client(f"http://{stack.model.address}", client.session).send(**STREAM)
    answer = await client.send(host="sse-streaming.example.com", **STREAM)
    assert answer.status == 200
    assert answer.body == direct.body
    assert used(stack) == 24
    await assert_clean(stack)


async def test_the_first_frame_arrives_before_the_second_is_made(stack: Stack, client: Client) -> None:
    """S0.5: no frame is held."""
    async with client.open(headers={"x-sim-hold": "one"}, **STREAM) as response:
        first = await asyncio.wait_for(response.content.readuntil(b"\n\n"), 5)
        assert first.startswith(b"data: ")
        assert stack.model.release("one") == 1
        rest = await response.read()
    assert rest.rstrip().endswith(b"data: [DONE]")
    assert used(stack) == 24
    await assert_clean(stack)


@pytest.mark.parametrize("request_kind", [{}, STREAM], ids=["json", "sse"])
async def test_exhaustion(stack: Stack, client: Client, request_kind: dict[str, Any]) -> None:
    """S0.7, S0.8, G7: 24 of 100 each, so five pass; then a clean 429, and the model is not called."""
    assert await client.statuses(5, **request_kind) == [200] * 5
    stack.model.forget()
    for _ in range(2):
        answer = await client.send(**request_kind)
        assert answer.status == 429
        assert answer.body == b"Too Many Requests\n"
        assert answer.headers["x-envoy-ratelimited"] == "true"
    assert not stack.model.requests
    assert used(stack) == 120
    await assert_clean(stack)


async def test_only_what_the_configuration_names_is_limited(stack: Stack, client: Client) -> None:
    """S0.9, S0.10, S0.D20, G8: other hosts and paths pass; one message is all they cost."""
    for host, path in [("foo.example.org", "/v1/chat/completions"), ("example.com", "/v1/chat/completions")]:
        assert (await client.send(host=host, path=path)).status == 200
    counters = await ext_proc_counters(stack)
    assert (counters["streams_started"], counters["stream_msgs_sent"]) == (2, 2)
    assert (await client.send(path="/v1/models", method="GET")).status == 200
    assert used(stack) == 0
    assert stack.server.metrics.misses == 2
    for host in ("TRLP.Example.COM", "trlp.example.com."):
        assert (await client.send(host=host)).status == 200
    assert used(stack) == 48
    await assert_clean(stack)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
@pytest.mark.parametrize("request_kind", [{}, STREAM], ids=["json", "sse"])
async def test_compressed_answers(stack: Stack, client: Client, encoding: str, request_kind: dict[str, Any]) -> None:
    """S0.D11: accept-encoding is taken away; a model that compresses all the same is read all the same."""
    polite = await client.send(headers={"x-sim-encoding": encoding, "accept-encoding": encoding}, **request_kind)
    assert "content-encoding" not in polite.headers
    assert used(stack) == 24
    forced = {"x-sim-encoding": encoding, "x-sim-force-encoding": "true"}
    direct = await Client(f"http://{stack.model.address}", client.session).send(headers=forced, **request_kind)
    answer = await client.send(headers=forced, **request_kind)
    assert answer.headers["content-encoding"] == encoding
    if encoding == "gzip":
        assert zlib.decompress(answer.body, 31) == zlib.decompress(direct.body, 31)
    assert used(stack) == 48
    await assert_clean(stack)


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
async def test_errors_of_the_model_pass_at_once_and_cost_nothing(stack: Stack, client: Client, status: int) -> None:
    """S0.D7."""
    answer = await client.send(headers={"x-sim-status": str(status)})
    assert answer.status == status
    assert json.loads(answer.body)["error"]
    assert used(stack) == 0
    assert stack.server.metrics.errors == 0
    await assert_clean(stack)


async def test_answers_without_a_body(stack: Stack, client: Client) -> None:
    """S0.23: HEAD, 204 and 304 do not hang and are not reported."""
    head = await client.send(method="HEAD", path="/v1/chat/completions")
    assert head.body == b""
    for status in (204, 304):
        answer = await client.send(headers={"x-sim-status": str(status)})
        assert (answer.status, answer.body) == (status, b"")
    assert used(stack) == 0
    await assert_clean(stack)


async def test_trailers_end_an_answer_too(stack: Stack, client: Client) -> None:
    """G11: no end_of_stream on the body when trailers follow."""
    answer = await client.send(headers={"x-sim-trailers": "x-checksum:1"}, **STREAM)
    assert answer.status == 200
    assert used(stack) == 24
    await assert_clean(stack)


async def test_client_that_hangs_up_is_charged_what_it_got(stack: Stack, client: Client) -> None:
    """S0.D10, G12: continuous usage counts as the last value, exactly once, after Envoy has reset the stream."""
    headers = {"x-sim-hold": "gone", "x-sim-usage": "every", "x-sim-frames": "12"}
    async with client.open(headers=headers, **STREAM) as response:
        await response.content.readuntil(b"\n\n")
        assert stack.server.metrics.exchanges_open == 1
        response.close()
    await until(lambda: stack.server.metrics.exchanges_open == 0)
    stack.model.release("gone")
    assert used(stack) == 13
    await assert_clean(stack)


async def test_model_that_is_cut_off_is_charged_what_it_sent(stack: Stack, client: Client) -> None:
    """S0.D10: the upstream dies in the middle."""
    headers = {"x-sim-cut-frames": "2", "x-sim-usage": "every", "x-sim-frame-ms": "50"}
    with pytest.raises(aiohttp.ClientPayloadError):
        await client.send(headers=headers, **STREAM)
    await until(lambda: stack.server.metrics.exchanges_open == 0)
    assert used(stack) == 14


async def test_stream_without_usage_is_estimated(stack: Stack, client: Client) -> None:
    """S0.D5: prompt and delivered text, never nothing."""
    answer = await client.send(headers={"x-sim-usage": "none"}, **STREAM)
    assert answer.status == 200
    assert used(stack) > 0
    assert b'extproc_usage_total{source="estimated"} 1.0' in stack.server.metrics.render()[0]


async def test_the_access_log_shows_what_was_counted(tmp_path: Path) -> None:
    """G10, S4.13: hits and their source as dynamic metadata, in JSON, in streams, and for chunked prompts."""
    log = tmp_path / "access.log"
    prompt = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"' + b"word " * 800 + b'"}]}'

    async def chunked() -> AsyncIterator[bytes]:
        yield prompt

    async with Stack(configured(**LIMITS), gateway={"access_log": log}) as running, client_of(running) as sender:
        await sender.send()
        await sender.send(**STREAM)
        await sender.send(data=chunked(), headers={"content-type": "application/json", "x-sim-usage": "none"})
        await assert_clean(running)
    told = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["totalTokens"], line["usageSource"], line["streaming"]) for line in told[:2]] == [
        (24, "reported", False),
        (24, "reported", True),
    ]
    assert told[2]["usageSource"] == "estimated"
    assert told[2]["totalTokens"] > len(prompt) / 4


async def test_a_large_answer_passes_untouched(stack: Stack, client: Client) -> None:
    """S0.D12 and G5 in small: 3 MB of JSON, its length kept."""
    answer = await client.send(headers={"x-sim-size": "3000000"})
    assert len(answer.body) == 3_000_000
    assert answer.headers["content-length"] == "3000000"
    assert used(stack) == 24
    await assert_clean(stack)


async def test_reload_changes_the_limits_without_dropping_an_exchange(stack: Stack, client: Client) -> None:
    """S0.D19, S1.24: an exchange ends with the plan it began with; a broken file changes nothing."""
    async with client.open(headers={"x-sim-hold": "reload"}, **STREAM) as response:
        await response.content.readuntil(b"\n\n")
        stack.configure({**S0, **ENDPOINTS, "actionSets": "nonsense"})
        assert await stack.server.reload() is False
        more = [{**LIMITS["limits"][0], "max_value": 30}]
        stack.configure({**S0, **ENDPOINTS, "limits": more})
        assert await stack.server.reload() is True
        stack.model.release("reload")
        await response.read()
    assert used(stack) == 24
    assert await client.statuses(2) == [200, 429]
    await assert_clean(stack)


async def test_the_request_body_is_read_only_when_an_expression_needs_it(tmp_path: Path) -> None:
    """G5, G8, S1.27: BUFFERED by mode_override; the body arrives unchanged with its length."""
    config = configured(**LIMITS)
    data = config["actionSets"][0]["actions"][0]["conditionalData"][0]["data"]
    data.append({"expression": {"key": "model", "value": "requestBodyJSON('/model')"}})
    async with Stack(config) as running, client_of(running) as sender:
        body = json.dumps({"model": "gpt-4", "messages": [], "é": "x" * 5000}).encode()
        answer = await sender.send(
            data=body, headers={"x-sim-require-length": "true", "content-type": "application/json"}
        )
        assert answer.status == 200
        seen = running.model.requests[-1]
        assert dict(seen.headers)["content-length"] == str(len(body))
        assert used(running) == 24
        counters = await ext_proc_counters(running)
        assert counters["stream_msgs_sent"] == 4
        await assert_clean(running)


async def test_static_modes_without_override_are_answered_too() -> None:
    """A gateway that sends everything and allows no override still gets its replies, and is counted."""
    gateway = {
        "allow_mode_override": False,
        "processing_mode": {"request_body_mode": "STREAMED", "response_body_mode": "STREAMED"},
    }
    async with Stack(configured(**LIMITS), gateway=gateway) as running, client_of(running) as sender:
        for request_kind in ({}, STREAM):
            assert (await sender.send(**request_kind)).status == 200
        assert (await sender.send(host="other.org")).status == 200
        assert used(running) == 48
        await assert_clean(running)


async def test_full_duplex_bodies_are_handed_back() -> None:
    """Envoy in full duplex mode loses every chunk that is not sent back."""
    modes = {
        "request_body_mode": "FULL_DUPLEX_STREAMED",
        "response_body_mode": "FULL_DUPLEX_STREAMED",
        "request_trailer_mode": "SEND",
        "response_trailer_mode": "SEND",
    }
    gateway = {"processing_mode": modes}
    async with Stack(configured(**LIMITS), gateway=gateway) as running, client_of(running) as sender:
        for request_kind in ({}, STREAM):
            direct = await Client(f"http://{running.model.address}", sender.session).send(**request_kind)
            answer = await sender.send(**request_kind)
            assert (answer.status, answer.body) == (200, direct.body)
        assert used(running) == 48
        await assert_clean(running)
