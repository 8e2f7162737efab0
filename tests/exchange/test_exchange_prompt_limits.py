"""Limits of prompts, asked before the model is: with the numbers of Plano's own tests, through whole exchanges."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from support.harness import OVER_LIMIT, UNKNOWN, Gateway, RecordingAuthenticator, RecordingLimiter, configured
from support.messages import json_answer, request_body, request_headers, response_body, response_headers
from support.vocabularies import loaded_vocabulary

from extproc.config.masking import masked
from extproc.identity.seam import Verdict
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.limits import LimitSet
from extproc.limiter.seam import Code, Decision, LimiterError
from extproc.usage import estimate
from extproc.usage.estimate import Estimator
from extproc.usage.vocabulary import Vocabulary
from extproc.wire.external_processor_pb2 import ProcessingResponse

KEY, VALUE = "selector-key", "selector-value"
SELECT = "x-arch-ratelimit-selector"
CHAT = "/v1/chat/completions"
EIGHT = "How many tokens does this sentence have?"
MESSAGE_OVERHEAD = 7
"""Of a single message: four around it, three for the answer."""


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def limit(
    tokens: int, value: str | None = None, *, header: str | None = KEY, model: str = "gpt-4", per: str = "minute"
) -> Any:
    selector = None if header is None else {"header": header, "value": value}
    return {"model": model, "selector": selector, "tokens": tokens, "per": per}


PROVIDERS = [
    {"name": "open-ai-gpt-4", "model": "gpt-4", "default": True, "credential": "none"},
    {"name": "open-ai-gpt-4o", "model": "gpt-4o", "models": {"gpt-4o": None, "4o": "gpt-4o"}, "credential": "none"},
    {"name": "any", "models": ["any-*"], "credential": "none"},
]


def limiting(*limits: Any, base: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A configuration; `fields` are those of `promptLimits`."""
    return {**(base or {}), "providers": PROVIDERS, "promptLimits": {"limits": list(limits), **fields}}


class Limited:
    """A gateway with the embedded limiter."""

    def __init__(self, config: Mapping[str, Any], authenticator: Any = None) -> None:
        self.clock = Clock()
        self.limiter = EmbeddedLimiter(LimitSet(), self.clock, self.clock)
        self.gateway = Gateway(config, self.limiter, authenticator)
        self.limiter.replace_limits(self.gateway.active.limits)

    async def ask(
        self, tokens: int, headers: Mapping[str, str] | None = None, *, model: str = "gpt-4", **head: Any
    ) -> int:
        """Status of the answer in the model's place to a prompt of so many tokens, 0 when it is let through."""
        return (await self.reply(tokens, headers, model=model, **head)).immediate_response.status.code

    async def reply(
        self, tokens: int, headers: Mapping[str, str] | None = None, *, model: str = "gpt-4", **head: Any
    ) -> ProcessingResponse:
        messages = request_headers(headers, **head), request_body(of(tokens, model))
        return (await self.gateway.exchange(*messages))[-1]

    @property
    def used(self) -> dict[tuple[str, ...], int]:
        return {counter.values: counter.used for counter in self.limiter.snapshot()}


def of(tokens: int, model: str = "gpt-4") -> bytes:
    """A prompt of exactly so many: it is given as token ids."""
    return orjson.dumps({"model": model, "prompt": [0] * tokens, "metadata": "x" * 1000})


def asked(gateway: Gateway) -> list[tuple[dict[str, str], int]]:
    return [(call.entries, call.query.hits_addend) for call in gateway.limiter.of("should_rate_limit")]


async def exchange(
    gateway: Gateway, body: bytes, headers: Mapping[str, str] | None = None, **head: Any
) -> ProcessingResponse:
    return (await gateway.exchange(request_headers(headers, **head), request_body(body)))[-1]


# ── how much, and in what time ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("algorithm", ["gcra", "fixed"])
async def test_prompts_are_refused_when_a_limit_is_used_up(algorithm: str) -> None:
    """S2.12, S2.13, S4.11: the request that would cross it is refused itself, and counts nothing."""
    limited = Limited(limiting(limit(50, VALUE), algorithm=algorithm))
    statuses = [await limited.ask(tokens, {KEY: VALUE}) for tokens in (47, 4, 3, 1)]
    assert statuses == [0, 429, 0, 429]
    assert limited.used == {(): 50}


