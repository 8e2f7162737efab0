"""What an exchange charges, whatever the answer says and however it ends."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.harness import OK, OVER_LIMIT, S0, Gateway, RecordingLimiter, configured, kinds
from support.messages import (
    json_answer,
    request_body,
    request_headers,
    request_trailers,
    response_body,
    response_headers,
    response_trailers,
    sse_frames,
)

from extproc.limiter.seam import Decision
from extproc.usage.estimate import Estimate, Estimator, Job
from extproc.usage.held import PromptBudget
from extproc.wire.external_processor_pb2 import ProcessingRequest, ProcessingResponse
from extproc.wire.processing_mode_pb2 import ProcessingMode
from fuzz.framing import EVENT_STREAM, JSON, NDJSON, SSE, compact, message, ndjson, sse

TOTAL = 'responseBodyJSON("/usage/total_tokens")'
PROMPT = 'responseBodyJSON("/usage/prompt_tokens")'
STREAM = {"content-type": SSE}
NO_USAGE = b'{"choices":[{"message":{"content":"12345678"}}]}'


def report(hits: str | None, key: str = "a", value: str = "1", **action: Any) -> dict[str, Any]:
    """A report action; of one hit when `hits` is None."""
    data = [{"expression": {"key": key, "value": value}}]
    if hits is not None:
        data.append({"expression": {"key": "ratelimit.hits_addend", "value": hits}})
    return {
        "service": "ratelimit-report-service",
        "scope": "domain-a",
        "conditionalData": [{"data": data}],
        **action,
    }


def reporting(*actions: str | dict[str, Any], **sections: Any) -> dict[str, Any]:
    """S0's check, and `actions` after the call: whole ones, or only their hits."""
    config = configured(deepcopy(S0), **sections)
    found = config["actionSets"][0]["actions"]
    found[1:] = [report(action) if isinstance(action, str) else action for action in actions]
    return config


def hits(gateway: Gateway) -> list[int]:
    return [call.query.hits_addend for call in gateway.limiter.of("report")]


def samples(gateway: Gateway, name: str) -> dict[str, float]:
    """The samples of a metric that are not 0, by their labels as they are written."""
    lines = gateway.metrics.render()[0].decode().splitlines()
    found = (line.removeprefix(name).rsplit(" ", 1) for line in lines if line.startswith((f"{name}{{", f"{name} ")))
    return {labels: float(value) for labels, value in found if float(value)}


def told(replies: list[ProcessingResponse], namespace: str = "extproc") -> dict[str, Any]:
    """The dynamic metadata of all replies."""
    found: dict[str, Any] = {}
    for reply in replies:
        if namespace in reply.dynamic_metadata:
            found.update(reply.dynamic_metadata[namespace].items())
    return found


