"""OpenAI's chat completions, completions and embeddings, and who answers like them."""

from __future__ import annotations

from typing import Any

from usage.dialects.case import Case

from extproc.usage.usage import Reported

USAGE = {"prompt_tokens": 12, "completion_tokens": 8, "total_tokens": 20}
HELLO = [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}]


def chat(usage: Any, choices: Any = HELLO, **more: Any) -> dict[str, Any]:
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": choices,
        "usage": usage,
        **more,
    }


def chunk(delta: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": None}]
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more}


HEL, LO, STOP = chunk({"role": "assistant", "content": "Hel"}), chunk({"content": "lo"}), chunk({})
LAST = chunk(None, usage=USAGE)

CASES = [
    Case("chat", chat(USAGE), Reported(12, 8, 20), text="Hello"),
    Case(
        "chat with details",
        chat(
            {
                **USAGE,
                "prompt_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 4, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 6, "accepted_prediction_tokens": 0},
            }
        ),
        Reported(12, 8, 20, cached=5, cache_write=4, reasoning=6),
        text="Hello",
    ),
    Case(
        "tool calls, refusal, null content",
        chat(
            USAGE,
            [
                {
                    "message": {
                        "content": None,
                        "refusal": "No",
                        "tool_calls": [{"id": "t", "function": {"name": "f", "arguments": '{"a":"b"}'}}],
                    }
                }
            ],
        ),
        Reported(12, 8, 20),
        text='No{"a":"b"}',
    ),
    Case(
        "Mistral: thinking as content",
        chat(
            USAGE,
            [
                {
                    "message": {
                        "content": [
                            {"type": "thinking", "thinking": [{"type": "text", "text": "Hm. "}]},
                            {"type": "text", "text": "Hello"},
                        ]
                    }
                }
            ],
        ),
        Reported(12, 8, 20),
        text="Hm. Hello",
    ),
    Case(
        "legacy completion",
        {
            "id": "c",
            "object": "text_completion",
            "model": "m",
            "choices": [{"text": "Hello", "index": 0}],
            "usage": USAGE,
        },
        Reported(12, 8, 20),
        text="Hello",
    ),
    Case(
        "embeddings",
        {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -1e-3]}],
            "model": "m",
            "usage": {"prompt_tokens": 8, "total_tokens": 8},
        },
        Reported(8, 0, 8),
        text="",
    ),
    Case(
        "embeddings with a total alone",
        {"object": "list", "data": [], "model": "m", "usage": {"total_tokens": 8}},
        Reported(8, 0, 8),
    ),
    Case(
        "DeepSeek",
        chat({**USAGE, "prompt_cache_hit_tokens": 10, "prompt_cache_miss_tokens": 2}),
        Reported(12, 8, 20, cached=10),
    ),
    Case(
        "OpenRouter: costs are no counts",
        chat({**USAGE, "cost": 14, "cost_details": {"upstream_inference_cost": 19}}, provider="P"),
        Reported(12, 8, 20),
    ),
    Case(
        "xAI: reasoning beside the completion",
        chat(
            {
                "prompt_tokens": 32,
                "completion_tokens": 9,
                "total_tokens": 135,
                "completion_tokens_details": {"reasoning_tokens": 94},
            }
        ),
        Reported(32, 103, 135, reasoning=94),
    ),
    Case("no prompt, but a total", chat({"completion_tokens": 4, "total_tokens": 9}), Reported(5, 4, 9)),
    Case("completion alone", chat({"completion_tokens": 4}), Reported(None, 4)),
    Case("no total", chat({"prompt_tokens": 12, "completion_tokens": 8}), Reported(12, 8)),
    Case("parts larger than their wholes", chat({**USAGE, "cached_tokens": 50}), Reported(12, 8, 20, cached=12)),
    Case("no usage", chat(None), None, text="Hello"),
    Case(
        "values that are no counts",
        chat({"prompt_tokens": "12", "completion_tokens": -8, "total_tokens": 1.5}),
        None,
    ),
    Case("gigantic", chat({"prompt_tokens": 1e300, "completion_tokens": 2**70, "total_tokens": 2**54}), None),
    Case("stream", [HEL, LO, STOP, LAST], Reported(12, 8, 20), "sse", text="Hello"),
    Case(
        "stream: usage null in other frames",
        [{**HEL, "usage": None}, {**LO, "usage": None}, {**STOP, "usage": None}, LAST],
        Reported(12, 8, 20),
        "sse",
        text="Hello",
    ),
    Case("stream without usage", [HEL, LO, STOP], None, "sse", text="Hello"),
    Case("stream cut before usage", [HEL], None, "sse", text="Hel"),
    Case(
        "stream: finished twice, empty frames",
        [HEL, LO, STOP, STOP, {}, chunk(None, usage={**USAGE, "total_tokens": 0}), LAST, {}],
        Reported(12, 8, 20),
        "sse",
        text="Hello",
    ),
    Case(
        "Azure: content filter frames",
        [
            {"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": [{"index": 0}]},
            HEL,
            LO,
            {
                "id": "",
                "object": "",
                "model": "",
                "choices": [
                    {"index": 0, "finish_reason": None, "content_filter_results": {}, "content_filter_offsets": {}}
                ],
            },
            LAST,
        ],
        Reported(12, 8, 20),
        "sse",
        text="Hello",
    ),
    Case(
        "vLLM: continuous usage, cut",
        [
            {**HEL, "usage": {"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 13}},
            {**LO, "usage": {"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 14}},
        ],
        Reported(12, 2, 14),
        "sse",
        text="Hello",
    ),
    Case(
        "stream: tool calls and reasoning",
        [
            chunk({"role": "assistant", "content": None, "reasoning_content": "Hm. "}),
            chunk({"tool_calls": [{"index": 0, "id": "t", "function": {"name": "f", "arguments": ""}}]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": ' "b"}'}}]}),
            LAST,
        ],
        Reported(12, 8, 20),
        "sse",
        text='Hm. {"a": "b"}',
    ),
    Case(
        "Groq: usage that nobody asked for",
        [chunk({"content": "Hello"}, x_groq={"id": "r"}), {**STOP, "x_groq": {"id": "r", "usage": USAGE}}],
        Reported(12, 8, 20),
        "sse",
        text="Hello",
    ),
    Case(
        "Moonshot: usage in the choice",
        [
            HEL,
            chunk({"content": "lo"}),
            {
                **STOP,
                "choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": {**USAGE, "cached_tokens": 3}}],
            },
        ],
        Reported(12, 8, 20, cached=3),
        "sse",
        text="Hello",
    ),
    Case(
        "on Bedrock: counts in the metrics alone",
        [
            {"choices": [{"index": 0, "text": "Hel"}]},
            {
                "choices": [{"index": 0, "text": "lo", "stop_reason": "stop"}],
                "amazon-bedrock-invocationMetrics": {"inputTokenCount": 12, "outputTokenCount": 8},
            },
        ],
        Reported(12, 8),
        "wrapped",
        model="",
        text="Hello",
        dialect="bedrock",
    ),
]
