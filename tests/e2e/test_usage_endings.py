"""However an answer ends, it is settled once, with what was delivered; through the real Envoy (S0.D10, G12)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.envoy_client import Client, assert_clean, client_of
from support.hand_model import HandAnswer, HandModel, hand_model
from support.limiters import REPORT, ScriptedLimiter, after, scripted
from support.processes import OutsideStack
from support.settlements import Settlement, Settlements, samples
from support.usage_cases import ASKING, CASES, COMPLETION, MODEL, PROMPT, Case, metering
from support.waiting import until

from extproc.demo.stack import Stack
from extproc.usage.approximate import approximate

pytestmark = pytest.mark.e2e

STREAMS = [case for case in CASES if case.streaming or case.name.endswith("-array")]
ARRAYS = {case.name for case in STREAMS if not case.streaming}
COUNTING_STREAMS = {"chat-every", "vllm-counting", "anthropic-counting", "gemini-stream", "vertex-stream", *ARRAYS}
"""Those whose usage so far stands in every frame."""
TELL_IN_THE_LAST = {"responses", "ollama", "cohere", "bedrock", "gemini"}
"""Dialects of streams whose last frame has all of the usage; that of the others comes before."""
PIECES = 12
WORD = " token"


@dataclass
class Scene:
    """Client -> Envoy -> model, our server, and a limiter that remembers."""

    stack: Stack
    client: Client
    limiter: ScriptedLimiter
    settled: Settlements

    async def next(self, exchanges: int = 1) -> Settlement:
        return await self.settled.next(exchanges)


@asynccontextmanager
async def scene(*, gateway: dict[str, Any] | None = None, **sections: Any) -> AsyncIterator[Scene]:
    """When it is over, no report is under way and none came in addition to those that were looked at."""
    async with scripted() as limiter:
        config = metering(endpoint=limiter.address, **sections)
        async with Stack(config, gateway=gateway) as stack, client_of(stack) as client:
            found = Scene(stack, client, limiter, Settlements(stack.server, limiter))
            yield found
            seen = len(limiter.of(REPORT))
        assert len(limiter.of(REPORT)) == seen


@asynccontextmanager
async def by_hand(**sections: Any) -> AsyncIterator[tuple[Scene, HandModel]]:
    """A scene whose gateway leads to a HandModel."""
    async with hand_model() as model, scene(gateway={"upstream": model.address}, **sections) as found:
        yield found, model


def once(total: int, source: str, ending: str) -> Settlement:
    """One report of `total` hits, and metrics that agree."""
    return Settlement((total,), {ending: 1}, {source: 1}, {"sent": 1})


def nothing(ending: str) -> Settlement:
    """No report and no usage."""
    return Settlement((), {ending: 1}, {}, {})


# --- what the model says, frame by frame


@dataclass(frozen=True)
class Script:
    """The frames of one stream, and where its text is: `each` frames for each piece, after `opening` frames."""

    content_type: str
    frames: list[bytes]
    opening: int
    each: int

    def after(self, pieces: int) -> int:
        """How many frames there are up to the end of a piece of text."""
        return self.opening + self.each * pieces


async def script_of(found: Scene, case: Case) -> Script:
    """From the simulated model itself, which writes each frame as one HTTP chunk."""
    content_type, frames = await _frames(found, case)
    _, without_text = await _frames(found, replace(case, options={**case.options, "frames": "0"}))
    same = zip(frames, without_text, strict=False)
    opening = next(index for index, (frame, other) in enumerate(same) if frame != other)
    return Script(content_type, frames, opening, (len(frames) - len(without_text)) // PIECES)


async def _frames(found: Scene, case: Case) -> tuple[str, list[bytes]]:
    direct = Client(f"http://{found.stack.model.address}", found.client.session)
    frames: list[bytes] = []
    async with direct.open(**case.request()) as response:
        part = b""
        async for data, complete in response.content.iter_chunks():
            part += data
            if complete and part:
                frames.append(part)
                part = b""
        return response.headers["content-type"], frames


def delivered(case: Case, pieces: int) -> Settlement:
    """The truth about a stream that ended after so many pieces of text, and before its usage."""
    ending = "upstream_cut" if case.name in ARRAYS else "client_gone"
    if case.name in COUNTING_STREAMS:
        return once(PROMPT + pieces, "reported", ending)
    told = case.dialect == "anthropic" and case.name != "anthropic-translated"
    prompt = PROMPT if told else estimated_prompt(case)
    return once(prompt + approximate(WORD * pieces), "estimated", ending)


def estimated_prompt(case: Case) -> int:
    """A prompt that was not read is estimated by the length of its request."""
    return -(-len(json.dumps(case.request()["json"])) // 4)


# --- the client hangs up

Place = tuple[Callable[[Script], int], Callable[[Case], Settlement]]
PLACES: dict[str, Place] = {
    "first": (lambda script: script.after(1), lambda case: delivered(case, 1)),
    "middle": (lambda script: script.after(PIECES // 2), lambda case: delivered(case, PIECES // 2)),
    "all text": (lambda script: script.after(PIECES), lambda case: delivered(case, PIECES)),
    "last but one": (
        lambda script: len(script.frames) - 1,
        lambda case: delivered(case, PIECES) if case.streaming and case.dialect in TELL_IN_THE_LAST else reported(case),
    ),
    "last": (lambda script: len(script.frames), lambda case: reported(case, ending="client_gone")),
}
"""How many frames are delivered, and what is charged then."""


def reported(case: Case, ending: str | None = None) -> Settlement:
    early = "upstream_cut" if case.name in ARRAYS else "client_gone"
    return once(PROMPT + COMPLETION, "reported", ending or early)


@pytest.mark.parametrize("place", PLACES)
async def test_a_client_that_hangs_up(place: str) -> None:
    """S0.D10, G12: in every dialect, what the client got is charged, once, after Envoy has reset the stream."""
    count, expected = PLACES[place]
    async with by_hand() as (found, model):
        seen = {}
        for case in STREAMS:
            script = await script_of(found, case)
            model.content_type = script.content_type
            frames = script.frames[: count(script)]
            async with found.client.open(**case.request()) as response:
                answer = await model.answer()
                await _deliver(answer, frames, response)
                response.close()
            seen[case.name] = await found.next()
            await answer.gone()
        assert seen == {case.name: expected(case) for case in STREAMS}
        await assert_clean(found.stack)


async def _deliver(answer: HandAnswer, frames: list[bytes], response: aiohttp.ClientResponse) -> None:
    """Frame by frame, each in the client's hands before the next is made."""
    for frame in frames:
        await answer.send(frame)
        async with asyncio.timeout(10):
            assert await response.content.readexactly(len(frame)) == frame


