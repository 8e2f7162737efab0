"""A service that is asked by the contract of docs/webhook-guard.md."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.http_peer import HttpPeer, Received, Script, reply
from support.verdicts import whenever

from extproc.config.guards import Webhook
from extproc.config.providers import Credential
from extproc.guards.http import HttpClient
from extproc.guards.outside import MAX_SHOWN
from extproc.guards.seam import Asked, Text, Verdict
from extproc.guards.webhook import WebhookGuard, read_answer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "webhook-guard.md").read_text()
QUESTION, *ANSWERS = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL))
SECRET = "very-secret"

ASKED = Asked(
    texts=(
        Text("user", "Hello", ("messages", 0, "content"), 0),
        Text("user", "Write to ann@example.com", ("messages", 2, "content", 1, "text"), 2),
    ),
    model="gpt-4o",
    identity={"userid": "alice", "group": "free"},
    request_id="8f2c6e0a-6f0e-4f0c-9a41-1f4a8e0f7b11",
    host="llm.example.com",
    path="/v1/chat/completions",
)


class Bench:
    """A guard and the server it asks."""

    def __init__(self) -> None:
        self.client = HttpClient()
        self.peers: list[HttpPeer] = []

    async def guard(self, script: Script | bytes, secret: str | None = None, **config: Any) -> WebhookGuard:
        self.peers.append(peer := await HttpPeer(script).start())
        return WebhookGuard("moderation", Webhook(**{"url": peer.url, **config}), secret, self.client)

    async def verdict(self, script: Script | bytes, asked: Asked = ASKED, **config: Any) -> Verdict:
        return await whenever((await self.guard(script, **config)).ask(asked))

    @property
    def received(self) -> list[Received]:
        return self.peers[-1].received


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.client.close()
    for peer in bench.peers:
        await peer.stop()


def says(**answer: Any) -> bytes:
    return orjson.dumps(answer)


ALLOW = reply(says(decision="allow"))


# --- the contract, as the page shows it


async def test_the_question_of_the_page(bench: Bench) -> None:
    assert await bench.verdict(ALLOW) == Verdict(allowed=True, rule="webhook")
    (received,) = bench.received
    assert (received.method, received.target) == ("POST", "/ask")
    assert received.headers["content-type"] == "application/json"
    assert received.json == QUESTION


async def test_the_answers_of_the_page(bench: Bench) -> None:
    verdicts = [await bench.verdict(reply(orjson.dumps(answer))) for answer in ANSWERS]
    assert verdicts == [
        Verdict(allowed=True, rule="webhook"),
        Verdict(
            allowed=False,
            outcome="deny",
            rule="webhook",
            reason="rule 7: internal projects",
            message="Not about internal projects, please.",
        ),
        Verdict(
            allowed=True,
            rule="webhook",
            reason="masked",
            replacements=((("messages", 2, "content", 1, "text"), "Write to [e-mail]"),),
        ),
    ]


# --- what is asked


async def test_headers_and_credential(bench: Bench) -> None:
    credential = Credential(env="T", header="x-token")
    await bench.verdict(ALLOW, secret=SECRET, credential=credential, headers={"x-tenant": "a", "authorization": "no"})
    sent = bench.received[0].headers
    assert (sent["x-token"], sent["x-tenant"], sent["authorization"]) == (SECRET, "a", "no")


@pytest.mark.parametrize(
    ("identity", "sent"),
    [
        (None, None),
        ({}, {}),
        (MappingProxyType({"a": MappingProxyType({"b": 1})}), {"a": {"b": 1}}),
        ({"a": "\ud800", "n": 2**80}, {"a": "\ufffd", "n": 2**80}),
    ],
)
async def test_identities(bench: Bench, identity: Mapping[str, Any] | None, sent: Any) -> None:
    await bench.verdict(ALLOW, replace(ASKED, identity=identity))
    assert json.loads(bench.received[0].body)["identity"] == sent


async def test_an_identity_that_is_no_json_is_refused(bench: Bench) -> None:
    verdict = await bench.verdict(ALLOW, replace(ASKED, identity={"a": object()}), on_failure="allow")
    assert (verdict.allowed, verdict.outcome) == (False, "deny")
    assert not bench.received


async def test_every_text_arrives(bench: Bench) -> None:
    """S3.D6."""
    nasty = ["".join(map(chr, range(32))), "\U000e0001\U000e0061", "\u202e", '"}]', "a\ud800b"]
    texts = tuple(Text("user", text, ("input", number)) for number, text in enumerate(nasty))
    await bench.verdict(ALLOW, replace(ASKED, texts=texts))
    assert [text["text"] for text in bench.received[0].json["texts"]] == [*nasty[:-1], "a\ufffdb"]


@pytest.mark.parametrize(
    ("config", "secret", "words"),
    [
        ({"url": "moderation:80"}, None, "url: expected"),
        ({"url": "ftp://a/"}, None, "url: expected"),
        ({"url": "http://"}, None, "url: expected"),
        ({"url": "http://a:port/"}, None, "url: expected"),
        ({"url": "http://user:very-secret@a/"}, None, "url: a user and a password belong into `credential`"),
        ({"ca": "/nowhere"}, None, "ca: "),
        ({"headers": {"content-length": "1"}}, None, "headers: `content-length` cannot be chosen"),
        ({"headers": {"x-a": "1\r\nx-b: 2"}}, None, "headers: `x-a`: "),
        ({"credential": Credential(env="T")}, "", "credential: "),
    ],
)
def test_what_can_never_work_is_refused_with_the_name_of_the_field(
    config: dict[str, Any], secret: str | None, words: str
) -> None:
    with pytest.raises(ValueError, match=f"^{words}") as caught:
        WebhookGuard("moderation", Webhook(**{"url": "http://a/", **config}), secret, HttpClient())
    assert SECRET not in str(caught.value)


# --- what its answers mean


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b"{",
        b'{"decision":"allow"',
        b'{"decision":"allow"} {}',
        b"[" * 100_000,
        says(),
        says(decision=None),
        says(decision=True),
        says(decision="Allow"),
        says(decision="pass"),
        says(decision=["allow"]),
        says(Decision="allow"),
        b'{"decision":"deny","decision":"allow"}',
        says(decision="replace"),
        says(decision="replace", texts=[]),
        says(decision="replace", texts={}),
        says(decision="replace", texts=[None]),
        says(decision="replace", texts=[{"index": 0}]),
        says(decision="replace", texts=[{"text": "a"}]),
        says(decision="replace", texts=[{"index": 2, "text": "a"}]),
        says(decision="replace", texts=[{"index": -1, "text": "a"}]),
        says(decision="replace", texts=[{"index": True, "text": "a"}]),
        says(decision="replace", texts=[{"index": "0", "text": "a"}]),
        says(decision="replace", texts=[{"index": 0.0, "text": "a"}]),
        says(decision="replace", texts=[{"index": 0, "text": None}]),
        says(decision="replace", texts=[{"index": 0, "text": "a"}, {"index": 0, "text": "b"}]),
        says(decision="replace", texts=[{"index": 0, "text": "a"}, {"index": 9, "text": "b"}]),
    ],
)
def test_what_is_not_in_the_contract_is_no_verdict(body: bytes) -> None:
    verdict = read_answer(body, ASKED)
    assert (verdict.allowed, verdict.outcome, verdict.replacements) == (False, "unparsable", ())
    assert verdict.reason.startswith(("external service returned ", "failed to unmarshal external response"))


@given(st.recursive(st.none() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)))
def test_anything_may_be_answered(value: Any) -> None:
    assert read_answer(json.dumps({"decision": "replace", "texts": value}).encode(), ASKED).outcome in (
        "allow",
        "unparsable",
    )
    assert read_answer(json.dumps(value).encode(), ASKED).outcome == "unparsable"


@pytest.mark.parametrize("words", [None, 7, ["a"], {}])
def test_a_denial_stands_whatever_is_beside_it(words: Any) -> None:
    """`onFailure: allow` must not let it pass."""
    assert read_answer(says(decision="deny", reason=words, message=words), ASKED) == Verdict(
        allowed=False, outcome="deny"
    )


def test_words_are_short_and_on_one_line() -> None:
    verdict = read_answer(says(decision="deny", reason="a\nb\x1b" + "x" * 5000, message="c\r\n\u202ed"), ASKED)
    assert verdict.reason.startswith("a b xxx")
    assert len(verdict.reason) == MAX_SHOWN + 1
    assert verdict.message == "c   d"


def test_more_than_the_contract_knows_is_ignored() -> None:
    assert read_answer(b'\xef\xbb\xbf{"decision":"allow","score":0.1,"texts":7}', ASKED) == Verdict(allowed=True)


async def test_all_texts_may_come_back(bench: Bench) -> None:
    """More than an answer usually may have."""
    texts = tuple(Text("user", "ж" * 50_000, ("input", number)) for number in range(2))
    back = json.dumps({"decision": "replace", "texts": [{"index": i, "text": "я" * 50_000} for i in range(2)]})
    assert len(back) > 2 * 256 * 1024
    verdict = await bench.verdict(reply(back.encode()), replace(ASKED, texts=texts))
    assert verdict.replacements == tuple((("input", number), "я" * 50_000) for number in range(2))


@pytest.mark.parametrize("mode", ["deny", "allow"])
@pytest.mark.parametrize(
    ("script", "outcome", "reason"),
    [
        (reply(b"", 302, "location: /"), "failure", "external service returned non-200 status : 302"),
        (reply(says(decision="allow"), 202), "failure", "external service returned non-200 status : 202"),
        (reply(b"<html>"), "unparsable", "failed to unmarshal external response: not a JSON object"),
        (
            reply(b'{"decision":"allow","decision":"deny"}'),
            "unparsable",
            "external service returned not exactly one decision",
        ),
        (reply(says(decision="maybe")), "unparsable", "external service returned an unknown decision"),
        (b"", "timeout", "external service did not answer in time"),
    ],
)
async def test_trouble(bench: Bench, script: bytes, outcome: str, reason: str, mode: str) -> None:
    """S3.D3: an answer that is none never allows."""
    allowed = mode == "allow" and outcome != "unparsable"
    timeout = 0.1 if outcome == "timeout" else 10.0
    verdict = await bench.verdict(script, timeout=timeout, on_failure=mode, on_timeout=mode)
    assert (verdict.allowed, verdict.outcome, verdict.reason, verdict.rule) == (allowed, outcome, reason, "webhook")


# --- how often it is asked


async def test_who_asks_and_for_which_model_is_part_of_the_question(bench: Bench) -> None:
    """A verdict for one caller is not another's."""
    guard = await bench.guard(ALLOW)
    moved = tuple(text._replace(path=("input",)) for text in ASKED.texts)
    different = [
        ASKED,
        replace(ASKED, model="gpt-4o-mini"),
        replace(ASKED, identity={"userid": "bob"}),
        replace(ASKED, identity=None),
        replace(ASKED, host="b"),
        replace(ASKED, path="/b"),
        replace(ASKED, texts=ASKED.texts[:1]),
        replace(ASKED, texts=moved),
        replace(ASKED, texts=tuple(text._replace(role="system") for text in ASKED.texts)),
    ]
    for asked in different:
        await whenever(guard.ask(asked))
    assert len(bench.received) == len(different)
    for asked in different:
        assert isinstance(guard.ask(replace(asked, request_id="another")), Verdict)


async def test_replacements_are_remembered_for_their_places(bench: Bench) -> None:
    guard = await bench.guard(reply(says(decision="replace", texts=[{"index": 0, "text": "b"}])))
    asked = replace(ASKED, texts=(Text("user", "a", ("prompt",)),))
    for place in (("prompt",), ("input",), ("prompt",)):
        verdict = await whenever(guard.ask(replace(asked, texts=(Text("user", "a", place),))))
        assert verdict.replacements == ((place, "b"),)
    assert len(bench.received) == 2


async def test_a_request_with_too_much_text_is_refused_without_a_question(bench: Bench) -> None:
    verdict = await bench.verdict(ALLOW, max_text=20, on_failure="allow")
    assert (verdict.allowed, verdict.outcome, verdict.reason) == (
        False,
        "deny",
        "request has more than 20 bytes of text",
    )
    assert not bench.received


async def test_two_who_ask_the_same_share_an_answer(bench: Bench) -> None:
    guard = await bench.guard(ALLOW)
    answers = [whenever(guard.ask(replace(ASKED, request_id=str(number)))) for number in range(3)]
    verdicts = await asyncio.gather(*answers)
    assert [verdict.allowed for verdict in verdicts] == [True] * 3
    assert len(bench.received) == 1
