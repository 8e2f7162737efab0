"""Each dialect as its provider documents it, over a real socket: frames, texts, and numbers where they belong.

What is received is taken apart here by hand, with nothing of what the project reads such answers with.
"""

from __future__ import annotations

import base64
import gzip
import json
import struct
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import aiohttp
import brotli
import pytest
import zstandard

from extproc.simulator import Options, Simulator
from extproc.simulator.contents import BLOCK
from extproc.simulator.service import Request, Service

CHAT = "/v1/chat/completions"
EVENT_STREAM = "application/vnd.amazon.eventstream"
TOKENS = {
    "prompt_tokens": "100",
    "completion_tokens": "20",
    "cached_tokens": "30",
    "cache_write_tokens": "10",
    "reasoning_tokens": "5",
}


class Event(NamedTuple):
    """`name` is empty where the protocol or the provider has none."""

    name: str
    data: Any


class Answer(NamedTuple):
    status: int
    type: str
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Ask = Callable[..., Any]


@pytest.fixture
async def ask() -> AsyncIterator[Ask]:
    async with Simulator() as model, aiohttp.ClientSession(f"http://{model.address}", auto_decompress=False) as client:

        async def asked(path: str, body: Mapping[str, Any] | None = None, **options: str) -> Answer:
            headers = {f"x-sim-{name.replace('_', '-')}": value for name, value in options.items()}
            async with client.post(path, json=dict(body or {}), headers=headers) as response:
                kind = response.headers["content-type"]
                return Answer(response.status, kind, response.headers, await response.read())

        yield asked


# What takes the protocols apart.


def sse(body: bytes) -> list[Event]:
    assert body.endswith((b"\n\n", b"\r\n\r\n"))
    found = []
    for block in body.replace(b"\r\n", b"\n").split(b"\n\n")[:-1]:
        fields = dict(line.split(b": ", 1) for line in block.split(b"\n"))
        if b"data" in fields:
            data = fields[b"data"].decode()
            found.append(Event(fields.get(b"event", b"").decode(), data if data == "[DONE]" else json.loads(data)))
    return found


def ndjson(body: bytes) -> list[Event]:
    assert body.endswith(b"\n")
    return [Event("", json.loads(line)) for line in body.splitlines()]


def array(body: bytes) -> list[Event]:
    return [Event("", element) for element in json.loads(body)]


def eventstream(body: bytes) -> list[Event]:
    found = []
    while body:
        total, length, prelude_crc = struct.unpack_from(">III", body)
        message, body = body[:total], body[total:]
        assert prelude_crc == zlib.crc32(message[:8])
        assert struct.unpack(">I", message[-4:]) == (zlib.crc32(message[:-4]),)
        headers = dict(_headers(message[12 : 12 + length]))
        assert headers[":message-type"] == "event"
        assert headers[":content-type"] == "application/json"
        found.append(Event(headers[":event-type"], json.loads(message[12 + length : -4])))
    return found


def _headers(data: bytes) -> Iterator[tuple[str, str]]:
    while data:
        size = data[0]
        name, kind = data[1 : 1 + size].decode(), data[1 + size]
        assert kind == 7
        (length,) = struct.unpack_from(">H", data, 2 + size)
        yield name, data[4 + size : 4 + size + length].decode()
        data = data[4 + size + length :]


def invoked(body: bytes) -> list[Event]:
    found = eventstream(body)
    assert {event.name for event in found} == {"chunk"}
    inner = [json.loads(base64.b64decode(event.data["bytes"], validate=True)) for event in found]
    return [Event(event["type"], event) for event in inner]


# One answer in JSON.


class Document(NamedTuple):
    path: str
    text: Callable[[Any], str]
    usage: Callable[[Any], Any]
    expected: Any
    """With TOKENS."""
    body: Mapping[str, Any] = MappingProxyType({"model": "m"})
    model: Callable[[Any], Any] = lambda answer: answer["model"]


