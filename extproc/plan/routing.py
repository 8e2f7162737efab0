"""Which provider requests go to, and what is limited and edited on the way."""

from __future__ import annotations

from dataclasses import dataclass

from extproc.expressions import ExpressionError
from extproc.expressions.lookup import NotThere
from extproc.facts import RequestFacts
from extproc.plan.action import Service
from extproc.plan.bodies import BodyValues
from extproc.plan.hosts import HostTable
from extproc.plan.sight import ActionFailure, Condition, Scope, Sight
from extproc.providers.choice import Choice
from extproc.providers.prompt_limits import PromptQueries
from extproc.providers.rewrite import Rewrite


@dataclass(frozen=True, slots=True)
class Rule:
    """Requests for which `when` holds go to `provider`."""

    when: Condition
    provider: str


@dataclass(frozen=True, slots=True)
class PromptGate:
    """What a limiter is asked about a prompt before the model is."""

    service: Service
    queries: PromptQueries
    shows_selector: bool
    """Whether a refusal is Plano's text, with the selector's value in it."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Providers for the requests of some hosts."""

    hosts: HostTable[bool]
    choice: Choice
    header: str
    """What the gateway routes by."""
    rules: tuple[Rule, ...]
    scope: Scope
    """Of the rules' conditions."""
    rewrite: Rewrite
    prompts: PromptGate | None

    def ruled(self, facts: RequestFacts) -> str | None:
        """The provider of the first rule that holds. Raises ActionFailure for a condition without an answer."""
        if not self.rules:
            return None
        sight = Sight(self.scope, facts, BodyValues())
        try:
            return next((rule.provider for rule in self.rules if rule.when.holds(sight)), None)
        except (ExpressionError, NotThere) as error:
            raise ActionFailure(str(error)) from None