def consumed(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The fields of the decision lines about what was used."""
    return [record.__dict__["fields"] for record in caplog.records if record.getMessage() == "consumed"]


@dataclass(frozen=True)
class Answer:
    """An answer for which 100 tokens went in and 10 came out."""

    content_type: str
    body: bytes
    cut: int = 0
    """Bytes before anything is told of the output; 0 for a document."""

    def messages(self, size: int | None = None) -> list[ProcessingRequest]:
        size = size or len(self.body)
        chunks = [self.body[start : start + size] for start in range(0, len(self.body), size)]
        return [
            response_headers({"content-type": self.content_type}),
            *(response_body(chunk, ends=index == len(chunks) - 1) for index, chunk in enumerate(chunks)),
        ]


def streamed(content_type: str, events: list[Any], frame: Callable[..., bytes], told_from: int) -> Answer:
    framed = [frame([compact(event)]).removesuffix(b"data: [DONE]\n\n") for event in events]
    return Answer(content_type, b"".join(framed), len(b"".join(framed[:told_from])))


def converse(events: list[bytes]) -> bytes:
    headers = {":event-type": "x", ":content-type": "application/json", ":message-type": "event"}
    return b"".join(message(event, headers) for event in events)


WORDS = "a dozen words that nobody asked for, and a few more of them"
CHAT = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
DETAILS = {"prompt_tokens_details": {"cached_tokens": 40}, "completion_tokens_details": {"reasoning_tokens": 4}}
CACHED = {"input_tokens": 50, "cache_read_input_tokens": 40, "cache_creation_input_tokens": 10}
RESPONSE = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 40},
    "output_tokens": 10,
    "output_tokens_details": {"reasoning_tokens": 4},
    "total_tokens": 110,
}
METADATA = {
    "promptTokenCount": 100,
    "cachedContentTokenCount": 40,
    "candidatesTokenCount": 6,
    "thoughtsTokenCount": 4,
    "totalTokenCount": 110,
}
CONVERSE = {"inputTokens": 60, "cacheReadInputTokens": 40, "outputTokens": 10, "totalTokens": 110}
OLLAMA = {"model": "m", "created_at": "2026-01-01T00:00:00Z"}
BILLED = {"billed_units": {"input_tokens": 100, "output_tokens": 10}}
CANDIDATE = {"candidates": [{"content": {"parts": [{"text": WORDS}]}}], "modelVersion": "m"}
ANTHROPIC_START = {
    "type": "message_start",
    "message": {"type": "message", "model": "m", "usage": {**CACHED, "output_tokens": 1}},
}
ANTHROPIC_DELTA = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": WORDS}}
ANTHROPIC_END = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 10}}

DOCUMENTS = {
    "openai": {"object": "chat.completion", "model": "m", "choices": [], "usage": {**CHAT, **DETAILS}},
    "responses": {"object": "response", "model": "m", "output": [], "usage": RESPONSE},
    "anthropic": {"type": "message", "model": "m", "content": [], "usage": {**CACHED, "output_tokens": 10}},
    "gemini": {**CANDIDATE, "usageMetadata": METADATA},
    "bedrock": {"output": {"message": {"role": "assistant", "content": []}}, "usage": CONVERSE},
    "ollama": {**OLLAMA, "message": {"content": WORDS}, "done": True, "prompt_eval_count": 100, "eval_count": 10},
    "cohere": {"id": "c", "message": {"role": "assistant", "content": []}, "usage": BILLED},
}
STREAMS = {
    "openai": streamed(
        SSE,
        [
            {"object": "chat.completion.chunk", "model": "m", "choices": [{"delta": {"content": WORDS}}]},
            {"object": "chat.completion.chunk", "model": "m", "choices": [], "usage": CHAT},
        ],
        sse,
        1,
    ),
    "responses": streamed(
        SSE,
        [
            {"type": "response.created", "response": {"object": "response", "model": "m", "usage": None}},
            {"type": "response.output_text.delta", "delta": WORDS},
            {"type": "response.completed", "response": {"object": "response", "model": "m", "usage": RESPONSE}},
        ],
        sse,
        2,
    ),
    "anthropic": streamed(SSE, [ANTHROPIC_START, ANTHROPIC_DELTA, ANTHROPIC_END, {"type": "message_stop"}], sse, 2),
    "gemini": streamed(SSE, [CANDIDATE, {**CANDIDATE, "usageMetadata": METADATA}], sse, 1),
    "bedrock": streamed(
        EVENT_STREAM,
        [{"contentBlockIndex": 0, "delta": {"text": WORDS}}, {"metrics": {"latencyMs": 1}, "usage": CONVERSE}],
        converse,
        1,
    ),
    "ollama": streamed(
        NDJSON,
        [
            {**OLLAMA, "message": {"content": WORDS}, "done": False},
            {**OLLAMA, "message": {"content": ""}, "done": True, "prompt_eval_count": 100, "eval_count": 10},
        ],
        ndjson,
        1,
    ),
    "cohere": streamed(
        SSE,
        [
            {"type": "message-start", "delta": {"message": {"role": "assistant"}}},
            {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": WORDS}}}},
            {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": BILLED}},
        ],
        sse,
        2,
    ),
}
ANSWERS = {
    **{f"{dialect} JSON": Answer(JSON, compact(document)) for dialect, document in DOCUMENTS.items()},
    **{f"{dialect} stream": answer for dialect, answer in STREAMS.items()},
}
OPENAI = ANSWERS["openai JSON"].messages()
PRICES = {"m": {"input": 2.5, "output": 10.5, "cached": 0.25, "cacheWrite": 3.125}}


class LateEstimator(Estimator):
    """Answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: Estimate | Exception = Estimate(30, 12, "tokenizer")
        self.jobs: list[Job] = []
        self.fails_at_once = False
        self.released = asyncio.Event()

    def estimate(self, job: Job) -> Awaitable[Estimate]:
        if self.fails_at_once:
            raise RuntimeError("no")
        self.jobs.append(job)
        return self._later()

    async def _later(self) -> Estimate:
        await self.released.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


# ── expressions ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("usage.total_tokens", 110),
        ("usage.prompt_tokens", 100),
        ("usage.completion_tokens", 10),
        ("usage.cached_tokens", 40),
        ("usage.reasoning_tokens", 4),
        ("usage['total_tokens']", 110),
        ("usage.prompt_tokens + 4 * usage.completion_tokens", 140),
        ("usage.prompt_tokens - usage.cached_tokens + usage.cached_tokens / 10", 64),
        (
            "usage.prompt_tokens - usage.cached_tokens + (usage.cached_tokens + 9) / 10 + 4 * usage.completion_tokens",
            104,
        ),
        ("int(double(usage.total_tokens) * 1.5)", 165),
        ("usage.model == 'm' ? 2 * usage.total_tokens : usage.total_tokens", 220),
        ("usage.source == 'reported' ? 1 : 2", 1),
        ("usage.ending == 'complete' ? 1 : 2", 1),
        ("size(usage.dialect)", 6),
        ("usage.cost", 60 * 2.5 + 40 * 0.25 + 10 * 10.5),
        ("usage.cost == null ? 1 : usage.cost / 5", 53),
        ("[usage.prompt_tokens, usage.completion_tokens].map(n, n * 2)[1]", 20),
    ],
)
async def test_hits_are_any_expression_over_usage(expression: str, expected: int) -> None:
    """Output four times as dear as input, what came from a cache at a tenth, money in millionths: whole numbers."""
    gateway = Gateway(reporting(expression, prices=PRICES))
    await gateway.exchange(request_headers(ends=True), *OPENAI)
    assert hits(gateway) == [expected]
    assert gateway.metrics.errors == 0


