"""Cohere."""

from __future__ import annotations

from typing import Any

from usage.dialects.case import Case

from extproc.usage.usage import Reported

BILLED = {"input_tokens": 5, "output_tokens": 418}
TOKENS = {"input_tokens": 71, "output_tokens": 420}
USAGE = {"billed_units": BILLED, "tokens": TOKENS}


def message(usage: dict[str, Any], **more: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": "Hello"}]
    body = {"role": "assistant", "content": content, **more}
    return {"id": "c", "message": body, "finish_reason": "COMPLETE", "usage": usage}


def delta(kind: str, **part: Any) -> dict[str, Any]:
    return {"type": kind, "index": 0, "delta": {"message": part}}


def end(usage: dict[str, Any]) -> dict[str, Any]:
    return {"type": "message-end", "id": "c", "delta": {"finish_reason": "COMPLETE", "usage": usage}}


START = {"id": "c", "type": "message-start", "delta": {"message": {"role": "assistant", "content": []}}}
HEL, LO = delta("content-delta", content={"text": "Hel"}), delta("content-delta", content={"text": "lo"})

CASES = [
    Case("chat: what is billed", message(USAGE), Reported(5, 418), model="", text="Hello"),
    Case(
        "chat: billed units with a point",
        message({"billed_units": {"input_tokens": 5.0, "output_tokens": 418.0}}),
        Reported(5, 418),
        model="",
    ),
    Case("chat: nothing is billed", message({"tokens": TOKENS}), Reported(71, 420), model=""),
    Case("chat: cached", message({**USAGE, "cached_tokens": 64}), Reported(5, 418, cached=5), model=""),
    Case(
        "chat: tool calls",
        message(
            USAGE,
            content=None,
            tool_plan="Hm. ",
            tool_calls=[{"id": "t", "function": {"name": "f", "arguments": '{"a":1}'}}],
        ),
        Reported(5, 418),
        model="",
        text='Hm. {"a":1}',
    ),
    Case(
        "chat: stream, with citations that repeat the text",
        [
            START,
            delta("content-start", content={"type": "text", "text": ""}),
            HEL,
            LO,
            delta("citation-start", citations={"start": 0, "end": 5, "text": "Hello", "sources": [{"text": "a page"}]}),
            {"type": "content-end", "index": 0},
            end(USAGE),
        ],
        Reported(5, 418),
        "sse",
        model="",
        text="Hello",
    ),
    Case(
        "chat: stream of thinking and tool calls",
        [
            START,
            delta("content-delta", content={"thinking": "Hm. "}),
            delta("tool-plan-delta", tool_plan="I will. "),
            delta("tool-call-start", tool_calls={"id": "t", "function": {"name": "f", "arguments": ""}}),
            delta("tool-call-delta", tool_calls={"function": {"arguments": '{"a":1}'}}),
            end(USAGE),
        ],
        Reported(5, 418),
        "sse",
        model="",
        text='Hm. I will. {"a":1}',
    ),
    Case("chat: stream cut", [START, HEL], None, "sse", model="", text="Hel"),
    Case(
        "embed",
        {
            "id": "e",
            "embeddings": {"float": [[0.1, 0.2]]},
            "texts": ["a"],
            "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 2}},
            "response_type": "embeddings_by_type",
        },
        Reported(2),
        model="",
        text="",
    ),
    Case(
        "version 1",
        {
            "response_id": "r",
            "text": "Hello",
            "generation_id": "g",
            "meta": {"api_version": {"version": "1"}, "tokens": TOKENS},
        },
        Reported(71, 420),
        model="",
    ),
    Case(
        "version 1: stream",
        [
            {"is_finished": False, "event_type": "stream-start", "generation_id": "g"},
            {"is_finished": False, "event_type": "text-generation", "text": "Hello"},
            {
                "is_finished": True,
                "event_type": "stream-end",
                "response": {"text": "Hello", "meta": {"billed_units": BILLED, "tokens": TOKENS}},
            },
        ],
        Reported(5, 418),
        "ndjson",
        model="",
        text="Hello",
    ),
    Case(
        "on Bedrock: counts in the metrics alone",
        [
            {"is_finished": False, "event_type": "text-generation", "text": "Hello"},
            {
                "is_finished": True,
                "event_type": "stream-end",
                "amazon-bedrock-invocationMetrics": {"inputTokenCount": 12, "outputTokenCount": 8},
            },
        ],
        Reported(12, 8),
        "wrapped",
        model="",
        text="Hello",
        dialect="bedrock",
    ),
    Case(
        "values that are no counts",
        message({"billed_units": {"input_tokens": "5", "output_tokens": 4.5}}),
        None,
        model="",
    ),
]
