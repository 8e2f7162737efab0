"""Guards over answers: what may not be shown is not, in whatever form it comes; and it is counted all the same."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import cache
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.guards import DENIED, DENY, GuardedGateway, chat, guarded, header, no_defects, refusal
from support.harness import S0, configured, kinds
from support.messages import (
    request_body,
    request_headers,
    request_trailers,
    response_body,
    response_headers,
    response_trailers,
)

from extproc.exchange import guarded_answer
from extproc.exchange.answer import AnswerReading
from extproc.exchange.guarded_answer import HeldAnswer
from extproc.guards.final_events import MESSAGE
from extproc.guards.patterns import Patterns
from extproc.guards.stream_guard import StreamGuard
from extproc.wire.external_processor_pb2 import ProcessingRequest, ProcessingResponse
from extproc.wire.processing_mode_pb2 import ProcessingMode

ASM = b"response was denied by asm llm proxy"
OPENAI = {"error": {"message": MESSAGE, "type": "content_filter", "param": None, "code": "content_filter"}}
ANTHROPIC = {"type": "error", "error": {"type": "invalid_request_error", "message": MESSAGE}}
ENDING = b"data: " + orjson.dumps(OPENAI) + b"\n\ndata: [DONE]\n\n"
DONE = b"data: [DONE]\n\n"
SSE = {"content-type": "text/event-stream"}
STREAMED, BUFFERED, PARTIAL, DUPLEX = 1, 2, 3, 4
"""Body modes of Envoy."""
STREAMING = (STREAMED, DUPLEX)
GOOD = "Once upon a time"


def answer(content: str, total: int = 24) -> bytes:
    """A chat completion, not spelled as any library would."""
    usage = b'{"prompt_tokens":12,"completion_tokens":%d,"total_tokens":%d}' % (total - 12, total)
    message = b'{"role":"assistant","content":%s}' % orjson.dumps(content)
    return b'{ "id":"x" ,"model":"m","choices":[{"index":0,"message":%s}],\n "usage":%s, "x":1e0 }' % (message, usage)


def event(content: str) -> bytes:
    chunk = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": content}}]}
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def usage_event(total: int = 24) -> bytes:
    counts = {"prompt_tokens": 12, "completion_tokens": total - 12, "total_tokens": total}
    return b"data: " + orjson.dumps({"object": "chat.completion.chunk", "choices": [], "usage": counts}) + b"\n\n"


def config(*, enforced: bool = True, answers: Any = None, **sections: Any) -> dict[str, Any]:
    """S0's limits, and a guard that looks at answers."""
    mode = "enforce" if enforced else "shadow"
    return configured(S0, **guarded(mode=mode, answers={} if answers is None else answers), **sections)


@pytest.fixture
async def open_gateway() -> AsyncIterator[Callable[[dict[str, Any]], GuardedGateway]]:
    """Gateways that are closed when the test is over."""
    async with AsyncExitStack() as gateways:
        opened: list[GuardedGateway] = []

        def of(config: dict[str, Any]) -> GuardedGateway:
            opened.append(GuardedGateway(config))
            gateways.push_async_exit(opened[-1])
            return opened[-1]

        yield of
        for gateway in opened:
            assert gateway.metrics.exchanges_open == 0


Open = Callable[[dict[str, Any]], GuardedGateway]


async def asked(
    gateway: GuardedGateway, *messages: ProcessingRequest, mode: int = 0, headers: dict[str, str] | None = None
) -> list[ProcessingResponse]:
    """The replies to the answer of a model, whose body mode is `mode` unless overridden."""
    head = request_headers(headers, modes=(0, mode)) if mode else request_headers(headers)
    return (await gateway.exchange(head, request_body(chat("hello", stream=True)), *messages))[2:]


def shown(sent: Sequence[ProcessingRequest], replies: Sequence[ProcessingResponse]) -> bytes:
    """What the client gets of the bodies of an answer."""
    parts: list[bytes] = []
    for message, reply in zip(sent, replies, strict=False):
        if message.WhichOneof("request") != "response_body":
            continue
        if reply.HasField("immediate_response"):
            return b"".join([*parts, reply.immediate_response.body])
        mutation = reply.response_body.response.body_mutation
        match mutation.WhichOneof("mutation"):
            case "body":
                parts.append(mutation.body)
            case "streamed_response":
                parts.append(mutation.streamed_response.body)
            case "clear_body":
                pass
            case _:
                parts.append(message.response_body.body)
    return b"".join(parts)


def reports(gateway: GuardedGateway) -> list[int]:
    return [call.query.hits_addend for call in gateway.limiter.of("report")]


def metadata(replies: Sequence[ProcessingResponse]) -> dict[str, Any]:
    """What the last reply tells the access log."""
    found = replies[-1].dynamic_metadata
    return dict(found["extproc"].items()) if "extproc" in found else {}


