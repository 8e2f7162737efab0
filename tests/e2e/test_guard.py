"""Guards of requests and answers through the real Envoy, as deploy/examples/guard has them (S3)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from support.h2_client import ask
from support.running import CHAT, Running, compressed, lines, logged, running
from support.waiting import until

from extproc.config.load import load_config
from extproc.demo.examples import EXAMPLES, environment
from extproc.demo.guard import (
    ACCOUNT,
    DENIED,
    GUARD_PATH,
    HOST,
    IDENTITY,
    KEY,
    MISBEHAVIOURS,
    NUMBER,
    OTHER_HOST,
    PROVIDER,
    WORDS,
    Misbehaviour,
    asking,
    watched,
)
from extproc.demo.moderation import moderation
from extproc.gateway import free_port
from extproc.gateway.fitted import fit
from extproc.simulator import Options, Simulator
from extproc.telemetry.logs import render_json

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

HARMLESS = "Why is the sky blue?"
BUFFER = 1024 * 1024
"""Of Envoy, for a request."""
SMALL = 16 * 1024
"""Default of `bodies.buffer`."""
STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
WITHHELD = b"response was denied by asm llm proxy"


def question(text: Any, role: str = "user", **fields: Any) -> dict[str, Any]:
    return {"model": "qwen-plus", "messages": asking(text, role), **fields}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def judge() -> AsyncIterator[Simulator]:
    """The model that guards others."""
    async with Simulator(options=Options(judge=WORDS)) as model:
        yield model


@pytest.fixture(scope="module")
def access_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guard") / "access.log"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(judge: Simulator, access_log: Path) -> AsyncIterator[Running]:
    gateway = {"access_log": access_log, "message_timeout": "11s"}
    with environment(DASHSCOPE_API_KEY=KEY):
        async with running(watched(judge), providers={PROVIDER: Options()}, gateway=gateway) as found:
            yield found


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(shared: Running, judge: Simulator) -> Running:
    """With the example as it is."""
    judge.forget()
    await shared.begin(watched(judge))
    return shared


def patterns(*, answers: bool = False, **fields: Any) -> dict[str, Any]:
    """The example without its second look; `fields` are the guard's."""
    config = watched(Simulator(port=1))
    guard = config["guards"]["asm"]
    del guard["model"]
    if not answers:
        del guard["answers"]
    guard.update(fields)
    return config


# ── patterns ──────────────────────────────────────────────────────────────────────────────────────────

PICTURE = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
TEXT = {"type": "text", "text": ACCOUNT}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": json.dumps({"q": ACCOUNT})}}
SAID: dict[str, tuple[dict[str, Any], bool]] = {
    "by a user": (question(ACCOUNT), True),
    "by a USER": (question(ACCOUNT, "USER"), True),
    "before": ({"messages": [*asking(ACCOUNT), {"role": "assistant", "content": "No."}, *asking(HARMLESS)]}, True),
    "in escapes": (question(ACCOUNT), True),
    "beside a picture": (question([PICTURE, TEXT]), True),
    "in pieces": (question([{"type": "text", "text": "我的账"}, {"type": "text", "text": "号"}]), True),
    "as a prompt": ({"prompt": ACCOUNT}, True),
    "as one of many prompts": ({"prompt": [HARMLESS, ACCOUNT]}, True),
    "as input": ({"input": [{"role": "user", "content": [{"type": "input_text", "text": ACCOUNT}]}]}, True),
    "harmless": (question(HARMLESS), False),
    "by the system": (question(ACCOUNT, "system"), False),
    "by the assistant": (question(ACCOUNT, "assistant"), False),
    "in a tool call": ({"messages": [{"role": "assistant", "tool_calls": [CALL]}, *asking(HARMLESS)]}, False),
}


