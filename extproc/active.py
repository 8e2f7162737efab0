"""A configuration file, read and compiled: all that is decided before the first request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from extproc.config.errors import ConfigError, Problem
from extproc.config.load import Loaded
from extproc.config.model import Config, Estimates, Service
from extproc.limiter.limits import InvalidLimit, LimitSet
from extproc.limiter.seam import Limiter
from extproc.plan.compile import compile_plan
from extproc.plan.plan import Plan
from extproc.usage.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Active:
    """What a server works with until the next reload."""

    loaded: Loaded
    plan: Plan
    limits: LimitSet
    warnings: tuple[Problem, ...]

    @property
    def config(self) -> Config:
        """The configuration as written."""
        return self.loaded.config


def activate(loaded: Loaded, limiter_for: Callable[[Config, Service], Limiter]) -> Active:
    """Compile a loaded configuration, with the limiter that each service talks to.

    Raises ConfigError for expressions that cannot be used, in action sets or in limits.
    """
    config = loaded.config
    assert isinstance(config.limits, list)
    try:
        limits = LimitSet(config.limits)
    except InvalidLimit as error:
        raise ConfigError([Problem("", str(error))], files=loaded.files) from None
    compiled = compile_plan(config, lambda service: limiter_for(config, service))
    replaced = (Problem("", warning) for warning in limits.warnings)
    warnings = (*loaded.warnings, *compiled.warnings, *replaced, *_vocabulary(config.estimates))
    return Active(loaded, compiled.plan, limits, warnings)


def _vocabulary(estimates: Estimates) -> Iterator[Problem]:
    """A vocabulary that was asked for and cannot be used: estimates go by size then."""
    if estimates.vocabulary is None:
        return
    vocabulary = Vocabulary.open(Path(estimates.vocabulary), fallback=estimates.encoding)
    if not vocabulary.found:
        yield Problem("estimates.vocabulary", f"estimates go by the size of texts: {vocabulary.reason}")
    elif estimates.encoding not in vocabulary.found:
        found = ", ".join(vocabulary.found)
        yield Problem("estimates.encoding", f"`{estimates.encoding}` is not in the vocabulary, which has {found}")
