"""What the simulated model speaks: every endpoint, and the one that a path belongs to."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote

from extproc.simulator.dialects import anthropic, bedrock, cohere, gemini, ollama, openai, responses
from extproc.simulator.dialects.dialect import Endpoint

_ENDPOINTS = tuple(
    endpoint
    for module in (openai, responses, anthropic, gemini, bedrock, ollama, cohere)
    for endpoint in module.ENDPOINTS
)
_PLACEHOLDER = re.compile(r"\\{(\w+)\\}")


class Route(NamedTuple):
    """An endpoint, and the model that the path names, if any."""

    endpoint: Endpoint
    model: str = ""


_FIXED = {endpoint.path.encode(): Route(endpoint) for endpoint in _ENDPOINTS if "{" not in endpoint.path}
_PATTERNS = [
    (re.compile(_PLACEHOLDER.sub(r"(?P<\1>[^/]+)", re.escape(endpoint.path))), endpoint)
    for endpoint in _ENDPOINTS
    if "{" in endpoint.path
]


def route(path: bytes) -> Route | None:
    """Where a path without its query leads."""
    return _FIXED.get(path) or _matched(path)


def _matched(path: bytes) -> Route | None:
    text = path.decode("latin-1")
    for pattern, endpoint in _PATTERNS:
        match = pattern.fullmatch(text)
        if match:
            return Route(endpoint, unquote(match["model"]))
    return None