OPENAI_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 30},
    "completion_tokens_details": {"reasoning_tokens": 5},
}
RESPONSES_USAGE = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 30},
    "output_tokens": 20,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 120,
}
ANTHROPIC_INPUT = {"input_tokens": 60, "cache_creation_input_tokens": 10, "cache_read_input_tokens": 30}
GEMINI_USAGE = {
    "promptTokenCount": 100,
    "candidatesTokenCount": 15,
    "totalTokenCount": 120,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 100}],
    "cachedContentTokenCount": 30,
    "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 30}],
    "thoughtsTokenCount": 5,
}
CONVERSE_USAGE = {
    "inputTokens": 60,
    "outputTokens": 20,
    "totalTokens": 120,
    "cacheReadInputTokens": 30,
    "cacheWriteInputTokens": 10,
}
COHERE_USAGE = {
    "billed_units": {"input_tokens": 100, "output_tokens": 20},
    "tokens": {"input_tokens": 100, "output_tokens": 20},
    "cached_tokens": 30,
}


def usage(answer: Any) -> Any:
    return answer["usage"]


def eval_counts(answer: Any) -> tuple[int, int]:
    return answer["prompt_eval_count"], answer["eval_count"]


def gemini_text(answer: Any) -> str:
    return str(answer["candidates"][0]["content"]["parts"][0]["text"])


def gemini_usage(answer: Any) -> Any:
    return answer["usageMetadata"]


def gemini_model(answer: Any) -> Any:
    return answer["modelVersion"]


def no_model(answer: Any) -> Any:
    return "m" if "model" not in answer else "unexpected"


UNSTREAMED = {"model": "m", "stream": False}
DOCUMENTS = {
    "chat": Document(CHAT, lambda a: a["choices"][0]["message"]["content"], usage, OPENAI_USAGE),
    "text": Document("/v1/completions", lambda a: a["choices"][0]["text"], usage, OPENAI_USAGE),
    "azure": Document(
        "/openai/deployments/m/chat/completions?api-version=2024-10-21",
        lambda a: a["choices"][0]["message"]["content"],
        usage,
        OPENAI_USAGE,
        {},
    ),
    "responses": Document("/v1/responses", lambda a: a["output"][0]["content"][0]["text"], usage, RESPONSES_USAGE),
    "anthropic": Document(
        "/v1/messages", lambda a: a["content"][0]["text"], usage, ANTHROPIC_INPUT | {"output_tokens": 20}
    ),
    "gemini": Document("/v1beta/models/m:generateContent", gemini_text, gemini_usage, GEMINI_USAGE, {}, gemini_model),
    "vertex": Document(
        "/v1/projects/p/locations/l/publishers/google/models/m:generateContent",
        gemini_text,
        gemini_usage,
        GEMINI_USAGE,
        {},
        gemini_model,
    ),
    "converse": Document(
        "/model/m/converse", lambda a: a["output"]["message"]["content"][0]["text"], usage, CONVERSE_USAGE, {}, no_model
    ),
    "invoke": Document(
        "/model/m/invoke", lambda a: a["content"][0]["text"], usage, ANTHROPIC_INPUT | {"output_tokens": 20}, {}
    ),
    "ollama-chat": Document("/api/chat", lambda a: a["message"]["content"], eval_counts, (100, 20), UNSTREAMED),
    "ollama-generate": Document("/api/generate", lambda a: a["response"], eval_counts, (100, 20), UNSTREAMED),
    "cohere": Document("/v2/chat", lambda a: a["message"]["content"][0]["text"], usage, COHERE_USAGE, model=no_model),
}


@pytest.mark.parametrize("name", DOCUMENTS)
async def test_documents(ask: Ask, name: str) -> None:
    case = DOCUMENTS[name]
    answer = await ask(case.path, case.body, frames="3", text='"\\é', **TOKENS)
    assert (answer.status, answer.type) == (200, "application/json")
    assert answer.headers["content-length"] == str(len(answer.body))
    assert case.text(answer.json) == '"\\é' * 3
    assert case.usage(answer.json) == case.expected
    assert case.model(answer.json) == "m"