def verdicts(gateway: GuardedGateway) -> dict[tuple[str, ...], float]:
    """Outcome and mode of what was found in answers, to how often."""
    (family,) = (each for each in gateway.metrics.guarding.collect() if each.name == "extproc_guard_verdicts")
    samples = [sample for sample in family.samples if sample.name.endswith("_total")]
    told = [sample for sample in samples if sample.labels["subject"] == "answer"]
    return {(sample.labels["outcome"], sample.labels["mode"]): sample.value for sample in told}


# --- documents


@pytest.mark.parametrize("total", [24, 50_000])
async def test_json_is_held_and_replaced(open_gateway: Open, total: int) -> None:
    """Another answer in its place, while its headers are held; what it took is reported and told to the access log."""
    gateway = open_gateway(config())
    head, body = await asked(gateway, response_headers(), response_body(answer(DENIED, total)))
    assert head.mode_override.response_body_mode == ProcessingMode.BUFFERED_PARTIAL
    denied = refusal(body)
    assert (denied.status.code, denied.body, denied.details) == (403, ASM, "guard_answer")
    assert header(denied, "content-type") == ["text/plain"]
    assert reports(gateway) == [total]
    assert metadata([body])["total_tokens"] == total
    assert verdicts(gateway) == {("deny", "enforce"): 1}


@pytest.mark.parametrize(("profile", "told"), [("openai", OPENAI), ("anthropic", ANTHROPIC)])
async def test_json_in_its_place(open_gateway: Open, profile: str, told: Any) -> None:
    settings_ = config()
    settings_["guards"]["chat"]["denyWith"] = {"profile": profile, "status": 451, "headers": {"X-Why": "guard"}}
    (_, body) = await asked(open_gateway(settings_), response_headers(), response_body(answer(DENIED)))
    denied = refusal(body)
    assert (denied.status.code, orjson.loads(denied.body)) == (451, told)
    assert (header(denied, "content-type"), header(denied, "x-why")) == (["application/json"], ["guard"])


async def test_a_body_of_ones_own(open_gateway: Open) -> None:
    settings_ = config()
    settings_["guards"]["chat"]["denyWith"] = {"body": "No.", "headers": {"content-type": "text/x-no"}}
    (_, body) = await asked(open_gateway(settings_), response_headers(), response_body(answer(DENIED)))
    assert refusal(body).body == b"No."
    assert header(refusal(body), "content-type") == ["text/x-no"]


@pytest.mark.parametrize("body", [answer(GOOD), answer(GOOD * 9000), b"", b" \n"])
@pytest.mark.parametrize("mode", [0, *STREAMING])
async def test_allowed_json_is_the_same_bytes(open_gateway: Open, body: bytes, mode: int) -> None:
    gateway = open_gateway(config())
    sent = [response_headers(), response_body(body)]
    with no_defects():
        replies = await asked(gateway, *sent, mode=mode)
    assert kinds(replies) == ["response_headers", "response_body"]
    assert shown(sent, replies) == body
    assert reports(gateway) == ([24] if body.strip() else reports(gateway))
    if not mode:
        assert not replies[1].response_body.HasField("response")


WHERE = [
    {"choices": [{"message": {"content": "ok"}}, {"message": {"content": DENIED}}]},
    {"choices": [{"message": {"content": [{"type": "text", "text": "账"}, {"type": "text", "text": "号"}]}}]},
    {"choices": [{"message": {"reasoning_content": DENIED}}]},
    {"choices": [{"message": {"refusal": DENIED}}]},
    {"choices": [{"message": {"tool_calls": [{"function": {"arguments": '{"a":"\\u8d26\\u53f7"}'}}]}}]},
    {"choices": [{"text": DENIED}]},
    {"content": [{"type": "text", "text": DENIED}]},
    {"output": [{"content": [{"type": "output_text", "text": DENIED}]}]},
    {"candidates": [{"content": {"parts": [{"text": DENIED}]}}]},
    {"message": {"content": DENIED}, "done": True},
    [{"a": [DENIED]}],
    DENIED,
]


@pytest.mark.parametrize("document", WHERE)
@pytest.mark.parametrize("mode", [0, *STREAMING])
async def test_every_text_is_looked_at(open_gateway: Open, document: Any, mode: int) -> None:
    sent = [response_headers(), response_body(orjson.dumps(document))]
    assert shown(sent, await asked(open_gateway(config()), *sent, mode=mode)) == ASM


@pytest.mark.parametrize("mode", STREAMING)
async def test_a_document_in_pieces_waits_for_its_end(open_gateway: Open, mode: int) -> None:
    """G6: where the headers have left, nothing of the body leaves before all of it was looked at."""
    for content in (GOOD, DENIED):
        gateway = open_gateway(config())
        body = answer(content)
        sent = [response_headers(), *(response_body(body[at : at + 9], ends=False) for at in range(0, len(body), 9))]
        sent.append(response_body(b""))
        replies = await asked(gateway, *sent, mode=mode)
        assert kinds(replies) == ["response_headers", *["response_body"] * (len(sent) - 1)]
        assert shown(sent[:-1], replies) == b""
        assert shown(sent, replies) == (body if content == GOOD else ASM)
        assert "content-length" in replies[0].response_headers.response.header_mutation.remove_headers
        assert reports(gateway) == [24]


