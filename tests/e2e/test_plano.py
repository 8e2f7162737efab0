"""Providers, their credentials, bodies and limits of prompts through the real Envoy, as deploy/examples/plano has them
(S2)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from support.h2_client import ask
from support.running import CHAT, Running, compressed, lines, logged, running
from support.waiting import until

from extproc.config.load import load_config
from extproc.demo.examples import EXAMPLES, environment, example
from extproc.demo.plano import (
    ASKS,
    BODY,
    EMBEDDINGS,
    GPT_4,
    GPT_4O,
    HINT,
    KEY,
    PROVIDERS,
    REWRITTEN,
    ROUTED,
    SELECTED,
    TOKENS,
    Ask,
    conversation,
)
from extproc.gateway import free_port
from extproc.gateway.fitted import fit
from extproc.telemetry.logs import render_json

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

POEM = "Compose a poem that explains the idea of recursion in code."
"""47 tokens, as a conversation."""
BUFFER = 1024 * 1024
"""Of Envoy, for a request."""
SMALL = 16 * 1024
"""Default of `bodies.buffer`."""


def plano(**sections: Any) -> dict[str, Any]:
    """The example, refusing in lines of text."""
    config = example("plano")
    del config["denyWith"]
    return {**config, **sections}


@pytest.fixture(scope="module")
def access_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plano") / "access.log"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(access_log: Path) -> AsyncIterator[Running]:
    gateway = {"access_log": access_log}
    with environment(OPENAI_API_KEY=KEY):
        async with running(plano(), providers=PROVIDERS, gateway=gateway) as found:
            yield found


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(shared: Running) -> Running:
    """With the example as it is."""
    await shared.begin(plano())
    return shared


# ── whose request it is ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ask", ASKS, ids=lambda ask: ask.what)
@pytest.mark.parametrize("path", [CHAT, f"{CHAT}?a=b"], ids=["", "with a query"])
async def test_the_provider_gets_it(gateway: Running, ask: Ask, path: str) -> None:
    """S2.1-S2.5, S2.D11, S2.D16, G13: by hint, by model or by default, never by what a client says to Envoy."""
    client = {"authorization": "Bearer the-client's", "x-api-key": "the client's", "x-arch-state": "old"}
    answer = await gateway.post(
        {**conversation(1), "model": ask.model}, {**client, **SELECTED, **ask.headers}, path=path
    )
    assert (answer.status, answer.headers["x-sim-name"]) == (200, ask.provider)
    seen = gateway.seen(ask.provider)
    assert json.loads(seen.body) == {**conversation(1), "model": ask.sent_model}
    headers = dict(seen.headers)
    assert headers["authorization"] == f"Bearer {KEY}"
    assert [value for name, value in seen.headers if name == ROUTED] == [ask.provider]
    assert not [name for name in headers if name.startswith("x-arch-") and name != ROUTED]
    assert "x-api-key" not in headers
    assert headers["content-length"] == str(seen.body_length)
    assert gateway.forwarded == 1


async def test_many_hints_at_once(gateway: Running) -> None:
    """Each request gets its own provider, model and key."""

    async def told(number: int) -> None:
        provider = (GPT_4, GPT_4O)[number % 2]
        answer = await gateway.post(conversation(1), {HINT: provider})
        assert answer.headers["x-sim-name"] == provider
        assert json.loads(answer.body)["model"] == provider.removeprefix("open-ai-")

    await asyncio.gather(*(told(number) for number in range(60)))


@pytest.mark.parametrize("hint", ["", "default"])
async def test_the_same_header_twice(gateway: Running, hint: str) -> None:
    """S2.D11: both values are replaced by one."""
    headers = [(ROUTED, GPT_4O), (ROUTED, GPT_4O), *([(HINT, hint)] if hint else [])]
    answer = await ask(gateway.stack.envoy.address, [BODY], host="llm.example.com", headers=headers)
    assert (answer.status, answer.headers["x-sim-name"]) == (200, GPT_4)
    assert [value for name, value in gateway.seen(GPT_4).headers if name == ROUTED] == [GPT_4]


REFUSED: dict[str, tuple[Any, Mapping[str, str], str]] = {
    "hint": ({}, {HINT: "gpt-17"}, f"the LLM Provider that `{HINT}` names is not known"),
    "syntax": (b'{"messages":[{"role":"system",}]}', {}, "Expecting property name enclosed in double quotes"),
    "truncated": (BODY[:-30], {}, ""),
    "list": (b"[1]", {}, ""),
    "one byte": (b"7", {}, ""),
    "not UTF-8": (b'{"model":"\xff"}', {}, ""),
    "nested": (b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", {}, ""),
    "nested and truncated": (b"[" * 100_000, {}, ""),
}


@pytest.mark.parametrize(("body", "headers", "told"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
async def test_what_is_refused(
    gateway: Running, body: Any, headers: Mapping[str, str], told: str, chunked: bool
) -> None:
    """S2.10, S2.D22: 400 with words that say why, and no model is asked."""
    answer = await gateway.post(body, headers, chunked=chunked)
    assert answer.status == 400
    assert answer.body.decode().startswith(told)
    assert gateway.forwarded == 0


async def test_a_provider_without_a_key(shared: Running) -> None:
    """S2.6: the words of the original."""
    config = plano()
    config["providers"][1].pop("credential")
    await shared.begin(config)
    answer = await shared.post(conversation(1), {HINT: GPT_4O})
    assert (answer.status, answer.body) == (
        400,
        f'No access key configured for selected LLM Provider "{GPT_4O}"'.encode(),
    )
    assert (await shared.post({"model": "omni"})).status == 400
    assert shared.forwarded == 0
    assert (await shared.post(conversation(1))).status == 200


async def test_an_unknown_hint_may_mean_the_default(shared: Running) -> None:
    """S2.D22: `unknownHint: default`."""
    await shared.begin(plano(routing={"unknownHint": "default"}))
    answer = await shared.post(conversation(1), {HINT: "gpt-17"})
    assert (answer.status, answer.headers["x-sim-name"]) == (200, GPT_4)


async def test_another_key_after_a_reload(shared: Running, tmp_path: Path) -> None:
    """S2.D26: from a file, which changes while the server runs."""
    config, key = plano(), tmp_path / "key"
    for provider in config["providers"]:
        provider["credential"] = {"file": str(key)}
    for secret in ("first", "second"):
        key.write_text(secret + "\n")
        await shared.begin(config)
        await shared.post(conversation(1))
        assert dict(shared.seen(GPT_4).headers)["authorization"] == f"Bearer {secret}"


MODES: dict[str, dict[str, Any]] = {
    "as usual": {},
    "BUFFERED": {"request_body_mode": "BUFFERED"},
    "BUFFERED_PARTIAL": {"request_body_mode": "BUFFERED_PARTIAL"},
    "BUFFERED for good": {"request_body_mode": "BUFFERED", "allow_mode_override": False},
    "BUFFERED_PARTIAL for good": {"request_body_mode": "BUFFERED_PARTIAL", "allow_mode_override": False},
}


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
async def test_a_body_that_comes_slowly_decides(options: dict[str, Any]) -> None:
    """S2.4, G4, G13: the model stands at the end, the end of the request comes later still; Envoy waits to route."""
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 70_000}], "model": "omni"}).encode()
    with environment(OPENAI_API_KEY=KEY):
        async with running(plano(), providers=PROVIDERS, gateway=options) as gateway:
            for cuts in ((500,), (500, len(body)), (1, 65_000, len(body) - 2, len(body)), (len(body),)):
                arrived = asyncio.Event()

                async def pieces(
                    cuts: tuple[int, ...] = cuts, arrived: asyncio.Event = arrived
                ) -> AsyncIterator[bytes]:
                    for start, end in zip((0, *cuts), (*cuts, len(body)), strict=True):
                        yield body[start:end]
                        # Another request goes through everything meanwhile.
                        await gateway.post({"model": "gpt-4"}, {HINT: GPT_4})
                    arrived.set()

                answer = await gateway.client.send(data=pieces(), headers={ROUTED: GPT_4}, host="llm.example.com")
                assert arrived.is_set()
                assert (answer.status, answer.headers["x-sim-name"]) == (200, GPT_4O)
                assert json.loads(answer.body)["model"] == "gpt-4o"
                assert dict(gateway.seen(GPT_4O).headers)["authorization"] == f"Bearer {KEY}"
            assert not gateway.stack.model.requests


async def test_the_gateway_that_envoy_config_prints() -> None:
    """It fits the example: providers, edits, limits, and a body that is too large, after which it still serves."""
    with environment(OPENAI_API_KEY=KEY):
        options = fit(load_config(EXAMPLES / "plano" / "extproc.yaml").config).options
        async with running(plano(), providers=PROVIDERS, gateway=options) as gateway:
            for each in ASKS:
                answer = await gateway.post({**conversation(1), "model": each.model}, each.headers)
                assert (answer.status, answer.headers["x-sim-name"]) == (200, each.provider)
            assert (await gateway.post(BODY, echo="true")).body == REWRITTEN
            assert (await gateway.post(conversation(3), SELECTED)).status == 429
            for chunked in (False, True, False):
                assert (await gateway.post(padded(3_000_000)[0], chunked=chunked)).status == 413
                assert (await gateway.post(conversation(1))).status == 200


async def test_a_gateway_that_sends_no_bodies() -> None:
    """Without `mode_override` nobody sees the model: the answer does not reach the client, no key leaves (G8)."""
    options = {"allow_mode_override": False}
    with environment(OPENAI_API_KEY=KEY):
        async with running(plano(), providers=PROVIDERS, gateway=options) as gateway:
            for headers in ({}, SELECTED):
                assert (await gateway.post(conversation(1), headers)).status == 500
            assert KEY not in str(gateway.stack.model.requests)


# ── what becomes of its body ──────────────────────────────────────────────────────────────────────────


async def test_three_edits_and_no_other_byte(gateway: Running) -> None:
    """S2.9, S2.D12, S2.D13, G5."""
    answer = await gateway.post(BODY, echo="true")
    assert answer.body == REWRITTEN
    assert dict(gateway.seen(GPT_4).headers)["content-length"] == str(len(REWRITTEN))


def padded(size: int) -> tuple[bytes, bytes]:
    """A body of `size` bytes, and what becomes of it."""
    before, after = b'{"model": "m", "messages":[{"content":"', b'","role":"user","model":1}], "n" : 1.0e0}'
    text = b"x" * (size - len(before) - len(after))
    edited = after.replace(b',"model":1', b"")
    return before + text + after, before.replace(b'"m"', b'"gpt-4"') + text + edited


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
async def test_bodies_of_any_size(gateway: Running, chunked: bool) -> None:
    """S2.7, S2.9, S2.D12, G5, G14: whole, with a length that is true or none; 413 beyond Envoy's buffer."""
    for size in (81, 1000, SMALL - 1, SMALL, SMALL + 1, 65_536, 200_000, BUFFER - 100_000):
        body, edited = padded(size)
        answer = await gateway.post(body, chunked=chunked, echo="true")
        assert (answer.status, answer.body == edited) == (200, True), size
        headers = dict(gateway.seen(GPT_4).headers)
        keeps_length = not chunked and size <= SMALL
        assert headers.get("content-length") == (str(len(edited)) if keeps_length else None), size
        assert headers.get("transfer-encoding") == (None if keeps_length else "chunked"), size
    reached = gateway.forwarded
    for size in (2 * BUFFER, 3_000_000):
        assert (await gateway.post(padded(size)[0], chunked=chunked)).status == 413
    assert gateway.forwarded == reached