async def test_what_a_cache_took_costs_its_own_price() -> None:
    """50 plain, 40 read, 10 written, 10 out; every token once."""
    gateway = Gateway(reporting("usage.cost", "usage.cache_write_tokens", prices=PRICES))
    await gateway.exchange(request_headers(ends=True), *ANSWERS["anthropic stream"].messages())
    exact = 50 * 2.5 + 40 * 0.25 + 10 * 3.125 + 10 * 10.5
    assert hits(gateway) == [-int(-exact // 1), 10]


@pytest.mark.parametrize("hits_addend", ["usage.cost", "usage.cost + 1", f"{TOTAL} > 0 ? usage.cost : 0"])
async def test_without_a_price_nothing_is_charged_and_everybody_is_told(
    hits_addend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Tokens in place of money would be a wrong bill; the other report is sent."""
    gateway = Gateway(reporting(hits_addend, "usage.total_tokens", prices={"other": {"input": 2.5, "output": 9.5}}))
    replies = await gateway.exchange(request_headers(ends=True), *OPENAI)
    assert hits(gateway) == [110]
    assert gateway.metrics.errors == 1
    assert samples(gateway, "extproc_action_failures_total") == {'{action_set="basic"}': 1.0}
    failed = [record for record in caplog.records if record.getMessage() == "rate limit report failed"]
    assert len(failed) == 1
    assert failed[0].__dict__["fields"]["request_id"] == "rid-1"
    assert "cost" not in told(replies)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("usage.model", "m"),
        ("usage.source", "reported"),
        ("usage.ending", "complete"),
        ("usage.dialect", "openai"),
        ("usage.total_tokens", "110"),
        ("usage.cost", "265"),
        ("usage.cached_tokens > 0", "true"),
        ("usage.total_tokens > 100 ? 'large' : 'small'", "large"),
    ],
)
async def test_usage_is_a_descriptor_value_and_a_label(expression: str, text: str) -> None:
    config = reporting(report("1", "k", expression), prices=PRICES, requestData={"metrics.labels.what": expression})
    gateway = Gateway(config)
    await gateway.exchange(request_headers(ends=True), *OPENAI)
    (call,) = gateway.limiter.of("report")
    assert call.query.descriptors == ((("k", text),), (("what", text),))
    (check,) = gateway.limiter.of("check")
    assert len(check.query.descriptors) == 1, "a check cannot wait for a label of the answer"


@pytest.mark.parametrize(
    ("predicate", "reports"),
    [
        ("usage.total_tokens > 109", [1]),
        ("usage.total_tokens > 110", []),
        ("usage.model == 'm' && usage.source != 'estimated'", [1]),
        ("usage.ending == 'client_gone'", []),
    ],
)
@pytest.mark.parametrize("of_action", [True, False])
async def test_usage_in_predicates(predicate: str, reports: list[int], of_action: bool) -> None:
    action = report(None, predicates=[predicate] if of_action else [])
    if not of_action:
        action["conditionalData"][0]["predicates"] = [predicate]
    gateway = Gateway(reporting(action))
    await gateway.exchange(request_headers(ends=True), *OPENAI)
    assert hits(gateway) == reports


async def test_each_of_several_actions_reports_once() -> None:
    gateway = Gateway(
        reporting(
            "usage.prompt_tokens",
            "usage.completion_tokens",
            TOTAL,
            "usage.total_tokens / 110",
            "usage.total_tokens * 0",
        )
    )
    replies = await gateway.exchange(request_headers(ends=True), *OPENAI)
    assert hits(gateway) == [100, 10, 110, 1]
    assert told(replies)["hits_addend"] == 100
    assert gateway.metrics.tokens_reported == 221


# ── pointers ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("size", [None, 7])
async def test_an_unchanged_configuration_charges_every_dialect(name: str, size: int | None) -> None:
    """S0, word for word, in front of any provider."""
    gateway = Gateway()
    replies = await gateway.exchange(request_headers(ends=True), *ANSWERS[name].messages(size))
    assert hits(gateway) == [110]
    fields = told(replies)
    assert (fields["source"], fields["dialect"]) == ("reported", name.split()[0])
    assert (fields["total_tokens"], fields["hits_addend"]) == (110, 110)
    assert samples(gateway, "extproc_usage_total") == {'{source="reported"}': 1.0}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (PROMPT, 100),
        ('responseBodyJSON("/usage/completion_tokens")', 10),
        ('responseBodyJSON(["/usage/total_tokens", "/usageMetadata/totalTokenCount"], "number")', 110),
        (f'{PROMPT} + 4 * responseBodyJSON("/usage/completion_tokens")', 140),
        (f"{TOTAL} * 2", 220),
    ],
)
async def test_pointers_of_one_dialect_find_the_counts_of_another(name: str, expression: str, expected: int) -> None:
    gateway = Gateway(reporting(expression))
    await gateway.exchange(request_headers(ends=True), *ANSWERS[name].messages())
    assert hits(gateway) == [expected]


@pytest.mark.parametrize("dialect", STREAMS)
@pytest.mark.parametrize("expression", [TOTAL, "usage.total_tokens"])
async def test_what_a_cut_stream_does_not_tell_is_estimated(
    dialect: str, expression: str, caplog: pytest.LogCaptureFixture
) -> None:
    """S0.D5, S0.D10: of every dialect, and labelled everywhere."""
    caplog.set_level(logging.INFO, "extproc")
    answer = STREAMS[dialect]
    gateway = Gateway(reporting(expression))
    await gateway.exchange(
        request_headers({"content-length": "400"}),
        response_headers({"content-type": answer.content_type}),
        response_body(answer.body[: answer.cut], ends=False),
    )
    # 400 bytes, or the prompt that Anthropic tells at once; and the words.
    assert len(hits(gateway)) == 1
    assert 108 <= hits(gateway)[0] <= 120
    (line,) = consumed(caplog)
    assert (line["usage"], line["ending"]) == ("estimated", "client_gone")
    assert samples(gateway, "extproc_usage_total") == {'{source="estimated"}': 1.0}
    assert samples(gateway, "extproc_estimates_total") == {'{method="bytes"}': 1.0}
    assert {key for key in samples(gateway, "extproc_tokens_total") if "estimated" not in key} == set()


@pytest.mark.parametrize(
    ("policy", "expected", "source"),
    [("estimate", 10 + 3, "estimated"), ("skip", 0, "none"), ({"fixed": 7}, 7, "fixed"), ({"fixed": 0}, 0, "fixed")],
)
@pytest.mark.parametrize("expression", [TOTAL, "usage.total_tokens", PROMPT + " + 1", "usage.prompt_tokens + 1"])
async def test_an_answer_without_usage_is_charged_by_policy(
    policy: Any, expected: int, source: str, expression: str
) -> None:
    """S0.D5: for pointers and for `usage` alike."""
    gateway = Gateway(reporting(expression, onMissingUsage=policy))
    frames = sse_frames(None)
    chunks = [response_body(frame, ends=frame is frames[-1]) for frame in frames]
    replies = await gateway.exchange(request_headers({"content-length": "40"}), response_headers(STREAM), *chunks)
    if expression in (TOTAL, "usage.total_tokens"):
        assert sum(hits(gateway)) == expected
    elif source == "estimated":
        assert hits(gateway) == [11]
    assert told(replies)["source"] == source
    assert samples(gateway, "extproc_usage_total") == {f'{{source="{source}"}}': 1.0}
    assert (samples(gateway, "extproc_estimates_total") != {}) == (source == "estimated")


@pytest.mark.parametrize("expression", ["usage.prompt_tokens + 4 * usage.completion_tokens", "usage.cost", TOTAL])
async def test_a_fixed_charge_is_charged_whatever_the_expression(expression: str) -> None:
    """Output that costs more than input is no way around it, and neither is a price."""
    gateway = Gateway(reporting(expression, onMissingUsage={"fixed": 7}, prices={"*": PRICES["m"]}))
    await gateway.exchange(request_headers(ends=True), response_headers(), response_body(NO_USAGE))
    assert hits(gateway) == [7]


@pytest.mark.parametrize("policy", ["estimate", "skip", {"fixed": 700}])
async def test_what_anthropic_tells_of_a_cut_stream_stands(policy: Any) -> None:
    """The prompt is told at once and stays, and nothing is estimated unless asked for."""
    gateway = Gateway(reporting("usage.prompt_tokens", "usage.total_tokens", onMissingUsage=policy))
    answer = STREAMS["anthropic"]
    await gateway.exchange(
        request_headers(ends=True), response_headers(STREAM), response_body(answer.body[: answer.cut], ends=False)
    )
    prompt, total = hits(gateway)
    estimated = samples(gateway, "extproc_estimates_total") != {}
    if policy == "estimate":
        assert (prompt, estimated) == (100, True)
        assert 108 <= total <= 120
    elif policy == "skip":
        assert (prompt, total, estimated) == (100, 101, False)
    else:
        assert not estimated
        assert total >= 700


LAST = compact({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 105, "total_tokens": 114}})


@pytest.mark.parametrize("cut", range(LAST.index(b":9") + 2, len(LAST) + 1))
async def test_a_stream_cut_inside_of_its_usage_is_not_cheaper(cut: int) -> None:
    """What was delivered is charged whether the count of it came or not; half a number is none."""
    words = compact({"object": "chat.completion.chunk", "choices": [{"delta": {"content": "word " * 100}}]})
    body = b"data: " + words + b"\n\ndata: " + LAST[:cut]
    gateway = Gateway(reporting("usage.total_tokens", TOTAL))
    await gateway.exchange(request_headers(ends=True), response_headers(STREAM), response_body(body, ends=False))
    assert len(hits(gateway)) == 2
    assert min(hits(gateway)) >= 105


async def test_continuous_usage_is_the_last_that_was_told() -> None:
    """vLLM's continuous_usage_stats, hung up in the middle."""
    frames = [
        compact({"choices": [{"delta": {"content": "x"}}], "usage": {"prompt_tokens": 9, "completion_tokens": n}})
        for n in range(1, 6)
    ]
    for expression, expected in (("usage.total_tokens", 14), (TOTAL, 14), (PROMPT, 9)):
        gateway = Gateway(reporting(expression))
        chunks = [response_body(b"data: " + frame + b"\n\n", ends=False) for frame in frames]
        await gateway.exchange(request_headers(ends=True), response_headers(STREAM), *chunks)
        assert hits(gateway) == [expected]
        assert samples(gateway, "extproc_usage_total") == {'{source="reported"}': 1.0}


@pytest.mark.parametrize("value", ["-1", '"12"', "1e400", "4294967296", "1.5", "true", "null", "[]", "{}"])
@pytest.mark.parametrize(("expression", "expected"), [(PROMPT, 10), ("usage.prompt_tokens", 10)])
async def test_a_count_that_is_none_makes_way_for_an_estimate_of_the_same(
    value: str, expression: str, expected: int
) -> None:
    """A prompt is charged by an estimate of the prompt, not of everything."""
    answer = b'{"choices":[{"message":{"content":"12345678"}}],"usage":{"prompt_tokens":%s}}' % value.encode()
    gateway = Gateway(reporting(expression))
    await gateway.exchange(request_headers({"content-length": "40"}), response_headers(), response_body(answer))
    assert hits(gateway) == [expected]
    assert samples(gateway, "extproc_usage_total") == {'{source="estimated"}': 1.0}


async def test_a_total_that_is_no_count_is_the_sum_of_those_that_are() -> None:
    usage = b'{"prompt_tokens":12,"completion_tokens":12,"total_tokens":4294967296}'
    for expression in (TOTAL, "usage.total_tokens"):
        gateway = Gateway(reporting(expression))
        await gateway.exchange(
            request_headers(ends=True), response_headers(), response_body(b'{"choices":[],"usage":%s}' % usage)
        )
        assert hits(gateway) == [24]


@pytest.mark.parametrize("expression", [TOTAL, "usage.total_tokens"])
async def test_no_tokens_are_no_report(expression: str) -> None:
    """S0.D8: Limitador would count 0 as 1."""
    gateway = Gateway(reporting(expression))
    answer = b'{"choices":[],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}'
    replies = await gateway.exchange(request_headers(ends=True), response_headers(), response_body(answer))
    assert hits(gateway) == []
    assert (told(replies)["source"], told(replies)["hits_addend"]) == ("reported", 0)


@pytest.mark.parametrize("value", ["2147483648 * usage.prompt_tokens", "0 - usage.total_tokens", "usage.model", "null"])
async def test_hits_that_are_none_are_told_and_not_charged(value: str) -> None:
    gateway = Gateway(reporting(value))
    await gateway.exchange(request_headers(ends=True), *OPENAI)
    assert hits(gateway) == []
    assert gateway.metrics.errors == 1


@pytest.mark.parametrize("policy", ["estimate", {"fixed": 7}])
async def test_hits_that_have_nothing_to_do_with_the_answer_stay_what_they_are(policy: Any) -> None:
    """A request is counted as one, though the model's name has to be waited for."""
    action = report("int(request.headers['x-weight'])", "model", "usage.model")
    gateway = Gateway(reporting(action, onMissingUsage=policy))
    await gateway.exchange(request_headers({"x-weight": "3"}, ends=True), response_headers(), response_body(NO_USAGE))
    assert hits(gateway) == [3]


async def test_one_action_changes_nothing_for_the_next(caplog: pytest.LogCaptureFixture) -> None:
    """The order of actions is no part of the bill, and an estimate stays one however often it is charged."""
    caplog.set_level(logging.INFO, "extproc")
    own = f"{TOTAL} == null ? 5 : 1"
    gateway = Gateway(reporting(own, TOTAL, TOTAL, own))
    await gateway.exchange(request_headers(ends=True), response_headers(), response_body(NO_USAGE))
    first, second, third, fourth = hits(gateway)
    assert (first, fourth) == (5, 5)
    assert second == third
    assert [line["usage"] for line in consumed(caplog)][1:3] == ["estimated", "estimated"]


async def test_an_estimate_is_called_one_also_in_an_expression_that_reads_the_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every estimate is labelled."""
    caplog.set_level(logging.INFO, "extproc")
    gateway = Gateway(reporting('responseBodyJSON("/id") == "x" ? usage.total_tokens : 0'))
    await gateway.exchange(
        request_headers(ends=True), response_headers(), response_body(b'{"id":"x",' + NO_USAGE.removeprefix(b"{"))
    )
    assert [line["usage"] for line in consumed(caplog)] == ["estimated"]


# ── several exchanges ─────────────────────────────────────────────────────────────────────────────────


async def test_what_is_remembered_of_requests_mixes_no_answers() -> None:
    """Two requests alike in every attribute, two models: `usage` is no part of what is remembered."""
    labelled = Gateway(reporting(report("usage.total_tokens", "model", "usage.model")))
    plain = Gateway(reporting("usage.model == 'big' ? 10 * usage.total_tokens : usage.total_tokens"))
    assert plain.active.plan.action_sets[0].memo is not None
    for gateway in (labelled, plain):
        for model, total in (("small", 24), ("big", 30), ("small", 14)):
            answer = json_answer(total).replace(b"meta-llama/Llama-3.1-8B-Instruct", model.encode())
            await gateway.exchange(request_headers(ends=True), response_headers(), response_body(answer))
    entries = [(call.entries["model"], call.query.hits_addend) for call in labelled.limiter.of("report")]
    assert entries == [("small", 24), ("big", 30), ("small", 14)]
    assert hits(plain) == [24, 300, 14]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=30), st.booleans())
def test_exchanges_that_interleave_do_not_mix(turns: list[bool], by_usage: bool) -> None:
    """Each is charged its own, whoever is served when."""

    async def drive() -> None:
        gateway = Gateway(reporting(report("usage.total_tokens" if by_usage else TOTAL, "model", "usage.model")))
        scripts = {}
        for mine, model, total in ((False, b"one", 24), (True, b"two", 31)):
            body = json_answer(total).replace(b"meta-llama/Llama-3.1-8B-Instruct", model)
            chunks = [response_body(body[at : at + 20], ends=at + 20 >= len(body)) for at in range(0, len(body), 20)]
            scripts[mine] = (gateway.open(), iter([request_headers(ends=True), response_headers(), *chunks]))
        for turn in [*turns, *([True] * 20), *([False] * 20)]:
            exchange, script = scripts[turn]
            following = next(script, None)
            if following is not None:
                await gateway.send(exchange, following)
        for exchange, _ in scripts.values():
            exchange.close()
        charged = sorted((call.entries["model"], call.query.hits_addend) for call in gateway.limiter.of("report"))
        assert charged == [("one", 24), ("two", 31)]

    asyncio.run(drive())


# ── endings ───────────────────────────────────────────────────────────────────────────────────────────

FRAMES = sse_frames(24)
WHOLE = b"".join(FRAMES)


@pytest.mark.parametrize(
    ("messages", "ending"),
    [
        ([response_headers(STREAM), response_body(WHOLE)], "complete"),
        ([response_headers(STREAM), response_body(WHOLE, ends=False), response_body(b"")], "complete"),
        ([response_headers(STREAM), response_body(WHOLE, ends=False), response_trailers()], "complete"),
        (
            [response_headers({"content-length": str(len(WHOLE)), **STREAM}), response_body(WHOLE, ends=False)],
            "complete",
        ),
        ([response_headers(STREAM), response_body(WHOLE, ends=False)], "client_gone"),
        ([response_headers(STREAM), response_body(b"".join(FRAMES[:2]), ends=False)], "client_gone"),
        ([response_headers(STREAM), response_body(FRAMES[0] + FRAMES[1][:20], ends=False)], "upstream_cut"),
        ([response_headers(), response_body(json_answer()[:-10], ends=False)], "upstream_cut"),
        ([response_headers(status=500)], "error"),
        ([response_headers(status=404), response_body(b"no")], "error"),
        ([response_headers(status=204, ends=True)], "complete"),
        ([response_headers(status=304, ends=True)], "complete"),
        ([response_headers(ends=True)], "complete"),
        ([response_headers(STREAM)], "client_gone"),
        ([], "client_gone"),
    ],
)
async def test_how_an_exchange_ended_is_told_once(messages: list[ProcessingRequest], ending: str) -> None:
    """HEAD, 204 and 304 have no body; what stops between events was left by the client, what stops inside was cut."""
    gateway = Gateway(reporting("usage.total_tokens"))
    await gateway.exchange(request_headers(ends=True), *messages)
    assert samples(gateway, "extproc_exchanges_total") == {f'{{ending="{ending}"}}': 1.0}
    delivered = any(message.HasField("response_body") for message in messages)
    assert len(hits(gateway)) == (1 if delivered and ending != "error" else 0)


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_an_error_that_is_charged_is_still_an_error(status: int) -> None:
    """S0.D7."""
    sequence = (request_headers(ends=True), response_headers(status=status), response_body(json_answer(24)))
    free = Gateway(reporting("usage.total_tokens"))
    assert told(await free.exchange(*sequence)) == {}
    charging = Gateway(reporting("usage.total_tokens", chargeErrors=True))
    fields = told(await charging.exchange(*sequence))
    assert (hits(free), hits(charging)) == ([], [24])
    assert (fields["ending"], fields["total_tokens"]) == ("error", 24)
    for gateway in (free, charging):
        assert samples(gateway, "extproc_exchanges_total") == {'{ending="error"}': 1.0}


@pytest.mark.parametrize("method", ["HEAD", "GET"])
async def test_an_answer_without_a_body_costs_nothing(method: str) -> None:
    gateway = Gateway(reporting("usage.total_tokens", TOTAL, report("1", "model", "usage.model")))
    headers = response_headers({"content-length": "4000"}, ends=True)
    await gateway.exchange(request_headers(method=method, ends=True), headers)
    assert hits(gateway) == []


async def test_whatever_comes_after_the_end_is_not_charged_again() -> None:
    gateway = Gateway(reporting("usage.total_tokens", TOTAL))
    exchange = gateway.open()
    await gateway.send(exchange, request_headers(ends=True), *OPENAI)
    late = [response_body(json_answer(99)), response_trailers(), response_headers(), response_body(WHOLE)]
    replies = await gateway.send(exchange, *late)
    exchange.close()
    assert kinds(replies) == [message.WhichOneof("request") for message in late]
    assert hits(gateway) == [110, 110]
    assert gateway.metrics.ended == 1


# ── estimates that take their time ────────────────────────────────────────────────────────────────────


def late_gateway(*actions: str, wait: str = "1ms", **report: Any) -> tuple[Gateway, LateEstimator]:
    gateway = Gateway(reporting(*actions, report={"wait": wait, **report}))
    estimator = LateEstimator()
    gateway.estimator = estimator
    return gateway, estimator


UNTOLD = (request_headers(ends=True), response_headers(), response_body(NO_USAGE))


async def test_an_estimate_in_time_is_in_the_metadata() -> None:
    gateway, estimator = late_gateway("usage.total_tokens", wait="10s")
    exchange = gateway.open()
    await gateway.send(exchange, *UNTOLD[:2])
    reply = exchange.receive(UNTOLD[2])
    assert isinstance(reply, Awaitable)
    waiting = asyncio.ensure_future(reply)
    await asyncio.sleep(0)
    assert not waiting.done()
    estimator.released.set()
    fields = told([ProcessingResponse.FromString(await waiting)])
    exchange.close()
    assert (fields["total_tokens"], fields["source"], fields["hits_addend"]) == (42, "estimated", 42)
    assert hits(gateway) == [42]


async def test_an_estimate_that_is_late_holds_nobody_up_and_is_charged_once() -> None:
    """The reply is released after `report.wait`, the stream may end, and the report follows."""
    gateway, estimator = late_gateway("usage.total_tokens", TOTAL)
    exchange = gateway.open()
    replies = await gateway.send(exchange, *UNTOLD)
    assert kinds(replies)[-1] == "response_body"
    assert told(replies) == {}
    exchange.close()
    assert hits(gateway) == []
    estimator.released.set()
    assert await gateway.reports.flush(5) == 0
    assert hits(gateway) == [42, 42]
    assert samples(gateway, "extproc_usage_total") == {'{source="estimated"}': 1.0}
    assert samples(gateway, "extproc_estimates_total") == {'{method="tokenizer"}': 1.0}
    assert len(estimator.jobs) == 1
    assert gateway.metrics.reports_pending == 0


async def test_a_client_that_hangs_up_does_not_take_its_estimate_with_it() -> None:
    """Neither does a reply that is cancelled while it waits: Envoy has reset the stream."""
    gateway, estimator = late_gateway("usage.total_tokens", wait="10s")
    gone = gateway.open()
    await gateway.send(gone, request_headers(ends=True), response_headers(), response_body(NO_USAGE, ends=False))
    gone.close()
    cancelled = gateway.open()
    await gateway.send(cancelled, *UNTOLD[:2])
    reply = cancelled.receive(UNTOLD[2])
    assert isinstance(reply, Awaitable)
    waiting = asyncio.ensure_future(reply)
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    cancelled.close()
    estimator.released.set()
    assert await gateway.reports.flush(5) == 0
    assert hits(gateway) == [42, 42]


@pytest.mark.parametrize("at_once", [True, False])
async def test_an_estimator_that_fails_harms_no_reply(at_once: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A defect of ours: logged and counted, the answer goes on, the next exchange is charged."""
    gateway, estimator = late_gateway("usage.total_tokens")
    estimator.answer = RuntimeError("no")
    estimator.released.set()
    estimator.fails_at_once = at_once
    replies = await gateway.exchange(*UNTOLD)
    assert kinds(replies) == ["request_headers", "response_headers", "response_body"]
    assert gateway.metrics.errors == 1
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == ["internal error"]
    assert (gateway.metrics.ended, gateway.metrics.exchanges_open) == (1, 0)
    await gateway.exchange(request_headers(ends=True), *OPENAI)
    assert hits(gateway) == [110]


async def test_shutdown_waits_for_estimates_and_for_what_they_report() -> None:
    answered = asyncio.Event()

    async def late() -> Decision:
        await answered.wait()
        return OK

    gateway, estimator = late_gateway("usage.total_tokens")
    gateway.limiter.answers["report"] = late
    exchange = gateway.open()
    await gateway.send(exchange, *UNTOLD)
    exchange.close()
    flushing = asyncio.ensure_future(gateway.reports.flush(30))
    await asyncio.sleep(0)
    estimator.released.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert hits(gateway) == [42]
    assert not flushing.done()
    answered.set()
    assert await flushing == 0
    assert samples(gateway, "extproc_reports_total") == {'{result="sent"}': 1.0}


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("estimated", [False, True])
async def test_a_shutdown_without_time_counts_what_it_loses_once(
    steps: int, estimated: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """One exchange, one report lost, wherever it was: logged, counted, and told to whoever stops."""
    gateway, estimator = late_gateway("usage.total_tokens")

    gateway.limiter.answers["report"] = asyncio.get_running_loop().create_future
    exchange = gateway.open()
    await gateway.send(exchange, request_headers(ends=True), response_headers(), response_body(NO_USAGE, ends=False))
    exchange.close()
    if estimated:
        estimator.released.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    assert await gateway.reports.flush(0) == 1
    assert samples(gateway, "extproc_reports_total") == {'{result="dropped"}': 1.0}
    assert len([record for record in caplog.records if record.name == "extproc.report"]) == 1


async def test_an_estimate_takes_no_place_from_its_own_report() -> None:
    gateway, estimator = late_gateway("usage.total_tokens", queue=1)
    gateway.limiter.answers["report"] = lambda: asyncio.sleep(0, OK)
    exchange = gateway.open()
    await gateway.send(exchange, *UNTOLD)
    exchange.close()
    estimator.released.set()
    await gateway.reports.flush(5)
    assert samples(gateway, "extproc_reports_total") == {'{result="sent"}': 1.0}


# ── prompts ───────────────────────────────────────────────────────────────────────────────────────────

QUESTION = compact({"model": "asked", "messages": [{"role": "user", "content": "word " * 200}]})


def reading(how: str, **sections: Any) -> dict[str, Any]:
    """A configuration that sees request bodies: to edit them, or for the text of prompts."""
    if how == "edited":
        return reporting("usage.prompt_tokens", includeUsage={"enabled": True}, **sections)
    return reporting("usage.prompt_tokens", estimates={"prompt": "text", **sections.pop("estimates", {})}, **sections)


async def test_the_text_of_a_prompt_is_asked_for_while_it_passes() -> None:
    gateway = Gateway(reading("text"))
    half = len(QUESTION) // 2
    replies = await gateway.exchange(
        request_headers({"content-length": str(len(QUESTION))}),
        request_body(QUESTION[:half], ends=False),
        request_body(QUESTION[half:]),
        response_headers(),
        response_body(NO_USAGE),
    )
    assert replies[0].mode_override.request_body_mode == ProcessingMode.STREAMED
    assert not replies[0].request_headers.response.HasField("header_mutation")
    (prompt,) = hits(gateway)
    assert 195 <= prompt < -(-len(QUESTION) // 4), "the words, and not the bytes of the request"
    assert gateway.prompts.held == 0


async def test_a_prompt_that_does_not_fit_counts_by_its_size() -> None:
    gateway = Gateway(reading("text", estimates={"held": 100}))
    await gateway.exchange(request_headers(), request_body(QUESTION), response_headers(), response_body(NO_USAGE))
    assert hits(gateway) == [-(-len(QUESTION) // 4)]
    assert gateway.prompts.held == 0


@pytest.mark.parametrize("how", ["edited", "text"])
@pytest.mark.parametrize("came", [0, 500])
async def test_a_prompt_of_which_a_part_was_seen_is_charged_whole(how: str, came: int) -> None:
    """A gateway that sends no bodies, or a body larger than Envoy's buffer: the announced length counts."""
    body = [request_body(QUESTION[:came], ends=False)] if came else []
    gateway = Gateway(reading(how))
    await gateway.exchange(
        request_headers({"content-length": "4000000"}), *body, response_headers(), response_body(NO_USAGE)
    )
    assert len(hits(gateway)) == 1
    assert hits(gateway)[0] > 700_000


async def test_the_model_is_the_answers_else_the_requests_else_that_of_the_path() -> None:
    config = reporting(report("1", "model", "usage.model"), includeUsage={"enabled": True})
    nameless = NO_USAGE
    named = NO_USAGE.replace(b"{", b'{"model":"answered",', 1)
    for path, question, answer, model in [
        ("/v1/chat/completions", QUESTION, named, "answered"),
        ("/v1/chat/completions", QUESTION, nameless, "asked"),
        ("/openai/deployments/mine/chat/completions?api-version=1", b"{}", nameless, "mine"),
    ]:
        gateway = Gateway(config)
        messages = (request_headers(path=path), request_body(question), response_headers(), response_body(answer))
        await gateway.exchange(*messages)
        assert [call.entries["model"] for call in gateway.limiter.of("report")] == [model]


bodies = st.sampled_from([b"", b"{", QUESTION, NO_USAGE, b"x" * 300, json_answer(24), *sse_frames(None)])
messages = st.one_of(
    st.builds(
        request_headers,
        st.sampled_from([{}, {"content-length": "600"}, {"content-encoding": "gzip"}]),
        host=st.sampled_from(["trlp.example.com", "example.org"]),
        ends=st.booleans(),
        modes=st.sampled_from([None, (0, 0), (1, 1), (4, 4)]),
    ),
    st.builds(request_body, bodies, ends=st.booleans()),
    st.builds(request_trailers),
    st.builds(response_headers, st.sampled_from([{}, STREAM]), status=st.sampled_from([200, 404]), ends=st.booleans()),
    st.builds(response_body, bodies, ends=st.booleans()),
    st.builds(response_trailers),
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), messages), max_size=20),
    st.sampled_from(["edited", "text"]),
    st.sampled_from([OK, OVER_LIMIT]),
    st.integers(0, 3000),
)
def test_prompts_are_let_go_of_whatever_happens(
    sequence: list[tuple[int, ProcessingRequest]], how: str, decision: Decision, limit: int
) -> None:
    """Three exchanges in any order of messages share a budget: never over it, never below nothing, all given back."""

    async def drive() -> None:
        gateway = Gateway(reading(how), RecordingLimiter({"check": lambda: decision}))
        gateway.prompts = PromptBudget(limit)
        exchanges = [gateway.open() for _ in range(3)]
        for number, following in sequence:
            await gateway.send(exchanges[number], following)
            assert 0 <= gateway.prompts.held <= limit
        for exchange in exchanges:
            exchange.close()
        await gateway.reports.flush(5)
        assert gateway.prompts.held == 0
        assert (gateway.metrics.ended, gateway.metrics.exchanges_open) == (3, 0)
        assert len(hits(gateway)) <= 3
        assert gateway.metrics.errors == 0

    asyncio.run(drive())


# ── told ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_everything_is_told_to_the_gateway_in_our_namespace() -> None:
    """G10, S4.13."""
    gateway = Gateway(reporting("usage.total_tokens", prices=PRICES, metadataNamespace="llm.usage"))
    replies = await gateway.exchange(request_headers(ends=True), *OPENAI)
    assert set(replies[-1].dynamic_metadata) == {"llm.usage"}
    assert told(replies, "llm.usage") == {
        "prompt_tokens": 100,
        "completion_tokens": 10,
        "total_tokens": 110,
        "cached_tokens": 40,
        "cache_write_tokens": 0,
        "reasoning_tokens": 4,
        "cost": 265,
        "hits_addend": 110,
        "model": "m",
        "source": "reported",
        "usage": "reported",
        "ending": "complete",
        "dialect": "openai",
        "streaming": False,
    }
    assert [len(reply.dynamic_metadata) for reply in replies] == [0, 0, 1]


@pytest.mark.parametrize("last", [response_trailers(), response_body(b"")])
async def test_the_last_reply_tells_whatever_it_answers(last: ProcessingRequest) -> None:
    gateway = Gateway(reporting("usage.total_tokens"))
    replies = await gateway.exchange(
        request_headers(ends=True), response_headers(STREAM), response_body(WHOLE, ends=False), last
    )
    assert "extproc" in replies[-1].dynamic_metadata
    assert (told(replies)["total_tokens"], told(replies)["streaming"]) == (24, True)


async def test_tokens_are_counted_by_model_and_direction() -> None:
    gateway = Gateway(reporting("usage.total_tokens"))
    await gateway.exchange(request_headers(ends=True), *OPENAI)
    assert samples(gateway, "extproc_tokens_total") == {
        f'{{direction="{direction}",model="m",source="reported"}}': count
        for direction, count in (("input", 100.0), ("output", 10.0), ("cached", 40.0), ("reasoning", 4.0))
    }


async def test_a_decision_line_names_model_source_and_ending(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "extproc")
    gateway = Gateway(reporting("usage.total_tokens"))
    await gateway.exchange(request_headers(ends=True), *OPENAI)
    await gateway.exchange(
        request_headers(ends=True), response_headers(STREAM), response_body(sse_frames(None)[0], ends=False)
    )
    reported, estimated = consumed(caplog)
    assert (reported["model"], reported["usage"], reported["ending"]) == ("m", "reported", "complete")
    assert (estimated["model"], estimated["usage"], estimated["ending"]) == ("", "estimated", "client_gone")
    assert json.dumps([reported, estimated])


# ── answers that are no generations ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("content_type", "body", "completion"),
    [
        ("image/png", b"\x89PNG" + b"\0" * 4000, 0),
        ("text/html", b"<html>" + b"x" * 4000, 0),
        ("application/json", compact([[0.25] * 500]), 0),
        ("application/json", compact({"embedding": {"values": [0.25] * 500}}), 0),
        ("application/json", compact({"created": 1, "data": [{"b64_json": "A" * 4000}]}), 0),
        ("application/json", compact({"generated_text": "word " * 100, "id": "x" * 4000}), 100),
        ("text/plain", b"word " * 100, 125),
    ],
)
async def test_of_an_answer_that_no_dialect_knows_only_text_counts(
    content_type: str, body: bytes, completion: int
) -> None:
    """S0.D5: vectors, pictures and pages are no tokens, whatever their size."""
    gateway = Gateway(reporting("usage.completion_tokens"))
    headers = response_headers({"content-type": content_type})
    await gateway.exchange(request_headers(ends=True), headers, response_body(body))
    assert sum(hits(gateway)) == pytest.approx(completion, abs=26)


async def test_a_stored_answer_that_is_fetched_again_is_not_charged_again() -> None:
    """It was charged when it was made; `meteredMethods` changes that."""
    answer = (
        response_headers(),
        response_body(
            compact({"object": "response", "usage": {"input_tokens": 37, "output_tokens": 11, "total_tokens": 48}})
        ),
    )
    for methods, expected in ((["POST"], []), (["POST", "GET"], [48])):
        gateway = Gateway(reporting("usage.total_tokens", meteredMethods=methods))
        replies = await gateway.exchange(request_headers(method="GET", ends=True), *answer)
        assert hits(gateway) == expected
        assert (replies[1].mode_override.response_body_mode == ProcessingMode.STREAMED) == bool(expected)


async def test_an_answer_in_an_unknown_encoding_goes_by_its_size() -> None:
    """S0.D11: what cannot be read is not free."""
    gateway = Gateway(reporting("usage.completion_tokens"))
    headers = response_headers({"content-type": "application/json", "content-encoding": "x-own"})
    await gateway.exchange(request_headers(ends=True), headers, response_body(b"z" * 400))
    assert hits(gateway) == [100]