@pytest.mark.parametrize(("body", "denied"), SAID.values(), ids=SAID)
@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
async def test_what_users_say(gateway: Running, judge: Simulator, body: Any, denied: bool, chunked: bool) -> None:
    """S3.3-S3.5, S3.D1, S3.D2: the exact words of a refusal; neither a model nor the guard's is asked."""
    answer = await gateway.post(body, chunked=chunked)
    if denied:
        assert (answer.status, answer.body.decode()) == (403, DENIED)
    else:
        assert answer.status == 200
        assert json.loads(gateway.seen(PROVIDER).body) == body
    assert (gateway.forwarded, len(judge.requests)) == ((0, 0) if denied else (1, int(HARMLESS in str(body))))


@pytest.mark.parametrize("role", ["system", "assistant", "developer", "tool"])
async def test_other_roles(shared: Running, role: str) -> None:
    """S3.D2: where they are configured."""
    await shared.begin(patterns(checkRoles=["*"]))
    assert (await shared.post(question(ACCOUNT, role))).status == 403


@pytest.mark.parametrize("ascii_only", [True, False], ids=["escaped", "plain"])
async def test_arguments_of_tools(shared: Running, ascii_only: bool) -> None:
    """S3.D2: they are JSON in a string, in whose escapes nothing hides."""
    await shared.begin(patterns(checkRoles=["*"]))
    function = {"name": "f", "arguments": json.dumps({"q": ACCOUNT}, ensure_ascii=ascii_only)}
    call = {"id": "1", "type": "function", "function": function}
    answer = await shared.post({"messages": [*asking(HARMLESS), {"role": "assistant", "tool_calls": [call]}]})
    assert (answer.status, answer.body.decode()) == (403, DENIED)


async def test_allow_patterns(shared: Running) -> None:
    """S3.6: each text has to match one; what is denied is denied first."""
    await shared.begin(patterns(allow=["sky", "sea"]))
    for text, status in ((HARMLESS, 200), ("Why is the sea blue?", 200), ("Why?", 403), (f"sky {ACCOUNT}", 403)):
        answer = await shared.post(question(text))
        assert (answer.status, answer.body.decode() == DENIED) == (status, status == 403)


async def test_what_was_refused_once(shared: Running) -> None:
    """S3.D13: `checkLastUserMessageOnly`."""
    body = {"messages": [*asking(ACCOUNT), *asking(HARMLESS)]}
    for last_only, status in ((False, 403), (True, 200)):
        await shared.begin(patterns(checkLastUserMessageOnly=last_only))
        assert (await shared.post(body)).status == status


async def test_a_pattern_that_backtracks_elsewhere(shared: Running) -> None:
    """S3.D12: and others are served meanwhile."""
    await shared.begin(patterns(deny=["(a+)+$", "(x+x+)+y"]))
    long = "a" * 300_000 + "b" + "x" * 300_000
    async with asyncio.timeout(5):
        answers = await asyncio.gather(shared.post(question(long)), *[shared.post(question("b")) for _ in range(20)])
    assert [answer.status for answer in answers] == [200] * 21
    assert (await shared.post(question("b" + "a" * 50_000))).status == 403