async def test_a_model_that_insists_on_a_length(gateway: Running) -> None:
    """G5: longer and shorter ones, up to `bodies.buffer`."""
    for body in (BODY, padded(81)[0], padded(SMALL)[0], b'{"messages":[]}', b'{"model":"a-very-long-name"}'):
        assert (await gateway.post(body, require_length="true")).status == 200


async def test_fifty_megabytes(gateway: Running) -> None:
    """They are refused before they are there."""
    body = b'{"messages":[{"role":"user","content":"' + b"x" * 50_000_000 + b'"}]}'
    try:
        status = (await gateway.post(body, chunked=True)).status
    except aiohttp.ClientError:
        status = 413  # the connection is closed while this still writes
    assert status == 413
    assert gateway.forwarded == 0
    assert (await gateway.post(conversation(1))).status == 200


async def test_what_goes_on_as_it_is(gateway: Running) -> None:
    """S2.11, S2.22, S2.D14: an empty body, embeddings, multipart, other methods: with the key, untouched, uncounted."""
    form = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper\r\n--b--\r\n'
    odd = b'{"model": "m", "metadata": {}, "input": ["' + b"x" * 300_000 + b'"'
    for path, body, kind in (
        (CHAT, b"", "application/json"),
        (EMBEDDINGS, b'{"input": ["a"], "model": "m", "metadata": {"a": 1}}', "application/json"),
        (EMBEDDINGS, odd, "application/json"),
        (EMBEDDINGS, form, "multipart/form-data; boundary=b"),
    ):
        answer = await gateway.post(body, {**SELECTED, "content-type": kind}, path=path, echo="true")
        assert (answer.status, answer.body == body) == (200, True)
        seen = gateway.seen(GPT_4)
        assert dict(seen.headers)["content-length"] == str(len(body))
        assert dict(seen.headers)["authorization"] == f"Bearer {KEY}"
    listing = await gateway.client.send(method="GET", path="/v1/models", host="llm.example.com")
    assert listing.status == 200
    assert dict(gateway.seen(GPT_4).headers)["authorization"] == f"Bearer {KEY}"
    assert gateway.used() == 0