@pytest.mark.parametrize("algorithm", ["gcra", "fixed"])
async def test_more_than_there_ever_is(algorithm: str) -> None:
    """S2.14: also of what nobody has used yet; and nobody is told to wait for it."""
    limited = Limited(limiting(limit(50, VALUE), algorithm=algorithm))
    reply = await limited.reply(51, {KEY: VALUE})
    assert reply.immediate_response.status.code == 429
    shown = {option.header.key: option.header.raw_value for option in reply.immediate_response.headers.set_headers}
    assert shown["x-should-retry"] == b"false"
    assert "retry-after" not in shown
    assert await limited.ask(50, {KEY: VALUE}) == 0


@pytest.mark.parametrize(("per", "seconds"), [("second", 1), ("minute", 60), ("hour", 3600), ("day", 86400)])
@pytest.mark.parametrize(("algorithm", "share"), [("gcra", 44 / 50), ("fixed", 1.0)])
async def test_time_gives_back(per: str, seconds: int, algorithm: str, share: float) -> None:
    """S2.20: 47 of 50 in a minute, and 47 more after 52.8 seconds, or when the window is over."""
    limited = Limited(limiting(limit(50, VALUE, per=per), algorithm=algorithm))
    assert await limited.ask(47, {KEY: VALUE}) == 0
    limited.clock.now += seconds * share - seconds / 1000
    assert await limited.ask(47, {KEY: VALUE}) == 429
    limited.clock.now += seconds / 500
    assert await limited.ask(47, {KEY: VALUE}) == 0


async def test_several_units_at_a_time() -> None:
    limited = Limited(limiting(limit(50, per="second"), limit(60, per="day"), onMissingSelector="shared"))
    assert await limited.ask(50) == 0
    assert await limited.ask(20) == 429
    limited.clock.now += 1
    assert [await limited.ask(20), await limited.ask(10)] == [429, 0]


# ── whose ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_limit_for_a_value_goes_before_that_for_its_key() -> None:
    """S2.15, S2.18"""
    limited = Limited(limiting(limit(100), limit(10, VALUE)))
    assert [await limited.ask(11, {KEY: VALUE}), await limited.ask(11, {KEY: "another"})] == [429, 0]
    only = Limited(limiting(limit(10, VALUE), onMissingSelector="allow"))
    assert [await only.ask(5000, {KEY: "another"}), await only.ask(5000)] == [0, 0]


async def test_each_value_has_a_bucket_of_its_own() -> None:
    """S2.16"""
    limited = Limited(limiting(limit(100, per="hour")))
    assert [await limited.ask(tokens, {KEY: value}) for value, tokens in (("1", 50), ("2", 60), ("1", 70))] == [
        0,
        0,
        429,
    ]


@pytest.mark.parametrize(
    ("headers", "model", "status"),
    [
        ({KEY: VALUE}, "any-1", 0),
        ({"another-key": VALUE}, "gpt-4", 0),
        ({KEY: VALUE}, "GPT-4", 429),
        ({KEY: VALUE}, "x", 429),
    ],
)
async def test_models_and_keys_that_no_limit_names(headers: dict[str, str], model: str, status: int) -> None:
    """S2.17: the model counts that the provider gets, whatever the client calls it."""
    limited = Limited(limiting(limit(1, VALUE), onMissingSelector="allow"))
    assert await limited.ask(5000, headers, model=model) == status


async def test_models_do_not_share() -> None:
    """S2.19; an alias is the same model."""
    limited = Limited(limiting(limit(100, VALUE), limit(200, VALUE, model="gpt-4o")))
    sent = [("gpt-4", 100), ("4o", 150), ("gpt-4o", 50), ("gpt-4", 1), ("gpt-4o", 1), ("4O", 1)]
    assert [await limited.ask(tokens, {KEY: VALUE}, model=model) for model, tokens in sent] == [0, 0, 0, 429, 429, 429]


@pytest.mark.parametrize(("mode", "statuses"), [("shared", [0, 429, 0]), ("deny", [403, 403, 0]), ("allow", [0, 0, 0])])
async def test_no_limit_is_escaped_by_leaving_a_header_out(mode: str, statuses: list[int]) -> None:
    """S2.D10: whoever sends none shares one bucket, is refused, or is let through because that is wanted."""
    limited = Limited(limiting(limit(50), onMissingSelector=mode))
    assert [await limited.ask(30, headers) for headers in ({}, {KEY: ""}, {KEY: VALUE})] == statuses


