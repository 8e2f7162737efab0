"""What a dialect is made of: endpoints, each of which turns a question into content.

A new one is a module beside this with `ENDPOINTS`, and a line in `__init__`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from extproc.simulator.contents import Content
from extproc.simulator.options import Options


class Question(NamedTuple):
    """What a client asked of the model, as far as an answer depends on it."""

    model: str
    stream: bool = False
    include_usage: bool = False
    """`stream_options.include_usage`."""
    continuous: bool = False
    """`stream_options.continuous_usage_stats`."""
    base64: bool = False
    """Embeddings are wanted in base64."""
    sse: bool = False
    """`alt=sse` in the query."""


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """`path` may have `{model}` and other names in braces, each of which stands for one segment.

    `content` raises OptionError for options that cannot be. `failure`: (status, message) -> an error in JSON.
    """

    path: str
    content: Callable[[Question, Options], Content]
    failure: Callable[[int, str], Any]
    streams: Literal["never", "asked", "unless declined", "always"] = "asked"