async def test_compressed_requests(gateway: Running) -> None:
    """Nothing can be edited or counted in them, so they are refused; elsewhere they pass."""
    body, headers = compressed(json.dumps(conversation(1)).encode())
    assert (await gateway.post(body, headers)).status == 415
    assert gateway.forwarded == 0
    assert (await gateway.post(body, headers, path=EMBEDDINGS, echo="true")).body == body


async def test_http_2_and_trailers_of_requests(gateway: Running) -> None:
    """G11: the same edits; where trailers tell the end and nothing the length, it might be a part, and is refused."""
    address, host, echo = gateway.stack.envoy.address, "llm.example.com", ("x-sim-echo", "true")
    length, checksum = ("content-length", str(len(BODY))), [("x-checksum", "1")]
    for pieces in ([BODY], [BODY[:10], BODY[10:]], [BODY[:10], BODY[10:], b""]):
        for headers, trailers in (([echo], None), ([echo, length], None), ([echo, length], checksum)):
            answer = await ask(address, pieces, host=host, headers=headers, trailers=trailers)
            assert (answer.status, answer.headers["x-sim-name"], answer.body) == (200, GPT_4, REWRITTEN)
        assert (await ask(address, pieces, host=host, trailers=checksum)).status == 413
    body = json.dumps({**conversation(1), "model": "omni"}).encode()
    answer = await ask(address, [body], host=host, headers=[("content-length", str(len(body)))], trailers=checksum)
    assert (answer.status, answer.headers["x-sim-name"]) == (200, GPT_4O)