# One answer as a stream.


class Stream(NamedTuple):
    path: str
    type: str
    parse: Callable[[bytes], list[Event]]
    names: list[str]
    """Of two pieces of text."""
    text: Callable[[Any], str | None]
    usages: Callable[[list[Event]], list[Any]]
    expected: Any
    """All usages in the stream, with TOKENS."""
    body: Mapping[str, Any] = MappingProxyType({"model": "m", "stream": True})


def anthropic_text(event: Any) -> str | None:
    return event["delta"]["text"] if event["type"] == "content_block_delta" else None


def anthropic_usages(events: list[Event]) -> list[Any]:
    return [
        *(event.data["message"]["usage"] for event in events if event.name == "message_start"),
        *(event.data["usage"] for event in events if event.name == "message_delta"),
    ]


def last_usage(field: str) -> Callable[[list[Event]], list[Any]]:
    return lambda events: [events[-1].data[field]]


def ollama_usages(events: list[Event]) -> list[Any]:
    return [eval_counts(event.data) for event in events if "eval_count" in event.data]


def gemini_so_far(completed: int) -> dict[str, Any]:
    thoughts = min(5, completed)
    counts = {"candidatesTokenCount": completed - thoughts, "totalTokenCount": 100 + completed}
    return GEMINI_USAGE | counts | {"thoughtsTokenCount": thoughts}


def openai_usages(events: list[Event]) -> list[Any]:
    return [event.data["usage"] for event in events if event.data != "[DONE]" and event.data.get("usage")]


STREAM_WITH_USAGE = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
ANTHROPIC_NAMES = [
    "message_start",
    "content_block_start",
    "ping",
    "content_block_delta",
    "content_block_delta",
    "content_block_stop",
    "message_delta",
    "message_stop",
]
ANTHROPIC_USAGES = [ANTHROPIC_INPUT | {"output_tokens": 1}, {"output_tokens": 20}]
GEMINI_USAGES = [gemini_so_far(1), gemini_so_far(2), GEMINI_USAGE]


def openai_delta(event: Any) -> str | None:
    return event["choices"][0]["delta"]["content"] if event != "[DONE]" and event["choices"] else None


def gemini_usages(events: list[Event]) -> list[Any]:
    return [event.data["usageMetadata"] for event in events]


