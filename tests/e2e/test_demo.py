"""`extproc demo` plays to its end, and shows what was counted. It asserts every number itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import aiohttp
import pytest
from support.vocabularies import fill_directory

from extproc.demo import providers
from extproc.demo.asker import Asker
from extproc.demo.caller import Caller
from extproc.demo.examples import environment, example
from extproc.demo.moderation import moderation
from extproc.demo.page import Page, StoryError, expect
from extproc.demo.providers import OPENAI, four_providers
from extproc.demo.setting import HOST, PATH, QUESTION, configuration
from extproc.demo.stack import Stack
from extproc.usage.vocabulary import DIRECTORY_VARIABLE

pytestmark = pytest.mark.e2e

TABLE = """\
openai gpt-5-mini 1,200 1,024 64 40 1,264 reported $0.000198
anthropic claude-sonnet-4-5 1,310 1,024 70 0 1,380 reported $0.002366
gemini gemini-2.5-flash 1,180 1,000 90 50 1,270 reported $0.000309
bedrock amazon.nova-pro-v1:0 1,250 1,024 60 0 1,310 reported $0.000578
"""

SCRIPT = """\
Host : simulator.maas.local
Model ID: simulator-model

=== Free User (5 requests per 2min) ===
Free req #1 -> 200
Free req #2 -> 200
Free req #3 -> 200
Free req #4 -> 200
Free req #5 -> 200
Free req #6 -> 429
Free req #7 -> 429

=== Premium User 1 (20 requests per 2min) ===
Premium1 req #1 -> 200
Premium1 req #2 -> 200
...
Premium1 req #20 -> 200
Premium1 req #21 -> 429
Premium1 req #22 -> 429

=== Premium User 2 (20 requests per 2min) ===
Premium2 req #1 -> 200
...
Premium2 req #20 -> 200
Premium2 req #21 -> 429
Premium2 req #22 -> 429