# ── limits of prompts ─────────────────────────────────────────────────────────────────────────────────


async def test_a_minute_of_prompts(gateway: Running) -> None:
    """S2.12-S2.14, S2.D25: the poem passes, three of them are more than a minute has; no model is asked then."""
    long = await gateway.post(conversation(3), SELECTED)
    assert (long.status, long.body) == (429, b"Too Many Requests\n")
    assert long.headers["x-envoy-ratelimited"] == "true"
    assert gateway.forwarded == 0
    before = gateway.samples("ratelimited_rq_total")[frozenset()]
    assert (await gateway.post(conversation(1), SELECTED)).status == 200
    assert (await gateway.post(conversation(1), SELECTED)).status == 429
    assert gateway.samples("ratelimited_rq_total")[frozenset()] == before + 1
    assert gateway.forwarded == 1
    for headers, model in (({"selector-key": "other"}, "m"), ({}, "m"), (SELECTED, "gpt-4o")):
        assert (await gateway.post({**conversation(3), "model": model}, headers)).status == 200


async def test_a_bucket_fills_steadily(gateway: Running) -> None:
    """S2.20: 47 of 50 used, and 47 more after 52.8 s."""
    assert (await gateway.post(conversation(1, POEM), SELECTED)).status == 200
    assert gateway.used() == 47
    gateway.clock.advance(51)
    assert (await gateway.post(conversation(1, POEM), SELECTED)).status == 429
    gateway.clock.advance(1.8)
    assert (await gateway.post(conversation(1, POEM), SELECTED)).status == 200


