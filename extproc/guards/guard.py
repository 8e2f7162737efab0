"""One guard: patterns, then a model, then a webhook. The first that refuses decides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from extproc.config.guards import AnswerGuard
from extproc.config.guards import Guard as GuardConfig
from extproc.guards.inspector import Inspector
from extproc.guards.offload import PatternWorker
from extproc.guards.patterns import Patterns, Refusal
from extproc.guards.seam import ALLOWED, Asked, Outcome, Verdict
from extproc.guards.texts import EVERYBODY, TOOLS, select
from extproc.guards.webhook import WebhookGuard

DENIED: Final = "request was denied by asm llm proxy"
"""What clients of the `asm` profile are told of patterns, whichever it was (S3.3, S3.6)."""


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """How answers are looked at."""

    patterns: Patterns
    worker: PatternWorker
    look_behind: int
    max_body: int
    denies_unparsable: bool


class Guard:
    """Refuses requests, and perhaps answers, for what their texts say; made once per configuration."""

    __slots__ = (
        "_config",
        "_inspector",
        "_patterns",
        "_roles",
        "_webhook",
        "_worker",
        "answers",
        "enforces",
        "name",
        "reads_tools",
    )

    def __init__(
        self,
        name: str,
        config: GuardConfig,
        worker: PatternWorker,
        inspector: Inspector | None = None,
        webhook: WebhookGuard | None = None,
    ) -> None:
        """Raises PatternError."""
        self.name = name
        self.enforces = config.mode == "enforce"
        """Whether its verdicts count, or are only noted."""
        self.reads_tools = not {EVERYBODY, TOOLS}.isdisjoint(config.check_roles)
        """Whether it looks at definitions of tools, which are many texts."""
        self.answers = None if config.answers is None else _answer_rules(config, config.answers, worker)
        self._config = config
        self._worker = worker
        self._patterns = Patterns(config.allow, config.deny)
        self._roles = frozenset(config.check_roles)
        self._inspector = inspector
        self._webhook = webhook

    async def judge(self, asked: Asked) -> Verdict:
        """The verdict on a request with these texts, of all roles. Never raises."""
        texts = select(asked.texts, self._roles, self._config.check_last_user_message_only)
        if not texts:
            return ALLOWED
        found = self._worker.judge(self._patterns, texts)
        refusal = found if found is None or isinstance(found, Refusal) else await found
        if refusal is not None:
            return Verdict(False, refusal.outcome, refusal.rule, refusal.reason, DENIED)
        asked = replace(asked, texts=texts)
        looked = ALLOWED
        if self._inspector is not None:
            answer = self._inspector.ask(asked)
            looked = answer if isinstance(answer, Verdict) else await answer
        if self._webhook is None or not looked.allowed:
            return looked
        answer = self._webhook.ask(asked)
        verdict = answer if isinstance(answer, Verdict) else await answer
        if verdict.outcome == "allow" and looked.outcome != "allow":
            # Half of the guard is missing: who counts failures has to see it, whatever the other half says.
            verdict = verdict._replace(outcome=looked.outcome, rule=looked.rule, reason=looked.reason)
        return verdict._replace(tokens=looked.tokens)

    def unparsable(self, reason: str) -> Verdict:
        """The verdict on a request whose texts cannot be found."""
        return _unparsable(allowed=self._config.on_unparsable == "allow", reason=reason)


def _unparsable(*, allowed: bool, reason: str) -> Verdict:
    outcome: Outcome = "unparsable"
    return Verdict(allowed, outcome, "unparsable", reason, DENIED)


def _answer_rules(config: GuardConfig, answers: AnswerGuard, worker: PatternWorker) -> AnswerRules:
    denies = config.on_unparsable if answers.on_unparsable is None else answers.on_unparsable
    patterns = Patterns(deny=config.deny if answers.deny is None else answers.deny)
    return AnswerRules(patterns, worker, answers.look_behind, answers.max_body, denies == "deny")