@pytest.mark.parametrize("kind", [{}, SSE, {"content-type": "text/plain"}, {"content-type": "audio/mpeg"}])
async def test_in_full_duplex_every_body_is_sent_back_as_a_stream(open_gateway: Open, kind: dict[str, str]) -> None:
    """G1: anything else is spurious there, and ends the answer."""
    for content in (GOOD, DENIED):
        body = event(content) + DONE if kind == SSE else answer(content)
        sent = [response_headers(kind), response_body(body[:40], ends=False), response_body(body[40:])]
        replies = await asked(open_gateway(config()), *sent, mode=DUPLEX)
        for reply in replies[1:]:
            mutation = reply.response_body.response.body_mutation
            assert mutation.WhichOneof("mutation") == "streamed_response"
        if replies[1:]:
            assert replies[-1].response_body.response.body_mutation.streamed_response.end_of_stream


# --- documents in which nobody can look

STRANGE: list[tuple[str, dict[str, str], bytes]] = [
    ("not JSON", {}, b"hello"),
    ("truncated", {}, answer(GOOD)[:-2]),
    ("longer than is held", {}, answer("x" * 5000)),
    ("compressed, and not", {"content-encoding": "gzip"}, answer(GOOD)),
    ("a bomb", {"content-encoding": "gzip"}, gzip.compress(answer("x" * 5_000_000))),
    ("cut off", {"content-encoding": "gzip"}, gzip.compress(answer(GOOD))[:60]),
    ("UTF-16", {"content-type": "text/plain"}, "hi".encode("utf-16")),
    ("deep", {}, b"[" * 100_000 + b"]" * 100_000),
    ("more than is looked at", {}, b"[" + b'"",' * 60_000 + b"0]"),
]
OTHER: list[tuple[str, dict[str, str], bytes]] = [
    ("sound", {"content-type": "audio/mpeg"}, b"\xff\xfb"),
    ("an image", {"content-type": "image/png"}, b"\x89PNG"),
    ("bytes", {"content-type": "application/octet-stream"}, answer(GOOD)),
    ("Amazon's event stream", {"content-type": "application/vnd.amazon.eventstream"}, b"\0\0\0"),
    ("an unknown encoding", {"content-encoding": "rot13"}, answer(GOOD)),
    ("an unknown encoding of a stream", {**SSE, "content-encoding": "compress"}, b"\x1f\x9d"),
]


@pytest.mark.parametrize("mode", [0, *STREAMING])
@pytest.mark.parametrize("on_unparsable", ["deny", "allow"])
@pytest.mark.parametrize(("headers", "body"), [case[1:] for case in STRANGE], ids=[case[0] for case in STRANGE])
async def test_where_nobody_can_look(
    open_gateway: Open, headers: dict[str, str], body: bytes, on_unparsable: str, mode: int
) -> None:
    gateway = open_gateway(config(answers={"onUnparsable": on_unparsable, "maxBody": 4096}))
    sent = [response_headers(headers), response_body(body)]
    with no_defects():
        replies = await asked(gateway, *sent, mode=mode)
    if on_unparsable == "deny":
        assert shown(sent, replies) == ASM
    else:
        assert shown(sent, replies) == body
    assert verdicts(gateway) == {("unparsable", "enforce"): 1}
    assert len(reports(gateway)) <= 1


@pytest.mark.parametrize("mode", [0, *STREAMING])
@pytest.mark.parametrize(("headers", "body"), [case[1:] for case in OTHER], ids=[case[0] for case in OTHER])
async def test_what_has_no_texts_is_refused_at_its_head(
    open_gateway: Open, headers: dict[str, str], body: bytes, mode: int
) -> None:
    """G1: the headers are held in any body mode, and a reply to them is no reply to a body."""
    gateway = open_gateway(config())
    (head,) = await asked(gateway, response_headers(headers), response_body(body), mode=mode)
    assert (refusal(head).status.code, refusal(head).body) == (403, ASM)
    assert verdicts(gateway) == {("unparsable", "enforce"): 1}


@pytest.mark.parametrize("mode", [0, *STREAMING])
@pytest.mark.parametrize(("headers", "body"), [case[1:] for case in OTHER], ids=[case[0] for case in OTHER])
async def test_what_has_no_texts_passes_where_that_is_wanted(
    open_gateway: Open, headers: dict[str, str], body: bytes, mode: int
) -> None:
    gateway = open_gateway(config(answers={"onUnparsable": "allow"}))
    sent = [response_headers(headers), response_body(body)]
    with no_defects():
        assert shown(sent, await asked(gateway, *sent, mode=mode)) == body


