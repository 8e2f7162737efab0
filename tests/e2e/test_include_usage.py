"""Asking the model for usage that the client did not ask for, and reading prompts, through the real Envoy (S0.D6)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from support.envoy_client import Answer, Client, assert_clean, client_of
from support.usage_cases import ASKING, CHAT, MODEL, TEXT, metering
from support.vocabularies import fill_directory

from extproc.demo.stack import Stack
from extproc.usage.prompt import ANSWER_TOKENS, MESSAGE_TOKENS
from extproc.usage.vocabulary import Vocabulary

pytestmark = pytest.mark.e2e

ENABLED = {"includeUsage": {"enabled": True}}
MEMBER = b'"stream_options":{"include_usage":true}'
BUFFER = 16 * 1024
"""Default of `bodies.buffer`."""


@asynccontextmanager
async def gateway(config: Mapping[str, Any], **options: Any) -> AsyncIterator[tuple[Stack, Client]]:
    async with Stack(config, gateway=options) as stack, client_of(stack) as client:
        yield stack, client
        await assert_clean(stack)


def asking(hits: str = "usage.total_tokens", *, reads_body: bool = False, **options: Any) -> dict[str, Any]:
    """A configuration with the option enabled, and with more of its options."""
    config = metering(hits, includeUsage={"enabled": True, **options})
    if reads_body:
        for action in config["actionSets"][0]["actions"]:
            model = {"expression": {"key": "model", "value": "requestBodyJSON('/model')"}}
            action["conditionalData"][0]["data"].append(model)
    return config


def streaming(size: int = 0, **members: Any) -> bytes:
    """A body with odd spacing, repeated and unknown members, and numbers as nobody would write them anew."""
    text = "x" * size
    rest = "".join(f", {json.dumps(key)}: {json.dumps(value)}" for key, value in members.items())
    body = f'{{ "model" : "{MODEL}",\n\t"temperature": 1.00e0, "n":1, "n":1, "stream": true,\r\n'
    return f'{body} "messages":[{{"role":"user","content":"\\u00e9 {text}"}}]{rest} }}\n'.encode()


async def post(client: Client, body: bytes, *, chunked: bool = False, path: str = CHAT, **options: Any) -> Answer:
    """Send bytes as they are. Keyword arguments with names of the model's options are those."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 8192):
            yield body[start : start + 8192]

    own = {f"x-sim-{name.replace('_', '-')}": value for name, value in options.items() if name != "host"}
    headers = {"content-type": "application/json", **own}
    host = options.get("host", "llm.example.com")
    return await client.send(data=pieces() if chunked else BytesIO(body), path=path, headers=headers, host=host)


def direct(stack: Stack, client: Client) -> Client:
    return Client(f"http://{stack.model.address}", client.session)


def used(stack: Stack) -> int:
    return sum(counter.used for counter in stack.server.limiter.snapshot())


def framing(stack: Stack) -> tuple[str | None, str | None]:
    """content-length and transfer-encoding of the last request, as the model saw them."""
    headers = dict(stack.model.requests[-1].headers)
    return headers.get("content-length"), headers.get("transfer-encoding")


def edited(body: bytes) -> bytes:
    """The body with the member behind its last one, all else as it was."""
    end = len(body[: body.rindex(b"}")].rstrip())
    return body[:end] + b"," + MEMBER + body[end:]


def without_usage_frame(stream: bytes) -> bytes:
    """The events of a stream but for the one without choices."""
    events = stream.split(b"\n\n")
    kept = [event for event in events if b'"choices":[]' not in event or b'"usage":{' not in event]
    assert len(kept) == len(events) - 1
    return b"\n\n".join(kept)


# --- the request

SIZES = {"small": 100, "at the buffer": BUFFER - 300, "beyond it": BUFFER + 1, "large": 200_000}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
async def test_the_model_gets_the_body_with_one_member_more(size: int, chunked: bool) -> None:
    """S0.D6: the smallest edit. Small requests keep a content-length, larger ones go on in chunks."""
    body = streaming(size)
    async with gateway(asking()) as (stack, client):
        seen = await post(client, body, chunked=chunked, echo="true")
        assert seen.body == edited(body)
        length, encoding = framing(stack)
        if len(body) <= BUFFER and not chunked:
            assert (length, encoding) == (str(len(edited(body))), None)
        else:
            assert (length, encoding) == (None, "chunked")


async def test_options_of_the_client_stay() -> None:
    """A member beside others, where the client has some; never another value for one that is there."""
    others = streaming(stream_options={"continuous_usage_stats": True})
    async with gateway(asking()) as (_, client):
        seen = await post(client, others, echo="true")
        assert seen.body == others.replace(b": true}", b': true,"include_usage":true}')
        for value in (True, False, None, "yes"):
            body = streaming(stream_options={"include_usage": value})
            assert (await post(client, body, echo="true")).body == body
        for body in (streaming(stream_options=None), streaming(stream_options=[]), streaming()[:-3], b"[]", b"null"):
            assert (await post(client, body, echo="true")).body == body