=== Second Free User (5 requests per 2min) ===
Free2 req #1 -> 200
...
Free2 req #5 -> 200
Free2 req #6 -> 429
Free2 req #7 -> 429
"""


@dataclass(frozen=True)
class Played:
    """What a process of the demo left behind."""

    status: int
    text: str
    problem: str


def play(environment: Mapping[str, str], *arguments: str) -> Played:
    """Run a whole story; it takes about three seconds."""
    command = [sys.executable, "-m", "extproc", "demo", *arguments]
    inherited = {name: value for name, value in os.environ.items() if name != DIRECTORY_VARIABLE}
    done = subprocess.run(
        command, env={**inherited, **environment}, capture_output=True, text=True, timeout=60, check=False
    )
    return Played(done.returncode, re.sub(" +", " ", done.stdout), done.stderr)


@pytest.mark.parametrize("vocabulary", [False, True], ids=["by size", "tokenizer"])
def test_the_story_ends_well(vocabulary: bool, tmp_path: Path) -> None:
    """S0.1 to S0.8 in one go; with and without a vocabulary for the stream that nobody reads to its end."""
    played = play({DIRECTORY_VARIABLE: str(fill_directory(tmp_path))} if vocabulary else {})
    assert played.status == 0, played.problem + played.text
    assert TABLE in re.sub("^ ", "", played.text, flags=re.MULTILINE)
    assert re.search(r"hits_addend=13\d\d usage=estimated ending=client_gone model=claude-sonnet-4-5", played.text)
    assert "streams_failed 0" in played.text
    for name in ("maas", "gloo", "plano", "guard"):
        assert f"extproc demo {name}" in played.text


def test_models_as_a_service_end_well() -> None:
    """S1.11, S1.13, S1.20: the lines of the test script, and the numbers of its documentation."""
    played = play({}, "maas")
    assert played.status == 0, played.problem + played.text
    assert SCRIPT in played.text
    assert '\n authorized_calls{limitador_namespace="llm/simulator-domain-route"} 100\n' in played.text
    assert '\n limited_calls{limitador_namespace="llm/simulator-domain-route"} 16\n' in played.text
    assert 'token_usage_with_user_and_group{user="freeuser1",group="free",' in played.text
    assert "125 x 200, 6 x 429" in played.text


def test_the_gloo_gateway_ends_well() -> None:
    """S4.2 to S4.8, S4.12."""
    played = play({}, "gloo")
    assert played.status == 0, played.problem + played.text
    for line in (
        "no token 401 Jwt is missing",
        "Bob's 403 RBAC: access denied",
        "Alice 3 429 x-envoy-ratelimited: true, retry-after: 60, content-length: 0",
        "123 s 429 per-user-counter-hour",
        "86399 s 429 per-user-counter-day",
        "86401 s 200",
        "Alice gpt-4 403 RBAC: access denied",
    ):
        assert f"\n {line}\n" in played.text


@pytest.mark.parametrize("vocabulary", [False, True], ids=["by size", "tokenizer"])
def test_plano_ends_well(vocabulary: bool, tmp_path: Path) -> None:
    """S2.1 to S2.14, S2.20, S2.23: with and without a vocabulary, which counts fewer tokens."""
    played = play({DIRECTORY_VARIABLE: str(fill_directory(tmp_path))} if vocabulary else {}, "plano")
    assert played.status == 0, played.problem + played.text
    for line in (
        '"model": "omni", no hint 200 open-ai-gpt-4o',
        "x-arch-llm-provider: open-ai-gpt-4o, of the client's 200 open-ai-gpt-4",
        '- "metadata": {"trace": 1},',
        'a provider without a key 400 No access key configured for selected LLM Provider "open-ai-gpt-4o"',
        "ratelimited_rq 5",
    ):
        assert f"\n {line}\n" in played.text
    assert (
        'exceeded limit provider=gpt-4, selector=Header { key: "selector-key", value: "selector-value" }' in played.text
    )
    assert vocabulary or "\n after 52.8 s, 47 tokens again 200\n" in played.text


def test_the_guard_ends_well() -> None:
    """S3.1 to S3.11, S3.14."""
    played = play({}, "guard")
    assert played.status == 0, played.problem + played.text
    for line in (
        "我的账号是什么? 403 request was denied by asm llm proxy",
        "said by the system 200",
        "beside a picture 403 request was denied by asm llm proxy",
        "answers in a Markdown fence 200",
        "answers 500 403 external service returned non-200 status : 500",
        "says nothing for 0.3 s 403 external service did not answer in time",
        "The model sees: Write to [e-mail]",
    ):
        assert f"\n {line}\n" in played.text
    assert '我的qq是1234123 403 external service returned deny: {"result":"deny",' in played.text


async def test_a_webhook_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="come with the repository"):
        async with moderation(server=tmp_path / "server.py"):
            pass
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('no room')\n")
    with pytest.raises(StoryError, match="no room"):
        async with moderation(server=broken):
            pass


def test_credentials_of_the_environment_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_REAL_KEY", "real")
    monkeypatch.delenv("NO_KEY", raising=False)
    with environment(A_REAL_KEY="played", NO_KEY="played"):
        assert (os.environ["A_REAL_KEY"], os.environ["NO_KEY"]) == ("played", "played")
    assert (os.environ["A_REAL_KEY"], os.environ.get("NO_KEY")) == ("real", None)


@pytest.mark.parametrize("arguments", [["maas", "--stay"], ["moon"]])
def test_what_there_is_no_story_for_is_said(arguments: list[str]) -> None:
    played = play({}, *arguments)
    assert (played.status, played.text) == (2, "")
    assert arguments[-1] in played.problem


def test_an_installation_without_the_examples_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="come with the repository"):
        example("maas", tmp_path)


async def test_a_metric_that_is_not_as_told_is_an_error() -> None:
    async with Stack(configuration("embedded")) as stack, aiohttp.ClientSession() as session:
        caller = Caller(Page(StringIO()), stack, session, host=HOST, path=PATH, question=QUESTION)
        await caller.ask({})
        name = 'authorized_calls{limitador_namespace="domain-a"}'
        await caller.show_metrics({name: 1})
        with pytest.raises(StoryError, match="1, expected 2"):
            await caller.show_metrics({name: 2})
        with pytest.raises(StoryError, match=r"no metric authorized_calls.*domain-a"):
            await caller.show_metrics({'authorized_calls{limitador_namespace="domain-x"}': 1})


async def test_a_number_that_is_not_as_told_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = OPENAI._replace(counted=OPENAI.counted._replace(cost=199))
    monkeypatch.setattr(providers, "OPENAI", wrong)
    monkeypatch.setattr(providers, "PROVIDERS", (wrong, *providers.PROVIDERS[1:]))
    log = tmp_path / "access.log"
    async with (
        Stack(configuration("embedded"), gateway={"access_log": log}) as stack,
        aiohttp.ClientSession() as session,
    ):
        with pytest.raises(StoryError, match=r"cost=198.*cost=199"):
            await four_providers(Asker(Page(StringIO()), stack, session), log)


def test_what_was_expected_is_told() -> None:
    with pytest.raises(StoryError, match="tokens: 3, expected 4"):
        expect("tokens", 3, 4)
