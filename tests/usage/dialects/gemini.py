"""Gemini, on AI Studio and Vertex AI."""

from __future__ import annotations

from typing import Any

from usage.dialects.case import Case

from extproc.usage.usage import Reported

FULL = {
    "promptTokenCount": 100,
    "cachedContentTokenCount": 80,
    "toolUsePromptTokenCount": 15,
    "candidatesTokenCount": 20,
    "thoughtsTokenCount": 30,
    "totalTokenCount": 165,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 100}],
    "trafficType": "ON_DEMAND",
}
COUNTED = Reported(115, 50, 165, cached=80, reasoning=30)


def chunk(usage: dict[str, Any] | None, *parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    answer = {"candidates": [{"content": {"parts": list(parts), "role": "model"}, "index": 0, **more}]}
    if usage is not None:
        answer["usageMetadata"] = usage  # type: ignore[assignment]
    return {**answer, "modelVersion": "m", "responseId": "r"}


HEL, LO = {"text": "Hel"}, {"text": "lo"}
EARLY = chunk({"promptTokenCount": 8, "totalTokenCount": 8}, HEL)
LATE = chunk({"promptTokenCount": 8, "candidatesTokenCount": 4, "totalTokenCount": 12}, LO, finishReason="STOP")
THINKING = chunk(
    {"promptTokenCount": 8, "thoughtsTokenCount": 30, "totalTokenCount": 38}, {"text": "Hm. ", "thought": True}
)
INTERACTION = {
    "id": "v1",
    "object": "interaction",
    "model": "m",
    "status": "completed",
    "usage": {
        "total_input_tokens": 100,
        "total_cached_tokens": 80,
        "total_tool_use_tokens": 15,
        "total_output_tokens": 20,
        "total_thought_tokens": 30,
        "total_tokens": 165,
    },
}

CASES = [
    Case("document", chunk(FULL, {"text": "Hello"}), COUNTED, text="Hello"),
    Case(
        "function call",
        chunk(FULL, {"functionCall": {"name": "f", "args": {"a": 1}}}),
        COUNTED,
        text='{"a":1}',
    ),
    Case(
        "prompt refused",
        {
            "promptFeedback": {"blockReason": "SAFETY"},
            "usageMetadata": {"promptTokenCount": 8, "totalTokenCount": 8},
            "modelVersion": "m",
        },
        Reported(8),
        text="",
    ),
    Case("only thoughts", THINKING, Reported(8, 30, 38, reasoning=30, final=False), text="Hm. "),
    Case("stream as events", [EARLY, LATE], Reported(8, 4, 12), "sse", text="Hello"),
    Case("stream as an array", [EARLY, LATE], Reported(8, 4, 12), text="Hello"),
    Case("stream cut: prompt alone", [EARLY], Reported(8), "sse", text="Hel"),
    Case("array cut: prompt alone", [EARLY], Reported(8), text="Hel"),
    Case("stream cut: counts so far", [THINKING], Reported(8, 30, 38, reasoning=30, final=False), "sse", text="Hm. "),
    Case(
        "stream: function call, and grounding that repeats the text",
        [
            chunk(None, {"text": "Hello"}),
            chunk(
                FULL,
                {"functionCall": {"name": "f", "args": {"text": "x"}}},
                groundingMetadata={"groundingSupports": [{"segment": {"endIndex": 5, "text": "Hello"}}]},
            ),
        ],
        COUNTED,
        "sse",
        text='Hello{"text":"x"}',
    ),
    Case("no usage", chunk(None, {"text": "Hello"}), None, text="Hello"),
    Case(
        "interaction",
        {**INTERACTION, "steps": [{"type": "model_output", "content": [{"type": "text", "text": "Hello"}]}]},
        COUNTED,
        text="Hello",
    ),
    Case(
        "interaction: stream",
        [
            {"interaction": {"id": "v1", "object": "interaction", "model": "m"}, "event_type": "interaction.created"},
            {"index": 0, "step": {"type": "model_output"}, "event_type": "step.start"},
            {"index": 0, "delta": {"text": "Hel", "type": "text"}, "event_type": "step.delta"},
            {"index": 0, "delta": {"text": "lo", "type": "text"}, "event_type": "step.delta"},
            {"interaction": INTERACTION, "event_type": "interaction.completed"},
        ],
        COUNTED,
        "sse",
        text="Hello",
    ),
    Case(
        "values that are no counts",
        chunk({"promptTokenCount": "8", "candidatesTokenCount": -4, "totalTokenCount": 12.5}),
        None,
    ),
]
