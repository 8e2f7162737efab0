"""Charging the prompt before the call and the rest after it: never twice, and nothing for what was refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.harness import OK, Gateway, RecordingLimiter
from support.messages import (
    json_answer,
    request_body,
    request_headers,
    response_body,
    response_headers,
    sse_frames,
)

from extproc.active import activate
from extproc.config.errors import ConfigError
from extproc.config.load import parse_config
from extproc.config.model import Config, Service
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.limits import LimitSet
from extproc.limiter.seam import Decision, LimiterError, Metadata, Query
from extproc.wire.external_processor_pb2 import ProcessingRequest, ProcessingResponse
from extproc.wire.processing_mode_pb2 import ProcessingMode

PROMPT = 60
"""Tokens of what is asked unless a test says otherwise."""
TOTAL = "usage.total_tokens"


def of(tokens: int, **fields: Any) -> bytes:
    """A prompt of exactly so many: it is given as token ids."""
    return orjson.dumps({"model": "m", "prompt": [0] * tokens, **fields})


def entry(key: str, value: str) -> dict[str, Any]:
    return {"expression": {"key": key, "value": value}}


USER = entry("user", "request.headers['x-user']")


def action(service: str, *entries: dict[str, Any], scope: str = "llm", hits: str | None = None) -> dict[str, Any]:
    data = [*(entries or (USER,)), *([] if hits is None else [entry("ratelimit.hits_addend", hits)])]
    return {"service": service, "scope": scope, "conditionalData": [{"data": data}]}


CHECK, REPORT = action("check"), action("report", hits=TOTAL)
NEVER = action("all", entry("a", "'1'"), scope="never")
"""Over its limit for everybody."""


def charging(
    *actions: dict[str, Any], on_failure: str = "keep", maximum: int = 10_000, algorithm: str = "fixed", **sections: Any
) -> dict[str, Any]:
    kinds = {"check": "ratelimit-check", "recheck": "ratelimit-check", "report": "ratelimit-report", "all": "ratelimit"}
    by_user = {"namespace": "llm", "max_value": maximum, "seconds": 3600, "variables": ["descriptors[0].user"]}
    return {
        "services": {name: {"type": kind, "endpoint": "here"} for name, kind in kinds.items()},
        "endpoints": {"here": "embedded", "there": "embedded"},
        "precharge": {"charge": "prompt", "onFailure": on_failure},
        "limits": [by_user | {"algorithm": algorithm}, {"namespace": "never", "max_value": 0, "seconds": 3600}],
        "actionSets": [
            {
                "name": "llm",
                "routeRuleConditions": {"hostnames": ["*"]},
                "actions": list(actions or (CHECK, REPORT)),
            }
        ],
        **sections,
    }


class Counting:
    """A gateway with the embedded limiter."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.ahead = 0.0
        self.limiter = EmbeddedLimiter(LimitSet(), lambda: monotonic() + self.ahead)
        self.gateway = Gateway(config, self.limiter)
        self.limiter.replace_limits(self.gateway.active.limits)

    async def play(self, *messages: ProcessingRequest) -> list[ProcessingResponse]:
        return await self.gateway.exchange(*messages)

    def used(self, user: str = "a") -> int:
        return sum(counter.used for counter in self.limiter.snapshot() if counter.values == (user,))


def asking(tokens: int = PROMPT, user: str = "a", **head: Any) -> tuple[ProcessingRequest, ProcessingRequest]:
    return request_headers({"x-user": user}, **head), request_body(of(tokens))


def answered(total: int) -> tuple[ProcessingRequest, ProcessingRequest]:
    return response_headers(), response_body(json_answer(total))


def recorded(gateway: Gateway) -> list[tuple[str, int]]:
    return [(call.method, call.query.hits_addend) for call in gateway.limiter.calls]


# ── before the call, and after it ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("waits", [False, True])
async def test_the_prompt_is_charged_before_and_the_rest_after(waits: bool) -> None:
    """S2.D8, S4.11: whether the limiter answers at once or not."""

    async def later() -> Decision:
        await asyncio.sleep(0)
        return OK

    outcome: Callable[[], Any] = later if waits else lambda: OK
    methods = ("check", "should_rate_limit", "report")
    gateway = Gateway(charging(endpoints={"here": "limitador:1"}), RecordingLimiter(dict.fromkeys(methods, outcome)))
    head, body = asking()
    replies = await gateway.exchange(head, body, *answered(500))
    assert replies[0].mode_override.request_body_mode == ProcessingMode.BUFFERED_PARTIAL
    assert recorded(gateway) == [("should_rate_limit", PROMPT), ("report", 500 - PROMPT)]
    first, second = (call.query for call in gateway.limiter.calls)
    assert first.descriptors == second.descriptors == ((("user", "a"),),)
    assert gateway.metrics.tokens_reported == 500


