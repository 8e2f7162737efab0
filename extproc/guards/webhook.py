"""Any service that is asked in JSON whether a request may pass: docs/webhook-guard.md is the contract."""

from __future__ import annotations

import time
from typing import Any

from yarl import URL

from extproc.bodies.json_edit import members, parse_object
from extproc.config.guards import Webhook
from extproc.guards.http import HttpClient
from extproc.guards.outside import (
    Clock,
    Peer,
    Questions,
    digest,
    no_verdict,
    printable,
    to_json,
    too_much,
    wrong_status,
)
from extproc.guards.seam import Answer, Asked, Path, Verdict

RULE = "webhook"
VERSION = 1
"""Of the contract. A service may be asked more than this version says, and has to ignore what it does not know."""
_MAX_BESIDE = 256 * 1024
"""Bytes of an answer beside twice `max_text`."""


class WebhookGuard:
    """Asks a service by POST. Raises ValueError, beginning with the name of the field, for what can never work."""

    def __init__(
        self, name: str, config: Webhook, secret: str | None, client: HttpClient, *, clock: Clock = time.monotonic
    ) -> None:
        self.name = name
        self._config = config
        self._peer = Peer(_url(config.url), config, secret, client, config.headers)
        self._questions = Questions(RULE, config, clock)
        # All texts may come back, with escapes.
        self._longest_answer = _MAX_BESIDE + 2 * config.max_text

    def ask(self, asked: Asked) -> Answer:
        """The verdict of the service, at once when it is remembered. Never raises, but CancelledError when awaited."""
        if reason := too_much(asked, self._config.max_text):
            return self._questions.refused(reason)
        question = self._question(asked)
        try:
            key = digest([question, [text.path for text in asked.texts]])
        except (TypeError, ValueError, RecursionError):
            return self._questions.refused("identity cannot be written as JSON")
        return self._questions.ask(key, lambda: self._put(question, asked))

    def _question(self, asked: Asked) -> dict[str, Any]:
        """All that a verdict may depend on; the number of the request is added when it is put."""
        return {
            "version": VERSION,
            "guard": self.name,
            "host": asked.host,
            "path": asked.path,
            "model": asked.model,
            "identity": asked.identity,
            "texts": [
                {"index": index, "role": text.role, "message": text.message, "text": text.text}
                for index, text in enumerate(asked.texts)
            ],
        }

    async def _put(self, question: dict[str, Any], asked: Asked) -> Verdict:
        body = to_json({**question, "request_id": asked.request_id})
        status, answer = await self._peer.post(body, self._longest_answer)
        return read_answer(answer, asked) if status == 200 else wrong_status(status)


def read_answer(body: bytes, asked: Asked) -> Verdict:
    """The verdict in an answer to `asked`."""
    answer = parse_object(body)
    if answer is None:
        return no_verdict("failed to unmarshal external response: not a JSON object")
    if sum(member.key == "decision" for member in members(body)) != 1:
        return no_verdict("external service returned not exactly one decision")
    reason = _words(answer.get("reason"))
    match answer["decision"]:
        case "allow":
            return Verdict(allowed=True, reason=reason)
        case "deny":
            return Verdict(allowed=False, outcome="deny", reason=reason, message=_words(answer.get("message")))
        case "replace":
            replacements = _replacements(answer.get("texts"), asked)
            if not replacements:
                return no_verdict("external service returned texts that do not fit the request")
            return Verdict(allowed=True, reason=reason, replacements=replacements)
        case _:
            return no_verdict("external service returned an unknown decision")


def _replacements(texts: Any, asked: Asked) -> tuple[tuple[Path, str], ...]:
    """What goes where; nothing when any of it is not understood, or two are for the same text."""
    if not isinstance(texts, list):
        return ()
    found: dict[int, str] = {}
    for item in texts:
        match item:
            case {"index": int(index), "text": str(text)} if not isinstance(index, bool):
                if not 0 <= index < len(asked.texts) or index in found:
                    return ()
                found[index] = text
            case _:
                return ()
    return tuple((asked.texts[index].path, text) for index, text in found.items())


def _words(value: Any) -> str:
    return printable(value) if isinstance(value, str) else ""


def _url(text: str) -> URL:
    try:
        url = URL(text)
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("url: expected `https://host[:port]/path` or `http://...`")
    if url.user is not None or url.password is not None:
        raise ValueError("url: a user and a password belong into `credential`")
    return url