async def test_a_part_of_a_document_is_not_the_document(open_gateway: Open) -> None:
    """BUFFERED_PARTIAL: the rest would pass by without us."""
    for part in (answer(GOOD)[:50], b" " * 50):
        replies = await asked(open_gateway(config()), response_headers(), response_body(part, ends=False))
        if part.strip():
            assert refusal(replies[-1]).body == ASM
    text = response_headers({"content-type": "text/plain"})
    replies = await asked(open_gateway(config()), text, response_body(b"hello", ends=False))
    assert refusal(replies[-1]).body == ASM


async def test_spaces_before_a_document_that_does_not_fit_are_not_all_of_it(open_gateway: Open) -> None:
    replies = await asked(open_gateway(config()), response_headers(), response_body(b" " * 4096, ends=False))
    assert refusal(replies[-1]).body == ASM


async def test_compressed_json_is_read(open_gateway: Open) -> None:
    """S0.D11: it goes on as it came, still compressed."""
    for content in (GOOD, DENIED):
        gateway = open_gateway(config())
        body = gzip.compress(answer(content))
        sent = [response_headers({"content-encoding": "gzip"}), response_body(body)]
        replies = await asked(gateway, *sent)
        assert shown(sent, replies) == (body if content == GOOD else ASM)
        assert "content-encoding" not in replies[0].response_headers.response.header_mutation.remove_headers
        assert reports(gateway) == [24]


@pytest.mark.parametrize(
    ("body", "denied"),
    [
        (b"hello", False),
        (DENIED.encode(), True),
        (answer(DENIED), True),
        (event("ok") + event("账") + event("号"), True),
        (b'{"response":"' + "账".encode() + b'"}\n{"response":"' + "号".encode() + b'"}\n', True),
        (event("ok"), False),
    ],
)
@pytest.mark.parametrize("content_type", ["text/plain", "text/html; charset=utf-8", ""])
async def test_text(open_gateway: Open, content_type: str, body: bytes, denied: bool) -> None:
    """Whatever it says that it is: JSON and events in it are looked at as such, too."""
    sent = [response_headers({"content-type": content_type}), response_body(body)]
    assert shown(sent, await asked(open_gateway(config()), *sent)) == (ASM if denied else body)


