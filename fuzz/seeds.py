"""Valid answers of every dialect, and requests, small: what the fuzzer starts from."""

from __future__ import annotations

from typing import Any

from fuzz.framing import compact

_OPENAI_USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 12,
    "total_tokens": 21,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 5},
}
_RESPONSES_USAGE = {
    "input_tokens": 36,
    "input_tokens_details": {"cached_tokens": 8},
    "output_tokens": 87,
    "output_tokens_details": {"reasoning_tokens": 3},
    "total_tokens": 123,
}
_ANTHROPIC_USAGE = {
    "input_tokens": 25,
    "cache_creation_input_tokens": 7,
    "cache_read_input_tokens": 11,
    "output_tokens": 15,
}
_GEMINI_USAGE = {
    "promptTokenCount": 6,
    "candidatesTokenCount": 40,
    "thoughtsTokenCount": 13,
    "cachedContentTokenCount": 2,
    "totalTokenCount": 59,
}
_BEDROCK_USAGE = {
    "inputTokens": 30,
    "outputTokens": 62,
    "totalTokens": 92,
    "cacheReadInputTokens": 0,
    "cacheWriteInputTokens": 0,
}
_OLLAMA_END = {
    "done": True,
    "done_reason": "stop",
    "total_duration": 4_883_583_458,
    "prompt_eval_count": 26,
    "eval_count": 282,
}
_COHERE_USAGE = {
    "billed_units": {"input_tokens": 5, "output_tokens": 18},
    "tokens": {"input_tokens": 71, "output_tokens": 18},
}


def _chunk(choices: list[Any], **more: Any) -> dict[str, Any]:
    return {"id": "c1", "object": "chat.completion.chunk", "model": "gpt-4o-mini", "choices": choices} | more


def _delta(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return _chunk([{"index": 0, "delta": delta, "finish_reason": finish}], **more)


def _gemini(text: str, **more: Any) -> dict[str, Any]:
    return {
        "candidates": [{"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}],
        "modelVersion": "gemini-2.5-flash",
    } | more


def _ollama(content: str, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {"model": "llama3.2", "created_at": "2025-06-01T12:00:00Z", "message": message, "done": False} | more


_DOCUMENTS: dict[str, Any] = {
    "openai chat": {
        "id": "c1",
        "object": "chat.completion",
        "model": "gpt-4o-mini",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": 'Caf\u00e9 "noir"\n\U0001f600',
                    "tool_calls": [{"id": "t", "function": {"name": "f", "arguments": '{"a":1}'}}],
                },
                "finish_reason": "stop",
            }
        ],
        "usage": _OPENAI_USAGE,
    },
    "openai completion": {
        "object": "text_completion",
        "model": "davinci-002",
        "choices": [{"text": "To be", "index": 0, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    },
    "openai embeddings": {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.0023, -0.0093, 1e-05]}],
        "model": "text-embedding-3-small",
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    },
    "openai responses": {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "model": "gpt-4.1",
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "Hello", "annotations": []}]}],
        "usage": _RESPONSES_USAGE,
    },
    "anthropic": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4",
        "content": [{"type": "text", "text": "Hi"}, {"type": "tool_use", "id": "t", "name": "f", "input": {"a": [1]}}],
        "stop_reason": "end_turn",
        "usage": _ANTHROPIC_USAGE,
    },
    "gemini": _gemini("Why not?", usageMetadata=_GEMINI_USAGE),
    "gemini array": [_gemini("Why "), _gemini("not?", usageMetadata=_GEMINI_USAGE)],
    "bedrock converse": {
        "output": {"message": {"role": "assistant", "content": [{"text": "Sure."}]}},
        "stopReason": "end_turn",
        "usage": _BEDROCK_USAGE,
        "metrics": {"latencyMs": 1275},
    },
    "ollama": _ollama("Hello there", **_OLLAMA_END),
    "cohere": {
        "id": "c",
        "finish_reason": "COMPLETE",
        "message": {"role": "assistant", "content": [{"type": "text", "text": "Bonjour"}]},
        "usage": _COHERE_USAGE,
    },
}

