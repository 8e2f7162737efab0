"""What one exchange used: the number that is limited, billed and shown."""

from __future__ import annotations

from typing import Literal, NamedTuple

Source = Literal["reported", "estimated", "fixed", "none"]
"""Who says so: the model; an estimate, in whole or in part; `onMissingUsage: {fixed: N}`; nobody."""

Ending = Literal["complete", "client_gone", "upstream_cut", "error"]
"""How the answer ended; see docs/usage.md for what can be told apart."""


class Reported(NamedTuple):
    """What a model's answer says, in the terms of all dialects. None: it does not say, which for a completion is as
    much as none where nothing was generated.

    `final` is False where more was generated than `completion` says, as when a stream was cut.
    """

    prompt: int | None = None
    completion: int | None = None
    total: int | None = None
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    final: bool = True


class Usage(NamedTuple):
    """Tokens of one exchange. docs/usage.md has each field with the definition of every provider."""

    prompt_tokens: int = 0
    """All input, what came from a cache or went into it included."""
    completion_tokens: int = 0
    """All output, reasoning included."""
    total_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt: read from a cache."""
    cache_write_tokens: int = 0
    """Of the prompt: written to a cache."""
    reasoning_tokens: int = 0
    """Of the completion: thinking that the client need not see."""
    model: str = ""
    """As the answer names it, else as the request does, "" when neither does."""
    source: Source = "none"
    ending: Ending = "complete"
    dialect: str = ""
    """Of the answer; "" when it was not recognised."""
    cost: int | None = None
    """In millionths of the currency of `prices`, rounded up; None without a price for the model."""
