"""The dialects, in the order in which they are asked."""

from __future__ import annotations

from extproc.bodies.findings import Findings
from extproc.usage.dialects import anthropic, bedrock, cohere, gemini, ollama, openai, responses
from extproc.usage.dialects.dialect import Dialect
from extproc.usage.usage import Reported

_MODULES = (openai, responses, anthropic, gemini, bedrock, ollama, cohere)
DIALECTS: dict[str, Dialect] = {module.DIALECT.name: module.DIALECT for module in _MODULES}


def reported(findings: Findings) -> tuple[str, Reported | None]:
    """The dialect of an answer, "" when it is not known, and the usage that it reports, if any.

    Of a reported prompt at most all of it is cached, of a completion at most all of it reasoning.
    """
    recognised = DIALECTS.get(findings.shape)
    counts = findings.counts
    if counts:
        if recognised is not None and (usage := recognised.usage(counts)) is not None:
            return recognised.name, _bounded(usage)
        for dialect in DIALECTS.values():
            if (usage := dialect.usage(counts)) is not None:
                return dialect.name, _bounded(usage)
    return findings.shape, None


def _bounded(usage: Reported) -> Reported:
    """`usage` whose parts are no more than their wholes, whatever a server says: prices subtract them."""
    cached, cache_write, reasoning = usage.cached, usage.cache_write, usage.reasoning
    if not (cached or cache_write or reasoning):
        return usage
    if usage.prompt is not None:
        cached = min(cached, usage.prompt)
        cache_write = min(cache_write, usage.prompt - cached)
    if usage.completion is not None:
        reasoning = min(reasoning, usage.completion)
    return usage._replace(cached=cached, cache_write=cache_write, reasoning=reasoning)
