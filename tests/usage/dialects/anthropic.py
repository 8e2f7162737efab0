"""Anthropic's messages."""

from __future__ import annotations

from typing import Any

from usage.dialects.case import Case

from extproc.usage.usage import Reported

CACHED = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 300,
    "cache_read_input_tokens": 2000,
    "cache_creation": {"ephemeral_5m_input_tokens": 300, "ephemeral_1h_input_tokens": 0},
    "service_tier": "standard",
}


def message(usage: dict[str, Any], *content: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "msg",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": list(content),
        "stop_reason": "end_turn",
        "usage": usage,
    }


def start(**usage: int) -> dict[str, Any]:
    return {"type": "message_start", "message": message({"output_tokens": 1, **usage})}


def block(kind: str, key: str, text: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": kind, key: text}}


def end(**usage: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage}


OPEN = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
HELLO = block("text_delta", "text", "Hello")
PING, STOP = {"type": "ping"}, {"type": "message_stop"}

CASES = [
    Case(
        "message",
        message({"input_tokens": 10, "output_tokens": 7}, {"type": "text", "text": "Hello"}),
        Reported(10, 7),
        text="Hello",
    ),
    Case(
        "cache counted once",
        message({**CACHED, "output_tokens": 7}),
        Reported(2310, 7, cached=2000, cache_write=300),
    ),
    Case(
        "thinking and tool use",
        message(
            {"input_tokens": 10, "output_tokens": 70, "output_tokens_details": {"thinking_tokens": 50}},
            {"type": "thinking", "thinking": "Hm. ", "signature": "c2ln"},
            {"type": "tool_use", "id": "t", "name": "f", "input": {"a": "b"}},
        ),
        Reported(10, 70, reasoning=50),
        text='Hm. {"a":"b"}',
    ),
    Case(
        "null for what was not used",
        message({"input_tokens": 10, "cache_read_input_tokens": None, "output_tokens": 7}),
        Reported(10, 7),
    ),
    Case(
        "stream",
        [
            start(input_tokens=10),
            OPEN,
            PING,
            HELLO,
            {"type": "content_block_stop", "index": 0},
            end(output_tokens=7),
            STOP,
        ],
        Reported(10, 7),
        "sse",
        text="Hello",
    ),
    Case(
        "stream: cumulative output",
        [start(input_tokens=10), HELLO, end(output_tokens=3), HELLO, end(output_tokens=7), STOP],
        Reported(10, 7),
        "sse",
        text="HelloHello",
    ),
    Case(
        "stream: input again at the end",
        [
            start(input_tokens=10, cache_read_input_tokens=2000, cache_creation_input_tokens=0),
            HELLO,
            end(input_tokens=25, cache_read_input_tokens=2400, cache_creation_input_tokens=0, output_tokens=7),
            STOP,
        ],
        Reported(2425, 7, cached=2400),
        "sse",
        text="Hello",
    ),
    Case(
        "stream: cache in the beginning only",
        [start(**{key: CACHED[key] for key in CACHED if key.endswith("tokens")}), HELLO, end(output_tokens=7)],
        Reported(2310, 7, cached=2000, cache_write=300),
        "sse",
    ),
    Case(
        "stream cut: output is a beginning",
        [start(input_tokens=10), OPEN, HELLO],
        Reported(10, 1, final=False),
        "sse",
        text="Hello",
    ),
    Case(
        "stream: thinking and tool use",
        [
            start(input_tokens=10),
            block("thinking_delta", "thinking", "Hm. "),
            block("signature_delta", "signature", "c2ln"),
            block("input_json_delta", "partial_json", '{"a":'),
            block("input_json_delta", "partial_json", ' "b"}'),
            end(output_tokens=70),
        ],
        Reported(10, 70),
        "sse",
        text='Hm. {"a": "b"}',
    ),
    Case(
        "on Bedrock: metrics beside",
        [
            start(input_tokens=10),
            HELLO,
            end(output_tokens=7),
            {**STOP, "amazon-bedrock-invocationMetrics": {"inputTokenCount": 10, "outputTokenCount": 7}},
        ],
        Reported(10, 7),
        "wrapped",
        text="Hello",
    ),
    Case(
        "values that are no counts",
        message({"input_tokens": "10", "output_tokens": -7, "cache_read_input_tokens": 0.5}),
        None,
    ),
]