@pytest.mark.parametrize("line", [b"data: x\n\n", b'{"x":"ab"}\n'])
async def test_text_that_looks_like_many_events_is_searched_a_few_times(
    open_gateway: Open, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    """A client may fetch such a file: work that grows faster than it would hold up everybody."""
    searched = 0
    search = Patterns.denied_by

    def counting(patterns: Patterns, text: str) -> str | None:
        nonlocal searched
        searched += len(text)
        return search(patterns, text)

    monkeypatch.setattr(Patterns, "denied_by", counting)
    body = line * 2000
    sent = [response_headers({"content-type": "text/plain"}), response_body(body)]
    assert shown(sent, await asked(open_gateway(config()), *sent)) == body
    assert searched < 10 * len(body)


# --- streams

WORDS = ["Once", " upon", " a", " time"]


@pytest.mark.parametrize("mode", [0, *STREAMING])
async def test_a_stream_in_which_nothing_matches_is_the_same_bytes(open_gateway: Open, mode: int) -> None:
    """S3.14."""
    gateway = open_gateway(config())
    chunks = [*map(event, WORDS), b": ping\n\n", usage_event(), DONE]
    sent = [response_headers(SSE), *(response_body(chunk, ends=False) for chunk in chunks), response_body(b"")]
    replies = await asked(gateway, *sent, mode=mode)
    assert shown(sent, replies) == b"".join(chunks)
    assert [shown([message], [reply]) for message, reply in zip(sent[1:-1], replies[1:-1], strict=True)] == chunks
    assert replies[0].mode_override.response_body_mode == ProcessingMode.STREAMED
    assert reports(gateway) == [24]


@pytest.mark.parametrize("mode", [0, *STREAMING])
async def test_a_stream_is_cut_with_an_error_of_its_own_kind(open_gateway: Open, mode: int) -> None:
    """G6: no reset and no immediate response; what came before stays, the rest is swallowed and counted to its end."""
    gateway = open_gateway(config())
    chunks = [*map(event, ["Your ", "账", "号", " is ", "1234"]), usage_event(50), DONE]
    sent = [response_headers(SSE), *(response_body(chunk, ends=False) for chunk in chunks), response_body(b"")]
    replies = await asked(gateway, *sent, mode=mode)
    assert kinds(replies) == ["response_headers", *["response_body"] * (len(sent) - 1)]
    assert shown(sent, replies) == event("Your ") + event("账") + ENDING
    assert reports(gateway) == [50]
    assert metadata(replies)["total_tokens"] == 50
    assert metadata(replies)["ending"] == "complete"
    assert verdicts(gateway) == {("deny", "enforce"): 1}


@pytest.mark.parametrize("cut", range(5))
async def test_a_client_that_leaves_mid_stream(open_gateway: Open, cut: int) -> None:
    """G12: what was generated until then is counted, once, whether it was shown or not."""
    gateway = open_gateway(config())
    chunks = [*map(event, ["Your ", "账", "号", " is "])][:cut]
    sent = [response_headers(SSE), *(response_body(chunk, ends=False) for chunk in chunks)]
    await asked(gateway, *sent)
    assert len(reports(gateway)) == (1 if cut else 0)
    assert gateway.metrics.ended == 1


async def test_a_stream_that_ends_with_trailers(open_gateway: Open) -> None:
    """G11: settled by the trailers, which get the reply of their kind."""
    for words in (["ok"], [DENIED]):
        gateway = open_gateway(config())
        chunks = [*map(event, words), usage_event(), DONE]
        sent = [response_headers(SSE), *(response_body(c, ends=False) for c in chunks), response_trailers()]
        replies = await asked(gateway, *sent)
        assert replies[-1].WhichOneof("response") == "response_trailers"
        assert reports(gateway) == [24]
        assert DENIED.encode() not in shown(sent, replies)


@pytest.mark.parametrize("enforced", [True, False])
@pytest.mark.parametrize("words", [["Once", " upon"], ["Your ", "账", "号", " is"]])
async def test_a_compressed_stream(open_gateway: Open, words: list[str], enforced: bool) -> None:
    """It is decoded on its way, and the headers that would be wrong then are gone. Shadow shows all of it."""
    gateway = open_gateway(config(enforced=enforced))
    plain = b"".join([*map(event, words), usage_event(), DONE])
    body = gzip.compress(plain)
    encoded = {**SSE, "content-encoding": "gzip", "content-length": str(len(body))}
    sent = [response_headers(encoded), response_body(body[:99], ends=False), response_body(body[99:])]
    replies = await asked(gateway, *sent)
    got = shown(sent, replies)
    removed = set(replies[0].response_headers.response.header_mutation.remove_headers)
    if "content-encoding" not in removed:
        assert not enforced
        got = gzip.decompress(got)
    else:
        assert "content-length" in removed
    denied = enforced and "账" in words
    assert got == (event("Your ") + event("账") + ENDING if denied else plain)
    assert reports(gateway) == [24]


async def test_a_compressed_stream_that_does_not_decode_is_cut(open_gateway: Open) -> None:
    gateway = open_gateway(config())
    body = gzip.compress(b"".join(map(event, ["a" * 100] * 100)))
    broken = body[:60] + b"\0\0\0\0" + body[64:]
    sent = [response_headers({**SSE, "content-encoding": "gzip"}), response_body(broken)]
    assert shown(sent, await asked(gateway, *sent)).endswith(ENDING)
    assert verdicts(gateway) == {("unparsable", "enforce"): 1}


async def test_lines_of_json(open_gateway: Open) -> None:
    """Ollama's: an error in one line, and the rest is swallowed."""
    gateway = open_gateway(config())
    lines = [orjson.dumps({"model": "m", "message": {"content": word}, "done": False}) + b"\n" for word in WORDS]
    bad = orjson.dumps({"model": "m", "message": {"content": DENIED}, "done": False}) + b"\n"
    end = orjson.dumps({"model": "m", "done": True, "prompt_eval_count": 20, "eval_count": 30}) + b"\n"
    sent = [response_headers({"content-type": "application/x-ndjson"})]
    sent += [response_body(line, ends=False) for line in (*lines, bad, *lines)]
    sent.append(response_body(end))
    replies = await asked(gateway, *sent)
    assert shown(sent, replies) == b"".join(lines) + orjson.dumps({"error": MESSAGE}) + b"\n"


@pytest.mark.parametrize("mode", [0, *STREAMING])
@pytest.mark.parametrize("words", [WORDS, ["Your ", DENIED, " is"]])
async def test_usage_that_the_client_did_not_ask_for_is_taken_out(
    open_gateway: Open, words: list[str], mode: int
) -> None:
    """S0.D6, behind a guard: counted, and not shown."""
    gateway = open_gateway(config(includeUsage={"enabled": True}))
    chunks = [*map(event, words), usage_event(), DONE]
    sent = [response_headers(SSE), *(response_body(chunk, ends=False) for chunk in chunks), response_body(b"")]
    replies = await asked(gateway, *sent, mode=mode)
    if words == WORDS:
        assert shown(sent, replies) == b"".join([*map(event, words), DONE])
    else:
        assert shown(sent, replies) == event("Your ") + ENDING
    assert reports(gateway) == [24]


async def test_an_event_without_end_is_cut(open_gateway: Open) -> None:
    """Bounded: no more is held than may be."""
    gateway = open_gateway(config(answers={"maxBody": 4096}))
    sent = [response_headers(SSE), *(response_body(b"data: " + b"x" * 1000, ends=False) for _ in range(9))]
    assert shown(sent, await asked(gateway, *sent)) == ENDING


async def test_two_guards_of_a_stream(open_gateway: Open) -> None:
    """Each sees what the one before it let pass; the client gets one ending."""
    settings_ = config()
    settings_["guards"]["other"] = {"hosts": ["*"], "deny": ["upon"], "answers": {}, "denyWith": {"profile": "openai"}}
    for words, whole in ((WORDS, event("Once") + ENDING), (["ok", DENIED, "upon"], event("ok") + ENDING)):
        gateway = open_gateway(settings_)
        sent = [response_headers(SSE), *(response_body(event(word), ends=False) for word in words)]
        sent.append(response_body(DONE))
        assert shown(sent, await asked(gateway, *sent)) == whole


async def test_patterns_of_their_own(open_gateway: Open) -> None:
    """For answers other words may be denied than for requests."""
    gateway = open_gateway(config(answers={"deny": ["upon"]}))
    for content, denied in ((DENIED, False), ("upon", True)):
        sent = [response_headers(), response_body(answer(content))]
        assert (shown(sent, await asked(gateway, *sent)) == ASM) is denied


# --- whom it does not concern


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
async def test_errors_pass(open_gateway: Open, status: int) -> None:
    """What a provider says of a failure is no answer of a model."""
    gateway = open_gateway(config())
    sent = [response_headers(status=status), response_body(answer(DENIED))]
    replies = await asked(gateway, *sent)
    assert shown(sent, replies) == answer(DENIED)
    assert replies[0].mode_override.response_body_mode == ProcessingMode.NONE


@pytest.mark.parametrize("headers", [{}, SSE, {"content-type": "audio/mpeg"}, {**SSE, "content-encoding": "gzip"}])
@pytest.mark.parametrize("mode", [0, *STREAMING])
async def test_shadow_only_looks(
    open_gateway: Open, caplog: pytest.LogCaptureFixture, headers: dict[str, str], mode: int
) -> None:
    """The client gets every byte that came; the guard's verdict is logged and counted."""
    caplog.set_level(logging.INFO)
    gateway = open_gateway(config(enforced=False))
    plain = event("Your ") + event(DENIED) + usage_event() + DONE if "event" in str(headers) else answer(DENIED)
    body = gzip.compress(plain) if "content-encoding" in headers else plain
    sent = [response_headers(headers), response_body(body[:60], ends=False), response_body(body[60:])]
    replies = await asked(gateway, *sent, mode=mode)
    got = shown(sent, replies)
    removed = replies[0].response_headers.response.header_mutation.remove_headers
    assert got == (plain if "content-encoding" in removed else body)
    assert [mode for _, mode in verdicts(gateway)] == ["shadow"]
    lines = [record.fields for record in caplog.records if record.message == "guard"]
    assert [(line["subject"], line["enforced"]) for line in lines] == [("answer", False)]


async def test_answers_without_a_request_body_are_looked_at(open_gateway: Open) -> None:
    """A stored answer may be asked for later, by GET."""
    gateway = open_gateway(config())
    sent = [response_headers(), response_body(answer(DENIED))]
    replies = await gateway.exchange(request_headers(method="GET", ends=True), *sent)
    assert shown(sent, replies[1:]) == ASM


async def test_the_model_is_not_asked_for_an_encoding(open_gateway: Open) -> None:
    (head, *_) = await open_gateway(config()).exchange(request_headers({"accept-encoding": "gzip, rot13"}))
    assert "accept-encoding" in head.request_headers.response.header_mutation.remove_headers


# --- defects


@contextmanager
def broken(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Iterator[None]:
    """`owner.name` raises, within the block."""

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken")

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, fails)
        yield


@pytest.mark.parametrize("mode", [0, *STREAMING])
@pytest.mark.parametrize("encoding", ["", "gzip"])
async def test_a_guard_that_breaks_mid_stream_lets_nothing_pass_any_more(
    open_gateway: Open, monkeypatch: pytest.MonkeyPatch, encoding: str, mode: int
) -> None:
    """One reply each, and the usage is counted to the end."""
    gateway = open_gateway(config())
    pieces = [event("Once"), event(DENIED), usage_event() + DONE]
    headers = {**SSE, "content-encoding": encoding} if encoding else SSE
    if encoding:
        whole = gzip.compress(b"".join(pieces))
        pieces = [whole[:90], whole[90:120], whole[120:]]
    exchange = gateway.open()
    head = request_headers(modes=(0, mode)) if mode else request_headers()
    await gateway.send(exchange, head, request_body(chat("hi")), response_headers(headers))
    first, *rest = [response_body(piece, ends=piece is pieces[-1]) for piece in pieces]
    await gateway.send(exchange, first)
    with broken(monkeypatch, StreamGuard, "feed"):
        (second,) = await gateway.send(exchange, rest[0])
    (third,) = await gateway.send(exchange, rest[1])
    exchange.close()
    await gateway.reports.flush(5)
    assert kinds([second, third]) == ["response_body", "response_body"]
    assert shown(rest, [second, third]) == b""
    assert reports(gateway) == [24]
    assert gateway.metrics.errors == 1


@pytest.mark.parametrize("mode", [0, *STREAMING])
@pytest.mark.parametrize("kind", [{}, SSE])
async def test_a_guard_that_breaks_in_shadow_costs_nothing(
    open_gateway: Open, monkeypatch: pytest.MonkeyPatch, kind: dict[str, str], mode: int
) -> None:
    gateway = open_gateway(config(enforced=False))
    body = event("Once") + DONE if kind else answer(GOOD)
    sent = [response_headers(kind), response_body(body[:40], ends=False), response_body(body[40:])]
    with broken(monkeypatch, StreamGuard, "feed"), broken(monkeypatch, guarded_answer, "judge_json"):
        assert shown(sent, await asked(gateway, *sent, mode=mode)) == body


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (guarded_answer, "judge_json"),
        (HeldAnswer, "_judged"),
        (HeldAnswer, "take"),
        (HeldAnswer, "__init__"),
        (AnswerReading, "begin"),
        (AnswerReading, "take"),
        (guarded_answer.denials, "withheld"),
    ],
)
@pytest.mark.parametrize("mode", [0, *STREAMING])
async def test_a_defect_shows_nothing_of_a_document(
    open_gateway: Open, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, mode: int
) -> None:
    sent = [response_headers(), response_body(answer(DENIED))]
    with broken(monkeypatch, owner, name):
        replies = await asked(open_gateway(config()), *sent, mode=mode)
    assert DENIED.encode() not in shown(sent, replies)
    if replies[0].HasField("immediate_response"):
        assert replies[0].immediate_response.status.code == 500
    elif mode:
        assert kinds(replies) == ["response_headers", "response_body"]