async def test_a_prompt_of_three_megabytes_passes_as_it_is() -> None:
    """It does not fit into Envoy's buffer: not edited, not refused, and estimated."""
    body = streaming(3_000_000)
    async with gateway(asking()) as (stack, client):
        assert (await post(client, body, echo="true")).body == body
        before = used(stack)
        answer = await post(client, body)
        assert answer.status == 200
        assert answer.body == (await post(direct(stack, client), body)).body
        assert stack.model.requests[0].body_length == len(body)
        assert used(stack) - before > 100_000
        assert b'extproc_usage_total{source="estimated"}' in stack.server.metrics.render()[0]


async def test_a_model_that_insists_on_a_length() -> None:
    """Requests up to `bodies.buffer` have one, edited or not."""
    async with gateway(asking()) as (stack, client):
        for body in (streaming(10), streaming(BUFFER - 300), streaming(10, stream_options={"include_usage": False})):
            assert (await post(client, body, require_length="true")).status == 200
        before = used(stack)
        await post(client, streaming(10), require_length="true")
        assert used(stack) - before == 24


async def test_who_is_not_asked() -> None:
    """Hosts and models that refuse the option, requests that do not stream, and dialects that do not know it."""
    config = asking(exceptHosts=["*.strict.example.com"], exceptModels=["mistral-*"])
    stream = streaming()
    untouched = [
        (stream, {"host": "a.strict.example.com"}),
        (stream.replace(MODEL.encode(), b"Mistral-Large"), {}),
        (stream.replace(b'"stream": true', b'"stream": false'), {}),
        (stream.replace(b'"stream": true', b'"stream": 1'), {}),
        (stream, {"path": "/v1/responses"}),
        (stream, {"path": "/v1/messages"}),
        (stream, {"path": "/api/chat"}),
        (stream, {"path": "/v2/chat"}),
        (stream, {"path": f"/v1beta/models/{MODEL}:streamGenerateContent?alt=sse"}),
    ]
    asked = [
        (stream, {"path": path})
        for path in (CHAT, TEXT, f"/openai/deployments/{MODEL}/chat/completions", f"{CHAT}?a=b")
    ]
    async with gateway(config) as (stack, client):
        for body, options in untouched:
            assert (await post(client, body, echo="true", **options)).body == body
            assert framing(stack) == (str(len(body)), None)
            told, plain = await post(client, body, **options), await post(direct(stack, client), body, **options)
            assert told.body == plain.body
        for body, options in asked:
            assert (await post(client, body, echo="true", **options)).body == edited(body)


async def test_nobody_is_asked_by_default() -> None:
    """The option is off: bodies are not even read."""
    async with gateway(metering()) as (stack, client):
        assert (await post(client, streaming(), echo="true")).body == streaming()
        assert framing(stack) == (str(len(streaming())), None)


# --- the answer

TAKEN_OUT = {
    "openai": {},
    "vllm": {"variant": "vllm"},
    "counting": {"variant": "vllm", "usage": "every"},
    "always": {"usage": "last"},
    "in pieces": {"chunk": "13"},
    "with a trailer": {"trailers": "x-a:b"},
    "until the connection closes": {"framing": "close"},
    "with its length": {"framing": "length"},
}
IN_A_FRAME_WITH_CHOICES = {name: {"variant": name} for name in ("deepseek", "mistral", "openrouter")}


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_the_usage_frame_does_not_reach_a_client_that_did_not_ask(path: str) -> None:
    """S0.D6: byte for byte what the model sends otherwise, and the reported total is charged."""
    async with gateway(asking()) as (stack, client):
        for name, options in TAKEN_OUT.items():
            before = used(stack)
            answer = await post(client, streaming(), path=path, **options)
            model = await post(direct(stack, client), edited(streaming()), path=path, **options)
            assert (name, answer.body) == (name, without_usage_frame(model.body))
            assert (name, used(stack) - before) == (name, 24)


async def test_usage_that_stands_among_choices_stays() -> None:
    """DeepSeek, Mistral and OpenRouter put it into a frame that the client waits for."""
    async with gateway(asking()) as (stack, client):
        for name, options in IN_A_FRAME_WITH_CHOICES.items():
            before = used(stack)
            answer = await post(client, streaming(), **options)
            model = await post(direct(stack, client), edited(streaming()), **options)
            assert (name, answer.body, used(stack) - before) == (name, model.body, 24)


async def test_a_client_that_asked_keeps_its_frame() -> None:
    """And one that declined is taken by its word: the answer is estimated."""
    async with gateway(asking()) as (stack, client):
        body = streaming(**{key: value for key, value in ASKING.items() if key != "stream"})
        answer = await post(client, body)
        assert answer.body == (await post(direct(stack, client), body)).body
        assert b'"total_tokens":24' in answer.body
        assert used(stack) == 24
        body = streaming(stream_options={"include_usage": False})
        answer = await post(client, body)
        assert answer.body == (await post(direct(stack, client), body)).body
        assert b"total_tokens" not in answer.body
        assert b'extproc_usage_total{source="estimated"} 1.0' in stack.server.metrics.render()[0]


