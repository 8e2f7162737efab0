"""Every answer that the simulated model can give, with the usage that is true of it; a configuration that meters it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from support.harness import ENDPOINTS

MODEL = "m-7"
PROMPT, COMPLETION, CACHED, WRITTEN, REASONING = 100, 40, 30, 20, 7
COUNTS = {
    "x-sim-prompt-tokens": str(PROMPT),
    "x-sim-completion-tokens": str(COMPLETION),
    "x-sim-cached-tokens": str(CACHED),
    "x-sim-cache-write-tokens": str(WRITTEN),
    "x-sim-reasoning-tokens": str(REASONING),
}
"""Told to the model with every case: each number is another, so that none can pass for another."""

CHAT, TEXT, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
AZURE = f"/openai/deployments/{MODEL}"
GEMINI = f"/v1beta/models/{MODEL}"
VERTEX = f"/v1/projects/p/locations/l/publishers/google/models/{MODEL}"
BEDROCK = f"/model/{MODEL}"

STREAM: Mapping[str, Any] = {"stream": True}
ASKING: Mapping[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
COUNTING: Mapping[str, Any] = {
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}
"""vLLM's way to ask for usage in every frame."""


@dataclass(frozen=True)
class Case:
    """One request to the model. `tells` are the parts of prompt and completion that its dialect has a place for."""

    name: str
    path: str
    dialect: str
    tells: frozenset[str] = frozenset()
    streaming: bool = False
    body: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    model: str = MODEL
    completion: int = COMPLETION

    @property
    def host(self) -> str:
        """One for each, so that a line of an access log names its case."""
        return f"{self.name}.example.com"

    def request(self, **headers: str) -> dict[str, Any]:
        """Keyword arguments of `Client.send`."""
        options = {f"x-sim-{name.replace('_', '-')}": value for name, value in self.options.items()}
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Why is the sky blue?"}], **self.body}
        return {"host": self.host, "path": self.path, "json": body, "headers": {**COUNTS, **options, **headers}}

    @property
    def logged(self) -> dict[str, Any]:
        """What a line of the access log says of it, when it was complete and the hits are its total."""
        total = PROMPT + self.completion
        return {
            "model": self.model,
            "promptTokens": PROMPT,
            "completionTokens": self.completion,
            "totalTokens": total,
            "cachedTokens": CACHED if "cached" in self.tells else 0,
            "cacheWriteTokens": WRITTEN if "written" in self.tells else 0,
            "reasoningTokens": REASONING if "reasoning" in self.tells else 0,
            "hitsAddend": total,
            "usageSource": "reported",
            "dialect": self.dialect,
            "ending": "complete",
            "streaming": self.streaming,
        }


def _both(
    name: str,
    path: str,
    dialect: str,
    *tells: str,
    stream: Mapping[str, Any] = STREAM,
    model: str = MODEL,
    **options: str,
) -> Iterator[Case]:
    """A document and a stream."""
    told = frozenset(tells)
    yield Case(name, path, dialect, told, body={"stream": False}, options=options, model=model)
    yield Case(f"{name}-stream", path, dialect, told, streaming=True, body=stream, options=options, model=model)


def _stream(name: str, path: str, dialect: str, *tells: str, body: Mapping[str, Any] = STREAM, **options: str) -> Case:
    return Case(name, path, dialect, frozenset(tells), streaming=True, body=body, options=options)


