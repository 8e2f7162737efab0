"""What the story is played with: two routes of wasm-shim's kind, their limits, and prices."""

from __future__ import annotations

from typing import Any

import yaml

HOST = "trlp.example.com"
"""The route with the limit."""
PATH = "/v1/chat/completions"
LIMIT = 100
TOKENS = 24
"""Of each answer there."""
MODELS_HOST = "models.example.org"
"""The route to everybody's models."""
MODELS_LIMIT = "tokens_an_hour"
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
MESSAGES = [{"role": "user", "content": "Tell me a three sentence bedtime story about a unicorn."}]
QUESTION = {"model": MODEL, "messages": MESSAGES}
STREAMED = {**QUESTION, "stream": True, "stream_options": {"include_usage": True}}

PLUGIN = """\
services:
  ratelimit-check-service: {type: ratelimit-check, endpoint: limitador, failureMode: deny, timeout: 1s}
  ratelimit-report-service: {type: ratelimit-report, endpoint: limitador, failureMode: deny, timeout: 1s}
actionSets:
  - name: basic
    routeRuleConditions:
      hostnames: ["*.example.com"]
    actions:
      - service: ratelimit-check-service
        scope: domain-a
        conditionalData:
          - predicates: ['request.url_path == "/v1/chat/completions"']
            data:
              - expression: {key: a, value: "1"}
      - service: ratelimit-report-service
        scope: domain-a
        conditionalData:
          - predicates: ['request.url_path == "/v1/chat/completions"']
            data:
              - expression: {key: a, value: "1"}
              - expression: {key: ratelimit.hits_addend, value: 'responseBodyJSON("/usage/total_tokens")'}
  - name: models
    routeRuleConditions:
      hostnames: ["models.example.org"]
    actions:
      - service: ratelimit-check-service
        scope: domain-b
        conditionalData:
          - data:
              - expression: {key: b, value: "1"}
      - service: ratelimit-report-service
        scope: domain-b
        conditionalData:
          - data:
              - expression: {key: b, value: "1"}
              - expression: {key: ratelimit.hits_addend, value: 'responseBodyJSON("/usage/total_tokens")'}
"""
"""wasm-shim's configuration of this story: it knows OpenAI's `total_tokens`, and no other provider."""

OURS = """\
includeUsage: {enabled: true}
prices:
  gpt-*: {input: 0.25, output: 2.00, cached: 0.025}
  claude-*: {input: 3.00, output: 15.00, cached: 0.30, cacheWrite: 3.75}
  gemini-*: {input: 0.30, output: 2.50, cached: 0.03}
  amazon.nova-*: {input: 0.80, output: 3.20, cached: 0.20}
"""
"""What wasm-shim does not have. Dollars per million tokens, for example."""

LIMITS = [
    {
        "namespace": "domain-a",
        "name": "name_a",
        "max_value": LIMIT,
        "seconds": 60,
        "conditions": ["descriptors[0]['a'] == '1'"],
        "variables": [],
    },
    {
        "namespace": "domain-b",
        "name": MODELS_LIMIT,
        "max_value": 1_000_000,
        "seconds": 3600,
        "conditions": ["descriptors[0]['b'] == '1'"],
        "variables": [],
    },
]


def configuration(endpoint: str) -> dict[str, Any]:
    """wasm-shim's configuration and ours, and where its `limitador` is."""
    return {**yaml.safe_load(PLUGIN), **yaml.safe_load(OURS), "endpoints": {"limitador": endpoint}, "limits": LIMITS}