async def test_a_client_that_hangs_up_before_the_answer() -> None:
    """Nothing was delivered, nothing is charged."""
    async with scene() as found:
        request = _named("chat-stream").request(**{"x-sim-first-byte-ms": "60000"})
        asking = asyncio.create_task(found.client.send(**request))
        await until(lambda: found.stack.model.requests)
        asking.cancel()
        assert await found.next() == nothing("client_gone")
        await assert_clean(found.stack)


async def test_a_client_that_hangs_up_before_the_body() -> None:
    """The head alone is nothing that could be charged."""
    async with by_hand() as (found, model):
        async with found.client.open(**_named("chat-stream").request()) as response:
            answer = await model.answer()
            response.close()
        assert await found.next() == nothing("client_gone")
        await answer.gone()
        await assert_clean(found.stack)


def _named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


async def test_a_client_that_hangs_up_on_a_document() -> None:
    """Before its last byte it is text to be estimated; a whole one is counted, whether its end was seen or not."""
    case = _named("chat")
    async with by_hand() as (found, model):
        _, [document] = await _frames(found, replace(case, options={"framing": "chunked"}))
        model.content_type = "application/json"
        half = document[: document.index(WORD.encode() * PIECES) + len(WORD) * 6]
        estimate = estimated_prompt(case) + approximate(WORD * 6)
        for length, part, expected in (
            (None, half, once(estimate, "estimated", "upstream_cut")),
            (len(document), half, once(estimate, "estimated", "upstream_cut")),
            (None, document, once(PROMPT + COMPLETION, "reported", "client_gone")),
            (len(document), document, once(PROMPT + COMPLETION, "reported", "complete")),
        ):
            model.length = length
            async with found.client.open(**case.request()) as response:
                answer = await model.answer()
                await _deliver(answer, [part], response)
                response.close()
            assert (length, len(part), await found.next()) == (length, len(part), expected)
            answer.close()
        await assert_clean(found.stack)