def _cases() -> Iterator[Case]:
    openai = ("cached", "reasoning")
    yield from _both("chat", CHAT, "openai", *openai, stream=ASKING)
    yield _stream("chat-always", CHAT, "openai", *openai, usage="last")
    yield _stream("chat-every", CHAT, "openai", *openai, usage="every")
    yield from _both("vllm", CHAT, "openai", *openai, stream=ASKING, variant="vllm")
    yield _stream("vllm-counting", CHAT, "openai", *openai, body=COUNTING, variant="vllm")
    yield from _both("deepseek", CHAT, "openai", *openai, variant="deepseek")
    yield from _both("mistral", CHAT, "openai", *openai, variant="mistral")
    yield from _both("openrouter", CHAT, "openai", *openai, "written", variant="openrouter")
    yield from _both("legacy", TEXT, "openai", *openai, stream=ASKING)
    yield Case("embeddings", EMBEDDINGS, "openai", completion=0)
    yield from _both("azure", f"{AZURE}/chat/completions", "openai", *openai, stream=ASKING)
    yield from _both("azure-legacy", f"{AZURE}/completions", "openai", *openai, stream=ASKING)
    yield Case("azure-embeddings", f"{AZURE}/embeddings", "openai", completion=0)
    yield from _both("responses", "/v1/responses", "responses", *openai)
    anthropic = ("cached", "written")
    yield from _both("anthropic", "/v1/messages", "anthropic", *anthropic)
    yield _stream("anthropic-translated", "/v1/messages", "anthropic", *anthropic, usage="last")
    yield _stream("anthropic-counting", "/v1/messages", "anthropic", *anthropic, usage="every")
    for name, path in (("gemini", GEMINI), ("vertex", VERTEX)):
        yield Case(name, f"{path}:generateContent", "gemini", frozenset(openai))
        # An array is one document, however slowly it comes.
        yield Case(f"{name}-array", f"{path}:streamGenerateContent", "gemini", frozenset(openai))
        yield _stream(f"{name}-stream", f"{path}:streamGenerateContent?alt=sse", "gemini", *openai)
        yield _stream(f"{name}-last", f"{path}:streamGenerateContent?alt=sse", "gemini", *openai, usage="last")
    yield Case("converse", f"{BEDROCK}/converse", "bedrock", frozenset(anthropic))
    yield _stream("converse-stream", f"{BEDROCK}/converse-stream", "bedrock", *anthropic)
    yield Case("invoke", f"{BEDROCK}/invoke", "anthropic", frozenset(anthropic))
    yield _stream("invoke-stream", f"{BEDROCK}/invoke-with-response-stream", "anthropic", *anthropic)
    yield from _both("ollama-chat", "/api/chat", "ollama")
    yield from _both("ollama-generate", "/api/generate", "ollama")
    yield Case("ollama-embed", "/api/embed", "ollama", completion=0)
    yield from _both("cohere", "/v2/chat", "cohere", "cached", model="")
    yield Case("cohere-embed", "/v2/embed", "cohere", completion=0, model="")


CASES = tuple(_cases())


def metering(hits: str = "usage.total_tokens", endpoint: str = "embedded", **sections: Any) -> dict[str, Any]:
    """A configuration that checks and reports every request to *.example.com, with limits that nothing reaches.

    `hits` is the expression of what is reported, `endpoint` where the limiter is.
    """
    report = [{"expression": {"key": "ratelimit.hits_addend", "value": hits}}]
    config: dict[str, Any] = {
        "services": {
            "check": {"type": "ratelimit-check", "endpoint": "limitador", "timeout": "5s"},
            "report": {"type": "ratelimit-report", "endpoint": "limitador", "timeout": "5s"},
        },
        "actionSets": [
            {
                "name": "metered",
                "routeRuleConditions": {"hostnames": ["*.example.com"]},
                "actions": [
                    {"service": "check", "scope": "tokens", "conditionalData": [{"data": [_ENTRY]}]},
                    {"service": "report", "scope": "tokens", "conditionalData": [{"data": [_ENTRY, *report]}]},
                ],
            }
        ],
        **ENDPOINTS,
        "limits": [{"namespace": "tokens", "max_value": 10**12, "seconds": 3600}],
    }
    return {**config, "endpoints": {"limitador": endpoint}, **sections}


_ENTRY: Mapping[str, Any] = {"static": {"key": "a", "value": "1"}}
