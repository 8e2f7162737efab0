"""A policy as rules by name, whatever its kind, and what several of them come to for the same requests.

Kuadrant's rules: policies of a Gateway, its listener, the route and its rule meet, the later the more specific. From
the most specific to the least, each is merged with what the others came to; `defaults` yield, `overrides` do not;
`atomic` decides by whole policies, `merge` rule by rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Literal

from extproc.config.errors import Problem, Step
from extproc.policies.auth_policy import AuthPolicy, AuthRules
from extproc.policies.cel_text import Unsupported, check_request_expression
from extproc.policies.documents import Document
from extproc.policies.objects import Predicate, Strategy, TargetRef
from extproc.policies.rate_limits import LimitRules, RateLimitPolicy, TokenRateLimitPolicy

Kind = Literal["AuthPolicy", "RateLimitPolicy", "TokenRateLimitPolicy"]
KINDS: tuple[Kind, ...] = ("AuthPolicy", "TokenRateLimitPolicy", "RateLimitPolicy")
RuleName = tuple[str, str]
"""A group and a name in it, such as ("limits", "free"); the name is "" where a group is one rule."""
Target = tuple[str, str, str, str]
"""Kind, namespace, name, and a listener or rule of it, "" for all of it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A part of a policy that another policy may replace; `value` is its model."""

    value: Any
    document: Document
    steps: tuple[Step, ...]

    def problem(self, steps: Sequence[Step], message: str) -> Problem:
        return self.document.problem((*self.steps, *steps), message)


Rules = Mapping[RuleName, Rule]


@dataclass(frozen=True, slots=True)
class Policy:
    """One document; `empty` when it has nothing to enforce, which is wrong."""

    document: Document
    kind: Kind
    target: Target
    overriding: bool
    strategy: Strategy
    rules: Rules
    empty: bool

    @property
    def age(self) -> tuple[str, str, str]:
        """The oldest first, as far as documents tell."""
        return (self.document.created, *self.document.key)


def limit_policy(document: Document, model: RateLimitPolicy | TokenRateLimitPolicy, kind: Kind) -> Policy:
    """The policy that a model of limits is."""
    spec: LimitRules[Any]
    spec, section, overriding, strategy = _section(model.spec)
    rules = {("limits", name): Rule(limit, document, (*section, "limits", name)) for name, limit in spec.limits.items()}
    return Policy(
        document,
        kind,
        _target(document, model.spec.target_ref),
        overriding,
        strategy,
        _with_when(rules, spec.when, document, section),
        not rules,
    )


def auth_policy(document: Document, model: AuthPolicy) -> Policy:
    """The policy that a model of rules for callers is."""
    spec: AuthRules
    spec, section, overriding, strategy = _section(model.spec)
    rules = dict(_auth_rules(document, spec, section))
    return Policy(
        document,
        "AuthPolicy",
        _target(document, model.spec.target_ref),
        overriding,
        strategy,
        _with_when(rules, spec.when, document, section),
        all(group == "patterns" for group, _ in rules),
    )


def section_problems(policy: Policy, spec: Any, bare: Sequence[str]) -> Iterator[Problem]:
    """`defaults`, `overrides` and bare rules, which are the fields `bare`, exclude one another; one must say something.

    A section without limits or rules would look like protection and be none.
    """
    given = [name for name in ("defaults", "overrides") if getattr(spec, name) is not None]
    loose = [name for name in bare if name in spec.model_fields_set]
    if len(given) == 2:
        yield policy.document.problem(("spec", "overrides"), "`defaults` and `overrides` exclude one another")
    elif given and loose:
        yield policy.document.problem(("spec", loose[0]), f"belongs into `{given[0]}`, where that is given")
    elif policy.empty:
        yield policy.document.problem(("spec", *given, bare[-1]), "missing, or empty")


def effective(policies: Sequence[Policy]) -> Rules:
    """What policies of one kind come to; the least specific is the first."""
    if not policies:
        return {}
    merged = reduce(_merged, reversed(policies[:-1]), policies[-1])
    return merged.rules


def sources(rules: Iterable[Rule]) -> list[Document]:
    """The policies that rules come from, in the order of their titles."""
    found = {rule.document.title: rule.document for rule in rules}
    return [found[title] for title in sorted(found)]


def named(rules: Rules, group: str) -> dict[str, Rule]:
    """The rules of a group, by name."""
    return {name: rule for (of, name), rule in rules.items() if of == group}


def when_problems(rules: Rules) -> Iterator[Problem]:
    """Of the conditions of a whole policy."""
    for rule in named(rules, "when").values():
        yield from predicate_problems(rule, rule.value, ())


def predicate_problems(rule: Rule, predicates: Sequence[Predicate], steps: Sequence[Step]) -> Iterator[Problem]:
    """Of conditions that a part of a policy has in its field `steps`."""
    for index, predicate in enumerate(predicates):
        try:
            check_request_expression(predicate.predicate.strip())
        except Unsupported as error:
            yield rule.problem((*steps, index, "predicate"), str(error))


def _merged(specific: Policy, general: Policy) -> Policy:
    """Of two policies for the same requests; `general` says how."""
    if general.strategy == "merge":
        rules = {**specific.rules, **general.rules} if general.overriding else {**general.rules, **specific.rules}
        return replace(specific, rules=rules)
    return general if general.overriding else specific


def _section(spec: Any) -> tuple[Any, tuple[Step, ...], bool, Strategy]:
    """Where a policy's rules are, and what they are to others."""
    if spec.defaults is not None:
        return spec.defaults, ("spec", "defaults"), False, spec.defaults.strategy
    if spec.overrides is not None:
        return spec.overrides, ("spec", "overrides"), True, spec.overrides.strategy
    return spec, ("spec",), False, "atomic"


def _target(document: Document, ref: TargetRef) -> Target:
    return ref.kind, document.namespace, ref.name, ref.section_name or ""


def _with_when(
    rules: dict[RuleName, Rule], when: Iterable[Any], document: Document, section: tuple[Step, ...]
) -> Rules:
    conditions = list(when)
    return {("when", ""): Rule(conditions, document, (*section, "when")), **rules} if conditions else rules


def _auth_rules(document: Document, spec: AuthRules, section: tuple[Step, ...]) -> Iterator[tuple[RuleName, Rule]]:
    def of(group: str, items: Mapping[str, Any], *steps: str) -> Iterator[tuple[RuleName, Rule]]:
        for name, item in items.items():
            yield (group, name), Rule(item, document, (*section, *steps, name))

    yield from of("patterns", spec.patterns, "patterns")
    if (scheme := spec.rules) is None:
        return
    yield from of("authentication", scheme.authentication, "rules", "authentication")
    yield from of("authorization", scheme.authorization, "rules", "authorization")
    answers = {"unauthenticated": scheme.response.unauthenticated, "unauthorized": scheme.response.unauthorized}
    for name, answer in answers.items():
        if answer is not None:
            yield (name, ""), Rule(answer, document, (*section, "rules", "response", name))
    yield from of("headers", scheme.response.success.headers, "rules", "response", "success", "headers")
    yield from of("filters", scheme.response.success.filters, "rules", "response", "success", "filters")
