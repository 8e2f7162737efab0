"""What the expressions of a configuration name that Envoy has to send."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from extproc.config.errors import Problem, Step
from extproc.config.model import ActionSet, Config
from extproc.expressions.program import Expression, ExpressionError
from extproc.gateway.processor import IDENTITIES, REQUEST_ATTRIBUTES, RESPONSE_ATTRIBUTES
from extproc.plan.attributes import KNOWN
from extproc.plan.needs import names_body, pointers_of

Steps = tuple[Step, ...]
Sources = Iterator[tuple[Steps, str]]

_SENT = {("request", "size"), ("request", "total_size")} | {
    (root, name) for root, name in KNOWN if root != "request" and name != "remote_address"
}
"""Attributes that are not made of headers or of other attributes."""


@dataclass(frozen=True, slots=True)
class Named:
    """`attributes` beyond those that are always sent, `namespaces` of dynamic metadata; `reading`: the sections that
    name the request's body. `problems` of the rest.
    """

    attributes: tuple[str, ...]
    namespaces: tuple[str, ...]
    reading: tuple[str, ...]
    problems: tuple[Problem, ...]


def named(config: Config) -> Named:
    """What the expressions of `config` name."""
    members: set[tuple[str, ...]] = set()
    reading: dict[str, None] = {}
    problems: list[Problem] = []
    for steps, source in _sources(config):
        try:
            expression = Expression(source)
        except ExpressionError as error:
            problems.append(Problem.at(steps, str(error)))
            continue
        members |= expression.references.members
        if names_body(expression) or pointers_of(expression.references.calls, "request"):
            reading[str(steps[0])] = None
    known = {*REQUEST_ATTRIBUTES, *RESPONSE_ATTRIBUTES}
    return Named(
        attributes=tuple(sorted(_attributes(members) - known)),
        namespaces=tuple(sorted(_namespaces(members) - {*IDENTITIES})),
        reading=tuple(reading),
        problems=tuple(problems),
    )


def _attributes(members: Iterable[Sequence[str]]) -> set[str]:
    """A root alone stands for all that is below it."""
    named = {tuple(member[:2]) for member in members}
    return {f"{root}.{name}" for root, name in _SENT if (root, name) in named or (root,) in named}


def _namespaces(members: Iterable[Sequence[str]]) -> set[str]:
    return {member[2] for member in members if len(member) > 2 and member[:2] == ("metadata", "filter_metadata")}


def _sources(config: Config) -> Sources:
    for index, action_set in enumerate(config.action_sets):
        yield from _of_action_set(action_set, ("actionSets", index))
    for key, source in config.request_data.items():
        yield ("requestData", key), source
    yield from _of_identities(config)
    for label, candidates in config.metrics.labels.items():
        yield from _each(("metrics", "labels", label), candidates)
    for index, rule in enumerate(config.routing.rules):
        yield ("routing", "rules", index, "when"), rule.when
    for name, guard in config.guards.items():
        if guard.model is not None and guard.model.report is not None:
            for label, source in guard.model.report.labels.items():
                yield ("guards", name, "model", "report", "labels", label), source


def _of_action_set(action_set: ActionSet, steps: Steps) -> Sources:
    yield from _each((*steps, "routeRuleConditions", "predicates"), action_set.route_rule_conditions.predicates)
    for index, action in enumerate(action_set.actions):
        where = (*steps, "actions", index)
        yield from _each((*where, "predicates"), action.predicates)
        for number, block in enumerate(action.conditional_data):
            at = (*where, "conditionalData", number)
            yield from _each((*at, "predicates"), block.predicates)
            for entry, data in enumerate(block.data):
                if data.expression is not None:
                    yield (*at, "data", entry, "expression", "value"), data.expression.value


def _of_identities(config: Config) -> Sources:
    for scope, auth in config.auth_configs.items():
        steps = ("authConfigs", scope)
        yield from _each((*steps, "authorization"), auth.authorization)
        for name, properties in auth.filters.items():
            for key, source in properties.items():
                yield (*steps, "filters", name, key), source
        if auth.models is not None:
            yield (*steps, "models"), auth.models
        for header, source in auth.headers.items():
            yield (*steps, "headers", header), source


def _each(steps: Steps, sources: Iterable[str]) -> Sources:
    for index, source in enumerate(sources):
        yield (*steps, index), source
