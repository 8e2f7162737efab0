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
"""In streams the second is Groq's where no usage was asked, the third Moonshot's."""
_FIELDS = ("prompt_tokens", "completion_tokens", "total_tokens")
_CACHED = ("prompt_tokens_details/cached_tokens", "prompt_cache_hit_tokens", "cached_tokens")
"""OpenAI's name for it, DeepSeek's and Moonshot's."""
_DETAILS = ("prompt_tokens_details/cache_write_tokens", "completion_tokens_details/reasoning_tokens")
_POINTERS = tuple((under((place,), _FIELDS), under((place,), _CACHED), under((place,), _DETAILS)) for place in _PLACES)


def _usage(counts: Counts) -> Reported | None:
    for (prompt_at, completion_at, total_at), cached_at, (cache_write_at, reasoning_at) in _POINTERS:
        prompt, completion, total = counts.get(prompt_at), counts.get(completion_at), counts.get(total_at)
        if prompt is None and completion is None:
            # Some embedding servers tell a total alone; beside other counts it belongs to another dialect.
            if total is not None and len(counts) == 1:
                return Reported(total, 0, total)
            continue
        if total is not None:
            if prompt is None:
                prompt = max(0, total - (completion or 0))
            completion = max(completion or 0, total - prompt)
        cached = first(counts, *cached_at) or 0
        return Reported(prompt, completion, total, cached, counts.get(cache_write_at, 0), counts.get(reasoning_at, 0))
    return None


DIALECT = Dialect(
    Shape(
        name="openai",
        opening=has_member(
            ("choices", rb"\["),
            ("object", rb'"(?:chat\.completion|text_completion|list"|embedding)'),
        ),
        needles=(b'_tokens"',),
        counts=(
            *under(_PLACES[:1], (*_FIELDS, *_CACHED, *_DETAILS)),
            *invocation_metrics.COUNTS,
        ),
        event_counts=under(_PLACES[1:], (*_FIELDS, *_CACHED, *_DETAILS)),
        own=("/usage/prompt_tokens",),
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
        twins=(
            ("/choices/*/message/reasoning_content", "/choices/*/message/reasoning"),
            ("/choices/*/delta/reasoning_content", "/choices/*/delta/reasoning"),
        ),
        event_text=(
            "/choices/*/delta/content",
            "/choices/*/delta/reasoning_content",
            "/choices/*/delta/reasoning",
            "/choices/*/delta/refusal",
            "/choices/*/delta/tool_calls/*/function/arguments",
            "/choices/*/text",
        ),
        # What a search found and an answer quotes is under the same keys.
        exact_needles=(b"citation",),
        event_keys=("arguments", "content", "reasoning", "reasoning_content", "refusal", "text"),
    ),
    provider="openai",
    usage=_usage,
)
