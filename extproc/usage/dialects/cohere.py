"""Cohere's chat and embed, version 2, and what version 1 calls `meta`.

Two counts stand side by side: `tokens` is all that the model processed, what Cohere wraps around a prompt included;
`billed_units` is what Cohere charges. The second is taken, so that a cost comes to what the invoice says, and the
first where the second is missing, as on servers of one's own.
"""

from __future__ import annotations

from extproc.bodies.shapes import Shape
from extproc.usage.dialects import invocation_metrics
from extproc.usage.dialects.dialect import Counts, Dialect, first, under
from extproc.usage.dialects.opening import has_member
from extproc.usage.usage import Reported

_PLACES = ("/usage", "/delta/usage", "/meta", "/response/meta")
"""Documents and events of version 2, documents and events of version 1."""
_KINDS = ("billed_units", "tokens")
_INPUT, _OUTPUT, _CACHED = "input_tokens", "output_tokens", "cached_tokens"

_EVENT_TEXT = (
    "/delta/message/content/text",
    "/delta/message/content/thinking",
    "/delta/message/tool_plan",
    "/delta/message/tool_calls/function/arguments",
    "/text",
)


def _usage(counts: Counts) -> Reported | None:
    for at in (f"{place}/{kind}" for kind in _KINDS for place in _PLACES):
        prompt, completion = counts.get(f"{at}/{_INPUT}"), counts.get(f"{at}/{_OUTPUT}")
        if prompt is not None or completion is not None:
            return Reported(prompt, completion, cached=first(counts, *under(_PLACES, (_CACHED,))) or 0)
    return None


DIALECT = Dialect(
    Shape(
        name="cohere",
        opening=has_member(
            ("type", rb'"(?:message-start|content-start|content-delta|tool-plan-delta|tool-call-start)"'),
            ("event_type", rb'"(?:stream-start|text-generation)"'),
            ("message", rb'\{\s*+"role"'),
            ("generation_id", rb'"'),
            ("response_type", rb'"embeddings_'),
            ("embeddings", rb'\{\s*+"(?:float|int8|uint8|binary|ubinary|base64)"'),
        ),
        needles=(b'put_tokens"',),
        counts=(
            *under(_PLACES, (_CACHED, *under(_KINDS, (_INPUT, _OUTPUT)))),
            *invocation_metrics.COUNTS,
        ),
        models=("/model",),
        text=(
            "/message/content/*/text",
            "/message/content/*/thinking",
            "/message/tool_plan",
            "/message/tool_calls/*/function/arguments",
        ),
        # By pointer, not by key: citations repeat the text that they are for, and v1's last event all of it.
        event_text=_EVENT_TEXT,
        exact_needles=(b'"content-delta"', b'"tool-plan-delta"', b'"tool-call-delta"', b'"text-generation"'),
    ),
    provider="cohere",
    usage=_usage,
)