async def test_the_frame_may_be_left_in() -> None:
    """`strip: false`."""
    async with gateway(asking(strip=False)) as (stack, client):
        answer = await post(client, streaming())
        assert answer.body == (await post(direct(stack, client), edited(streaming()))).body
        assert used(stack) == 24


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate"])
async def test_compressed_answers(encoding: str) -> None:
    """Where a model compresses all the same, nothing can be taken out, and everything is counted."""
    forced = {"encoding": encoding, "force_encoding": "true"}
    async with gateway(asking()) as (stack, client):
        answer = await post(client, streaming(), **forced)
        assert answer.headers["content-encoding"] == encoding
        assert answer.body == (await post(direct(stack, client), edited(streaming()), **forced)).body
        assert used(stack) == 24


@pytest.mark.parametrize("size", [10, 100_000])
async def test_together_with_an_expression_that_reads_the_body(size: int) -> None:
    """The limiter is asked with what the client sent; then the body goes on with its member."""
    body = streaming(size)
    async with gateway(asking(reads_body=True)) as (stack, client):
        assert (await post(client, body, echo="true")).body == edited(body)
        before = used(stack)
        answer = await post(client, body)
        assert answer.body == without_usage_frame((await post(direct(stack, client), edited(body))).body)
        assert used(stack) - before == 24


async def test_documents_pass_as_they_are() -> None:
    """A request that does not stream is not edited, nor is its answer."""
    body = streaming().replace(b'"stream": true', b'"stream": false')
    async with gateway(asking()) as (stack, client):
        answer = await post(client, body)
        model = await post(direct(stack, client), body)
        assert (answer.body, answer.headers["content-length"]) == (model.body, model.headers["content-length"])
        assert used(stack) == 24


async def test_in_full_duplex() -> None:
    """A gateway that hands every piece over and back: the same edit, the same frames."""
    modes = {
        "request_body_mode": "FULL_DUPLEX_STREAMED",
        "response_body_mode": "FULL_DUPLEX_STREAMED",
        "request_trailer_mode": "SEND",
        "response_trailer_mode": "SEND",
    }
    async with gateway(asking(), processing_mode=modes) as (stack, client):
        answer = await post(client, streaming())
        assert answer.status == 200
        assert answer.body == without_usage_frame((await post(direct(stack, client), edited(streaming()))).body)
        assert used(stack) == 24


# --- prompts that are read while they pass


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill_directory(tmp_path_factory.mktemp("vocabulary"))


PROSE = "The quick brown fox jumps over the lazy dog, and the dog does not mind. "


def prompt(sentences: int, padding: int = 0) -> bytes:
    """A request with so much text, and with bytes that are no prompt."""
    messages = [{"role": "user", "content": PROSE * sentences}]
    return json.dumps({"model": "gpt-4o", "messages": messages, "metadata": {"note": "z" * padding}}).encode()


@pytest.mark.parametrize("size", [10, 5_000, 40_000], ids=["1 KB", "400 KB", "3 MB"])
@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
async def test_prompts_pass_untouched(size: int, chunked: bool) -> None:
    """`estimates.prompt: text` only watches: the same bytes, the same length, whatever their number."""
    body = prompt(size)
    config = metering(estimates={"prompt": "text"}, onMissingUsage="skip")
    async with gateway(config) as (stack, client):
        assert (await post(client, body, chunked=chunked, echo="true")).body == body
        assert framing(stack) == ((None, "chunked") if chunked else (str(len(body)), None))
        if not chunked:
            assert (await post(client, body, require_length="true")).status == 200


@pytest.mark.parametrize("sentences", [1, 100, 40_000])
async def test_the_text_of_a_prompt_is_estimated(vocabulary: Path, tmp_path: Path, sentences: int) -> None:
    """S0.D5: tiktoken on what was said, not on what stands around it."""
    log = tmp_path / "access.log"
    body = prompt(sentences, padding=50_000)
    config = metering(estimates={"prompt": "text", "vocabulary": str(vocabulary)}, report={"wait": "10s"})
    async with gateway(config, access_log=log, message_timeout="20s") as (stack, client):
        answer = await post(client, body, usage="none")
        assert answer.body == (await post(direct(stack, client), body, usage="none")).body
    [line] = [json.loads(line) for line in log.read_text().splitlines()]
    assert (line["usageSource"], line["model"]) == ("estimated", "gpt-4o")
    tokens = len(_encoding(vocabulary).encode_ordinary(PROSE * min(sentences, 100))) * max(1, sentences / 100)
    assert line["promptTokens"] == pytest.approx(tokens + MESSAGE_TOKENS + ANSWER_TOKENS, rel=0.01, abs=1)
    assert line["hitsAddend"] == line["totalTokens"] == line["promptTokens"] + line["completionTokens"]


def _encoding(directory: Path) -> Any:
    vocabulary = Vocabulary.open(directory)
    vocabulary.load()
    return vocabulary.encoding_for("gpt-4o")
