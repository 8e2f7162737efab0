"""What the guards of one configuration after another share."""

from __future__ import annotations

from collections.abc import Mapping

from extproc.config.errors import ConfigError, Problem
from extproc.config.guards import Guard as GuardConfig
from extproc.guards.guard import Guard
from extproc.guards.http import HttpClient
from extproc.guards.inspector import Inspector
from extproc.guards.offload import PatternWorker
from extproc.guards.webhook import WebhookGuard

Secrets = Mapping[tuple[str | int, ...], str]
"""By where the credential is configured: ("guards", "chat", "model")."""


class GuardRoom:
    """Connections, and threads to search in. Call `close` when no guard is asked any more."""

    def __init__(self) -> None:
        self._client = HttpClient()
        self._worker = PatternWorker()

    def guards(self, configs: Mapping[str, GuardConfig], secrets: Secrets) -> list[Guard]:
        """The guards of a configuration, whose credentials were read. Raises ConfigError with every problem."""
        guards: list[Guard] = []
        problems: list[Problem] = []
        for name, config in configs.items():
            try:
                guards.append(self._guard(name, config, secrets))
            except ValueError as error:
                problems.append(Problem.at(("guards", name), str(error)))
        if problems:
            raise ConfigError(problems)
        return guards

    def _guard(self, name: str, config: GuardConfig, secrets: Secrets) -> Guard:
        inspector = webhook = None
        if config.model is not None:
            inspector = Inspector(name, config.model, secrets.get(("guards", name, "model")), self._client)
        if config.webhook is not None:
            webhook = WebhookGuard(name, config.webhook, secrets.get(("guards", name, "webhook")), self._client)
        return Guard(name, config, self._worker, inspector, webhook)

    async def close(self) -> None:
        """Let go of both."""
        await self._client.close()
        self._worker.close()