# --- the model breaks off

BREAKS: dict[str, Callable[[HandAnswer], None]] = {"reset": HandAnswer.reset, "closed": HandAnswer.close}


@pytest.mark.parametrize("inside", [False, True], ids=["between frames", "inside a frame"])
@pytest.mark.parametrize("how", BREAKS)
async def test_a_model_that_breaks_off(how: str, inside: bool) -> None:
    """S0.D10: what was delivered is charged. Bytes that stop inside a frame show that it was the model."""
    async with by_hand() as (found, model):
        seen, expected = {}, {}
        for case in STREAMS:
            script = await script_of(found, case)
            model.content_type = script.content_type
            count = script.after(PIECES // 2)
            frames = script.frames[:count]
            if inside:
                frames.append(script.frames[count][:12])
            async with found.client.open(**case.request()) as response:
                answer = await model.answer()
                await _deliver(answer, frames, response)
                BREAKS[how](answer)
                # Envoy tells the client only after its delayed_close_timeout of a second.
                seen[case.name] = await found.next()
                response.close()
            charged = delivered(case, PIECES // 2)
            expected[case.name] = replace(charged, endings={"upstream_cut": 1}) if inside else charged
        assert seen == expected
        await assert_clean(found.stack)


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("size", [1, 20, 200])
async def test_a_document_that_is_cut(framing: str, size: int) -> None:
    """A document in part: its text so far is estimated, whether its length was promised or not."""
    case = replace(_named("chat"), options={"framing": framing, "cut_bytes": str(size), "hold": "cut"})
    async with scene() as found:
        async with found.client.open(**case.request(**{"x-sim-chunk": str(size)})) as response:
            received = await response.content.readexactly(size)
            found.stack.model.release("cut")
            settled = await found.next()
            response.close()
        assert (settled.endings, settled.sources, settled.reports) == (
            {"upstream_cut": 1},
            {"estimated": 1},
            {"sent": 1},
        )
        text = received.partition(b'"content":"')[2].decode()
        least = estimated_prompt(case) + approximate(text)
        # Of what is not recognised yet the size is all that is known.
        assert least <= settled.hits[0] <= least + -(-size // 4)
        await assert_clean(found.stack)


async def test_a_cut_that_looks_like_an_end() -> None:
    """A body that lasts until the connection closes: nobody can tell a cut from an end, and nothing goes uncounted."""
    async with scene() as found:
        stream = replace(_named("chat-stream"), options={"framing": "close", "cut_frames": "3"})
        assert (await found.client.send(**stream.request())).body.count(WORD.encode()) == 3
        assert await found.next() == once(estimated_prompt(stream) + approximate(WORD * 3), "estimated", "complete")
        await assert_clean(found.stack)


async def test_continuous_usage_that_is_cut_is_taken_as_its_last_value() -> None:
    """vLLM's `continuous_usage_stats`, and `usage` in every frame of others: the last value, never a sum."""
    cut = {"variant": "vllm", "cut_frames": "6", "frame_ms": "20"}
    vllm = replace(_named("vllm-counting"), options=cut)
    every = replace(_named("chat-every"), options={**cut, "usage": "every"})
    async with scene() as found:
        await asyncio.gather(*(_breaks_off(found, case) for case in (vllm, every)))
        # A frame for the role, then five of text.
        charged = (PROMPT + 5,) * 2
        assert await found.next(2) == Settlement(charged, {"client_gone": 2}, {"reported": 2}, {"sent": 2})
        await assert_clean(found.stack)


async def _breaks_off(found: Scene, case: Case, **headers: str) -> None:
    with pytest.raises(aiohttp.ClientPayloadError):
        await found.client.send(**case.request(**headers))


async def test_compressed_streams_that_are_cut() -> None:
    """What could be decoded is what was delivered."""
    case = replace(_named("chat-every"), options={"usage": "every", "cut_frames": "6", "frame_ms": "20"})
    encodings = ("gzip", "br", "zstd", "deflate")
    async with scene() as found:
        forced = [{"x-sim-encoding": encoding, "x-sim-force-encoding": "true"} for encoding in encodings]
        await asyncio.gather(*(_breaks_off(found, case, **headers) for headers in forced))
        charged = (PROMPT + 6,) * 4
        assert await found.next(4) == Settlement(charged, {"client_gone": 4}, {"reported": 4}, {"sent": 4})
        await assert_clean(found.stack)


# --- errors, and answers without a body

ERRORS = (400, 401, 404, 413, 429, 500, 503, 529)


async def test_errors_of_the_model_cost_nothing() -> None:
    """S0.D7: in the shape of any dialect."""
    cases = [_named(name) for name in ("chat", "chat-stream", "anthropic-stream", "gemini", "converse", "ollama-chat")]
    async with scene() as found:
        for status in ERRORS:
            for case in cases:
                answer = await found.client.send(**case.request(**{"x-sim-status": str(status)}))
                assert answer.status == status
        count = len(ERRORS) * len(cases)
        assert await found.next(count) == Settlement((), {"error": count}, {}, {})
        await assert_clean(found.stack)


async def test_errors_are_charged_where_that_is_wanted() -> None:
    """`chargeErrors`: usage in the body of an error is usage; and without any, what was asked is estimated."""
    usage = {"usage": {"prompt_tokens": 30, "completion_tokens": 0, "total_tokens": 30}, "choices": []}
    async with scene(chargeErrors=True) as found:
        answer = await found.client.send(json=usage, headers={"x-sim-status": "500", "x-sim-echo": "true"})
        assert (answer.status, json.loads(answer.body)) == (500, usage)
        assert await found.next() == once(30, "reported", "error")
        await found.client.send(headers={"x-sim-status": "503"})
        settled = await found.next()
        assert (settled.endings, settled.sources, len(settled.hits)) == ({"error": 1}, {"estimated": 1}, 1)
        await assert_clean(found.stack)


async def test_answers_without_a_body_are_settled_and_cost_nothing() -> None:
    """S0.23: HEAD, 204 and 304."""
    async with scene(chargeErrors=True) as found:
        assert (await found.client.send(method="HEAD")).body == b""
        for status in (204, 304):
            answer = await found.client.send(headers={"x-sim-status": str(status)})
            assert (answer.status, answer.body) == (status, b"")
        assert await found.next(3) == Settlement((), {"complete": 3}, {}, {})
        await assert_clean(found.stack)


# --- Envoy, the limiter and we ourselves


async def test_envoy_that_goes_away() -> None:
    """A gateway that is stopped under a stream: what was delivered until then is charged."""
    async with by_hand() as (found, model):
        case = _named("chat-stream")
        script = await script_of(found, case)
        frames = script.frames[: script.after(5)]
        async with found.client.open(**case.request()) as response:
            answer = await model.answer()
            await _deliver(answer, frames, response)
            os.kill(found.stack.envoy.pid, signal.SIGKILL)
            with pytest.raises(aiohttp.ClientError):
                await response.read()
        assert await found.next() == delivered(case, 5)
        answer.close()


@pytest.mark.parametrize("hangs_up", [False, True], ids=["client waits", "client leaves"])
async def test_a_limiter_that_answers_late(hangs_up: bool) -> None:
    """S0.D18: `report.wait` is as long as a client is held; the report still arrives, once."""
    answered = asyncio.Event()
    async with by_hand(report={"wait": "100ms"}) as (found, model):
        found.limiter.answers[REPORT] = after(answered)
        case = _named("chat-stream")
        script = await script_of(found, case)
        clock = asyncio.get_running_loop().time
        async with found.client.open(**case.request()) as response:
            answer = await model.answer()
            await _deliver(answer, script.frames[:-1], response)
            if hangs_up:
                response.close()
            else:
                began = clock()
                await answer.send(script.frames[-1])
                answer.end()
                await response.read()
                assert 0.1 <= clock() - began < 2
        await found.limiter.called(REPORT)
        await until(lambda: not found.stack.server.metrics.exchanges_open)
        assert found.stack.server.metrics.reports_pending == 1
        answered.set()
        assert await found.next() == once(PROMPT + COMPLETION, "reported", "client_gone" if hangs_up else "complete")
        answer.close()
        await assert_clean(found.stack)


async def test_our_end_under_streams(tmp_path: Path) -> None:
    """SIGTERM: the stream that ends in time is complete, the other is cut at the deadline; each is charged once."""
    config = {"shutdown": {"delay": "0s", "deadline": "1s"}}
    stream = {"model": MODEL, "messages": [], **ASKING}
    async with scripted() as limiter:
        outside = OutsideStack(metering(endpoint=limiter.address, **config), tmp_path)
        async with outside as stack, client_of(stack) as client:
            ends = client.open(json=stream, headers={"x-sim-hold": "ends"})
            cut = client.open(json=stream, headers={"x-sim-hold": "cut", "x-sim-text": "To be or not to be"})
            async with ends as complete, cut as incomplete:
                for response in (complete, incomplete):
                    await response.content.readuntil(b"\n\n")
                stack.server.signal(signal.SIGTERM)
                assert (await stack.server.until("draining"))["open_exchanges"] == 2
                stack.model.release("ends")
                assert (await complete.read()).rstrip().endswith(b"data: [DONE]")
                assert await stack.server.ended() == 0
                with pytest.raises(aiohttp.ClientError):
                    await incomplete.read()
        assert stack.server.of("stopped")[0]["reports_lost"] == 0
        estimate = -(-len(json.dumps(stream)) // 4) + approximate("To be or not to be")
        assert [call.request.hits_addend for call in limiter.of(REPORT)] == [24, estimate]


# --- what operators see


async def test_the_metrics_tell_every_ending_and_source() -> None:
    """S4.D8: counters by ending and source, and GenAI's histograms, on the page that Prometheus reads."""
    async with scene(onMissingUsage={"fixed": 500}) as found:
        await found.client.send(**_named("chat").request())
        await found.client.send(**_named("anthropic-stream").request())
        await found.client.send(**_named("chat-stream").request(**{"x-sim-usage": "none"}))
        await found.client.send(**_named("chat").request(**{"x-sim-status": "500"}))
        assert await found.next(4) == Settlement(
            (140, 140, 500), {"complete": 3, "error": 1}, {"reported": 2, "fixed": 1}, {"sent": 3}
        )
        page = f"http://{found.stack.server.admin_address}/metrics"
        async with found.client.session.get(page) as response:
            text = await response.text()
        seen = samples(text)

    def value(name: str, provider: str, **labels: str) -> float:
        own = {"gen_ai_provider_name": provider, "gen_ai_response_model": MODEL, **labels}
        return seen.get((name, frozenset(own.items())), 0)

    usage, duration = "gen_ai_client_token_usage", "gen_ai_server_request_duration_seconds"
    for provider in ("openai", "anthropic"):
        for direction, tokens in (("input", PROMPT), ("output", COMPLETION)):
            assert value(f"{usage}_count", provider, gen_ai_token_type=direction) == 1
            assert value(f"{usage}_sum", provider, gen_ai_token_type=direction) == tokens
            assert value(f"{usage}_bucket", provider, gen_ai_token_type=direction, le="16.0") == 0
            assert value(f"{usage}_bucket", provider, gen_ai_token_type=direction, le="256.0") == 1
    assert value(f"{duration}_count", "openai", error_type="") == 2
    assert value(f"{duration}_count", "anthropic", error_type="") == 1
    assert value("gen_ai_server_time_to_first_token_seconds_count", "openai") == 1
    assert value("gen_ai_server_time_to_first_token_seconds_count", "anthropic") == 1
    assert value("gen_ai_server_time_per_output_token_seconds_count", "anthropic") == 1
