"""One table of cases for each dialect."""

from __future__ import annotations

from usage.dialects import anthropic, bedrock, cohere, gemini, ollama, openai, responses
from usage.dialects.case import Case

TABLES: dict[str, list[Case]] = {
    module.__name__.rpartition(".")[2]: module.CASES
    for module in (openai, responses, anthropic, gemini, bedrock, ollama, cohere)
}
