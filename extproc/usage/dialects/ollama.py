"""Ollama's own API: /api/chat, /api/generate, /api/embed. Its /v1 answers as OpenAI does.

The counts are in the last line, `"done": true`; a count of zero is left out, as is that of a prompt that the server
had in its cache. `eval_count` includes thinking.
"""

from __future__ import annotations

from extproc.bodies.shapes import Shape
from extproc.usage.dialects.dialect import Counts, Dialect
from extproc.usage.dialects.opening import STRING, has_member
from extproc.usage.usage import Reported

_PROMPT, _COMPLETION = "/prompt_eval_count", "/eval_count"


_TEXT = (
    "/message/content",
    "/message/thinking",
    "/message/tool_calls/*/function/arguments",
    "/response",
    "/thinking",
)


def _usage(counts: Counts) -> Reported | None:
    if _PROMPT not in counts and _COMPLETION not in counts:
        return None
    return Reported(counts.get(_PROMPT), counts.get(_COMPLETION))


DIALECT = Dialect(
    Shape(
        name="ollama",
        opening=has_member(
            ("created_at", STRING + rb'\s*+,\s*+"(?:message|response)"'),
            ("embeddings", rb"\[\s*+\["),
            ("prompt_eval_count", rb"\d"),
        ),
        needles=(b'eval_count"',),
        counts=(_PROMPT, _COMPLETION),
        models=("/model",),
        text=_TEXT,
        event_keys=("content", "response", "thinking"),
        event_text=_TEXT,
        exact_needles=(b'"tool_calls"',),
    ),
    provider="ollama",
    usage=_usage,
)
