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
from extproc.demo.page import Page, StoryError, expect
from extproc.demo.providers import OPENAI, four_providers
from extproc.demo.setting import configuration
from extproc.demo.stack import Stack
from extproc.usage.vocabulary import DIRECTORY_VARIABLE

pytestmark = pytest.mark.e2e

TABLE = """\
openai gpt-5-mini 1,200 1,024 64 40 1,264 reported $0.000198
anthropic claude-sonnet-4-5 1,310 1,024 70 0 1,380 reported $0.002366
gemini gemini-2.5-flash 1,180 1,000 90 50 1,270 reported $0.000309
bedrock amazon.nova-pro-v1:0 1,250 1,024 60 0 1,310 reported $0.000578
"""


@dataclass(frozen=True)
class Played:
    """What a process of the demo left behind."""

    status: int
    text: str
    problem: str


def play(environment: Mapping[str, str]) -> Played:
    """Run the whole demo; it takes about three seconds."""
    command = [sys.executable, "-m", "extproc", "demo"]
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
