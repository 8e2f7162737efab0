"""How much generated text a piece of an answer carries, for estimates when no usage is reported.

The keys are those under which the known dialects put text a model wrote: message and delta content,
completions, reasoning, refusals and tool call arguments.
"""

from __future__ import annotations

import re
from typing import Any

TEXT_KEYS = frozenset(
    {
        "arguments",
        "content",
        "partial_json",
        "reasoning",
        "reasoning_content",
        "refusal",
        "text",
        "thinking",
    }
)
_TEXT = re.compile(
    rb'"(?:' + "|".join(sorted(TEXT_KEYS)).encode() + rb')"\s*+:\s*+"([^"\\]*+(?:\\.[^"\\]*+)*+)"', re.DOTALL
)


def text_size(document: Any) -> int:
    """Bytes of text in a parsed document; walks without recursion, so depth does no harm."""
    total = 0
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, dict):
            for key, item in value.items():
                if isinstance(item, str):
                    if key in TEXT_KEYS:
                        total += len(item.encode())
                else:
                    pending.append(item)
    return total


def text_size_of_bytes(data: bytes) -> int:
    """Bytes of text in unparsed JSON, escapes counted as they are written; a scan, not a parse."""
    return sum(map(len, _TEXT.findall(data)))
