"""A configuration file, read and compiled: all that is decided before the first request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from extproc.config.errors import ConfigError, Problem
from extproc.config.load import Loaded
from extproc.config.model import Config, Estimates, Limit, Service
from extproc.config.secret_headers import secret_headers
from extproc.guards.room import GuardRoom
from extproc.identity.embedded import EmbeddedAuthenticator
from extproc.identity.seam import Authenticator
from extproc.identity.services import Authenticators
from extproc.limiter.limits import InvalidLimit, LimitSet
from extproc.limiter.seam import Limiter
from extproc.plan.compile import Peers, compile_plan
from extproc.plan.plan import Plan
from extproc.providers.choice import Choice
from extproc.providers.prompt_limits import limits_of
from extproc.telemetry.spending import label_problem
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


def activate(
    loaded: Loaded,
    limiter_for: Callable[[Config, Service], Limiter],
    authenticators: Authenticators | None = None,
    guards: GuardRoom | None = None,
) -> Active:
    """Compile a loaded configuration, with the limiter or authenticator that each service talks to.

    Without `authenticators` every `auth` service is the embedded one; `guards` is what guards need to be asked.
    Raises ConfigError for expressions that cannot be used, in action sets, identities or limits.
    """
    config = loaded.config
    assert isinstance(config.limits, list)
    try:
        limits = LimitSet([*config.limits, *_prompt_limits(config)])
    except InvalidLimit as error:
        raise ConfigError([Problem("", str(error))], files=loaded.files) from None
    if problem := label_problem(tuple(config.metrics.labels)):
        raise ConfigError([Problem("metrics.labels", problem)])
    embedded = EmbeddedAuthenticator(config.auth_configs, loaded.keys)

    def authenticator_for(service: Service) -> Authenticator:
        if authenticators is None or config.endpoints[service.endpoint].embedded:
            return embedded
        return authenticators.authenticator_for(config, service)

    compiled = compile_plan(
        config,
        Peers(
            lambda service: limiter_for(config, service),
            authenticator_for,
            (guards or GuardRoom()).guards(config.guards, loaded.credentials),
            Choice(config, loaded.credentials) if config.providers else None,
        ),
    )
    replaced = (Problem("", warning) for warning in limits.warnings)
    warnings = (*loaded.warnings, *compiled.warnings, *replaced, *_vocabulary(config.estimates))
    return Active(loaded, compiled.plan, limits, warnings)


def _prompt_limits(config: Config) -> list[Limit]:
    """What the embedded limiter counts prompts by, where it is the one that is asked."""
    limits = config.prompt_limits
    if limits is None:
        return []
    service = None if limits.service is None else config.services[limits.service]
    embedded = service is None or config.endpoints[service.endpoint].embedded
    return limits_of(limits, secret_headers(config)) if embedded else []


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
