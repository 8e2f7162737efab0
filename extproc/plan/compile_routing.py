"""Providers, rules and prompt limits of a configuration, compiled."""

from __future__ import annotations

from collections.abc import Callable

from extproc.config.model import Config
from extproc.config.secret_headers import secret_headers
from extproc.plan.action import Phase, Service
from extproc.plan.hosts import HostTable
from extproc.plan.needs import phase_of, scope_of
from extproc.plan.routing import PromptGate, Routing, Rule
from extproc.plan.sight import Condition
from extproc.plan.sources import Sources
from extproc.providers.choice import Choice
from extproc.providers.prompt_limits import PromptQueries
from extproc.providers.rewrite import Rewrite


def compile_routing(
    config: Config, choice: Choice, sources: Sources, service: Callable[[str | None], Service]
) -> Routing:
    """`service` gives the `ratelimit` service of a name, of None the embedded limiter's. Problems go to `sources`."""
    rules = _rules(config, sources)
    remove = config.routing.remove
    try:
        rewrite = Rewrite(remove)
    except ValueError as error:
        sources.problem("routing.remove", str(error))
        rewrite = Rewrite(())
    return Routing(
        hosts=HostTable(dict.fromkeys(config.routing.hosts, True)),
        choice=choice,
        header=config.routing.header,
        rules=rules,
        scope=scope_of(rule.when.expression for rule in rules),
        rewrite=rewrite,
        prompts=_prompts(config, service),
    )


def _rules(config: Config, sources: Sources) -> tuple[Rule, ...]:
    rules: list[Rule] = []
    for index, rule in enumerate(config.routing.rules):
        path = f"routing.rules[{index}].when"
        (found,) = sources.predicates([rule.when], path) or (None,)
        if found is None:
            continue
        if phase_of(found) is not Phase.REQUEST_HEADERS:
            sources.problem(path, "a rule is for the head of a request; `models` of a provider look into its body")
        sources.bypass([found], path)
        rules.append(Rule(Condition.of(found), rule.provider))
    return tuple(rules)


def _prompts(config: Config, service: Callable[[str | None], Service]) -> PromptGate | None:
    limits = config.prompt_limits
    if limits is None:
        return None
    return PromptGate(service(limits.service), PromptQueries(limits, secret_headers(config)), limits.legacy_error_body)
