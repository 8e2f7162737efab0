"""Which guards look at a request, and what a refusal of theirs looks like."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from extproc.config.guards import GuardDenial
from extproc.guards.final_events import Profile
from extproc.guards.guard import Guard
from extproc.plan.action import Service
from extproc.plan.hosts import HostTable
from extproc.plan.labels import Labels
from extproc.refusals import Refusals

_ODD = re.compile(r"[^A-Za-z0-9.:\[\]_-]")
"""In an authority that is not a host alone: several, with a user, or in escapes. All guards of hosts are its own."""


@dataclass(frozen=True, slots=True)
class GuardMeter:
    """Who is told how many tokens a guard took."""

    service: Service
    domain: str
    labels: Labels


@dataclass(frozen=True, slots=True)
class PlannedGuard:
    """A guard in one configuration.

    `hosts` are those whose requests it guards whatever their action set.
    """

    guard: Guard
    hosts: HostTable[bool] | None
    denial: GuardDenial
    meter: GuardMeter | None

    def refusals(self, otherwise: Refusals) -> Refusals:
        """How it refuses: as its denial says, else in the profile of the action set where that is JSON."""
        return Refusals(self.profile(otherwise))

    def profile(self, otherwise: Refusals) -> Profile:
        """As whom it refuses."""
        inherited: Profile = otherwise.profile if otherwise.profile in ("openai", "anthropic") else "asm"
        return self.denial.profile or inherited


class Guards:
    """All guards of a configuration."""

    __slots__ = ("_by_host", "by_name")

    def __init__(self, guards: Sequence[PlannedGuard]) -> None:
        self.by_name = {planned.guard.name: planned for planned in guards}
        self._by_host = tuple(planned for planned in guards if planned.hosts is not None)

    def of(self, authority: str, named: tuple[PlannedGuard, ...] = ()) -> tuple[PlannedGuard, ...]:
        """Those that its action set has `named`, in that order, then those of its host."""
        if not self._by_host:
            return named
        odd = _ODD.search(authority) is not None
        found = [planned for planned in self._by_host if planned not in named and (odd or _covers(planned, authority))]
        return (*named, *found) if found else named


def _covers(planned: PlannedGuard, authority: str) -> bool:
    return planned.hosts is not None and bool(planned.hosts.find(authority))
