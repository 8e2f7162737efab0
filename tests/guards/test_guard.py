"""One guard, and the room in which guards are made: the order of who is asked, and what cannot be made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from support.guards import DENIED, DENY
from support.http_peer import HttpPeer, reply

from extproc.config.errors import ConfigError
from extproc.config.guards import Guard as GuardConfig
from extproc.guards.guard import Guard
from extproc.guards.room import GuardRoom
from extproc.guards.seam import Asked, Text, Verdict

ASM = "request was denied by asm llm proxy"
ALLOW = reply(b'{"choices":[{"message":{"content":"{\\"result\\":\\"allow\\"}"}}],"usage":{"total_tokens":42}}')
DENY_MODEL = reply(b'{"choices":[{"message":{"content":"{\\"result\\":\\"deny\\"}"}}],"usage":{"total_tokens":7}}')
Bench = dict[str, HttpPeer]


@pytest.fixture
async def room() -> AsyncIterator[GuardRoom]:
    room = GuardRoom()
    yield room
    await room.close()


@pytest.fixture
async def peers() -> AsyncIterator[Bench]:
    """By what they say."""
    scripts = {
        "allow": ALLOW,
        "deny": DENY_MODEL,
        "hook allows": reply(b'{"decision":"allow"}'),
        "hook denies": reply(b'{"decision":"deny","message":"no"}'),
        "hook replaces": reply(b'{"decision":"replace","texts":[{"index":0,"text":"***"}]}'),
        "failure": reply(b"", 500),
    }
    peers = {name: await HttpPeer(script).start() for name, script in scripts.items()}
    yield peers
    for peer in peers.values():
        await peer.stop()


def guard(room: GuardRoom, peers: Bench | None = None, **fields: Any) -> Guard:
    """A guard; `model` and `webhook` are names of peers."""
    peers = peers or {}
    if isinstance(fields.get("model"), str):
        port = peers[fields["model"]].port
        fields["model"] = {"host": "127.0.0.1", "port": port, "scheme": "http", "credential": "none"}
    if isinstance(fields.get("webhook"), str):
        fields["webhook"] = {"url": peers[fields["webhook"]].url, "credential": "none"}
    (made,) = room.guards({"chat": GuardConfig.model_validate(fields)}, {})
    return made


def asked(*texts: str | Text) -> Asked:
    said = tuple(text if isinstance(text, Text) else Text("user", text, ("prompt",)) for text in texts)
    return Asked(said, "gpt-4", None, "r-1", "llm.example.com", "/v1/chat/completions")


# --- the order: patterns, the model, the webhook


@pytest.mark.parametrize(
    ("model", "webhook", "expected", "are_asked"),
    [
        (None, None, Verdict(allowed=True), set()),
        ("allow", None, Verdict(allowed=True, rule="model", tokens=42), {"allow"}),
        (
            "allow",
            "hook allows",
            Verdict(allowed=True, rule="webhook", tokens=42),
            {"allow", "hook allows"},
        ),
        (
            "allow",
            "hook denies",
            Verdict(False, "deny", "webhook", "", "no", tokens=42),
            {"allow", "hook denies"},
        ),
        (
            "allow",
            "hook replaces",
            Verdict(allowed=True, rule="webhook", replacements=((("prompt",), "***"),), tokens=42),
            {"allow", "hook replaces"},
        ),
        (
            "deny",
            "hook allows",
            Verdict(
                False,
                "deny",
                "model",
                "external service returned deny",
                'external service returned deny: {"result":"deny"}',
                tokens=7,
            ),
            {"deny"},
        ),
        (
            "failure",
            "hook allows",
            Verdict(
                False,
                "failure",
                "model",
                "external service returned non-200 status : 500",
                "external service returned non-200 status : 500",
            ),
            {"failure"},
        ),
    ],
)
async def test_the_first_that_refuses_decides(
    room: GuardRoom, peers: Bench, model: str | None, webhook: str | None, expected: Verdict, are_asked: set[str]
) -> None:
    """Tokens that the model took are told whoever decides in the end (S3.D15)."""
    made = guard(room, peers, deny=DENY, model=model, webhook=webhook)
    assert await made.judge(asked("hello")) == expected
    assert {name for name, peer in peers.items() if peer.received} == are_asked


async def test_a_failure_that_is_allowed_does_not_spare_the_webhook(room: GuardRoom, peers: Bench) -> None:
    model = {"host": "127.0.0.1", "port": peers["failure"].port, "scheme": "http", "credential": "none"}
    made = guard(room, peers, model={**model, "onFailure": "allow"}, webhook="hook denies")
    assert not (await made.judge(asked("hello"))).allowed


@pytest.mark.parametrize(
    ("webhook", "expected"),
    [
        ("hook allows", (True, "failure", "model")),
        ("hook replaces", (True, "failure", "model")),
        ("hook denies", (False, "deny", "webhook")),
        ("failure", (False, "failure", "webhook")),
    ],
)
async def test_half_a_guard_is_seen(
    room: GuardRoom, peers: Bench, webhook: str, expected: tuple[bool, str, str]
) -> None:
    """A model that is away is told of where its webhook agrees; what refuses speaks for itself."""
    model = {"host": "127.0.0.1", "port": peers["failure"].port, "scheme": "http", "credential": "none"}
    made = guard(room, peers, model={**model, "onFailure": "allow"}, webhook=webhook)
    verdict = await made.judge(asked("hello"))
    assert (verdict.allowed, verdict.outcome, verdict.rule) == expected
    assert bool(verdict.replacements) is (webhook == "hook replaces")
    if verdict.allowed:
        assert verdict.reason == "external service returned non-200 status : 500"


async def test_what_patterns_refuse_nobody_else_gets_to_see(room: GuardRoom, peers: Bench) -> None:
    """S3.3."""
    made = guard(room, peers, deny=["x", *DENY], model="allow", webhook="hook allows")
    refused = Verdict(False, "deny", "deny[1]", "request was denied by deny rule deny[1]", ASM)
    assert await made.judge(asked("hello", DENIED)) == refused
    assert not any(peer.received for peer in peers.values())


@pytest.mark.parametrize("size", [10, 100_000])
async def test_long_texts_are_judged_the_same_elsewhere(room: GuardRoom, size: int) -> None:
    made = guard(room, deny=DENY, allow=["hello"])
    assert (await made.judge(asked("hello " * size))).allowed
    assert (await made.judge(asked("hello " * size + DENIED))).rule == "deny[0]"
    assert (await made.judge(asked("goodbye " * size))).rule == "allow"


async def test_texts_of_other_roles_are_nobodys_business(room: GuardRoom, peers: Bench) -> None:
    """S3.4: neither patterns nor the model get them; with none left nobody is asked."""
    made = guard(room, peers, deny=DENY, allow=["hello"], model="allow")
    system = Text("system", DENIED, ("messages", 0, "content"), 0)
    assert await made.judge(asked(system)) == Verdict(allowed=True)
    assert not peers["allow"].received
    assert (await made.judge(asked(system, "hello"))).allowed
    assert "账号" not in peers["allow"].received[0].json["messages"][1]["content"]


async def test_a_closed_room_refuses(room: GuardRoom) -> None:
    """What comes while the process ends is not waved through."""
    made = guard(room, deny=DENY)
    await room.close()
    verdict = await made.judge(asked("hello " * 100_000))
    assert (verdict.allowed, verdict.outcome) == (False, "failure")


@pytest.mark.parametrize(("on_unparsable", "allowed"), [("deny", False), ("allow", True)])
def test_the_verdict_on_what_has_no_texts(on_unparsable: str, allowed: bool) -> None:
    """S3.D1."""
    made = guard(GuardRoom(), onUnparsable=on_unparsable)
    assert made.unparsable("why") == Verdict(allowed, "unparsable", "unparsable", "why", ASM)


# --- what a guard is


@pytest.mark.parametrize(
    ("fields", "enforces", "reads_tools", "denies_unparsable"),
    [
        ({}, True, False, None),
        ({"mode": "shadow"}, False, False, None),
        ({"checkRoles": ["*"]}, True, True, None),
        ({"checkRoles": ["user", "tools"]}, True, True, None),
        ({"checkRoles": ["tool"]}, True, False, None),
        ({"answers": {}}, True, False, True),
        ({"answers": {}, "onUnparsable": "allow"}, True, False, False),
        ({"answers": {"onUnparsable": "deny"}, "onUnparsable": "allow"}, True, False, True),
        ({"answers": {"onUnparsable": "allow"}}, True, False, False),
    ],
)
def test_what_a_guard_is_asked_for(
    fields: dict[str, Any], enforces: bool, reads_tools: bool, denies_unparsable: bool | None
) -> None:
    made = guard(GuardRoom(), **fields)
    assert (made.enforces, made.reads_tools) == (enforces, reads_tools)
    assert (None if made.answers is None else made.answers.denies_unparsable) is denies_unparsable


@pytest.mark.parametrize(
    ("answers", "denied"), [({}, "request"), ({"deny": ["answer"]}, "answer"), ({"deny": []}, None)]
)
def test_whose_patterns_answers_break(answers: dict[str, Any], denied: str | None) -> None:
    """Those for requests, unless there are others: none, too."""
    made = guard(GuardRoom(), deny=["request"], answers=answers)
    assert made.answers is not None
    found = {text for text in ("request", "answer") if made.answers.patterns.denied_by(text)}
    assert found == ({denied} if denied else set())


# --- what cannot be made


@pytest.mark.parametrize(
    ("field", "pattern", "rule"),
    [
        ("deny", "a(b", "deny[1]"),
        ("allow", "[", "allow[1]"),
        ("deny", "(?<=a)b", "deny[1]"),
        ("deny", r"(a)\1", "deny[1]"),
        ("deny", "a{1000}{1000}", "deny[1]"),
        ("deny", "\ud800", "deny[1]"),
    ],
)
def test_patterns_that_do_not_compile(field: str, pattern: str, rule: str) -> None:
    """S3.13: the original's words, which pattern, and where it stands."""
    configs = {"chat": GuardConfig.model_validate({field: ["fine", pattern]})}
    with pytest.raises(ConfigError) as raised:
        GuardRoom().guards(configs, {})
    (problem,) = raised.value.problems
    shown = ascii(pattern) if pattern == "\ud800" else pattern
    assert str(problem).startswith(f"guards.chat: error in compile regex {shown}: ")
    assert rule in str(problem)


