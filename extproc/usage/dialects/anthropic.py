"""Anthropic's messages, also as Bedrock's and Vertex's InvokeModel and rawPredict pass them on.

`input_tokens` leaves out what was read from a cache and what was written to it: the prompt is the sum of the three.
A stream tells the input in `message_start` and, cumulatively, the output in `message_delta`, which may correct the
input; the output that `message_start` tells is what was generated until then.
"""

from __future__ import annotations

from extproc.bodies.shapes import Shape
from extproc.usage.dialects.dialect import Counts, Dialect, first, under
from extproc.usage.dialects.opening import has_member
from extproc.usage.usage import Reported

_LAST, _START = "/usage", "/message/usage"
"""Of a document or a message_delta, and of a message_start."""
_INPUT, _READ, _WRITE = "input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"
_OUTPUT = "output_tokens"
_REASONING = "output_tokens_details/thinking_tokens"


def _usage(counts: Counts) -> Reported | None:
    fields = (_INPUT, _READ, _WRITE, _OUTPUT, _REASONING)
    uncached, read, write, output, reasoning = (
        counts.get(f"{_LAST}/{field}") or first(counts, f"{_START}/{field}", f"{_LAST}/{field}") for field in fields
    )
    if uncached is None and output is None:
        return None
    final = counts.get(f"{_LAST}/{_OUTPUT}", 0) > 0
    prompt = None if uncached is None else uncached + (read or 0) + (write or 0)
    return Reported(
        # Servers that translate begin with zeros and tell all at the end, or fill in zeros there.
        prompt if final else prompt or None,
        output,
        cached=read or 0,
        cache_write=write or 0,
        reasoning=reasoning or 0,
        final=final,
    )


DIALECT = Dialect(
    Shape(
        name="anthropic",
        opening=has_member(("type", rb'"(?:message|message_start|message_delta|content_block_(?:start|delta))"')),
        needles=(b'_tokens"',),
        counts=under((_LAST, _START), (_INPUT, _READ, _WRITE, _OUTPUT, _REASONING)),
        models=("/model", "/message/model"),
        text=("/content/*/text", "/content/*/thinking", "/content/*/input"),
        event_text=("/content_block/text", "/delta/text", "/delta/thinking", "/delta/partial_json"),
        # Results of tools that the provider ran come as whole blocks.
        exact_needles=(b"_tool_result",),
        event_keys=("partial_json", "text", "thinking"),
    ),
    provider="anthropic",
    usage=_usage,
)