@pytest.mark.parametrize(
    ("unit", "seconds"), [("second", 1), ("minute", 60), ("hour", 3600), ("day", 86_400)], ids=lambda each: str(each)
)
@pytest.mark.parametrize("algorithm", ["gcra", "fixed"])
async def test_units(shared: Running, unit: str, seconds: int, algorithm: str) -> None:
    """S2.20: how long a whole limit takes to come back."""
    limit = {"model": "gpt-4", "selector": "selector-key", "tokens": 47, "per": unit}
    await shared.begin(plano(promptLimits={"limits": [limit], "algorithm": algorithm}))
    assert (await shared.post(conversation(1, POEM), SELECTED)).status == 200
    shared.clock.advance(0.4 * seconds)
    assert (await shared.post(conversation(1, POEM), SELECTED)).status == 429
    shared.clock.advance(0.6 * seconds)
    assert (await shared.post(conversation(1, POEM), SELECTED)).status == 200


@pytest.mark.parametrize("value", ["selector-value", 'a "quoted" secret'])
async def test_how_a_refusal_sounds(shared: Running, value: str) -> None:
    """S2.13, S2.D24: Plano's text by option shows the selector; JSON and the plain line never do."""
    selected = {"selector-key": value}
    limits: dict[str, Any] = {"limits": [{"model": "gpt-4", "selector": "selector-key", "tokens": TOKENS}]}
    await shared.begin(plano(promptLimits={**limits, "legacyErrorBody": True}))
    shown = value.replace('"', '\\"')
    told = f'exceeded limit provider=gpt-4, selector=Header {{ key: "selector-key", value: "{shown}" }}, tokens_used=81'
    assert (await shared.post(conversation(3), selected)).body.decode() == told
    for profile in ("openai", "anthropic", "kuadrant"):
        await shared.begin(plano(promptLimits=limits, denyWith=profile))
        refused = await shared.post(conversation(3), selected)
        assert refused.status == 429
        assert value not in str(refused.headers) + refused.body.decode()
        if profile == "openai":
            assert json.loads(refused.body)["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize(
    ("options", "headers", "status"),
    [
        ({"onMissingSelector": "deny"}, {}, 403),
        ({"onMissingSelector": "allow"}, {}, 200),
        ({"onMissingSelector": "shared"}, {}, 429),
        ({"trustSelectorHeader": True}, {"selector-key": "v"}, 200),
        ({"trustSelectorHeader": True}, {"selector-key": "v", "x-arch-ratelimit-selector": "selector-key"}, 429),
        ({}, {"selector-key": "v", "x-arch-ratelimit-selector": "other"}, 429),
    ],
)
async def test_who_leaves_the_selector_out(
    shared: Running, options: dict[str, Any], headers: dict[str, str], status: int
) -> None:
    """S2.8, S2.D10: a client gets around a limit only where it is let."""
    limit = {"model": "gpt-4", "selector": "selector-key", "tokens": 40}
    await shared.begin(plano(promptLimits={"limits": [limit], **options}))
    answer = await shared.post(conversation(1), headers)
    assert answer.status == status
    assert shared.forwarded == (1 if status == 200 else 0)


async def test_a_burst_of_many_clients_is_exact(shared: Running) -> None:
    """S2.D18: 40 at the same time, 10 of whom fit."""
    limit = {"model": "gpt-4", "selector": "selector-key", "tokens": 470, "per": "day"}
    await shared.begin(plano(promptLimits={"limits": [limit]}))
    asked = [shared.post(conversation(1, POEM), SELECTED) for _ in range(40)]
    statuses = [answer.status for answer in await asyncio.gather(*asked)]
    assert (statuses.count(200), statuses.count(429)) == (10, 30)
    assert shared.forwarded == 10


