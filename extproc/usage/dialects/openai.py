"""OpenAI's chat completions, legacy completions and embeddings, and the many servers that answer like them:
Azure, vLLM (also with usage in every frame), Ollama's /v1, DeepSeek, Mistral, OpenRouter, xAI, Groq, Moonshot.

`prompt_tokens` includes what came from a cache, `completion_tokens` includes reasoning. Where the total is more than
the two (xAI, Gemini's face of this kind), the rest is reasoning that they left out of the completion.
"""

from __future__ import annotations

from extproc.bodies.shapes import Shape
from extproc.usage.dialects import invocation_metrics
from extproc.usage.dialects.dialect import Counts, Dialect, first, under
from extproc.usage.dialects.opening import has_member
from extproc.usage.usage import Reported

_PLACES = ("/usage", "/x_groq/usage", "/choices/0/usage")
"""The second is Groq's in streams for which no usage was asked, the third Moonshot's."""
_PROMPT, _COMPLETION, _TOTAL = "prompt_tokens", "completion_tokens", "total_tokens"
_CACHED = ("prompt_tokens_details/cached_tokens", "prompt_cache_hit_tokens", "cached_tokens")
"""OpenAI's name for it, DeepSeek's and Moonshot's."""
_CACHE_WRITE = "prompt_tokens_details/cache_write_tokens"
_REASONING = "completion_tokens_details/reasoning_tokens"


def _usage(counts: Counts) -> Reported | None:
    return next((usage for place in _PLACES if (usage := _usage_at(place, counts))), None)


def _usage_at(place: str, counts: Counts) -> Reported | None:
    prompt, completion, total = (counts.get(f"{place}/{field}") for field in (_PROMPT, _COMPLETION, _TOTAL))
    if prompt is None and completion is None:
        # Some embedding servers tell a total alone; beside other counts it belongs to another dialect.
        return Reported(total, 0, total) if total is not None and len(counts) == 1 else None
    if total is not None:
        if prompt is None:
            prompt = max(0, total - (completion or 0))
        completion = max(completion or 0, total - prompt)
    elif completion is None and prompt is not None:
        completion = 0
    return Reported(
        prompt,
        completion,
        total,
        cached=first(counts, *under((place,), _CACHED)) or 0,
        cache_write=counts.get(f"{place}/{_CACHE_WRITE}", 0),
        reasoning=counts.get(f"{place}/{_REASONING}", 0),
    )


DIALECT = Dialect(
    Shape(
        name="openai",
        opening=has_member(
            ("choices", rb"\["),
            ("object", rb'"(?:chat\.completion|text_completion|list"|embedding)'),
        ),
        needles=(b'_tokens"', invocation_metrics.NEEDLE),
        counts=(
            *under(_PLACES, (_PROMPT, _COMPLETION, _TOTAL, *_CACHED, _CACHE_WRITE, _REASONING)),
            *invocation_metrics.COUNTS,
        ),
        models=("/model",),
        text=(
            "/choices/*/message/content",
            "/choices/*/message/content/*/text",
            "/choices/*/message/content/*/thinking/*/text",
            "/choices/*/message/reasoning_content",
            "/choices/*/message/reasoning",
            "/choices/*/message/refusal",
            "/choices/*/message/tool_calls/*/function/arguments",
            "/choices/*/message/function_call/arguments",
            "/choices/*/text",
        ),
        event_keys=("arguments", "content", "reasoning", "reasoning_content", "refusal", "text"),
    ),
    provider="openai",
    usage=_usage,
)
