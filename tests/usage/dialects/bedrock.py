"""Amazon Bedrock."""

from __future__ import annotations

from typing import Any

from usage.dialects.case import Case

from extproc.usage.usage import Reported

USAGE = {"inputTokens": 10, "outputTokens": 7, "totalTokens": 17}
CACHED = {**USAGE, "totalTokens": 2317, "cacheReadInputTokens": 2000, "cacheWriteInputTokens": 300}
METRICS = {
    "amazon-bedrock-invocationMetrics": {
        "inputTokenCount": 10,
        "outputTokenCount": 7,
        "invocationLatency": 1203,
        "firstByteLatency": 98,
    }
}


def converse(usage: dict[str, Any], *content: dict[str, Any]) -> dict[str, Any]:
    return {
        "metrics": {"latencyMs": 302},
        "output": {"message": {"content": list(content), "role": "assistant"}},
        "stopReason": "end_turn",
        "usage": usage,
    }


def delta(**what: Any) -> dict[str, Any]:
    return {"contentBlockIndex": 0, "delta": what, "p": "abcdefgh"}


def titan(text: str, **more: Any) -> dict[str, Any]:
    return {"outputText": text, "index": 0, "totalOutputTextTokenCount": None, "completionReason": None, **more}


def llama(text: str, count: int, prompt: int | None = None, **more: Any) -> dict[str, Any]:
    return {
        "generation": text,
        "prompt_token_count": prompt,
        "generation_token_count": count,
        "stop_reason": None,
        **more,
    }


START = {"p": "abcd", "role": "assistant"}
STOP = {"p": "abcd", "stopReason": "end_turn"}
END = {"metrics": {"latencyMs": 302}, "p": "abcd", "usage": CACHED}

CASES = [
    Case("Converse", converse(USAGE, {"text": "Hello"}), Reported(10, 7, 17), model="", text="Hello"),
    Case("Converse: cache", converse(CACHED), Reported(2310, 7, 2317, cached=2000, cache_write=300), model=""),
    Case(
        "Converse: a total without the cache",
        converse({**CACHED, "totalTokens": 17}),
        Reported(2310, 7, 2317, cached=2000, cache_write=300),
        model="",
    ),
    Case(
        "Converse: reasoning and tool use",
        converse(
            USAGE,
            {"reasoningContent": {"reasoningText": {"text": "Hm. ", "signature": "c2ln"}}},
            {"toolUse": {"toolUseId": "t", "name": "f", "input": {"a": 1}}},
        ),
        Reported(10, 7, 17),
        model="",
        text='Hm. {"a":1}',
    ),
    Case(
        "Converse through a prompt router",
        {**converse(USAGE), "trace": {"promptRouter": {"invokedModelId": "m"}}},
        Reported(10, 7, 17),
    ),
    Case(
        "ConverseStream",
        [START, delta(text="Hel"), delta(text="lo"), {"contentBlockIndex": 0, "p": "a"}, STOP, END],
        Reported(2310, 7, 2317, cached=2000, cache_write=300),
        "eventstream",
        model="",
        text="Hello",
    ),
    Case(
        "ConverseStream: reasoning and tool use",
        [
            START,
            delta(reasoningContent={"text": "Hm. "}),
            delta(reasoningContent={"signature": "c2ln"}),
            {"contentBlockIndex": 1, "start": {"toolUse": {"name": "f", "toolUseId": "t"}}},
            delta(toolUse={"input": '{"a":'}),
            delta(toolUse={"input": "1}"}),
            END,
        ],
        Reported(2310, 7, 2317, cached=2000, cache_write=300),
        "eventstream",
        model="",
        text='Hm. {"a":1}',
    ),
    Case("ConverseStream cut", [START, delta(text="Hel")], None, "eventstream", model="", text="Hel"),
    Case(
        "Nova",
        {
            "output": {"message": {"content": [{"text": "Hello"}], "role": "assistant"}},
            "stopReason": "end_turn",
            "usage": {**USAGE, "totalTokens": 20, "cacheReadInputTokenCount": 3, "cacheWriteInputTokenCount": 0},
        },
        Reported(13, 7, 20, cached=3),
        model="",
        text="Hello",
    ),
    Case(
        "Nova: stream",
        [
            {"messageStart": {"role": "assistant"}},
            {"contentBlockDelta": {"delta": {"text": "Hello"}, "contentBlockIndex": 0}},
            {"messageStop": {"stopReason": "end_turn"}},
            {"metadata": {"usage": USAGE, "metrics": {}, "trace": {}}, **METRICS},
        ],
        Reported(10, 7),
        "wrapped",
        model="",
        text="Hello",
    ),
    Case(
        "Titan",
        {
            "inputTextTokenCount": 10,
            "results": [{"tokenCount": 7, "outputText": "Hello", "completionReason": "FINISH"}],
        },
        Reported(10, 7),
        model="",
        text="Hello",
    ),
    Case(
        "Titan: embedding",
        {"embedding": [0.5, 0.25], "inputTextTokenCount": 10},
        Reported(10, 0),
        model="",
        text="",
    ),
    Case(
        "Titan: stream",
        [titan("Hel", inputTextTokenCount=10), titan("lo", inputTextTokenCount=10, totalOutputTextTokenCount=7)],
        Reported(10, 7),
        "wrapped",
        model="",
        text="Hello",
    ),
    Case(
        "Titan: stream cut",
        [titan("Hel", inputTextTokenCount=10)],
        Reported(10, None, final=False),
        "wrapped",
        model="",
        text="Hel",
    ),
    Case("Llama", llama("Hello", 7, 10), Reported(10, 7), model="", text="Hello"),
    Case(
        "Llama: stream",
        [llama("Hel", 1, 10), llama("lo", 2), llama("", 7, **METRICS)],
        Reported(10, 7),
        "wrapped",
        model="",
        text="Hello",
    ),
    Case(
        "Llama: stream cut", [llama("Hel", 1, 10), llama("lo", 2)], Reported(10, 2), "wrapped", model="", text="Hello"
    ),
    Case("Mistral", {"outputs": [{"text": "Hello", "stop_reason": "stop"}]}, None, model="", text="Hello"),
    Case(
        "Mistral: stream",
        [
            {"outputs": [{"text": "Hello", "stop_reason": None}]},
            {"outputs": [{"text": "", "stop_reason": "stop"}], **METRICS},
        ],
        Reported(10, 7),
        "wrapped",
        model="",
        text="Hello",
    ),
    Case(
        "metrics with cache",
        [
            {"outputs": [{"text": "Hello"}]},
            {
                "outputs": [{"text": ""}],
                "amazon-bedrock-invocationMetrics": {
                    "inputTokenCount": 10,
                    "outputTokenCount": 7,
                    "cacheReadInputTokenCount": 2000,
                    "cacheWriteInputTokenCount": 300,
                },
            },
        ],
        Reported(2310, 7, cached=2000, cache_write=300),
        "wrapped",
        model="",
    ),
    Case("values that are no counts", converse({"inputTokens": "10", "outputTokens": -7}), None, model=""),
]