async def test_who_is_refused_for_a_missing_header_is_told_which() -> None:
    limited = Limited(limiting(limit(50), onMissingSelector="deny", base={"denyWith": "openai"}))
    reply = await limited.reply(1)
    error = json.loads(reply.immediate_response.body)["error"]
    assert (reply.immediate_response.status.code, error["code"]) == (403, "permission_denied")
    assert limited.gateway.spending.rejections["no_selector"] == 1
    assert limited.used == {}


@pytest.mark.parametrize(
    ("headers", "statuses"),
    [
        ({SELECT: KEY, KEY: VALUE}, [0, 429]),
        ({SELECT: KEY.upper(), KEY: VALUE}, [0, 429]),
        ({SELECT: "absent", KEY: VALUE}, [0, 0]),
        ({SELECT: "absent"}, [0, 0]),
        ({KEY: VALUE}, [0, 0]),
    ],
)
async def test_a_client_that_is_trusted_names_the_header(headers: dict[str, str], statuses: list[int]) -> None:
    """S2.8: the header that selects, and nothing where it names one that is not there."""
    limited = Limited(limiting(limit(50, VALUE), trustSelectorHeader=True))
    assert [await limited.ask(30, headers) for _ in range(2)] == statuses


async def test_one_that_is_not_trusted_does_not() -> None:
    """S2.D10"""
    limited = Limited(limiting(limit(50)))
    escapes = [{SELECT: "another", KEY: VALUE}, {SELECT: "", KEY: VALUE}, {KEY: VALUE}]
    assert [await limited.ask(30, headers) for headers in escapes] == [0, 429, 429]


async def test_a_selector_may_be_what_an_authenticator_says() -> None:
    """Not what the client says in its place."""
    config = limiting(limit(50, header="x-user"))
    config |= {
        "services": {"who": {"type": "auth", "endpoint": "authorino"}},
        "endpoints": {"authorino": "127.0.0.1:1"},
        "actionSets": [
            {
                "name": "llm",
                "routeRuleConditions": {"hostnames": ["*"]},
                "actions": [{"service": "who", "scope": "llm"}],
            }
        ],
    }
    verdict = Verdict(auth={}, set_headers=(("x-user", "alice"),), remove_headers=("x-user",))
    limited = Limited(config, RecordingAuthenticator(lambda: verdict))
    assert [await limited.ask(30, {"x-user": forged}) for forged in ("bob", "carol")] == [0, 429]


# ── what counts ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return loaded_vocabulary(tmp_path_factory.mktemp("vocabulary"))


def counting(vocabulary: Vocabulary | None, **routing: Any) -> Gateway:
    """A gateway with a limit for everybody, that counts with a vocabulary."""
    models = ["gpt-4", "gpt-3.5-turbo", "nobody-knows"]
    providers = [{"name": "any", "credential": "none"}]
    limits = [limit(10**6, header=None, model=model) for model in models]
    gateway = Gateway({"providers": providers, "promptLimits": {"limits": limits}, "routing": routing})
    gateway.estimator = Estimator(vocabulary)
    return gateway


def said(*contents: Any, **fields: Any) -> bytes:
    messages = [{"role": "user", "content": content} for content in contents]
    return orjson.dumps({"model": "gpt-3.5-turbo", "messages": messages, **fields})


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (orjson.dumps({"model": "gpt-3.5-turbo", "prompt": EIGHT}), 8),
        (said(EIGHT), 8 + MESSAGE_OVERHEAD),
        (said(EIGHT, EIGHT), 2 * (8 + 4) + 3),
        (said([{"type": "text", "text": EIGHT}]), 8 + MESSAGE_OVERHEAD),
        (said(EIGHT, metadata={"x": EIGHT * 100}, temperature=1, user=EIGHT), 8 + MESSAGE_OVERHEAD),
        (b" " * 1000 + said(EIGHT), 8 + MESSAGE_OVERHEAD),
        (said(None), MESSAGE_OVERHEAD),
        (said(EIGHT).replace(b"gpt-3.5-turbo", b"nobody-knows"), 8 + MESSAGE_OVERHEAD),
    ],
)
async def test_the_tokens_of_a_prompt(body: bytes, tokens: int, vocabulary: Vocabulary) -> None:
    """S2.25, S2.D20: contents of messages and what comes around each, not the JSON; S2.D9: of any model."""
    gateway = counting(vocabulary)
    await exchange(gateway, body)
    assert [hits for _, hits in asked(gateway)] == [tokens]


