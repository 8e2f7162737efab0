"""A model in the place of one that guards others: what it says of a conversation, by words that it looks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import orjson

from extproc.simulator.options import Options


def judging(options: Options, body: bytes) -> Options:
    """Options of the answer to `body`, a JSON object: as they are, or with a verdict as their text where they judge."""
    if not options.judge:
        return options
    said = "\n".join(_said(orjson.loads(body)))
    return dataclasses.replace(options, text=_dressed(options, said), frames=1)


def _said(request: dict[str, Any]) -> Iterator[str]:
    """What users say in a chat completion."""
    messages = request.get("messages")
    for message in messages if isinstance(messages, list) else ():
        match message:
            case {"role": "user", "content": str(content)}:
                yield content


def _dressed(options: Options, said: str) -> str:
    verdict = _verdict(options.judge, said)
    match options.judge_as:
        case "fenced":
            return f"```json\n{verdict}\n```"
        case "quoting":
            return f"You said: {said}\n{verdict}"
    return verdict


def _verdict(words: tuple[str, ...], said: str) -> str:
    found = next((word for word in words if word in said), None)
    if found is None:
        return '{"result":"allow"}'
    return orjson.dumps({"result": "deny", "reason": f"it has `{found}` in it"}).decode()
