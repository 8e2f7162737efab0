"""How many tokens text has, when nobody says."""

from __future__ import annotations

BYTES_PER_TOKEN = 4
"""English text and code come to about four bytes a token in every common vocabulary."""


def estimate_tokens(prompt_bytes: int, answer_bytes: int) -> int:
    """Tokens of a prompt and an answer of these sizes, each rounded up."""
    return -(-prompt_bytes // BYTES_PER_TOKEN) + -(-answer_bytes // BYTES_PER_TOKEN)