# --- what leaks


@pytest.mark.parametrize("headers", [{}, SSE, {"content-type": "text/plain"}, {**SSE, "content-encoding": "gzip"}])
async def test_no_log_line_shows_what_was_answered(
    open_gateway: Open, caplog: pytest.LogCaptureFixture, headers: dict[str, str]
) -> None:
    """S3.D8: at any level, in any field."""
    caplog.set_level(1)
    for body in (answer(DENIED), event(DENIED) + DONE, DENIED.encode()):
        gateway = open_gateway(config())
        await asked(gateway, response_headers(headers), response_body(body))
        assert "账号" not in gateway.metrics.render()[0].decode()
    logged = "".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "answer" in logged
    assert "账号" not in logged
    assert "\\u8d26" not in logged


# --- every chunking, every legal order

CONFIGS: dict[str, dict[str, Any]] = {
    "one": config(),
    "strips": config(includeUsage={"enabled": True}),
    "shadow": config(enforced=False),
    "request": configured(S0, **guarded()),
    "allows": config(answers={"onUnparsable": "allow"}),
}
CONFIGS["two"] = config()
CONFIGS["two"]["guards"]["other"] = {"hosts": ["*"], "deny": DENY, "answers": {"lookBehind": 3}}


@cache
def _compiled(name: str) -> GuardedGateway:
    return GuardedGateway(CONFIGS[name])