@pytest.mark.parametrize(
    "host", [HOST, HOST.upper(), f"{HOST}:443", f"{HOST}.", f"{HOST}.:8080", "LLM.example.COM:18000"]
)
async def test_any_spelling_of_the_host(gateway: Running, host: str) -> None:
    """S3.1, S3.2, S3.D18: guarded, and with the key."""
    assert (await gateway.post(question(ACCOUNT), host=host)).status == 403
    assert (await gateway.post(question(HARMLESS), {"authorization": "Bearer mine"}, host=host)).status == 200
    assert dict(gateway.seen(PROVIDER).headers)["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("host", [OTHER_HOST, f"x{HOST}", f"a.{HOST}", "example.com"])
async def test_another_host(gateway: Running, judge: Simulator, host: str) -> None:
    """S3.1: none of ours, nothing is touched."""
    sent = json.dumps(question(ACCOUNT)).encode()
    answer = await gateway.post(sent, {"authorization": "Bearer mine"}, host=host, echo="true")
    assert (answer.status, answer.body) == (200, sent)
    headers = dict(gateway.seen().headers)
    assert (headers["authorization"], headers["content-length"]) == ("Bearer mine", str(len(sent)))
    assert not judge.requests


@pytest.mark.parametrize("path", ["/compatible-mode/v1/chat/completions", "/v1/completions", f"{CHAT}?a=b"])
async def test_any_path(gateway: Running, path: str) -> None:
    assert (await gateway.post(question(ACCOUNT, prompt=ACCOUNT), path=path)).status == 403
    assert (await gateway.post(question(HARMLESS, prompt=HARMLESS), path=path)).status == 200


# ── bodies ────────────────────────────────────────────────────────────────────────────────────────────


def padded(size: int, text: str = HARMLESS) -> bytes:
    """A body of `size` bytes that says `text` at its end."""
    before, after = b'{"messages":[{"content":"', json.dumps(text)[1:].encode() + b',"role":"user"}], "n" : 1.0e0}'
    return before + b"x" * (size - len(before) - len(after)) + after


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
async def test_bodies_of_any_size(shared: Running, chunked: bool) -> None:
    """S3.D16, G14: whole and untouched, or 403; beyond Envoy's buffer 413. Not one byte of those reaches a model."""
    await shared.begin(patterns())
    for size in (100, 1000, SMALL, SMALL + 1, 65_536, 200_000, BUFFER - 100_000):
        body = padded(size)
        answer = await shared.post(body, chunked=chunked, echo="true")
        assert (answer.status, answer.body == body) == (200, True), size
        reached = shared.forwarded
        denied = await shared.post(padded(size, ACCOUNT), chunked=chunked)
        assert (denied.status, denied.body.decode()) == (403, DENIED), size
        assert shared.forwarded == reached
    for size in (2 * BUFFER, 3_000_000):
        assert (await shared.post(padded(size), chunked=chunked)).status == 413
    assert shared.forwarded == reached


async def test_a_model_that_insists_on_a_length(shared: Running) -> None:
    """G5: a request that is only looked at keeps its length, up to `bodies.buffer`."""
    await shared.begin(patterns())
    for size in (100, SMALL):
        assert (await shared.post(padded(size), require_length="true")).status == 200


UNREADABLE: dict[str, tuple[bytes, Mapping[str, str]]] = {
    "one byte": (b"{", {}),
    "truncated": (padded(1000)[:-10], {}),
    "text": (b"Why is the sky blue?", {}),
    "nested": (b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", {}),
    "nested and truncated": (b"[" * 100_000, {}),
    "no texts": (b'{"anything":"x"}', {}),
    "a name twice": (b'{"messages":[],"messages":[{"role":"user","content":"x"}]}', {}),
    "not UTF-8": (b'{"messages":[{"role":"user","content":"\xff"}]}', {}),
    "UTF-16": (padded(1000).decode().encode("utf-16"), {"content-type": "application/json; charset=utf-16"}),
    "gzip": compressed(padded(1000)),
    "gzip in truth": (compressed(padded(1000))[0], {}),
    "unknown coding": (padded(1000), {"content-encoding": "snappy"}),
    "two documents": (padded(200) + padded(200), {}),
    "multipart": (b"--b\r\n\r\nx\r\n--b--\r\n", {"content-type": "multipart/form-data; boundary=b"}),
}


@pytest.mark.parametrize(("body", "headers"), UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings"])
async def test_what_cannot_be_read(shared: Running, body: bytes, headers: Mapping[str, str], path: str) -> None:
    """S3.D1: refused by default."""
    config = patterns()
    config["routing"]["paths"] = ["/elsewhere"]  # no body is edited
    await shared.begin(config)
    answer = await shared.post(body, headers, path=path)
    assert (answer.status, answer.body.decode()) == (403, DENIED)
    assert shared.forwarded == 0


async def test_what_cannot_be_read_may_pass(shared: Running) -> None:
    """S3.D1: `onUnparsable: allow`, byte by byte; what can be read is refused all the same."""
    config = patterns(onUnparsable="allow")
    config["routing"]["paths"] = ["/elsewhere"]
    await shared.begin(config)
    for body, headers in UNREADABLE.values():
        if "content-encoding" not in headers:
            answer = await shared.post(body, headers, echo="true")
            assert (answer.status, answer.body == body) == (200, True)
    assert (await shared.post(question(ACCOUNT))).status == 403
    body = padded(3_000_000)
    assert (await shared.post(body, echo="true")).body == body


async def test_an_empty_body_and_none(gateway: Running) -> None:
    """Nothing is said in them."""
    assert (await gateway.post(b"", echo="true")).status == 200
    assert (await gateway.client.send(method="GET", path="/v1/models", host=HOST)).status == 200


async def test_http_2_and_trailers_of_requests(shared: Running) -> None:
    """G11: the end of a body is told by trailers; without a length it might be a part then, and is refused."""
    await shared.begin(patterns())
    address = shared.stack.envoy.address
    for text, status in ((HARMLESS, 200), (ACCOUNT, 403)):
        body = json.dumps(question(text)).encode()
        length, checksum = [("content-length", str(len(body)))], [("x-checksum", "1")]
        for pieces in ([body], [body[:10], body[10:]], [body[:-1], body[-1:], b""]):
            assert (await ask(address, pieces, host=HOST)).status == status
            assert (await ask(address, pieces, host=HOST, headers=length)).status == status
            assert (await ask(address, pieces, host=HOST, headers=length, trailers=checksum)).status == status
            assert (await ask(address, pieces, host=HOST, trailers=checksum)).status == 413


# ── gateways that are configured otherwise ────────────────────────────────────────────────────────────

OTHERWISE: dict[str, tuple[dict[str, Any], int, int]] = {
    "no bodies": ({"allow_mode_override": False}, 500, 500),
    "streamed": ({"request_body_mode": "STREAMED", "allow_mode_override": False}, 500, 500),
    "full duplex": (
        {
            "allow_mode_override": False,
            "processing_mode": {"request_body_mode": "FULL_DUPLEX_STREAMED", "request_trailer_mode": "SEND"},
        },
        500,
        500,
    ),
    "buffered": ({"request_body_mode": "BUFFERED", "allow_mode_override": False}, 200, 403),
    "buffered in part": ({"request_body_mode": "BUFFERED_PARTIAL", "allow_mode_override": False}, 200, 403),
    "buffered, or as asked for": ({"request_body_mode": "BUFFERED"}, 200, 403),
}


@pytest.mark.parametrize(("options", "harmless", "denied"), OTHERWISE.values(), ids=OTHERWISE)
async def test_gateways_that_send_bodies_otherwise(options: dict[str, Any], harmless: int, denied: int) -> None:
    """G8: what a guard cannot see does not come back to the client; nothing that it refuses passes."""
    with environment(DASHSCOPE_API_KEY=KEY):
        async with running(patterns(), providers={PROVIDER: Options()}, gateway=options) as gateway:
            for text, status in ((HARMLESS, harmless), (ACCOUNT, denied)):
                for chunked in (False, True):
                    answer = await gateway.post(question(text), chunked=chunked)
                    assert answer.status == status
                    assert (b"choices" in answer.body) is (status == 200)


async def test_the_gateway_that_envoy_config_prints(judge: Simulator) -> None:
    """It fits the example, and waits longer than the guard does."""
    with environment(DASHSCOPE_API_KEY=KEY):
        options = fit(load_config(EXAMPLES / "guard" / "extproc.yaml").config).options
        assert float(options["message_timeout"].removesuffix("s")) > 10
        async with running(watched(judge), providers={PROVIDER: Options()}, gateway=options) as gateway:
            for text, status in ((HARMLESS, 200), (ACCOUNT, 403), (NUMBER, 403)):
                assert (await gateway.post(question(text))).status == status
            assert (await gateway.post(question(HARMLESS), IDENTITY)).status == 403
            for chunked in (False, True, False):
                assert (await gateway.post(padded(3_000_000), chunked=chunked)).status == 413
                assert (await gateway.post(question(HARMLESS))).status == 200


# ── the second look ───────────────────────────────────────────────────────────────────────────────────


async def test_what_a_model_denies(gateway: Running, judge: Simulator) -> None:
    """S3.7, S3.8, S3.12, S3.D6: what it is asked, with which key, and its words for the client."""
    odd = f'{NUMBER} \a\x00 "quoted" \U000e0001 \u2028'
    for text in (NUMBER, odd):
        answer = await gateway.post(question(text))
        verdict = '{"result":"deny","reason":"it has `qq` in it"}'
        assert (answer.status, answer.body.decode()) == (403, f"external service returned deny: {verdict}")
        (asked,) = judge.requests[-1:]
        assert (asked.method, asked.target) == ("POST", GUARD_PATH)
        headers = dict(asked.headers)
        assert (headers["authorization"], headers["content-type"]) == (f"Bearer {KEY}", "application/json")
        document = json.loads(asked.body)
        assert (document["model"], document["stream"]) == ("qwen-turbo", False)
        system, user = document["messages"]
        marker, said = user["content"].split("\n", 1)
        assert said == f"{text}\n{marker}"
        assert (system["role"], user["role"], marker in system["content"]) == ("system", "user", True)
    assert gateway.forwarded == 0
    assert (await gateway.post(question(HARMLESS))).status == 200


@pytest.mark.parametrize("each", MISBEHAVIOURS, ids=lambda each: each.what)
async def test_a_model_that_does_not_do_its_work(shared: Running, judge: Simulator, each: Misbehaviour) -> None:
    """S3.9, S3.10, S3.D3-S3.D5, S3.D11, G2: only an explicit allow allows, and never Envoy's 504."""
    await shared.begin(watched(judge, each.options, timeout=each.timeout))
    answer = await shared.post(question(HARMLESS))
    assert answer.status == (403 if each.refusal else 200)
    assert answer.body.decode().startswith(each.refusal)
    assert shared.forwarded == (0 if each.refusal else 1)


VERDICTS = {
    "nothing": '""',
    "null": "null",
    "no result": "{}",
    "result null": '{"result":null}',
    "a list": '["allow"]',
    "allow, perhaps": '{"result":"allow, perhaps"}',
    "true": '{"result":true}',
    "twice": '{"result":"deny","result":"allow"}',
    "beside it": 'allow {"result":"allow"}',
    "after it": '{"result":"allow"} but no',
}


@pytest.mark.parametrize("text", VERDICTS.values(), ids=VERDICTS)
async def test_no_clear_allow(shared: Running, judge: Simulator, text: str) -> None:
    """S3.D3, S3.D5."""
    await shared.begin(watched(judge, {"judge": "", "text": text, "frames": "1"}))
    assert (await shared.post(question(HARMLESS))).status == 403
    assert shared.forwarded == 0


@pytest.mark.parametrize(
    "text", ['{"result":"allow"}', ' {"result": " ALLOW ", "reason": ""}\n', '```\n{"result":"Allow"}\n```']
)
async def test_a_clear_allow(shared: Running, judge: Simulator, text: str) -> None:
    await shared.begin(watched(judge, {"judge": "", "text": text, "frames": "1"}))
    assert (await shared.post(question(HARMLESS))).status == 200


async def test_answers_that_are_no_completion(shared: Running, judge: Simulator) -> None:
    """S3.D4, S3.10: no choices, no content, no end."""
    for options in (
        {"body": '{"choices":[]}'},
        {"body": "{}"},
        {"body": "[" * 100_000},
        {"invalid": "true"},
        {"cut-bytes": "20"},
        {"size": "10000000"},
        {"status": "302"},
        {"encoding": "gzip", "force-encoding": "true"},
    ):
        await shared.begin(watched(judge, options))
        answer = await shared.post(question(HARMLESS))
        assert (answer.status, shared.forwarded) == (403, 0), options
        assert answer.body.startswith((b"failed to unmarshal", b"external service")), options


async def test_a_guard_that_cannot_be_reached(shared: Running, judge: Simulator) -> None:
    """S3.11; and `onFailure: allow`, which is for those who want it."""
    config = watched(judge, port=free_port())
    await shared.begin(config)
    answer = await shared.post(question(HARMLESS))
    assert (answer.status, answer.body[:17]) == (403, b"external service:")
    config["guards"]["asm"]["model"]["onFailure"] = "allow"
    await shared.begin(config)
    assert (await shared.post(question(HARMLESS))).status == 200
    assert (await shared.post(question(ACCOUNT))).status == 403


async def test_a_guard_that_hangs_holds_up_its_own_requests_only(shared: Running, judge: Simulator) -> None:
    """S3.D15, G17: 30 wait for it; others are answered meanwhile, and then those too."""
    await shared.begin(watched(judge, {"hold": "verdict", "judge": "qq"}))
    judge.forget()
    waiting = [asyncio.create_task(shared.post(question(f"{HARMLESS} {number}"))) for number in range(30)]
    await until(lambda: len(judge.requests) == 30)
    for _ in range(20):
        assert (await shared.post(question(HARMLESS), host=OTHER_HOST)).status == 200
        assert (await shared.post(question(ACCOUNT))).status == 403
    assert not any(task.done() for task in waiting)
    assert judge.release("verdict") == 30
    assert [answer.status for answer in await asyncio.gather(*waiting)] == [200] * 30


async def test_a_client_that_hangs_up_while_a_guard_thinks(shared: Running, judge: Simulator) -> None:
    await shared.begin(watched(judge, {"hold": "gone"}))
    judge.forget()
    waiting = asyncio.create_task(shared.post(question(HARMLESS)))
    await until(lambda: judge.requests)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await shared.settled()
    assert shared.forwarded == 0
    judge.release("gone")


async def test_the_same_question_is_put_once(gateway: Running, judge: Simulator) -> None:
    """Verdicts on identical texts are remembered, and shared while they are waited for."""
    answers = await asyncio.gather(*[gateway.post(question(HARMLESS)) for _ in range(20)])
    assert {answer.status for answer in answers} == {200}
    assert (await gateway.post(question(HARMLESS, temperature=0))).status == 200
    assert len(judge.requests) == 1


async def test_tokens_of_the_guard_are_metered(shared: Running, judge: Simulator) -> None:
    """S3.D15: on a descriptor of its own, once for each question."""
    config = watched(judge)
    config["services"] = {"report": {"type": "ratelimit-report", "endpoint": "limiter"}}
    config["endpoints"] = {"limiter": "embedded"}
    conditions = ["descriptors[0]['guard'] == 'asm'"]
    config["limits"] = [
        {"namespace": "guards", "max_value": 1000, "seconds": 60, "conditions": conditions, "variables": []}
    ]
    config["guards"]["asm"]["model"]["report"] = {"service": "report", "scope": "guards"}
    await shared.begin(config)
    for text in (HARMLESS, HARMLESS, NUMBER):
        await shared.post(question(text))
    await shared.settled()
    assert shared.used() == 2 * 24


async def test_shadow(shared: Running, judge: Simulator) -> None:
    """Everything passes, byte by byte, and is counted."""
    config = watched(judge)
    config["guards"]["asm"]["mode"] = "shadow"
    config["routing"]["paths"] = ["/elsewhere"]
    await shared.begin(config)
    name = "extproc_guard_verdicts_total"
    labels = frozenset({("guard", "asm"), ("subject", "request"), ("outcome", "deny"), ("mode", "shadow")})
    before = shared.samples(name).get(labels, 0)
    for text in (ACCOUNT, NUMBER):
        body = json.dumps(question(text)).encode()
        assert (await shared.post(body, echo="true")).body == body
    assert shared.samples(name)[labels] == before + 2
    for body in (b"{", padded(3_000_000)):
        assert (await shared.post(body, echo="true")).body == body
    answer = await shared.post(question(HARMLESS, **STREAM), IDENTITY)
    assert answer.body.count(b'"7"') == 40


# ── answers ───────────────────────────────────────────────────────────────────────────────────────────


async def test_streams_pass_untouched(gateway: Running) -> None:
    """S3.14: byte by byte, and event by event."""
    direct = f"http://{gateway.stack.providers[PROVIDER].address}"
    body = question(HARMLESS, **STREAM)
    answer = await gateway.post(body)
    assert answer.body == (await gateway.post(body, url=direct)).body
    headers = {"x-sim-hold": "sky", "content-type": "application/json"}
    async with gateway.client.open(json=body, headers=headers, host=HOST) as response:
        first = await response.content.readany()
        assert first.startswith(b"data: {")
        assert gateway.stack.providers[PROVIDER].release("sky") == 1
        assert first + await response.read() == answer.body


async def test_documents_pass_untouched(gateway: Running) -> None:
    direct = f"http://{gateway.stack.providers[PROVIDER].address}"
    for options in ({}, {"size": "200000"}, {"framing": "chunked"}, {"status": "500"}, {"trailers": "x-sum:1"}):
        answer = await gateway.post(question(HARMLESS), **options)
        plain = await gateway.post(question(HARMLESS), url=direct, **options)
        assert (answer.status, answer.body) == (plain.status, plain.body)


@pytest.mark.parametrize(
    ("port", "options"), [(1, {}), (2, {"framing": "chunked", "chunk": "7"}), (3, {"size": "100000"})], ids=str
)
async def test_a_document_that_may_not_be_shown(
    gateway: Running, access_log: Path, port: int, options: dict[str, str]
) -> None:
    """A 403 in its place; what was generated is counted."""
    host = f"{HOST}:{port}"
    answer = await gateway.post(question(HARMLESS), IDENTITY, host=host, **options)
    assert (answer.status, answer.body) == (403, WITHHELD)
    assert answer.headers["content-length"] == str(len(WITHHELD))
    (line,) = await logged(access_log, host, count=1)
    assert (line["responseCode"], line["totalTokens"], line["usageSource"]) == (403, 24, "reported")


async def test_a_stream_is_cut(gateway: Running, access_log: Path) -> None:
    """G6: in good order, with an error that an SDK takes for one; never a reset. What was generated is counted."""
    host = f"{HOST}:4"
    for chunk in ("0", "7", "1000"):
        answer = await gateway.post(question(HARMLESS, **STREAM), IDENTITY, host=host, chunk=chunk)
        assert answer.status == 200
        *shown, error, done, end = answer.body.split(b"\n\n")
        assert (done, end) == (b"data: [DONE]", b"")
        assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "content_filter"
        texts = [json.loads(event.removeprefix(b"data: "))["choices"][0]["delta"]["content"] for event in shown]
        assert len("".join(texts)) < 18
    told = [(line["responseCode"], line["totalTokens"]) for line in await logged(access_log, host, count=3)]
    assert told == [(200, 24)] * 3


async def test_an_sdk_raises(gateway: Running) -> None:
    """For requests, documents and streams that are refused."""
    sdk = openai.AsyncOpenAI(
        base_url=f"{gateway.stack.url}/v1",
        api_key="mine",
        max_retries=0,
        default_headers={"host": HOST, **IDENTITY},
    )
    async with sdk:
        with pytest.raises(openai.PermissionDeniedError):
            await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": ACCOUNT}])
        with pytest.raises(openai.PermissionDeniedError):
            await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": HARMLESS}])
        stream = await sdk.chat.completions.create(
            model="m", messages=[{"role": "user", "content": HARMLESS}], stream=True
        )
        with pytest.raises(openai.APIError, match="withheld"):
            async for _ in stream:
                pass


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate"])
@pytest.mark.parametrize("fields", [{}, STREAM], ids=["json", "sse"])
async def test_compressed_answers(gateway: Running, encoding: str, fields: dict[str, Any]) -> None:
    """A model that compresses all the same hides nothing."""
    forced = {"encoding": encoding, "force_encoding": "true"}
    answer = await gateway.post(question(HARMLESS, **fields), IDENTITY, **forced)
    assert answer.status == (200 if fields else 403)
    assert b"7" * 18 not in answer.body
    assert (b"content_filter" in answer.body) is bool(fields)


@pytest.mark.parametrize(
    "options",
    [{"invalid": "true"}, {"content_type": "audio/mpeg"}, {"size": "2000000"}],
    ids=["broken", "sound", "2 MB"],
)
async def test_answers_that_cannot_be_judged(gateway: Running, options: dict[str, str]) -> None:
    """They are withheld."""
    answer = await gateway.post(question(HARMLESS), **options)
    assert answer.status in (403, 500)
    assert b"choices" not in answer.body


async def test_answers_that_are_streamed_whatever_is_asked_for() -> None:
    """G8: a gateway that streams all answers shows none that nobody has looked at."""
    modes = {"request_body_mode": "BUFFERED", "response_body_mode": "STREAMED"}
    options = {"allow_mode_override": False, "processing_mode": modes}
    with environment(DASHSCOPE_API_KEY=KEY):
        async with running(patterns(answers=True), providers={PROVIDER: Options()}, gateway=options) as gateway:
            for fields in ({}, STREAM):
                answer = await gateway.post(question(HARMLESS, **fields), IDENTITY)
                assert answer.status == 200
                assert b"7" * 18 not in answer.body
                assert answer.body.count(b'"content":"7"') < 18
            assert WITHHELD in (await gateway.post(question(HARMLESS), IDENTITY)).body


# ── a service of one's own ────────────────────────────────────────────────────────────────────────────


async def test_the_webhook_of_the_examples(shared: Running) -> None:
    """It refuses, replaces and lets pass; what it replaces is all that changes."""
    async with moderation("project heron") as url:
        config = patterns()
        config["guards"]["moderation"] = {"hosts": [HOST], "webhook": {"url": url, "timeout": "2s"}}
        await shared.begin(config)
        refused = await shared.post(question("About Project Heron"))
        assert (refused.status, refused.body) == (403, b"Not here.")
        body = b'{ "n":1.00, "messages": [{"role":"user","content":"Write to ann@example.com \\u4e2d"}], "n":1.00 }'
        for chunked in (False, True):
            answer = await shared.post(body.replace(b', "n":1.00 }', b" }"), chunked=chunked, echo="true")
            assert answer.body.startswith(b'{ "n":1.00, "messages": [{"role":"user","content":"Write to [e-mail] ')
            assert json.loads(answer.body)["messages"][0]["content"] == "Write to [e-mail] 中"
            length = dict(shared.seen(PROVIDER).headers).get("content-length")
            assert length == (None if chunked else str(len(answer.body)))
        assert (await shared.post(question(HARMLESS))).status == 200
        # What is replaced may be forbidden: a guard that comes later sees what an earlier one made of it.
        config["guards"] = dict(reversed(config["guards"].items()))
        config["guards"]["asm"]["deny"] = [r"\[e-mail\]"]
        await shared.begin(config)
        assert (await shared.post(question("Write to ann@example.com"))).status == 403
    # It is gone now.
    assert (await shared.post(question("Anything else?"))).status == 403


# ── what nobody is to read ────────────────────────────────────────────────────────────────────────────


async def test_prompts_and_keys_are_in_no_log(
    gateway: Running, access_log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """S3.D8, S3.D17: at any level, neither what is refused nor why in its words."""
    caplog.set_level(logging.DEBUG, "extproc")
    for text in (ACCOUNT, NUMBER, "a harmless secret"):
        await gateway.post(question(text), {"authorization": "Bearer client-secret"})
    await gateway.post(question(HARMLESS), IDENTITY)
    await gateway.settled()
    gateway.stack.server.decisions.flush()
    log = b"".join(map(render_json, caplog.records)).decode()
    written = log + str(lines(access_log)) + gateway.stack.server.metrics.render()[0].decode()
    assert "request was denied by deny rule" in written
    for secret in (KEY, "client-secret", "1234123", "我的账号", "harmless secret", "7" * 17):
        assert secret not in written
