"""OpenAI's Responses API, and what else of OpenAI counts `input_tokens`: images, transcriptions.

`input_tokens` includes what came from a cache, `output_tokens` includes reasoning. The event that ends a stream
(`response.completed`, `.incomplete`, `.failed`) carries the whole response, usage included.
"""

from __future__ import annotations

from extproc.bodies.shapes import Shape
from extproc.usage.dialects.dialect import Counts, Dialect, under
from extproc.usage.dialects.opening import has_member
from extproc.usage.usage import Reported

_EVENT, _DOCUMENT = "/response/usage", "/usage"
_INPUT, _OUTPUT, _TOTAL = "input_tokens", "output_tokens", "total_tokens"
_CACHED = "input_tokens_details/cached_tokens"
_CACHE_WRITE = "input_tokens_details/cache_write_tokens"
_REASONING = "output_tokens_details/reasoning_tokens"


def _usage(counts: Counts) -> Reported | None:
    if f"{_EVENT}/{_INPUT}" in counts:
        return _usage_at(_EVENT, counts)
    # Anthropic says /usage/input_tokens too, but never a total.
    if f"{_DOCUMENT}/{_INPUT}" in counts and f"{_DOCUMENT}/{_TOTAL}" in counts:
        return _usage_at(_DOCUMENT, counts)
    return None


def _usage_at(place: str, counts: Counts) -> Reported:
    prompt, total = counts[f"{place}/{_INPUT}"], counts.get(f"{place}/{_TOTAL}")
    completion = counts.get(f"{place}/{_OUTPUT}")
    return Reported(
        prompt,
        completion if total is None else max(completion or 0, total - prompt),
        total,
        cached=counts.get(f"{place}/{_CACHED}", 0),
        cache_write=counts.get(f"{place}/{_CACHE_WRITE}", 0),
        reasoning=counts.get(f"{place}/{_REASONING}", 0),
    )


DIALECT = Dialect(
    Shape(
        name="responses",
        opening=has_member(
            ("object", rb'"response[".]'),
            ("data", rb'\[\s*+\{\s*+"(?:b64_json|url|revised_prompt)"'),
            ("type", rb'"(?:response|transcript\.text|image_generation|image_edit)\.'),
        ),
        needles=(b'_tokens"',),
        counts=under((_EVENT, _DOCUMENT), (_INPUT, _OUTPUT, _TOTAL, _CACHED, _CACHE_WRITE, _REASONING)),
        models=("/model", "/response/model"),
        text=(
            "/output/*/content/*/text",
            "/output/*/content/*/refusal",
            "/output/*/summary/*/text",
            "/output/*/arguments",
            "/output/*/input",
            "/output/*/code",
        ),
        # Events that end a part repeat the text of its deltas, under other keys.
        event_keys=("delta",),
        # Sound, as text of a kind.
        exact_needles=(b'"type":"response.audio.delta"',),
    ),
    provider="openai",
    usage=_usage,
)