def test_patterns_for_answers_that_do_not_compile() -> None:
    with pytest.raises(ConfigError, match=r"guards\.chat: error in compile regex a\(b: "):
        guard(GuardRoom(), answers={"deny": ["a(b"]})


def test_every_guard_that_cannot_be_made_is_named() -> None:
    """All of them at a time, and not one secret."""
    configs = {
        "a": GuardConfig(deny=["("]),
        "b": GuardConfig(),
        "c": GuardConfig(allow=[")"]),
        "d": GuardConfig.model_validate({"model": {"host": "guard", "credential": {"env": "X"}}}),
    }
    with pytest.raises(ConfigError) as raised:
        GuardRoom().guards(configs, {("guards", "d", "model"): "sk-secret\n"})
    assert [str(problem).partition(":")[0] for problem in raised.value.problems] == ["guards.a", "guards.c", "guards.d"]
    assert "sk-secret" not in str(raised.value)


async def test_a_room_is_shared_by_configurations(room: GuardRoom, peers: Bench) -> None:
    """A reload costs no connection."""
    for _ in range(3):
        assert (await guard(room, peers, model="allow").judge(asked("hello"))).allowed
    assert len(peers["allow"].received) == 3
    assert peers["allow"].connections == 1


async def test_credentials_are_those_of_the_field(room: GuardRoom, peers: Bench) -> None:
    """Each of its own, and only to whom it belongs."""
    model = {"host": "127.0.0.1", "port": peers["allow"].port, "scheme": "http", "credential": {"env": "M"}}
    hook = {"url": peers["hook allows"].url, "credential": {"env": "H", "header": "x-api-key"}}
    configs = {"chat": GuardConfig.model_validate({"model": model, "webhook": hook})}
    secrets = {("guards", "chat", "model"): "m-secret", ("guards", "chat", "webhook"): "h-secret"}
    (made,) = room.guards(configs, secrets)
    assert (await made.judge(asked("hello"))).allowed
    (to_model,) = peers["allow"].received
    (to_hook,) = peers["hook allows"].received
    assert to_model.headers["authorization"] == "Bearer m-secret"
    assert to_hook.headers["x-api-key"] == "h-secret"
    assert "authorization" not in to_hook.headers
    assert b"secret" not in to_model.body + to_hook.body


async def test_judging_never_raises(room: GuardRoom, peers: Bench) -> None:
    """Whatever a text holds: control characters, halves of pairs, tags in emoji (S3.D6)."""
    made = guard(room, peers, deny=DENY, model="allow", webhook="hook allows")
    strange = ["\x07\a\0", "\ud800", "\udc00\ud800", "\U000e0001", '"', "\\", "\u2028", "a" * 20_000 + "\udfff"]
    verdicts = await asyncio.gather(*(made.judge(asked(text)) for text in strange))
    assert all(verdict.allowed for verdict in verdicts)
    for received in (*peers["allow"].received, *peers["hook allows"].received):
        orjson.loads(received.body)