async def test_a_long_prompt_is_counted_and_nobody_waits_for_it(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S2.D20: 300 KB in a thread, while others are answered: it goes on only when they are."""
    answered = threading.Event()

    def when_answered(piece: str, encoding: Any) -> int:
        assert answered.wait(5)
        return count(piece, encoding)

    count = estimate._count_piece
    monkeypatch.setattr(estimate, "_count_piece", when_answered)
    monkeypatch.setattr("extproc.exchange.admission.COUNTING", 60.0)
    gateway = counting(vocabulary)
    body = said((EIGHT + " ") * 7_500)
    assert len(body) > 300_000
    long = asyncio.create_task(exchange(gateway, body))
    await asyncio.sleep(0)
    assert (await exchange(gateway, orjson.dumps({"model": "x"}), path="/v1/embeddings")).HasField("request_body")
    assert not long.done()
    answered.set()
    assert (await long).HasField("request_body")
    ((_, hits),) = asked(gateway)
    assert 7_500 * 8 <= hits <= 7_500 * 9 + MESSAGE_OVERHEAD


@pytest.mark.parametrize(
    "body",
    [
        of(0),
        orjson.dumps({"messages": []}),
        orjson.dumps({"messages": None}),
        b'{"messages":[],"temperature":1.0}',
        b"",
    ],
)
async def test_nothing_is_asked_about_no_tokens(body: bytes) -> None:
    """S2.D7"""
    gateway = Gateway(limiting(limit(1, header=None)), RecordingLimiter({"should_rate_limit": lambda: OVER_LIMIT}))
    assert (await exchange(gateway, body)).HasField("request_body")
    assert gateway.limiter.calls == []


@pytest.mark.parametrize("filler", ["\t", "\r", " ", "\x00", "\u200b"])
async def test_a_prompt_is_not_hidden_between_what_counts_little(filler: str) -> None:
    """Without a vocabulary a long text is sampled, at places that nobody can aim at."""
    gateway = counting(None)
    text = (filler * 4096 + "word " * 3181)[:20_000] * 16
    await exchange(gateway, said(text))
    ((_, hits),) = asked(gateway)
    assert hits > 16_000, "of some 51,000"


@pytest.mark.parametrize(
    "body",
    [
        said("a" * 400, x="LONE").replace(b'"LONE"', b'"\\ud800"'),
        said("a" * 400, x=0).replace(b'"x":0', b'"x":NaN'),
        said(*["a"] * 25_000),
        said("a" * 5_000_000),
    ],
    ids=["surrogate", "NaN", "many messages", "five megabytes"],
)
async def test_what_a_strict_parser_does_not_read_counts_by_its_size(body: bytes) -> None:
    """S2.D9: nobody gets around a limit by an odd body."""
    gateway = counting(None)
    assert (await exchange(gateway, body)).HasField("request_body")
    ((_, hits),) = asked(gateway)
    assert hits == -(-len(body) // 4)


async def test_only_prompts_that_are_limited_are_counted() -> None:
    """Counting takes time."""
    gateway = Gateway(limiting(limit(50, VALUE), onMissingSelector="deny"))
    await exchange(gateway, of(100, "any-1"), {KEY: VALUE})
    await exchange(gateway, of(100))
    await exchange(gateway, of(100), {KEY: VALUE}, path="/v1/embeddings")
    page = gateway.metrics.render()[0].decode()
    assert not any(line.endswith(" 1.0") for line in page.splitlines() if line.startswith("extproc_estimates"))
    assert gateway.limiter.calls == []


@pytest.mark.parametrize("path", ["/v1/chat/completions?x=1", "/V1/chat//completions", "/v1/chat/%63ompletions"])
async def test_other_spellings_of_the_path_are_limited_too(path: str) -> None:
    """S2.22, S2.D16"""
    limited = Limited(limiting(limit(50, header=None)))
    assert await limited.ask(51, path=path) == 429


async def test_paths_are_the_operators_to_choose() -> None:
    config = limiting(limit(50, header=None))
    config["routing"] = {"paths": ["/v1/completions"]}
    assert [await Limited(config).ask(51, path=path) for path in ("/v1/completions", CHAT)] == [429, 0]


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────

SECRET = "4b1d-my-private-key"


@pytest.mark.parametrize(
    ("sections", "body", "content_type"),
    [
        ({}, "Too Many Requests\n", None),
        ({"denyWith": "gloo"}, "", None),
        ({"denyWith": {"profile": "kuadrant", "body": "no\n"}}, "no\n", None),
        ({"denyWith": "openai"}, '"code":"rate_limit_exceeded"', b"application/json"),
        ({"denyWith": "anthropic"}, '"type":"rate_limit_error"', b"application/json"),
    ],
)
async def test_who_is_over_a_limit_is_told_as_always(
    sections: dict[str, Any], body: str, content_type: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """S2.D24: without the value of the selector, which may be a credential, anywhere."""
    caplog.set_level(logging.DEBUG, "extproc")
    limited = Limited(limiting(limit(50, header="authorization"), base=sections))
    assert await limited.ask(47, {"authorization": SECRET}) == 0
    reply = await limited.reply(47, {"authorization": SECRET})
    refusal = reply.immediate_response
    shown = {option.header.key: option.header.raw_value for option in refusal.headers.set_headers}
    assert refusal.status.code == 429
    assert refusal.body.decode() == body or (content_type and body in refusal.body.decode())
    assert shown.get("content-type") == content_type
    assert shown["retry-after"] == b"53"
    assert shown["x-envoy-ratelimited"] == b"true"
    gateway = limited.gateway
    told = [str(reply), gateway.metrics.render()[0].decode(), str(gateway.spending.accounts())]
    told += [
        str(masked(gateway.active.config)),
        *(f"{record.getMessage()} {record.__dict__}" for record in caplog.records),
    ]
    assert SECRET not in "\n".join(told)
    assert any("OVER_LIMIT" in text for text in told)


@pytest.mark.parametrize("profile", ["kuadrant", "openai"])
async def test_the_words_of_the_original(profile: str) -> None:
    """S2.13: its text exactly, as text, whatever the profile."""
    limited = Limited(limiting(limit(50, VALUE), legacyErrorBody=True, base={"denyWith": profile}))
    refusal = (await limited.reply(51, {KEY: VALUE})).immediate_response
    selector = 'Header { key: "selector-key", value: "selector-value" }'
    assert refusal.body.decode() == f"exceeded limit provider=gpt-4, selector={selector}, tokens_used=51"
    assert refusal.status.code == 429
    shown = {option.header.key: option.header.raw_value for option in refusal.headers.set_headers}
    assert not shown.get("content-type", b"text/plain").startswith(b"application/json")


async def test_refusals_are_counted_under_the_names_of_the_original() -> None:
    """S2.13, S2.27: from 0 on; a request is counted as refused once."""
    limited = Limited(limiting(limit(50, VALUE)))
    gateway = limited.gateway

    def numbers() -> dict[str, float]:
        lines = [line.split() for line in gateway.metrics.render()[0].decode().splitlines() if not line.startswith("#")]
        return {
            name: float(value)
            for name, value in lines
            if name in ("ratelimited_rq", "ratelimited_rq_total", "active_http_calls")
        }

    before = numbers()
    assert before["active_http_calls"] == 0
    assert set(before.values()) == {0.0}
    open_exchange = gateway.open()
    assert numbers()["active_http_calls"] == 1
    open_exchange.close()
    await limited.ask(51, {KEY: VALUE})
    await limited.ask(1, {KEY: VALUE})
    counted = {name: value for name, value in numbers().items() if name.startswith("ratelimited_rq")}
    assert set(counted.values()) == {1.0}
    assert (gateway.metrics.denied, gateway.metrics.allowed) == (1, 1)


async def test_nothing_is_charged_twice() -> None:
    """S2.D8, S2.D19: a prompt limit takes the prompt alone, whatever the model makes of it, and keeps it."""
    limited = Limited(limiting(limit(1000, header=None)))
    head, body = request_headers(), request_body(of(100))
    await limited.gateway.exchange(head, body, response_headers(), response_body(json_answer(500)))
    await limited.gateway.exchange(head, body, response_headers(status=503))
    await limited.gateway.exchange(head, body)
    assert limited.used == {(): 300}


# ── services ──────────────────────────────────────────────────────────────────────────────────────


def serving(failure_mode: str = "deny", **sections: Any) -> dict[str, Any]:
    service = {"type": "ratelimit", "endpoint": "limitador", "failureMode": failure_mode}
    config = limiting(limit(50, VALUE), limit(70), service="prompts", domain="llm/prompts")
    return configured({"services": {"prompts": service}}, **config, **sections)


async def later(outcome: Decision | Exception) -> Decision:
    await asyncio.sleep(0)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(
    ("outcome", "deny", "allow"),
    [
        (Decision(Code.OK), 0, 0),
        (OVER_LIMIT, 429, 429),
        (UNKNOWN, 500, 0),
        (LimiterError("unreachable", "no"), 500, 0),
        (LimiterError("deadline", "no"), 500, 0),
        (RuntimeError("a defect"), 500, 500),
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["deny", "allow"])
async def test_a_limiter_that_fails(
    outcome: Decision | Exception, deny: int, allow: int, mode: str, waits: bool
) -> None:
    """S2.D15, S4.D5: its service says what that means; and after a refusal nothing else is said."""
    limiter = RecordingLimiter({"should_rate_limit": lambda: later(outcome) if waits else outcome})
    gateway = Gateway(serving(mode), limiter)
    reply = await exchange(gateway, of(47), {KEY: VALUE})
    assert reply.immediate_response.status.code == (deny if mode == "deny" else allow)
    assert asked(gateway) == [({"model": "gpt-4", KEY: VALUE}, 47)]
    assert gateway.limiter.calls[0].query.domain == "llm/prompts"
    assert gateway.limiter.calls[0].metadata == (("x-request-id", "rid-1"),)


async def test_the_prompt_is_asked_about_last() -> None:
    """What other actions refuse uses up no prompt."""
    config = configured(**limiting(limit(50, VALUE)))
    gateway = Gateway(config, RecordingLimiter({"check": lambda: OVER_LIMIT}))
    reply = (await gateway.exchange(request_headers({KEY: VALUE}), request_body(of(10))))[-1]
    assert reply.immediate_response.status.code == 429
    assert [call.method for call in gateway.limiter.calls] == ["check"]
    assert gateway.metrics.guarding.prompts_limited == 0


@pytest.mark.parametrize("words", ["forbidden", "fine"])
async def test_what_a_guard_refuses_uses_up_no_prompt(words: str) -> None:
    config = limiting(limit(50, header=None), base={"guards": {"g": {"hosts": ["*"], "deny": ["forbidden"]}}})
    gateway = Gateway(config)
    reply = await exchange(gateway, said(words))
    assert reply.immediate_response.status.code == (403 if words == "forbidden" else 0)
    assert len(gateway.limiter.calls) == (0 if words == "forbidden" else 1)


async def test_a_prompt_limit_is_a_limit() -> None:
    """S1.D1: `onNoLimit: deny` refuses those for whom no limit is, and a prompt limit is one."""
    config = limiting(limit(50, VALUE), onMissingSelector="allow", base={"onNoLimit": "deny"})
    action = {
        "service": "requests",
        "scope": "r",
        "conditionalData": [{"data": [{"static": {"key": "a", "value": "1"}}]}],
    }
    config |= {
        "services": {"requests": {"type": "ratelimit", "endpoint": "embedded"}},
        "actionSets": [{"name": "llm", "routeRuleConditions": {"hostnames": ["*"]}, "actions": [action]}],
    }
    limited = Limited(config)
    assert [await limited.ask(10, headers) for headers in ({KEY: VALUE}, {KEY: "another"}, {})] == [0, 403, 403]


async def test_the_same_limits_after_a_reload() -> None:
    """S2.D18, S2.D26: what was used stays used; and a new size counts at once."""
    limited = Limited(limiting(limit(50, VALUE)))
    assert await limited.ask(47, {KEY: VALUE}) == 0
    larger = Limited(limiting(limit(100, VALUE)))
    limited.limiter.replace_limits(larger.gateway.active.limits)
    assert [await limited.ask(53, {KEY: VALUE}), await limited.ask(1, {KEY: VALUE})] == [0, 429]
