"""OpenAI's Responses API, images and transcriptions."""

from __future__ import annotations

from typing import Any

from usage.dialects.case import Case

from extproc.usage.usage import Reported

USAGE = {
    "input_tokens": 30,
    "input_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 4},
    "output_tokens": 9,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 39,
}
COUNTED = Reported(30, 9, 39, cached=10, cache_write=4, reasoning=5)
MESSAGE = {"type": "message", "id": "msg", "role": "assistant", "content": [{"type": "output_text", "text": "Hello"}]}
CALL = {"type": "function_call", "id": "fc", "name": "f", "arguments": '{"a":1}', "call_id": "c"}
REASONING = {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "Hm. "}]}


def response(usage: Any, output: Any = (), **more: Any) -> dict[str, Any]:
    return {
        "id": "resp",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": "m",
        "output": list(output),
        "reasoning": {"effort": "low", "summary": None},
        "text": {"format": {"type": "text"}},
        "tools": [],
        "usage": usage,
        "metadata": {},
        **more,
    }


def event(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", "sequence_number": 1, **more}


def delta(kind: str, text: str) -> dict[str, Any]:
    return event(f"{kind}.delta", item_id="i", output_index=0, delta=text, logprobs=[], obfuscation="xyz")


CREATED = event("created", response=response(None, status="in_progress"))
DONE = event("completed", response=response(USAGE, [REASONING, MESSAGE, CALL]))
TOOL = {"type": "function", "name": "f", "parameters": {"properties": {"choices": {"type": "array"}}}}

CASES = [
    Case("document", response(USAGE, [REASONING, MESSAGE, CALL]), COUNTED, text='Hm. Hello{"a":1}'),
    Case("without details", response({"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}), Reported(3, 2, 5)),
    Case("refused", response(USAGE, [{"type": "message", "content": [{"refusal": "No"}]}]), COUNTED, text="No"),
    Case(
        "stream",
        [
            CREATED,
            event("in_progress", response=response(None)),
            event("output_item.added", item=MESSAGE | {"content": []}),
            delta("reasoning_summary_text", "Hm. "),
            event("reasoning_summary_text.done", text="Hm. "),
            event("content_part.added", part={"type": "output_text", "text": ""}),
            delta("output_text", "Hel"),
            delta("output_text", "lo"),
            event("output_text.done", text="Hello"),
            event("content_part.done", part={"type": "output_text", "text": "Hello"}),
            event("output_item.done", item=MESSAGE),
            delta("function_call_arguments", '{"a":'),
            delta("function_call_arguments", "1}"),
            event("function_call_arguments.done", arguments='{"a":1}'),
            delta("refusal", "No"),
            event("refusal.done", refusal="No"),
            DONE,
        ],
        COUNTED,
        "sse",
        text='Hm. Hello{"a":1}No',
    ),
    Case(
        "stream that stops at its limit",
        [CREATED, delta("output_text", "Hel"), event("incomplete", response=response(USAGE))],
        COUNTED,
        "sse",
        text="Hel",
    ),
    Case("stream cut", [CREATED, delta("output_text", "Hel")], None, "sse", text="Hel"),
    Case("stream that failed", [CREATED, event("failed", response=response(None))], None, "sse", text=""),
    Case(
        "vLLM: keys in alphabetical order",
        [
            {"response": response(None), "sequence_number": 0, "type": "response.created"},
            {"content_index": 0, "delta": "Hello", "item_id": "i", "type": "response.output_text.delta"},
            {"response": response(USAGE), "sequence_number": 9, "type": "response.completed"},
        ],
        COUNTED,
        "sse",
        text="Hello",
    ),
    Case(
        "a long request repeated in the first event",
        [
            event("created", response=response(None, instructions="Be brief. " * 1000, tools=[TOOL] * 100)),
            delta("output_text", "Hello"),
            DONE,
        ],
        COUNTED,
        "sse",
        text="Hello",
    ),
    Case(
        "image",
        {
            "created": 1,
            "data": [{"b64_json": "aGVsbG8="}],
            "usage": {
                "input_tokens": 50,
                "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
                "output_tokens": 60,
                "total_tokens": 110,
            },
        },
        Reported(50, 60, 110),
        model="",
        text="",
    ),
    Case(
        "transcription",
        [
            {"type": "transcript.text.delta", "delta": "Hel"},
            {"type": "transcript.text.delta", "delta": "lo"},
            {
                "type": "transcript.text.done",
                "text": "Hello",
                "usage": {"type": "tokens", "input_tokens": 14, "output_tokens": 3, "total_tokens": 17},
            },
        ],
        Reported(14, 3, 17),
        "sse",
        model="",
        text="Hello",
    ),
    Case("values that are no counts", response({"input_tokens": "30", "output_tokens": 9.5, "total_tokens": -1}), None),
]
