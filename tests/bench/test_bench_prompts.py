"""What `rewrite` and `guard` measure is what they say: a model replaced, twenty patterns searched, in 200 KB."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
import re2
from aiohttp import web
from aiohttp.test_utils import TestServer
from support.harness import Gateway, kinds
from support.messages import request_body, request_headers, response_body, response_headers

from bench.beside import compared
from bench.errors import BenchError
from bench.floor import READING, REPLIES
from bench.load import HOST, Load
from bench.prompts import EDITED, MODEL, PATTERNS, SEARCHED, SIZE, Work, asked, conversation
from bench.scenarios import SCENARIOS, body
from bench.stack import Stack, checking
from extproc.gateway import EnvoyProcess
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.limits import LimitSet
from extproc.wire.external_processor_pb2 import ProcessingResponse

PROMPT = conversation()
ANSWER = b'{"usage":{"prompt_tokens":12,"completion_tokens":12,"total_tokens":24}}'


def gateway(work: Work) -> Gateway:
    limiter = EmbeddedLimiter(LimitSet())
    gateway = Gateway({**checking(), **work.sections}, limiter)
    limiter.replace_limits(gateway.active.limits)
    return gateway


async def ask(work: Work, sent: bytes) -> list[ProcessingResponse]:
    headers = {"content-type": "application/json", "content-length": str(len(sent))}
    return await gateway(work).exchange(
        request_headers(headers, host=HOST), request_body(sent), response_headers(), response_body(ANSWER)
    )


def texts(prompt: bytes) -> list[str]:
    return [message["content"] for message in json.loads(prompt)["messages"]]


def test_a_prompt_is_200_kb_of_conversation_and_always_the_same() -> None:
    assert len(PROMPT) >= SIZE == 200_000
    assert conversation() == PROMPT
    said = texts(PROMPT)
    assert len(set(said)) == len(said) > 50
    assert all('"' in text and "\n" in text for text in said)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_pattern_matches(pattern: str) -> None:
    """A prompt that is refused is not searched to its end."""
    assert not any(re2.search(pattern, text) for text in (*texts(PROMPT), *texts(body())))


def test_there_are_twenty_patterns() -> None:
    assert len(set(PATTERNS)) == 20


@pytest.mark.parametrize("sent", [PROMPT, body()], ids=["prompt", "small"])
@pytest.mark.parametrize("work", [EDITED, SEARCHED], ids=["edited", "searched"])
async def test_a_request_is_read_metered_and_passes(work: Work, sent: bytes) -> None:
    replies = await ask(work, sent)
    assert kinds(replies) == ["request_headers", "request_body", "response_headers", "response_body"]
    assert replies[-1].HasField("dynamic_metadata")


async def test_the_model_is_replaced_and_nothing_else() -> None:
    _, reply, *_ = await ask(EDITED, PROMPT)
    response = reply.request_body.response
    edited = response.body_mutation.body
    assert edited == PROMPT.replace(b'"gpt-4o"', b'"%b"' % MODEL.encode(), 1)
    lengths = [header.header.raw_value for header in response.header_mutation.set_headers]
    assert lengths == [str(len(edited)).encode()]


@pytest.mark.parametrize("place", [0, 1, -1])
async def test_all_of_a_prompt_is_searched(place: int) -> None:
    """Whoever says it, and where."""
    messages: list[dict[str, str]] = json.loads(PROMPT)["messages"]
    messages[place]["content"] += " 账号 "
    replies = await ask(SEARCHED, asked(list(messages)))
    assert kinds(replies) == ["request_headers", "immediate_response"]


@pytest.mark.parametrize("work", [EDITED, SEARCHED], ids=["edited", "searched"])
async def test_the_floor_asks_for_the_same_messages(work: Work) -> None:
    """Or the work and the transport of a body would be counted together."""
    ours = {reply.WhichOneof("response"): reply.mode_override for reply in await ask(work, PROMPT)}
    floor = {kind: ProcessingResponse.FromString(READING[str(kind)]).mode_override for kind in ours}
    assert floor == ours


@pytest.mark.parametrize("kind", REPLIES)
def test_the_floor_changes_nothing(kind: str) -> None:
    reply, plain = ProcessingResponse.FromString(READING[kind]), ProcessingResponse.FromString(REPLIES[kind])
    if kind == "request_headers":
        reply.ClearField("mode_override")
    assert reply == plain


def test_scenarios_that_read_requests_have_a_floor_that_does() -> None:
    found = {scenario.name: scenario.servers for scenario in SCENARIOS.values() if scenario.work is not None}
    assert found == dict.fromkeys(("rewrite", "guard"), ("direct", "floor", "embedded"))


# ── does the server do its work? ──────────────────────────────────────────────────────────────────


@dataclass
class Upstream:
    """In Envoy's and the server's place."""

    status: int
    answer: str
    probes: int = 0

    async def stats(self, _: str) -> dict[str, int]:
        name = "http.gateway.ext_proc.streams_"
        return {f"{name}started": self.probes, f"{name}closed": self.probes}

    async def serve(self, request: web.Request) -> web.Response:
        if request.path == "/metrics":
            return web.Response(text='extproc_usage_total{source="reported"} 0\n')
        assert request.host == HOST
        assert json.loads(await request.read())["messages"]
        self.probes += 1
        return web.Response(status=self.status, text=self.answer)


@pytest.fixture
async def running(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Upstream, Stack]]:
    work, status, answer = request.param
    upstream = Upstream(status, answer)
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", upstream.serve)
    async with TestServer(application) as server:
        address = f"127.0.0.1:{server.port}"
        envoy: Any = upstream
        envoy.address = address
        yield upstream, Stack("embedded", cast(EnvoyProcess, envoy), {}, "/v1", admin=address, work=work)


RIGHT = [(EDITED, 200, f'{{"model":"{MODEL}"}}'), (SEARCHED, 403, "no")]
WRONG = [(EDITED, 200, '{"model":"gpt-4o"}'), (EDITED, 500, f'{{"model":"{MODEL}"}}'), (SEARCHED, 200, "no")]


@pytest.mark.parametrize("running", RIGHT, indirect=True, ids=["edited", "searched"])
async def test_a_server_that_works_may_be_measured(running: tuple[Upstream, Stack]) -> None:
    upstream, stack = running
    await stack.works()
    assert upstream.probes == 1


@pytest.mark.parametrize("running", WRONG, indirect=True, ids=["not-edited", "failed", "not-searched"])
async def test_a_server_that_does_nothing_is_no_result(running: tuple[Upstream, Stack]) -> None:
    """It would be fast."""
    with pytest.raises(BenchError, match=r"does not do its work: it answered \d{3}"):
        await running[1].works()


@pytest.mark.parametrize("server", ["direct", "floor"])
async def test_others_have_nothing_to_prove(server: str) -> None:
    upstream = Upstream(500, "")
    await Stack(server, cast(EnvoyProcess, upstream), {}, "/v1", work=EDITED).works()
    assert upstream.probes == 0


# ── arithmetic ────────────────────────────────────────────────────────────────────────────────────


def test_what_others_wait_is_told_of_them_alone() -> None:
    alone, beside = [1.0] * 99 + [5.0], [2.0] * 98 + [12.0] * 2
    prompts = Load(requests=20, requests_per_s=20.0, p50_ms=7.0, p99_ms=9.0)
    assert compared(alone, beside, prompts, cpu=0.12) == {
        "cpu_us_per_request": pytest.approx(1000.0),
        "p50_ms": 2.0,
        "p99_ms": 12.0,
        "added_p50_ms": 1.0,
        "added_p99_ms": 11.0,
        "prompt_p50_ms": 7.0,
        "prompt_p99_ms": 9.0,
        "requests": 120,
        "prompts": 20,
    }
    assert compared(alone, beside, prompts, cpu=None)["cpu_us_per_request"] is None