STREAMS = {
    "chat": Stream(
        CHAT, "text/event-stream", sse, [""] * 5, openai_delta, openai_usages, [OPENAI_USAGE], STREAM_WITH_USAGE
    ),
    "azure": Stream(
        "/openai/deployments/m/chat/completions",
        "text/event-stream",
        sse,
        [""] * 6,
        openai_delta,
        openai_usages,
        [OPENAI_USAGE],
        STREAM_WITH_USAGE,
    ),
    "responses": Stream(
        "/v1/responses",
        "text/event-stream",
        sse,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ],
        lambda event: event.get("delta"),
        lambda events: [event.data["response"]["usage"] for event in events if "response" in event.data],
        [None, None, RESPONSES_USAGE],
    ),
    "anthropic": Stream(
        "/v1/messages",
        "text/event-stream",
        sse,
        ANTHROPIC_NAMES,
        anthropic_text,
        anthropic_usages,
        ANTHROPIC_USAGES,
    ),
    "gemini-sse": Stream(
        "/v1beta/models/m:streamGenerateContent?alt=sse&key=k",
        "text/event-stream",
        sse,
        [""] * 3,
        gemini_text,
        gemini_usages,
        GEMINI_USAGES,
        {},
    ),
    "gemini-array": Stream(
        "/v1beta/models/m:streamGenerateContent",
        "application/json",
        array,
        [""] * 3,
        gemini_text,
        gemini_usages,
        GEMINI_USAGES,
        {},
    ),
    "converse": Stream(
        "/model/m/converse-stream",
        EVENT_STREAM,
        eventstream,
        ["messageStart", "contentBlockDelta", "contentBlockDelta", "contentBlockStop", "messageStop", "metadata"],
        lambda event: event.get("delta", {}).get("text"),
        last_usage("usage"),
        [CONVERSE_USAGE],
        {},
    ),
    "invoke": Stream(
        "/model/m/invoke-with-response-stream",
        EVENT_STREAM,
        invoked,
        [name for name in ANTHROPIC_NAMES if name != "ping"],
        anthropic_text,
        lambda events: [*anthropic_usages(events), events[-1].data["amazon-bedrock-invocationMetrics"]],
        [
            *ANTHROPIC_USAGES,
            {
                "inputTokenCount": 60,
                "outputTokenCount": 20,
                "invocationLatency": 250,
                "firstByteLatency": 50,
                "cacheReadInputTokenCount": 30,
                "cacheWriteInputTokenCount": 10,
            },
        ],
        {},
    ),
    "ollama-chat": Stream(
        "/api/chat",
        "application/x-ndjson",
        ndjson,
        [""] * 3,
        lambda event: event["message"]["content"],
        ollama_usages,
        [(100, 20)],
        {"model": "m"},
    ),
    "ollama-generate": Stream(
        "/api/generate",
        "application/x-ndjson",
        ndjson,
        [""] * 3,
        lambda event: event["response"],
        ollama_usages,
        [(100, 20)],
        {"model": "m"},
    ),
    "cohere": Stream(
        "/v2/chat",
        "text/event-stream",
        sse,
        ["message-start", "content-start", "content-delta", "content-delta", "content-end", "message-end"],
        lambda event: event["delta"]["message"]["content"]["text"] if event["type"] == "content-delta" else None,
        lambda events: [events[-1].data["delta"]["usage"]],
        [COHERE_USAGE],
    ),
}


@pytest.mark.parametrize("name", STREAMS)
async def test_streams(ask: Ask, name: str) -> None:
    case = STREAMS[name]
    answer = await ask(case.path, case.body, frames="2", text='"\\é', **TOKENS)
    events = case.parse(answer.body)
    assert (answer.status, answer.type) == (200, case.type)
    assert answer.headers["transfer-encoding"] == "chunked"
    assert [event.name for event in events] == case.names
    assert "".join(case.text(event.data) or "" for event in events) == '"\\é' * 2
    assert case.usages(events) == case.expected


async def test_responses_repeat_the_text_and_number_their_events(ask: Ask) -> None:
    for options in ({}, {"stamp": "true"}, {"size": "4000"}):
        events = sse((await ask("/v1/responses", {"stream": True}, frames="3", **options)).body)
        by_name = {event.name: event.data for event in events}
        text = "".join(event.data["delta"] for event in events if event.name == "response.output_text.delta")
        assert text
        assert by_name["response.output_text.done"]["text"] == text
        assert by_name["response.content_part.done"]["part"]["text"] == text
        assert by_name["response.output_item.done"]["item"]["content"][0]["text"] == text
        assert by_name["response.completed"]["response"]["output"][0]["content"][0]["text"] == text
        assert [event.data["sequence_number"] for event in events] == list(range(len(events)))
        assert all(event.data["type"] == event.name for event in events)


async def test_azure_begins_with_its_filter(ask: Ask) -> None:
    path = "/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21"
    first, second, *_ = sse((await ask(path, STREAM_WITH_USAGE)).body)
    assert first.data["choices"] == []
    assert first.data["prompt_filter_results"][0]["content_filter_results"]["hate"]["severity"] == "safe"
    assert "content_filter_results" in second.data["choices"][0]
    assert second.data["model"] == "my-gpt"


async def test_the_parts_of_a_gemini_array_are_frames(ask: Ask) -> None:
    path = "/v1beta/models/m:streamGenerateContent"
    assert (await ask(path, frames="2", cut_frames="1", framing="close")).body.startswith(b'[{"candidates"')
    assert array((await ask(path, frames="0")).body)[0].data["candidates"][0]["finishReason"] == "STOP"
    with pytest.raises(json.JSONDecodeError):
        array((await ask(path, frames="2", cut_frames="3", framing="close")).body)


