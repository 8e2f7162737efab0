"""Amazon Bedrock: Converse and ConverseStream, and InvokeModel of Nova, Titan, Llama and Mistral.

`inputTokens` leaves out what was read from a cache and what was written to it, as AWS's guide to prompt caching
defines it: the prompt is the sum of the three. Other models answer InvokeModel in a dialect of their own, with
Bedrock's metrics in the last event of a stream.
"""

from __future__ import annotations

from extproc.bodies.shapes import Shape
from extproc.usage.dialects import invocation_metrics
from extproc.usage.dialects.dialect import Counts, Dialect, first
from extproc.usage.dialects.opening import STRING, has_member
from extproc.usage.usage import Reported

_INPUT, _OUTPUT, _TOTAL = "/usage/inputTokens", "/usage/outputTokens", "/usage/totalTokens"
_READ = ("/usage/cacheReadInputTokens", "/usage/cacheReadInputTokenCount")
_WRITE = ("/usage/cacheWriteInputTokens", "/usage/cacheWriteInputTokenCount")
"""In Converse, and in Nova's InvokeModel."""

_TITAN_INPUT = "/inputTextTokenCount"
_TITAN_OUTPUT = ("/results/0/tokenCount", "/totalOutputTextTokenCount")
_TITAN_EVENT = "/index"
"""In each event of a Titan stream; nothing else tells its first events from an embedding."""
_LLAMA_INPUT, _LLAMA_OUTPUT = "/prompt_token_count", "/generation_token_count"


def _usage(counts: Counts) -> Reported | None:
    return _converse(counts) or invocation_metrics.metrics_usage(counts) or _titan(counts) or _llama(counts)


def _converse(counts: Counts) -> Reported | None:
    if _INPUT not in counts and _OUTPUT not in counts:
        return None
    read, write = first(counts, *_READ) or 0, first(counts, *_WRITE) or 0
    prompt = counts[_INPUT] + read + write if _INPUT in counts else None
    completion, total = counts.get(_OUTPUT), counts.get(_TOTAL)
    if total is not None:
        # AWS does not say whether the total has the cache in it; it is all that was used only if it has.
        total = max(total, (prompt or 0) + (completion or 0))
    return Reported(prompt, completion, total, cached=read, cache_write=write)


def _titan(counts: Counts) -> Reported | None:
    prompt, output = counts.get(_TITAN_INPUT), first(counts, *_TITAN_OUTPUT)
    if prompt is None and output is None:
        return None
    if output is None and _TITAN_EVENT not in counts:
        output = 0
    return Reported(prompt, output, final=output is not None)


def _llama(counts: Counts) -> Reported | None:
    if _LLAMA_INPUT not in counts and _LLAMA_OUTPUT not in counts:
        return None
    return Reported(counts.get(_LLAMA_INPUT), counts.get(_LLAMA_OUTPUT))


DIALECT = Dialect(
    Shape(
        name="bedrock",
        opening=has_member(
            ("contentBlockIndex", rb"\d"),
            ("output", rb'\{\s*+"message"'),
            ("contentBlockDelta", rb"\{"),
            ("inputTextTokenCount", rb"\d"),
            ("outputText", STRING),
            ("generation", STRING),
            ("outputs", rb'\[\s*+\{\s*+"text"'),
        ),
        needles=(b'Tokens"', b'TokenCount"', b'_token_count"'),
        counts=(
            *(_INPUT, _OUTPUT, _TOTAL, *_READ, *_WRITE),
            *invocation_metrics.COUNTS,
            *(_TITAN_INPUT, *_TITAN_OUTPUT, _TITAN_EVENT),
            *(_LLAMA_INPUT, _LLAMA_OUTPUT),
        ),
        models=("/trace/promptRouter/invokedModelId",),
        text=(
            "/output/message/content/*/text",
            "/output/message/content/*/toolUse/input",
            "/output/message/content/*/reasoningContent/reasoningText/text",
            "/results/*/outputText",
            "/generation",
            "/outputs/*/text",
        ),
        event_keys=("generation", "input", "outputText", "text"),
    ),
    provider="aws.bedrock",
    usage=_usage,
)
