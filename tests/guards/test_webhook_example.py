"""The example server keeps the contract, and its README tells the truth."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.verdicts import whenever

from extproc.config.guards import Guard, Webhook
from extproc.config.providers import Credential
from extproc.guards.http import HttpClient
from extproc.guards.seam import Asked, Text, Verdict
from extproc.guards.webhook import WebhookGuard

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "webhook-guard"
README = (FOLDER / "README.md").read_text()
Run = Callable[..., str]


@pytest.fixture
def run() -> Iterator[Run]:
    """Starts the example as its README does, on a free port; gives its address."""
    running: list[subprocess.Popen[str]] = []

    def run(*arguments: str, token: str = "") -> str:
        command = [sys.executable, str(FOLDER / "server.py"), "--port", "0", *arguments]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "GUARD_TOKEN": token})
        running.append(process)
        assert process.stderr is not None
        found = re.search(r"http://\S+", process.stderr.readline())
        assert found is not None
        return found[0] + "/"

    yield run
    for process in running:
        process.terminate()
        process.communicate()


async def ask(url: str, *texts: str, secret: str | None = None, **config: Any) -> Verdict:
    client = HttpClient()
    said = tuple(Text("user", text, ("messages", number, "content"), number) for number, text in enumerate(texts))
    try:
        asked = Asked(said, "gpt-4o", {"userid": "alice"}, "r-1", "llm.example.com", "/v1/chat/completions")
        return await whenever(WebhookGuard("moderation", Webhook(url=url, **config), secret, client).ask(asked))
    finally:
        await client.close()


async def test_it_allows_masks_and_denies(run: Run) -> None:
    url = run("--deny", "Project Heron")
    assert await ask(url, "Hello") == Verdict(allowed=True, rule="webhook")
    masked = await ask(url, "Hello", "Ask ann@example.com, or b.c+d@mail.example.org.")
    assert masked.allowed
    assert masked.replacements == ((("messages", 1, "content"), "Ask [e-mail], or [e-mail]."),)
    denied = await ask(url, "Hello", "What is PROJECT HERON?")
    assert (denied.allowed, denied.outcome, denied.message) == (False, "deny", "Not here.")
    assert "heron" not in denied.reason.lower()


async def test_with_a_token_it_knows_who_asks(run: Run) -> None:
    url = run(token="t-1")
    credential = Credential(env="GUARD_TOKEN")
    assert (await ask(url, "Hello", secret="t-1", credential=credential)).allowed
    for secret in ("t-2", None):
        verdict = await ask(url, "Hello", secret=secret, credential=credential)
        assert verdict.reason == "external service returned non-200 status : 401"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"version": 2, "texts": []}', b'{"version": 1, "texts": [{}]}', b"[" * 100_000]
)
def test_no_question(run: Run, body: bytes) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(run(), body)
    assert caught.value.code == 400
    caught.value.close()


def test_the_readme_shows_what_it_answers(run: Run) -> None:
    question, answer = (
        re.search(pattern, README, re.DOTALL)[1]  # type: ignore[index]
        for pattern in (r"-d '(\{.*?\})'\n", r"```json\n(.*?)```")
    )
    with urllib.request.urlopen(run(), question.encode()) as response:
        assert json.loads(response.read()) == json.loads(answer)


def test_the_configuration_of_the_readme_is_one() -> None:
    text = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert text is not None
    (guard,) = yaml.safe_load(text[1])["guards"].values()
    webhook = Guard.model_validate(guard, context=None, strict=False).webhook
    assert webhook is not None
    assert webhook.url == "http://127.0.0.1:8081/"