async def test_a_request_that_would_cross_the_limit_is_refused() -> None:
    """S4.11: and counts nothing; the one that exactly fits is let through."""
    counting = Counting(charging(maximum=100))
    statuses = [
        (await counting.play(*asking(tokens)))[-1].immediate_response.status.code for tokens in (101, 90, 11, 10, 1)
    ]
    assert statuses == [429, 0, 429, 0, 429]
    assert counting.used() == 100


@pytest.mark.parametrize("algorithm", ["fixed", "gcra"])
@pytest.mark.parametrize(("total", "keep", "refund"), [(500, 500, 500), (60, 60, 60), (24, 60, 24), (12, 60, 12)])
@pytest.mark.parametrize("on_failure", ["keep", "refund"])
async def test_what_a_counter_has_afterwards(
    total: int, keep: int, refund: int, on_failure: str, algorithm: str
) -> None:
    """What was reported, unless more than that was charged before and is to stay."""
    counting = Counting(charging(on_failure=on_failure, algorithm=algorithm))
    await counting.play(*asking(), *answered(total))
    assert counting.used() == (keep if on_failure == "keep" else refund)
    (account,) = counting.gateway.spending.accounts()
    assert account.tokens == total


async def test_a_remote_limiter_is_told_nothing_where_too_much_was_charged() -> None:
    """S2.D19: hits are unsigned there."""
    gateway = Gateway(charging(endpoints={"here": "limitador:1"}), RecordingLimiter())
    await gateway.exchange(*asking(), *answered(24))
    assert recorded(gateway) == [("should_rate_limit", PROMPT)]


def test_and_cannot_be_asked_to_give_back() -> None:
    with pytest.raises(ConfigError, match=r"precharge\.onFailure: .*cannot give back"):
        Gateway(charging(endpoints={"here": "limitador:1"}, on_failure="refund"), RecordingLimiter())


@pytest.mark.parametrize("tokens", [None, 0])
async def test_without_a_prompt_it_is_only_asked_whether_there_is_room(tokens: int | None) -> None:
    """S2.D7"""
    gateway = Gateway(charging(), RecordingLimiter())
    head = request_headers({"x-user": "a"}, ends=tokens is None)
    await gateway.exchange(head, *([] if tokens is None else [request_body(of(tokens))]), *answered(24))
    assert recorded(gateway) == [("check", 1), ("report", 24)]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_methods_that_generate_nothing_are_charged_nothing(method: str) -> None:
    counting = Counting(charging())
    await counting.play(*asking(method=method), *answered(500))
    assert counting.used() == 0


async def test_an_action_set_may_have_its_own_way() -> None:
    config = charging()
    config["actionSets"][0]["precharge"] = "none"
    gateway = Gateway(config, RecordingLimiter())
    await gateway.exchange(*asking(), *answered(24))
    assert recorded(gateway) == [("check", 1), ("report", 24)]


async def test_a_stream_is_settled_like_anything_else() -> None:
    counting = Counting(charging(on_failure="refund"))
    frames = [response_body(frame, ends=False) for frame in sse_frames(24)]
    await counting.play(*asking(), response_headers({"content-type": "text/event-stream"}), *frames)
    assert counting.used() == 24


async def test_the_prompt_is_the_one_that_the_provider_gets() -> None:
    """Not what is taken out of the body; and the model that counts is the provider's."""
    config = charging(
        providers=[{"name": "p", "model": "m", "credential": "none"}],
        promptLimits={"limits": [{"model": "m", "tokens": 99}]},
    )
    gateway = Gateway(config, RecordingLimiter())
    await gateway.exchange(request_headers({"x-user": "a"}), request_body(of(PROMPT, metadata="x" * 10_000)))
    assert recorded(gateway) == [("should_rate_limit", PROMPT), ("should_rate_limit", PROMPT)]
    assert [call.query.domain for call in gateway.limiter.calls] == ["llm", "prompts"]


# ── what fails ────────────────────────────────────────────────────────────────────────────────────