# ── what comes back ───────────────────────────────────────────────────────────────────────────────────

STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


async def test_streams_are_streams(gateway: Running) -> None:
    """S2.D1, S2.D23: byte by byte those of the model, and the first event comes before the last is made."""
    body = {**conversation(1), "model": "gpt-4", **STREAM}
    direct = f"http://{gateway.stack.providers[GPT_4].address}"
    answer = await gateway.post(body)
    assert answer.body == (await gateway.post(body, url=direct)).body
    headers = {"x-sim-hold": "poem", "content-type": "application/json"}
    async with gateway.client.open(json=body, headers=headers, host="llm.example.com") as response:
        first = await response.content.readany()
        assert first.startswith(b"data: {")
        assert gateway.stack.providers[GPT_4].release("poem") == 1
        assert first + await response.read() == answer.body


async def test_what_was_used_is_told(gateway: Running, access_log: Path) -> None:
    """S2.23, S2.24: reported usage, an estimate where there is none; by provider and model."""
    host = "used.example.com"
    for fields, usage in (({}, "auto"), (STREAM, "auto"), ({"stream": True}, "none"), ({}, "none")):
        assert (await gateway.post({**conversation(1), **fields}, host=host, usage=usage)).status == 200
    told = [
        (line["model"], line["totalTokens"], line["usageSource"]) for line in await logged(access_log, host, count=4)
    ]
    assert told[:2] == [("gpt-4", 24, "reported")] * 2
    assert [(model, source) for model, _, source in told[2:]] == [("gpt-4", "estimated")] * 2
    assert all(total > 40 for _, total, _ in told[2:])
    labels = frozenset(
        {("gen_ai_provider_name", GPT_4), ("gen_ai_response_model", "gpt-4"), ("gen_ai_token_type", "output")}
    )
    assert gateway.samples("gen_ai_client_token_usage_count")[labels] >= 4


@pytest.mark.parametrize("options", [{"status": "500"}, {"status": "429"}, {"invalid": "true"}])
async def test_what_fails_behind_us_is_not_our_answer(gateway: Running, options: dict[str, str]) -> None:
    """S2.D23, S2.D19: the model's own error arrives; the prompt that it was asked stays charged."""
    direct = f"http://{gateway.stack.providers[GPT_4].address}"
    answer = await gateway.post(conversation(1, POEM), SELECTED, **options)
    plain = await gateway.post({**conversation(1, POEM), "model": "gpt-4"}, url=direct, **options)
    assert (answer.status, answer.body) == (plain.status, plain.body)
    await gateway.settled()
    assert gateway.used() == 47


async def test_a_stream_that_breaks_off(gateway: Running) -> None:
    """G6, S2.D23: it breaks off for the client as well, with nothing of ours in it."""
    with pytest.raises(aiohttp.ClientPayloadError):
        await gateway.post({**conversation(1, POEM), **STREAM}, SELECTED, cut_frames="3", frame_ms="10")
    await gateway.settled()
    assert gateway.used() == 47


async def test_a_provider_that_is_not_there() -> None:
    """Envoy's 503, for its requests only."""
    gone = {GPT_4: f"127.0.0.1:{free_port()}"}
    with environment(OPENAI_API_KEY=KEY):
        async with running(plano(), gateway={"providers": gone}) as gateway:
            assert (await gateway.post(conversation(1), SELECTED)).status == 503
            assert (await gateway.post(conversation(1), {HINT: GPT_4O})).status == 200


# ── precharge ─────────────────────────────────────────────────────────────────────────────────────────