async def test_models_in_paths_may_be_encoded(ask: Ask) -> None:
    answer = await ask("/model/anthropic.claude-3-5-sonnet-20240620-v1%3A0/invoke")
    assert answer.json["model"] == "anthropic.claude-3-5-sonnet-20240620-v1:0"


# What the options mean in each dialect.

COUNTS = {
    "prompt_tokens",
    "input_tokens",
    "output_tokens",
    "inputTokens",
    "inputTokenCount",
    "promptTokenCount",
    "prompt_eval_count",
    "eval_count",
}


def counts(value: Any) -> Iterator[int]:
    """All token counts anywhere in `value`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in COUNTS and isinstance(inner, int):
                yield inner
            yield from counts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from counts(inner)


@pytest.mark.parametrize("option", ["none", "null"])
@pytest.mark.parametrize("name", STREAMS)
async def test_streams_without_usage(ask: Ask, name: str, option: str) -> None:
    case = STREAMS[name]
    events = case.parse((await ask(case.path, case.body, usage=option, **TOKENS)).body)
    assert not list(counts([event.data for event in events]))


@pytest.mark.parametrize("option", ["none", "null"])
@pytest.mark.parametrize("name", DOCUMENTS)
async def test_documents_without_usage(ask: Ask, name: str, option: str) -> None:
    case = DOCUMENTS[name]
    answer = (await ask(case.path, case.body, usage=option, **TOKENS)).json
    assert not list(counts(answer))
    if option == "null":
        assert case.usage(answer) in (None, (None, None))
    else:
        with pytest.raises(KeyError):
            case.usage(answer)


EVERY: dict[str, tuple[Callable[[Any], Any], list[int]]] = {
    # dialect -> (a count in an event, its values with three frames)
    "anthropic": (lambda event: event.get("usage", {}).get("output_tokens"), [1, 2, 3, 20]),
    "invoke": (lambda event: event.get("usage", {}).get("output_tokens"), [1, 2, 3, 20]),
    "gemini-sse": (lambda event: event["usageMetadata"]["totalTokenCount"], [101, 102, 103, 120]),
    "gemini-array": (lambda event: event["usageMetadata"]["totalTokenCount"], [101, 102, 103, 120]),
    "ollama-chat": (lambda event: event.get("eval_count"), [1, 2, 3, 20]),
    "converse": (lambda event: event.get("usage", {}).get("outputTokens"), [20]),
    "cohere": (lambda event: event.get("delta", {}).get("usage", {}).get("tokens", {}).get("output_tokens"), [20]),
    "responses": (lambda event: (event.get("response", {}).get("usage") or {}).get("output_tokens"), [20]),
}


@pytest.mark.parametrize("name", EVERY)
async def test_usage_in_every_frame_that_has_a_place_for_it(ask: Ask, name: str) -> None:
    case, (count, expected) = STREAMS[name], EVERY[name]
    events = case.parse((await ask(case.path, case.body, usage="every", frames="3", **TOKENS)).body)
    assert [found for found in (count(event.data) for event in events) if found is not None] == expected


async def test_usage_only_at_the_end(ask: Ask) -> None:
    events = sse((await ask("/v1/messages", {"stream": True}, usage="last", **TOKENS)).body)
    assert anthropic_usages(events) == [
        {"input_tokens": 0, "output_tokens": 0},
        ANTHROPIC_INPUT | {"output_tokens": 20},
    ]
    path = "/v1beta/models/m:streamGenerateContent?alt=sse"
    *others, last = sse((await ask(path, usage="last", **TOKENS)).body)
    assert not any("usageMetadata" in event.data for event in others)
    assert last.data["usageMetadata"] == GEMINI_USAGE


@pytest.mark.parametrize("name", STREAMS)
async def test_a_total_of_its_own(ask: Ask, name: str) -> None:
    """Where a dialect tells a total, it may contradict the parts."""
    case = STREAMS[name]
    body = (await ask(case.path, case.body, total_tokens="777")).body
    totals = b'"totalTokens":777' in body or b'"total_tokens":777' in body or b'"totalTokenCount":777' in body
    assert totals == (name not in ("anthropic", "invoke", "ollama-chat", "ollama-generate", "cohere"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cached_tokens": "10", "cache_write_tokens": "3"}, "cached-tokens, cache-write-tokens: more than"),
        ({"reasoning_tokens": "13"}, "reasoning-tokens: more than"),
        ({"variant": "other"}, "x-sim-variant: expected one of openai, vllm"),
        ({"dimensions": "0"}, "x-sim-dimensions: expected a whole number from 1"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
async def test_parts_cannot_exceed_the_whole(ask: Ask, path: str, options: dict[str, str], says: str) -> None:
    answer = await ask(path, **options)
    assert answer.status == 400
    assert says in answer.json["error"]["message"]


# What can be done to all of them.

EXACT = ("chat", "azure", "anthropic", "converse", "ollama-chat", "ollama-generate", "cohere")


@pytest.mark.parametrize("name", STREAMS)
async def test_streams_have_the_size_that_is_asked_for(ask: Ask, name: str) -> None:
    case = STREAMS[name]
    body = (await ask(case.path, case.body, size="100000", frames="7")).body
    assert case.parse(body)
    assert abs(len(body) - 100_000) <= (0 if name in EXACT else 4 * 7)


@pytest.mark.parametrize("name", DOCUMENTS)
async def test_documents_have_the_size_that_is_asked_for(ask: Ask, name: str) -> None:
    case = DOCUMENTS[name]
    answer = await ask(case.path, case.body, size="300000")
    assert len(answer.body) == 300_000
    assert case.usage(answer.json)


async def test_a_text_that_is_repeated_is_bounded(ask: Ask) -> None:
    answer = await ask("/v1/responses", {"stream": True}, frames="1000", size="20000000")
    assert answer.status == 400
    assert "repeats" in answer.json["error"]["message"]


DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
    "br": brotli.decompress,
    "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
}


@pytest.mark.parametrize("encoding", DECODERS)
@pytest.mark.parametrize("name", STREAMS)
async def test_d11_every_dialect_in_every_encoding(ask: Ask, name: str, encoding: str) -> None:
    """S0.D11."""
    case = STREAMS[name]
    plain = await ask(case.path, case.body)
    coded = await ask(case.path, case.body, encoding=encoding, force_encoding="true", chunk="7")
    assert coded.headers["content-encoding"] == encoding
    assert DECODERS[encoding](coded.body) == plain.body


@pytest.mark.parametrize("name", STREAMS)
async def test_streams_are_cut_between_frames(ask: Ask, name: str) -> None:
    case = STREAMS[name]
    whole = (await ask(case.path, case.body, framing="close")).body
    seen = [(await ask(case.path, case.body, framing="close", cut_frames=str(frames))).body for frames in range(1, 5)]
    assert all(whole.startswith(body) for body in seen)
    assert [len(body) for body in seen] == sorted({len(body) for body in seen})
    if case.parse is not array:
        assert [len(case.parse(body)) for body in seen] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", STREAMS)
async def test_broken_json_inside_of_sound_frames(ask: Ask, name: str) -> None:
    case = STREAMS[name]
    body = (await ask(case.path, case.body, invalid="true")).body
    with pytest.raises(json.JSONDecodeError):
        case.parse(body)


FAILURES: dict[str, Callable[[Any], bool]] = {
    "chat": lambda error: error["error"]["type"] == "rate_limit_error",
    "anthropic": lambda error: (error["type"], error["error"]["type"]) == ("error", "rate_limit_error"),
    "gemini": lambda error: (error["error"]["code"], error["error"]["status"]) == (429, "RESOURCE_EXHAUSTED"),
    "converse": lambda error: isinstance(error["message"], str),
    "ollama-chat": lambda error: isinstance(error["error"], str),
    "cohere": lambda error: isinstance(error["message"], str),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_errors_have_the_shape_of_their_dialect(ask: Ask, name: str) -> None:
    answer = await ask(DOCUMENTS[name].path, STREAM_WITH_USAGE, status="429")
    assert (answer.status, answer.type) == (429, "application/json")
    assert FAILURES[name](answer.json)


@pytest.mark.parametrize("path", ["/v1/message", "/model/m/converses", "/model/a/b/converse", "/v1beta/models/m"])
async def test_what_nobody_speaks_is_not_found(ask: Ask, path: str) -> None:
    assert (await ask(path)).status == 404


# Variants of OpenAI's chat completions.


def frames_of(body: bytes) -> list[Any]:
    return [event.data for event in sse(body)]


async def test_vllm_counts_continuously_when_asked(ask: Ask) -> None:
    body = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    role, *frames, usage_frame, done = frames_of((await ask(CHAT, body, variant="vllm", frames="3")).body)
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [frame["usage"]["completion_tokens"] for frame in (role, *frames)] == [0, 1, 2, 3, 12]
    assert (usage_frame["choices"], usage_frame["usage"]["total_tokens"], done) == ([], 24, "[DONE]")
    plain = frames_of((await ask(CHAT, STREAM_WITH_USAGE, variant="vllm", frames="3")).body)
    assert ["usage" in frame for frame in plain[:-1]] == [False] * 5 + [True]


async def test_deepseek_tells_usage_in_the_finish_frame(ask: Ask) -> None:
    answer = await ask(CHAT, {"stream": True}, variant="deepseek", **TOKENS)
    assert answer.body.startswith(b": keep-alive\n\n")
    *frames, finish, done = frames_of(answer.body)
    assert {json.dumps(frame["usage"]) for frame in frames} == {"null"}
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert finish["usage"]["prompt_cache_hit_tokens"] == 30
    assert finish["usage"]["prompt_cache_miss_tokens"] == 70
    assert done == "[DONE]"


async def test_mistral_tells_usage_unasked_and_nothing_in_other_frames(ask: Ask) -> None:
    *frames, finish, _ = frames_of((await ask(CHAT, {"stream": True}, variant="mistral")).body)
    assert not any("usage" in frame for frame in frames)
    assert (finish["choices"][0]["finish_reason"], finish["usage"]["total_tokens"]) == ("stop", 24)


async def test_openrouter_finishes_twice(ask: Ask) -> None:
    answer = await ask(CHAT, {"stream": True}, variant="openrouter", **TOKENS)
    assert answer.body.startswith(b": OPENROUTER PROCESSING\n\n")
    *_, first, second, done = frames_of(answer.body)
    assert [frame["choices"][0]["finish_reason"] for frame in (first, second)] == ["stop", "stop"]
    assert "usage" not in first
    assert second["usage"]["prompt_tokens_details"] == {"cached_tokens": 30, "cache_write_tokens": 10}
    assert second["usage"]["completion_tokens_details"] == {"reasoning_tokens": 5}
    assert done == "[DONE]"


@pytest.mark.parametrize("usage_option", ["none", "null", "last", "every"])
@pytest.mark.parametrize("variant", ["openai", "vllm", "deepseek", "mistral", "openrouter"])
async def test_variants_obey_the_usage_option(ask: Ask, variant: str, usage_option: str) -> None:
    options = {"variant": variant, "usage": usage_option, "frames": "3"}
    frames = frames_of((await ask(CHAT, {"stream": True}, **options)).body)[:-1]
    told = [frame["usage"]["total_tokens"] for frame in frames if frame.get("usage")]
    if usage_option == "none":
        assert not any("usage" in frame for frame in frames)
    elif usage_option == "null":
        assert {json.dumps(frame["usage"]) for frame in frames} == {"null"}
    elif usage_option == "last":
        assert told == [24]
    else:
        assert [total for total in told if total != 24] == [12] * (variant != "openai") + [13, 14, 15]
        assert told[-1] == 24


async def test_variants_in_json(ask: Ask) -> None:
    deepseek = (await ask(CHAT, variant="deepseek", **TOKENS)).json
    assert deepseek["usage"]["prompt_cache_hit_tokens"] == 30
    vllm = (await ask(CHAT, variant="vllm")).json
    assert vllm["usage"]["prompt_tokens_details"] is None
    assert (await ask(CHAT, variant="openrouter")).json["usage"]["cost"] > 0


# Embeddings.


def openai_vectors(answer: Any) -> list[Any]:
    assert [item["index"] for item in answer["data"]] == list(range(len(answer["data"])))
    return [item["embedding"] for item in answer["data"]]


EMBEDDINGS: dict[str, tuple[str, dict[str, Any], Callable[[Any], list[Any]], Callable[[Any], Any]]] = {
    # dialect -> (path, request for base64, vectors of an answer, prompt tokens of an answer)
    "openai": ("/v1/embeddings", {"encoding_format": "base64"}, openai_vectors, lambda a: a["usage"]["prompt_tokens"]),
    "azure": (
        "/openai/deployments/e/embeddings",
        {"encoding_format": "base64"},
        openai_vectors,
        lambda a: a["usage"]["total_tokens"],
    ),
    "ollama": ("/api/embed", {}, lambda a: a["embeddings"], lambda a: a["prompt_eval_count"]),
    "cohere": (
        "/v2/embed",
        {"embedding_types": ["base64"]},
        lambda a: next(iter(a["embeddings"].values())),
        lambda a: a["meta"]["billed_units"]["input_tokens"],
    ),
}


@pytest.mark.parametrize("name", EMBEDDINGS)
async def test_embeddings_are_numbers_or_base64_of_them(ask: Ask, name: str) -> None:
    path, in_base64, vectors, prompt = EMBEDDINGS[name]
    answer = (await ask(path, vectors="5", dimensions="16", prompt_tokens="9")).json
    found = vectors(answer)
    assert prompt(answer) == 9
    assert [len(vector) for vector in found] == [16] * 5
    assert all(isinstance(number, float) and abs(number) <= 0.1 for vector in found for number in vector)
    assert found[0] != found[1]
    if in_base64:
        coded = vectors((await ask(path, in_base64, vectors="5", dimensions="16")).json)
        assert [list(struct.unpack("<16f", base64.b64decode(vector))) for vector in coded] == found


@pytest.mark.parametrize("name", ["openai", "ollama"])
async def test_usage_is_behind_20_mb_of_embeddings(ask: Ask, name: str) -> None:
    path, _, vectors, prompt = EMBEDDINGS[name]
    answer = await ask(path, vectors="700", dimensions="1536")
    assert 20e6 < len(answer.body) < 25e6
    assert answer.body.index(b'"usage"' if name == "openai" else b'"prompt_eval_count"') > 20e6
    assert prompt(answer.json) == 12
    assert len(vectors(answer.json)) == 700


async def test_embeddings_take_padding_too(ask: Ask) -> None:
    answer = await ask("/v1/embeddings", vectors="3", dimensions="100", size="500000")
    assert len(answer.body) == 500_000
    assert answer.json["usage"]["prompt_tokens"] == 12


async def test_no_embeddings_are_an_empty_list(ask: Ask) -> None:
    assert (await ask("/v1/embeddings", vectors="0")).json["data"] == []


def test_large_embeddings_are_made_as_they_go() -> None:
    """S0.D12: what is not sent yet does not exist."""
    service = Service(Options(vectors=700, dimensions=1536))
    tracemalloc.start()
    try:
        answer = service.answer(Request(b"POST", b"/v1/embeddings", [], b"{}"))
        assert not isinstance(answer, bytes)
        largest = max(map(len, answer.writes()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert largest < 3 * BLOCK
    assert peak < 3_000_000