ENDINGS: dict[str, list[ProcessingRequest]] = {
    "upstream 500": [response_headers(status=500), response_body(b"{}")],
    "upstream 429": [response_headers(status=429, ends=True)],
    "gone before the headers": [],
    "reset after the headers": [response_headers()],
    "an empty answer": [response_headers(ends=True)],
    "an empty body": [response_headers(), response_body(b"")],
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(("on_failure", "used"), [("keep", PROMPT), ("refund", 0)])
async def test_a_call_that_fails(ending: str, on_failure: str, used: int) -> None:
    """S2.D19, S4.D4: what was charged stays, or is given back."""
    counting = Counting(charging(on_failure=on_failure))
    await counting.play(*asking(), *ENDINGS[ending])
    assert counting.used() == used


async def test_half_an_answer_is_no_failed_call() -> None:
    counting = Counting(charging(on_failure="refund"))
    frames = [response_body(frame, ends=False) for frame in sse_frames(None)[:3]]
    await counting.play(*asking(), response_headers({"content-type": "text/event-stream"}), *frames)
    assert counting.used() > PROMPT


REFUSALS: dict[str, tuple[dict[str, Any], int]] = {
    "a limit after it": (charging(CHECK, NEVER, REPORT), 429),
    "a prompt limit": (
        charging(
            providers=[{"name": "p", "model": "m", "credential": "none"}],
            promptLimits={"limits": [{"model": "m", "tokens": 1}]},
        ),
        429,
    ),
    "a selector that is missing": (
        charging(
            providers=[{"name": "p", "model": "m", "credential": "none"}],
            promptLimits={"limits": [{"model": "m", "tokens": 99, "selector": "x-s"}], "onMissingSelector": "deny"},
        ),
        403,
    ),
    "an action that fails": (charging(CHECK, action("all", entry("a", "request.headers['none']")), REPORT), 500),
}


@pytest.mark.parametrize("why", REFUSALS)
@pytest.mark.parametrize("on_failure", ["keep", "refund"])
async def test_a_request_that_is_refused_later_counts_nothing(why: str, on_failure: str) -> None:
    """Whatever is to be kept of a call that fails: no call was made."""
    config, status = REFUSALS[why]
    counting = Counting({**config, "precharge": {"charge": "prompt", "onFailure": on_failure}})
    for _ in range(3):
        reply = (await counting.play(*asking()))[-1]
        assert reply.immediate_response.status.code == status
    assert counting.used() == 0


@pytest.mark.parametrize("body", [of(PROMPT)[:-1], b"\xff"])
async def test_a_body_that_cannot_be_read_counts_nothing(body: bytes) -> None:
    counting = Counting(charging())
    reply = (await counting.play(request_headers({"x-user": "a"}), request_body(body)))[-1]
    assert reply.immediate_response.status.code == 400
    assert counting.used() == 0


async def test_a_guard_refuses_before_anything_is_charged() -> None:
    counting = Counting(charging(guards={"g": {"hosts": ["*"], "deny": ["forbidden"]}}))
    body = orjson.dumps({"messages": [{"role": "user", "content": "forbidden"}]})
    reply = (await counting.play(request_headers({"x-user": "a"}), request_body(body)))[-1]
    assert reply.immediate_response.status.code == 403
    assert counting.used() == 0


@pytest.mark.parametrize("outcome", [LimiterError("deadline", "x"), RuntimeError("a defect")])
async def test_without_an_answer_nothing_is_taken_for_charged(outcome: Exception) -> None:
    """Whoever is let through all the same is charged all of it afterwards."""
    config = charging()
    config["services"]["check"]["failureMode"] = "allow"
    limiter = RecordingLimiter({"should_rate_limit": lambda: outcome})
    gateway = Gateway(config, limiter)
    await gateway.exchange(*asking(), *answered(500))
    assert recorded(gateway) == [("should_rate_limit", PROMPT), ("report", 500)]


async def test_a_stream_that_ends_while_a_limiter_thinks_gives_back() -> None:
    """The first check has charged; the second one never answers; the client hangs up."""
    asked = asyncio.Event()

    class Slow(EmbeddedLimiter):
        def should_rate_limit(self, query: Query, metadata: Metadata = ()) -> Decision:
            if query.domain != "slow":
                return super().should_rate_limit(query, metadata)
            asked.set()
            return asyncio.get_running_loop().create_future()  # type: ignore[return-value]

    config = charging(CHECK, action("all", scope="slow"), REPORT, on_failure="refund")
    limiter = Slow(LimitSet())
    gateway = Gateway(config, limiter)
    limiter.replace_limits(gateway.active.limits)
    exchange = gateway.open()
    stream = asyncio.create_task(gateway.send(exchange, *asking()))
    await asked.wait()
    assert [counter.used for counter in limiter.snapshot()] == [PROMPT]
    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stream
    exchange.close()
    await gateway.reports.flush(5)
    assert [counter.used for counter in limiter.snapshot()] == [0]


@pytest.mark.parametrize("algorithm", ["fixed", "gcra"])
async def test_a_refund_is_for_the_window_that_was_charged(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that began since then keeps what others have used of it; a bucket has no windows."""
    counting = Counting(charging(on_failure="refund", algorithm=algorithm))
    for module in ("limits", "refunds"):
        monkeypatch.setattr(f"extproc.exchange.{module}.monotonic", lambda: monotonic() + counting.ahead)
    exchange = counting.gateway.open()
    await counting.gateway.send(exchange, *asking())
    counting.ahead += 3601
    await counting.play(*asking(), *answered(100))
    await counting.gateway.send(exchange, response_headers(status=500))
    exchange.close()
    await counting.gateway.reports.flush(5)
    assert counting.used() == (100 if algorithm == "fixed" else 40)


# ── which report goes with which check ────────────────────────────────────────────────────────────

PROMPT_TOKENS, COMPLETION = (
    action("report", hits="usage.prompt_tokens"),
    action("report", hits="usage.completion_tokens"),
)
MODEL = entry("model", "responseBodyJSON('/model')")
BY_MODEL = action("report", USER, MODEL, hits=TOTAL)


@pytest.mark.parametrize(
    ("actions", "total", "keep", "refund"),
    [
        # several reports of one descriptor share what was charged
        ([CHECK, PROMPT_TOKENS, COMPLETION], 36, 60, 36),
        ([CHECK, COMPLETION, PROMPT_TOKENS], 36, 60, 36),
        ([CHECK, COMPLETION, PROMPT_TOKENS], 500, 500, 500),
        ([CHECK, REPORT, REPORT], 500, 1000, 1000),
        ([CHECK, REPORT, REPORT], 24, 60, 48),
        # several checks of one descriptor charge it once
        ([CHECK, CHECK, REPORT], 500, 500, 500),
        ([CHECK, action("recheck"), REPORT], 100, 100, 100),
        ([CHECK, action("recheck"), REPORT], 24, 60, 24),
        # a report may have more entries than its check
        ([CHECK, BY_MODEL], 500, 500, 500),
        # none that belongs to it: what was asked is charged, and what was answered is not
        ([CHECK], 500, 60, 60),
        ([CHECK, action("report", scope="another", hits=TOTAL)], 500, 60, 60),
        # another kind of charge is none of ours
        ([CHECK, action("all"), REPORT], 500, 501, 501),
        ([action("all"), REPORT], 500, 501, 501),
    ],
)
@pytest.mark.parametrize("on_failure", ["keep", "refund"])
async def test_nothing_is_counted_twice(
    actions: Sequence[dict[str, Any]], total: int, keep: int, refund: int, on_failure: str
) -> None:
    counting = Counting(charging(*actions, on_failure=on_failure))
    await counting.play(*asking(), *answered(total))
    assert counting.used() == (keep if on_failure == "keep" else refund)


@pytest.mark.parametrize("order", [1, -1])
async def test_the_report_that_is_like_the_check_goes_with_it(order: int) -> None:
    """And not one for other counters besides, whichever comes first."""
    gateway = Gateway(charging(CHECK, *[REPORT, BY_MODEL][::order]), RecordingLimiter())
    await gateway.exchange(*asking(), *answered(500))
    hits = {tuple(call.entries): call.query.hits_addend for call in gateway.limiter.of("report")}
    assert hits == {("user",): 500 - PROMPT, ("user", "model"): 500}


async def test_different_descriptors_are_charged_each() -> None:
    by_team = action("check", entry("team", "'red'")), action("report", entry("team", "'red'"), hits=TOTAL)
    gateway = Gateway(charging(CHECK, by_team[0], REPORT, by_team[1]), RecordingLimiter())
    await gateway.exchange(*asking(), *answered(500))
    assert recorded(gateway) == [("should_rate_limit", PROMPT)] * 2 + [("report", 500 - PROMPT)] * 2


async def test_labels_are_no_counters() -> None:
    """`requestData` makes the second descriptor, which a report may know more of than its check."""
    labels = {"metrics.labels.path": "request.path", "metrics.labels.model": "responseBodyJSON('/model')"}
    gateway = Gateway(charging(requestData=labels), RecordingLimiter())
    await gateway.exchange(*asking(), *answered(500))
    before, after = gateway.limiter.calls
    assert (len(before.query.descriptors[1]), len(after.query.descriptors[1])) == (1, 2)
    assert after.query.hits_addend == 500 - PROMPT


async def test_two_limiters_with_the_same_descriptors_are_two() -> None:
    """Each was charged the prompt, and each is told the rest."""
    here, there = RecordingLimiter(), RecordingLimiter()
    config = charging(CHECK, action("recheck"), REPORT, action("retell", hits=TOTAL))
    config["services"]["recheck"]["endpoint"] = "there"
    config["services"]["retell"] = {"type": "ratelimit-report", "endpoint": "there"}
    gateway = Gateway(config)

    def limiter_for(_: Config, service: Service) -> RecordingLimiter:
        return here if service.endpoint == "here" else there

    gateway.active = activate(
        parse_config(orjson.dumps(config).decode(), name="test.json", base=Path.cwd()), limiter_for
    )
    await gateway.exchange(*asking(), *answered(500))
    for limiter in (here, there):
        assert [(call.method, call.query.hits_addend) for call in limiter.calls] == [
            ("should_rate_limit", PROMPT),
            ("report", 500 - PROMPT),
        ]


# ── whatever happens ──────────────────────────────────────────────────────────────────────────────


class Watched(EmbeddedLimiter):
    """Says when a counter is below 0 or a refund is for what nobody charged."""

    def __init__(self) -> None:
        super().__init__(LimitSet())
        self.charged = 0

    def should_rate_limit(self, query: Query, metadata: Metadata = ()) -> Decision:
        decision = super().should_rate_limit(query, metadata)
        self.charged += query.hits_addend if decision == OK else 0
        return decision

    def report(self, query: Query, metadata: Metadata = ()) -> Decision:
        self.charged += query.hits_addend
        return super().report(query, metadata)

    def refund(self, query: Query, metadata: Metadata = (), age: float = 0.0) -> Decision:
        self.charged -= query.hits_addend
        assert self.charged >= 0
        assert query.hits_addend > 0
        return super().refund(query, metadata, age)


Exchanged = tuple[str, int, int, str]
"""Who asks how much, what is reported, and how it ends."""

EXCHANGES = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.integers(0, 300),
        st.integers(12, 600),
        st.sampled_from(["answered", "answered", "streamed", *ENDINGS]),
    ),
    max_size=12,
)


def messages_of(exchanged: Exchanged) -> list[ProcessingRequest]:
    user, prompt, total, ending = exchanged
    if ending == "streamed":
        frames = [response_body(frame, ends=False) for frame in sse_frames(total)]
        return [*asking(prompt, user), response_headers({"content-type": "text/event-stream"}), *frames]
    return [*asking(prompt, user), *(answered(total) if ending == "answered" else ENDINGS[ending])]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(EXCHANGES, st.sampled_from(["keep", "refund"]), st.sampled_from([500, 10**6]), st.booleans())
async def test_a_counter_is_the_sum_of_what_was_reported(
    exchanges: list[Exchanged], on_failure: str, maximum: int, refused_later: bool
) -> None:
    """Of all requests that were let through and answered; whatever their order, and whatever came between."""
    later = [action("all", entry("user", "request.headers['x-user']"), scope="never")] if refused_later else []
    config = charging(CHECK, *later, PROMPT_TOKENS, COMPLETION, on_failure=on_failure, maximum=maximum)
    limiter = Watched()
    gateway = Gateway(config, limiter)
    limiter.replace_limits(gateway.active.limits)
    expected = {"a": 0, "b": 0}
    for exchanged in exchanges:
        user, prompt, total, ending = exchanged
        fits = expected[user] + max(prompt, 1) <= maximum
        replies = await gateway.exchange(*messages_of(exchanged))
        refused = any(reply.HasField("immediate_response") for reply in replies)
        assert refused == (refused_later or not fits)
        if refused:
            continue
        success = ending in ("answered", "streamed")
        expected[user] += max(total if success else 0, prompt if on_failure == "keep" else 0)
        found = {counter.values: counter.used for counter in limiter.snapshot()}
        assert found.get((user,), 0) == expected[user]
    assert sum(expected.values()) == limiter.charged


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 300), st.integers(12, 600)), min_size=2, max_size=5),
    st.randoms(use_true_random=False),
)
async def test_at_the_same_time_too(asked: list[tuple[str, int, int]], random: Random) -> None:
    """The messages of several exchanges in any order."""
    counting = Counting(charging(on_failure="refund"))
    left = {counting.gateway.open(): messages_of((*one, "answered")) for one in asked}
    while left:
        exchange = random.choice(list(left))
        await counting.gateway.send(exchange, left[exchange].pop(0))
        if not left[exchange]:
            exchange.close()
            del left[exchange]
    await counting.gateway.reports.flush(5)
    for name in "ab":
        assert counting.used(name) == sum(total for user, _, total in asked if user == name)
