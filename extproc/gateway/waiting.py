"""How long one message of Envoy may have to wait for its reply."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from extproc.config.duration import format_duration
from extproc.config.errors import field_path
from extproc.config.model import ActionSet, Config, Service
from extproc.exchange.admission import COUNTING

MARGIN = 0.5
"""Seconds for everything that is not waiting."""
PATTERNS = 2.0
"""Seconds in which the patterns of a guard are searched for, or what is searched is refused."""
LONGEST = 3600
"""Seconds that Envoy accepts as `message_timeout`."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Fields, and the seconds that each allows, of what the slowest requests wait for, one after the other."""

    parts: tuple[tuple[str, float], ...]

    @property
    def message_timeout(self) -> int:
        """Seconds, rounded up and at least 1."""
        return max(1, math.ceil(round(sum(seconds for _, seconds in self.parts) + MARGIN, 6)))

    def __str__(self) -> str:
        return ", ".join(f"{field} {format_duration(seconds)}" for field, seconds in self.parts)


def longest_wait(config: Config) -> Waiting:
    """Of the requests of any action set, and of those that have none; and of the answers that guards hold."""
    ways = [Waiting((*_host_guards(config), *_prompt_limits(config)))]
    ways += [_of_action_set(config, action_set) for action_set in config.action_sets]
    ways.append(Waiting(tuple(_answers(config))))
    slowest = max(ways, key=lambda way: sum(seconds for _, seconds in way.parts))
    return Waiting((*slowest.parts, ("report.wait", config.report.wait)))


def active_guards(config: Config) -> list[str]:
    """Names of the guards that some host or action set is bound to."""
    bound = {name for action_set in config.action_sets for name in action_set.guards}
    return [name for name, guard in config.guards.items() if guard.hosts or name in bound]


def _of_action_set(config: Config, action_set: ActionSet) -> Waiting:
    """Calls before the model's; every guard with hosts may be for one of its requests."""
    services = ((action.service, config.services[action.service]) for action in action_set.actions)
    asked = [
        (field_path(("services", name, "timeout")), service.timeout)
        for name, service in services
        if service.type != "ratelimit-report"
    ]
    named = [name for name in action_set.guards if not config.guards[name].hosts]
    limits = _prompt_limits(config) if action_set.routed else ()
    precharge = action_set.precharge or config.precharge
    counting = [("precharge", COUNTING)] if precharge.charge == "prompt" and not limits else []
    return Waiting((*asked, *counting, *limits, *_host_guards(config), *_guards(config, named)))


def _host_guards(config: Config) -> Iterator[tuple[str, float]]:
    return _guards(config, [name for name, guard in config.guards.items() if guard.hosts])


def _guards(config: Config, names: Iterable[str]) -> Iterator[tuple[str, float]]:
    for name in names:
        guard = config.guards[name]
        if guard.deny or guard.allow:
            yield field_path(("guards", name, "deny" if guard.deny else "allow")), PATTERNS
        for field, outside in (("model", guard.model), ("webhook", guard.webhook)):
            if outside is not None:
                yield field_path(("guards", name, field, "timeout")), outside.timeout


def _answers(config: Config) -> Iterator[tuple[str, float]]:
    for name in active_guards(config):
        if config.guards[name].answers is not None:
            yield field_path(("guards", name, "answers")), PATTERNS


def _prompt_limits(config: Config) -> Sequence[tuple[str, float]]:
    """The prompt is counted once. The embedded limiter's default is that of a service."""
    if config.prompt_limits is None:
        return ()
    asked = config.services.get(config.prompt_limits.service or "")
    default = Service.model_fields["timeout"].default
    return [("promptLimits", COUNTING + (default if asked is None else asked.timeout))]