_STREAMS: dict[str, list[Any]] = {
    "openai chat": [
        _delta({"role": "assistant", "content": ""}, usage=None),
        _delta({"content": "Caf\u00e9 "}, usage=None),
        _delta({"reasoning_content": 'so "it" goes'}, usage=None),
        _delta({"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]}, usage=None),
        _delta({}, "stop", usage=None),
        _chunk([], usage=_OPENAI_USAGE),
    ],
    "openai continuous": [
        _delta({"content": "b"}, usage={"prompt_tokens": 4, "completion_tokens": n, "total_tokens": 4 + n})
        for n in range(1, 7)
    ],
    "openai responses": [
        {"type": "response.created", "response": {"id": "resp_1", "object": "response", "model": "gpt-4.1"}},
        {"type": "response.output_text.delta", "item_id": "m", "output_index": 0, "delta": "Hel"},
        {"type": "response.output_text.delta", "item_id": "m", "output_index": 0, "delta": "lo"},
        {"type": "response.output_text.done", "item_id": "m", "output_index": 0, "text": "Hello"},
        {
            "type": "response.completed",
            "response": {"id": "resp_1", "object": "response", "model": "gpt-4.1", "usage": _RESPONSES_USAGE},
        },
    ],
    "anthropic": [
        {
            "type": "message_start",
            "message": {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "claude-sonnet-4",
                "content": [],
                "usage": _ANTHROPIC_USAGE | {"output_tokens": 1},
            },
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"a":'}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}},
        {"type": "message_stop"},
    ],
    "gemini": [
        _gemini("Why ", usageMetadata={"promptTokenCount": 6, "totalTokenCount": 6}),
        _gemini("not?", usageMetadata=_GEMINI_USAGE),
    ],
    "bedrock converse": [
        {"role": "assistant", "p": "abc"},
        {"contentBlockIndex": 0, "delta": {"text": "Sure"}, "p": "abcdefghij"},
        {"contentBlockIndex": 0, "delta": {"toolUse": {"input": '{"a":1}'}}, "p": "abcd"},
        {"contentBlockIndex": 0, "p": "abcdefg"},
        {"stopReason": "end_turn", "p": "ab"},
        {"usage": _BEDROCK_USAGE, "metrics": {"latencyMs": 992}, "p": "abcdef"},
    ],
    "bedrock invoke": [
        {"type": "message_start", "message": {"model": "claude-3-haiku", "usage": {"input_tokens": 10}}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Yes"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 4}},
        {
            "type": "message_stop",
            "amazon-bedrock-invocationMetrics": {"inputTokenCount": 10, "outputTokenCount": 4},
        },
    ],
    "ollama": [_ollama("Hello"), _ollama(" there"), _ollama("", **_OLLAMA_END)],
    "cohere": [
        {"type": "message-start", "id": "c", "delta": {"message": {"role": "assistant", "content": []}}},
        {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "Bon"}}}},
        {"type": "content-end", "index": 0},
        {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": _COHERE_USAGE}},
    ],
}

DOCUMENTS: dict[str, bytes] = {name: compact(document) for name, document in _DOCUMENTS.items()}
"""JSON answers."""

STREAMS: dict[str, tuple[bytes, ...]] = {name: tuple(map(compact, events)) for name, events in _STREAMS.items()}
"""The JSON texts of streamed answers, to be framed."""

REQUESTS: dict[str, bytes] = {
    "chat": rb"""{ "model" : "gpt-4o", "metadata": {"model": "\"}"},
 "messages": [{"role": "user", "content": "caf\u00e9 \ud83d\ude00", "model": "x"}, {"model": null, "content": []}],
 "temperature": 1.0e0, "seed": 12345678901234567890, "stream": true, "stream_options": {} }""",
    "duplicates": b'{"model":"a","model":"b","metadata":1,"messages":[],"messages":[{"model":1,"model":2}]}',
    "escapes": rb'{"\u006dodel":"a","m\u0065tadata":{},"mess\u0061ges":[{"mod\u0065l":[{}]}],"x\"model":"\\"}',
    "parts": compact(
        {
            "stream": True,
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {}}]},
                {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": '{"model":1}'}}]},
            ],
            "tools": [{"function": {"parameters": {"properties": {"model": {"type": "string"}}}}}],
        }
    ),
    "responses": compact(
        {
            "instructions": "Be brief.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "42"},
            ],
        }
    ),
    "anthropic": compact(
        {
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {"a": [1, "x", True]}}]},
                {"role": "user", "content": [{"type": "tool_result", "content": [{"type": "text", "text": "42"}]}]},
            ],
        }
    ),
    "gemini": compact(
        {
            "systemInstruction": {"parts": [{"text": "Be brief."}]},
            "contents": [{"role": "user", "parts": [{"text": "Why"}, {"inlineData": {"data": "AAAA"}}]}],
        }
    ),
    "cohere": compact({"message": "Hi", "chat_history": [{"role": "CHATBOT", "message": "b"}], "documents": ["c"]}),
    "ollama": compact({"prompt": "Hi", "suffix": "?", "system": "Be brief.", "images": ["AAAA"]}),
    "embeddings": compact({"input": ["a", "b"]}),
    "nothing": b"{}",
    "one member": b'\xef\xbb\xbf{\n  "metadata": 1\n}\n',
}
"""JSON texts of requests."""
