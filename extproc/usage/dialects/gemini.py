"""Gemini, from Google's AI Studio and from Vertex AI: generateContent, its stream as events or as one array, and the
Interactions API.

`promptTokenCount` includes cached content but not what tools fed back, `candidatesTokenCount` leaves out thoughts;
the total is of all four. Each chunk tells the counts so far; older models tell the output in the last one only.
"""

from __future__ import annotations

from extproc.bodies.shapes import Shape
from extproc.usage.dialects.dialect import Counts, Dialect, first, total_of, under
from extproc.usage.dialects.opening import has_member
from extproc.usage.usage import Reported

_CHUNK = ("/usageMetadata",)
_PROMPT, _TOOL, _CACHED = "promptTokenCount", "toolUsePromptTokenCount", "cachedContentTokenCount"
_CANDIDATES, _THOUGHTS, _TOTAL = "candidatesTokenCount", "thoughtsTokenCount", "totalTokenCount"

_INTERACTION = ("/usage", "/interaction/usage")
_NAMES = {
    _PROMPT: "total_input_tokens",
    _TOOL: "total_tool_use_tokens",
    _CACHED: "total_cached_tokens",
    _CANDIDATES: "total_output_tokens",
    _THOUGHTS: "total_thought_tokens",
    _TOTAL: "total_tokens",
}
"""What the Interactions API calls them."""

_EVENT_TEXT = (
    "/candidates/*/content/parts/*/text",
    "/candidates/*/content/parts/*/executableCode/code",
    "/candidates/*/content/parts/*/functionCall/args",
    "/delta/text",
    "/delta/content/text",
    "/delta/arguments",
)


def _pointers(field: str) -> tuple[str, ...]:
    return *under(_CHUNK, (field,)), *under(_INTERACTION, (_NAMES[field],))


def _usage(counts: Counts) -> Reported | None:
    prompt = first(counts, *_pointers(_PROMPT))
    thoughts = first(counts, *_pointers(_THOUGHTS))
    completion = total_of(counts, *_pointers(_CANDIDATES), *_pointers(_THOUGHTS))
    if prompt is None and completion is None:
        return None
    return Reported(
        None if prompt is None else prompt + (first(counts, *_pointers(_TOOL)) or 0),
        completion,
        None if completion is None else first(counts, *_pointers(_TOTAL)),
        cached=first(counts, *_pointers(_CACHED)) or 0,
        reasoning=thoughts or 0,
        # Thoughts are told before the text that follows them.
        final=thoughts is None or first(counts, *_pointers(_CANDIDATES)) is not None,
    )


DIALECT = Dialect(
    Shape(
        name="gemini",
        opening=has_member(
            ("candidates", rb"\["),
            ("usageMetadata", rb"\{"),
            ("promptFeedback", rb"\{"),
            ("embedding", rb'\{\s*+"values"'),
            ("embeddings", rb'\[\s*+\{\s*+"values"'),
            ("object", rb'"interaction"'),
            ("event_type", rb'"(?:interaction|step|content)\.'),
        ),
        needles=(b'TokenCount"', b'"total_input_tokens"'),
        counts=tuple(pointer for field in _NAMES for pointer in _pointers(field)),
        models=("/modelVersion", "/model", "/interaction/model"),
        text=(*_EVENT_TEXT[:3], "/steps/*/content/*/text", "/steps/*/arguments"),
        # By pointer, not by key: what grounds an answer repeats its text.
        event_text=_EVENT_TEXT,
        exact_needles=(b'"parts"', b'"delta"'),
    ),
    provider="gcp.gemini",
    usage=_usage,
)