def _pieces(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


texts = st.lists(st.sampled_from(["账", "号", "a", "账号", " ", '"', "\n", "号账", "🙂"]), max_size=8)
cuts = st.lists(st.integers(0, 4000), max_size=12)
modes = st.sampled_from([0, *STREAMING])


@settings(max_examples=150, deadline=None)
@given(
    texts, cuts, st.sampled_from(["one", "strips", "shadow", "two"]), st.sampled_from([0, *STREAMING]), st.booleans()
)
def test_every_chunking_of_a_stream_gives_the_client_the_same(
    words: list[str], cut: list[int], name: str, mode: int, compressed: bool
) -> None:
    """Until the event that completes the denied word, and then the error; or all of it."""
    events = [event(word) for word in words]
    whole = b"".join([*events, usage_event(), DONE])
    said = ["".join(words[: number + 1]) for number in range(len(words))]
    first = next((number for number, text in enumerate(said) if "账号" in text), None)
    if name == "shadow":
        expected = whole
    elif first is not None:
        expected = b"".join(events[:first]) + ENDING
    else:
        expected = whole.replace(usage_event(), b"") if name == "strips" else whole
    sent_bytes = gzip.compress(whole, mtime=0) if compressed else whole
    *chunks, last = _pieces(sent_bytes, cut)
    headers = {**SSE, "content-encoding": "gzip"} if compressed else SSE
    sent = [response_headers(headers), *(response_body(chunk, ends=False) for chunk in chunks), response_body(last)]

    async def drive() -> tuple[list[ProcessingResponse], list[int]]:
        _compiled(name).limiter.calls.clear()
        async with _compiled(name).anew() as gateway:
            return await asked(gateway, *sent, mode=mode), reports(gateway)

    with no_defects():
        replies, reported = asyncio.run(drive())
    got = shown(sent, replies)
    if compressed and "content-encoding" not in replies[0].response_headers.response.header_mutation.remove_headers:
        got = gzip.decompress(got)
    assert got == expected
    assert reported == [24]


bodies = st.sampled_from(
    [b"", b" ", answer(GOOD), answer(DENIED), event(GOOD), event(DENIED), answer(DENIED)[:50], b"\xff", DONE]
)
heads = st.sampled_from(
    [
        {},
        SSE,
        {"content-type": "audio/mpeg"},
        {"content-type": "text/plain"},
        {"content-type": "application/x-ndjson"},
        {"content-encoding": "gzip"},
        {**SSE, "content-encoding": "br"},
    ]
)


@st.composite
def legal(draw: st.DrawFn) -> list[ProcessingRequest]:
    """What Envoy may send of one exchange, until anywhere."""
    modes = draw(st.sampled_from([None, (0, 0), (0, STREAMED), (BUFFERED, BUFFERED), (PARTIAL, PARTIAL), (0, DUPLEX)]))
    no_body = draw(st.booleans())
    messages = [request_headers(ends=no_body, modes=modes)]
    if not no_body:
        trailers = draw(st.booleans())
        messages.append(request_body(draw(st.sampled_from([chat("hi"), chat(DENIED), b"", b"{"])), ends=not trailers))
        messages += [request_trailers()] * trailers
    status = draw(st.sampled_from([200, 204, 302, 404]))
    ended = draw(st.booleans())
    messages.append(response_headers(draw(heads), status=status, ends=ended))
    if not ended:
        trailers = draw(st.booleans())
        pieces = draw(st.lists(bodies, max_size=4))
        messages += [response_body(piece, ends=False) for piece in pieces]
        messages.append(response_trailers() if trailers else response_body(draw(bodies)))
    return messages[: draw(st.integers(1, len(messages)))]


@settings(max_examples=250, deadline=None)
@given(legal(), st.sampled_from(list(CONFIGS)))
def test_every_message_gets_one_reply_of_its_kind(sequence: list[ProcessingRequest], name: str) -> None:
    """G1, G6: one each, in order, nothing after an immediate response; none for a body where the headers have left."""

    async def drive() -> list[ProcessingResponse]:
        async with _compiled(name).anew() as gateway:
            exchange = gateway.open()
            replies = await gateway.send(exchange, *sequence)
            exchange.close()
            assert gateway.metrics.exchanges_open == 0
            assert gateway.metrics.ended == 1
        return replies

    with no_defects():
        replies = asyncio.run(drive())
    streams = sequence[0].protocol_config.response_body_mode in STREAMING
    for message, reply, kind in zip(sequence, replies, kinds(replies), strict=False):
        asked_kind = str(message.WhichOneof("request"))
        if kind == "immediate_response":
            assert reply is replies[-1]
            assert asked_kind.startswith("request_") or asked_kind == "response_headers" or not streams
            assert asked_kind != "response_trailers"
        else:
            assert kind == asked_kind
    if "immediate_response" not in kinds(replies):
        assert len(replies) == len(sequence)


@pytest.mark.parametrize("mode", STREAMING)
async def test_a_document_of_announced_length_is_not_lost_to_trailers(open_gateway: Open, mode: int) -> None:
    """It is known to be all of it before the trailers come."""
    body = answer(GOOD)
    sent = [response_headers({"content-length": str(len(body))}), response_body(body, ends=False), response_trailers()]
    assert shown(sent, await asked(open_gateway(config()), *sent, mode=mode)) == body


@pytest.mark.parametrize("mode", STREAMING)
async def test_a_document_that_is_lost_to_trailers_is_told(
    open_gateway: Open, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nobody said how long it is, and the gateway streams; nothing of it was shown."""
    sent = [response_headers(), response_body(answer(GOOD), ends=False), response_trailers()]
    assert shown(sent, await asked(open_gateway(config()), *sent, mode=mode)) == b""
    assert any("an answer was lost" in record.getMessage() for record in caplog.records)


async def test_a_doubtful_end_before_trailers_is_noted(open_gateway: Open) -> None:
    settings_ = config(answers={"deny": [r"\bass\b"]})
    gateway = open_gateway(settings_)
    sent = [response_headers(SSE), response_body(event("an ass"), ends=False), response_trailers()]
    assert b"ass" not in shown(sent, await asked(gateway, *sent))
    assert verdicts(gateway) == {("deny", "enforce"): 1}


async def test_what_is_refused_by_its_head_is_charged_and_no_false_alarm(
    open_gateway: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """A picture: nobody knows what it took, but what was asked is known; and the gateway did nothing wrong."""
    gateway = open_gateway(config())
    (head,) = await asked(gateway, response_headers({"content-type": "image/png"}))
    assert refusal(head).status.code == 403
    assert [hits > 0 for hits in reports(gateway)] == [True]
    assert gateway.metrics.ended == 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_defect_while_a_verdict_is_noted_lets_nothing_more_pass(
    open_gateway: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("extproc.exchange.denials.note_answer", broken)
    gateway = open_gateway(config(answers={"maxBody": 100}))
    pieces = [
        response_body(b'{"a":"' + b"x" * 200, ends=False),
        response_body(b"more", ends=False),
        response_body(b"}"),
    ]
    sent = [response_headers(), *pieces]
    assert shown(sent, await asked(gateway, *sent, mode=STREAMED)) == b""
