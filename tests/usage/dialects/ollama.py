"""Ollama's own API."""

from __future__ import annotations

from typing import Any

from usage.dialects.case import Case

from extproc.usage.usage import Reported

TIMES = {"total_duration": 4883583458, "load_duration": 1334875, "prompt_eval_duration": 342546000, "eval_duration": 1}
COUNTS = {"prompt_eval_count": 26, "eval_count": 282}


def chat(content: str, *, done: bool = False, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {"model": "m", "created_at": "2026-01-01T00:00:00.1Z", "message": message, "done": done, **more}


def generate(text: str, *, done: bool = False, **more: Any) -> dict[str, Any]:
    return {"model": "m", "created_at": "2026-01-01T00:00:00.1Z", "response": text, "done": done, **more}


CALL = {"function": {"name": "f", "arguments": {"city": "Paris"}}}

CASES = [
    Case("chat", chat("Hello", done=True, **TIMES, **COUNTS), Reported(26, 282), text="Hello"),
    Case(
        "chat: thinking and tool calls",
        {
            **chat("", done=True, **COUNTS),
            "message": {"role": "assistant", "content": "", "thinking": "Hm. ", "tool_calls": [CALL]},
        },
        Reported(26, 282),
        text='Hm. {"city":"Paris"}',
    ),
    Case("generate", generate("Hello", done=True, context=[1, 2], **COUNTS), Reported(26, 282), text="Hello"),
    Case(
        "embed",
        {"model": "m", "embeddings": [[0.1, 0.2]], "total_duration": 1, "prompt_eval_count": 8},
        Reported(8),
        text="",
    ),
    Case(
        "from a model elsewhere",
        {
            "model": "m",
            "remote_model": "big",
            "remote_host": "https://ollama.com",
            **chat("Hello", done=True, **COUNTS),
        },
        Reported(26, 282),
        text="Hello",
    ),
    Case(
        "chat: stream",
        [chat("Hel"), chat("lo"), chat("", done=True, done_reason="stop", **TIMES, **COUNTS)],
        Reported(26, 282),
        "ndjson",
        text="Hello",
    ),
    Case(
        "chat: stream with thinking and tool calls",
        [
            {**chat(""), "message": {"role": "assistant", "content": "", "thinking": "Hm. "}},
            {**chat(""), "message": {"role": "assistant", "content": "", "tool_calls": [CALL]}},
            chat("", done=True, **COUNTS),
        ],
        Reported(26, 282),
        "ndjson",
        text='Hm. {"city":"Paris"}',
    ),
    Case(
        "generate: stream",
        [generate("Hel"), generate("lo"), generate("", done=True, **COUNTS)],
        Reported(26, 282),
        "ndjson",
        text="Hello",
    ),
    Case(
        "prompt in the cache",
        [generate("Hello"), generate("", done=True, eval_count=282)],
        Reported(None, 282),
        "ndjson",
        text="Hello",
    ),
    Case("stream cut", [chat("Hel"), chat("lo")], None, "ndjson", text="Hello"),
    Case("values that are no counts", chat("Hello", done=True, prompt_eval_count="26", eval_count=-1), None),
]
