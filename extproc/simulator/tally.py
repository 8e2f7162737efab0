"""The tokens of an answer, in the terms of the options; each dialect has terms of its own."""

from __future__ import annotations

from typing import NamedTuple

from extproc.simulator.options import OptionError, Options


class Tally(NamedTuple):
    """`prompt` includes what was read from and written to a cache, `completion` includes `reasoning`."""

    prompt: int
    completion: int
    total: int
    cached: int
    cache_write: int
    reasoning: int

    @property
    def uncached(self) -> int:
        """The prompt without what a cache had to do with."""
        return self.prompt - self.cached - self.cache_write


def tally(options: Options, completed: int | None = None) -> Tally:
    """At the end, or after `completed` tokens of the completion; raises OptionError where a part exceeds the whole."""
    if options.cached_tokens + options.cache_write_tokens > options.prompt_tokens:
        raise OptionError("cached-tokens, cache-write-tokens: more than prompt-tokens, which include them")
    if options.reasoning_tokens > options.completion_tokens:
        raise OptionError("reasoning-tokens: more than completion-tokens, which include them")
    whole = Tally(
        options.prompt_tokens,
        options.completion_tokens,
        options.total,
        options.cached_tokens,
        options.cache_write_tokens,
        options.reasoning_tokens,
    )
    if completed is None:
        return whole
    return whole._replace(
        completion=completed, total=whole.prompt + completed, reasoning=min(whole.reasoning, completed)
    )