def precharging(on_failure: str, maximum: int = 1000) -> dict[str, Any]:
    """Tokens checked before and reported after the call, the prompt charged at once."""
    data = [{"expression": {"key": "user", "value": "request.headers['x-user']"}}]
    total = {"expression": {"key": "ratelimit.hits_addend", "value": "usage.total_tokens"}}
    return plano(
        services={
            name: {"type": f"ratelimit-{name}", "endpoint": "limiter", "failureMode": "deny", "timeout": "1s"}
            for name in ("check", "report")
        },
        endpoints={"limiter": "embedded"},
        actionSets=[
            {
                "name": "all",
                "routeRuleConditions": {"hostnames": ["*"]},
                "actions": [
                    {"service": "check", "scope": "tokens", "conditionalData": [{"data": data}]},
                    {"service": "report", "scope": "tokens", "conditionalData": [{"data": [*data, total]}]},
                ],
            }
        ],
        limits=[
            {"namespace": "tokens", "max_value": maximum, "seconds": 60, "variables": ["descriptors[0]['user']"]},
        ],
        precharge={"charge": "prompt", "onFailure": on_failure},
    )


@pytest.mark.parametrize(("on_failure", "left"), [("keep", 47), ("refund", 0)])
@pytest.mark.parametrize("options", [{"status": "500"}, {"status": "404"}], ids=["500", "404"])
async def test_a_prompt_charged_for_nothing(
    shared: Running, on_failure: str, left: int, options: dict[str, str]
) -> None:
    """S2.D19, S4.D4: kept or given back, as configured."""
    await shared.begin(precharging(on_failure))
    answer = await shared.post(conversation(1, POEM), {"x-user": "ann"}, **options)
    assert str(answer.status) == options["status"]
    await shared.settled()
    assert shared.used() == left


@pytest.mark.parametrize("on_failure", ["keep", "refund"])
@pytest.mark.parametrize("fields", [{}, STREAM], ids=["json", "sse"])
async def test_a_prompt_is_charged_once(shared: Running, on_failure: str, fields: dict[str, Any]) -> None:
    """S4.11: before the call the estimate, after it the rest of what was reported."""
    await shared.begin(precharging(on_failure))
    asked = {**conversation(1, POEM), **fields}
    body, options = asked, {"prompt_tokens": "60", "completion_tokens": "40"}
    assert (await shared.post(body, {"x-user": "ann"}, **options)).status == 200
    await shared.settled()
    assert shared.used() == 100
    # The prompt was estimated too high: what is too much stays or is given back.
    await shared.post(body, {"x-user": "bob"}, prompt_tokens="20", completion_tokens="7")
    await shared.settled()
    assert shared.used() - 100 == (27 if on_failure == "refund" else 47)


async def test_a_prompt_that_would_cross_the_limit_is_refused(shared: Running) -> None:
    """S4.11: before any model is asked."""
    await shared.begin(precharging("keep", maximum=100))
    statuses = [(await shared.post(conversation(1, POEM), {"x-user": "ann"})).status for _ in range(3)]
    assert (statuses, shared.forwarded) == ([200, 200, 429], 2)


# ── what nobody is to read ────────────────────────────────────────────────────────────────────────────


async def test_secrets_and_prompts_are_in_no_log(
    shared: Running, access_log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """S2.D17, S2.D24: credentials, the client's too, prompts and selectors; at any level."""
    caplog.set_level(logging.DEBUG, "extproc")
    await shared.begin(plano())
    hidden = {"authorization": "Bearer client-secret", "selector-key": "selector-value"}
    for body, headers in (
        (conversation(1), hidden),
        (conversation(3), hidden),
        (BODY, {**hidden, HINT: "gpt-17-secret"}),
        (b'{"messages": "poetic', hidden),
    ):
        await shared.post(body, headers)
    await shared.settled()
    shared.stack.server.decisions.flush()
    page = shared.stack.server.metrics.render()[0].decode()
    log = b"".join(map(render_json, caplog.records)).decode()
    written = log + str(lines(access_log)) + page
    assert '"event":"denied"' in log
    for secret in (KEY, "client-secret", "selector-value", "gpt-17-secret", "poetic"):
        assert secret not in written


@pytest.mark.parametrize("fields", [{}, STREAM], ids=["json", "sse"])
async def test_a_client_that_hangs_up(gateway: Running, fields: dict[str, Any]) -> None:
    """Nothing stays under way."""
    asking = asyncio.create_task(gateway.post({**conversation(1), **fields}, hold="for-ever"))
    await until(lambda: gateway.forwarded)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await gateway.settled()
    assert (await gateway.post(conversation(1))).status == 200
