"""Limits of RateLimitPolicies and TokenRateLimitPolicies as a limiter's limits and the actions that ask it.

Names are those of Kuadrant's operator, so that counters and metrics are comparable: a limit is switched on by the
descriptor entry `limit.NAME__HASH` (`tokenlimit.` for tokens), each counter is an entry with its own expression as the
key, and the domain is `NAMESPACE/ROUTE`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

from extproc.config.errors import Problem, shown
from extproc.policies.cel_text import Unsupported, check_request_expression, literal
from extproc.policies.objects import Predicate
from extproc.policies.policy import Rule, Rules, named, predicate_problems, sources
from extproc.policies.rate_limits import Counter, RequestLimit, window_seconds

RATE_LIMIT = "ratelimit-service"
CHECK = "ratelimit-check-service"
REPORT = "ratelimit-report-service"
TOKENS = 'responseBodyJSON("/usage/total_tokens")'
_HITS = "ratelimit.hits_addend"

Prefix = Literal["limit", "tokenlimit"]
Data = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one kind that count for the same requests; `domain` is theirs."""

    prefix: Prefix
    domain: str
    rules: Rules

    def action(self, service: str, hits: str | None = None) -> Iterator[Data]:
        """The call of `service` with an entry for each limit that applies; none without limits."""
        blocks = [self._block(name, rule, hits) for name, rule in self._limits]
        if blocks:
            yield {
                "service": service,
                "scope": self.domain,
                "conditionalData": blocks,
                "sources": [document.locator for document in sources(rule for _, rule in self._limits)],
            }

    def for_limiter(self) -> Iterator[tuple[str, Data]]:
        """Each rate as Limitador's limits file has it, by something that tells it from others."""
        for name, rule in self._limits:
            key = identifier(self.prefix, rule, name)
            for rate in _limit(rule).rates:
                yield (
                    f"{self.domain} {key} {rate.window}",
                    {
                        "namespace": self.domain,
                        "max_value": rate.limit,
                        "seconds": window_seconds(rate.window),
                        "name": name,
                        "conditions": [f'descriptors[0][{literal(key)}] == "1"'],
                        "variables": [f"descriptors[0][{literal(counter)}]" for counter in _counters(rule)],
                    },
                )

    @property
    def _limits(self) -> list[tuple[str, Rule]]:
        return sorted(named(self.rules, "limits").items())

    def _conditions(self, rule: Rule) -> list[str]:
        everywhere = self.rules.get(("when", ""))
        return _predicates([*(everywhere.value if everywhere else ()), *_limit(rule).when])

    def _block(self, name: str, rule: Rule, hits: str | None) -> Data:
        entries = {identifier(self.prefix, rule, name): "1", **{text: text for text in _counters(rule)}}
        if hits is not None:
            entries[_HITS] = hits
        data = [{"expression": {"key": key, "value": value}} for key, value in entries.items()]
        conditions = self._conditions(rule)
        return {"predicates": conditions, "data": data} if conditions else {"data": data}


def identifier(prefix: Prefix, rule: Rule, name: str) -> str:
    """`limit.NAME__HASH`: what is no letter, digit or `_` becomes `_`; the hash is of the names as they are."""
    plain = "".join(c if c.isalpha() or c.isdecimal() or c == "_" else "_" for c in name)
    whole = f"{rule.document.namespace}/{rule.document.name}/{name}"
    return f"{prefix}.{plain}__{sha256(whole.encode()).hexdigest()[:8]}"


def limit_problems(rules: Rules) -> Iterator[Problem]:
    """What the model of a limit does not tell: expressions, older spellings, windows that are the same."""
    for rule in named(rules, "limits").values():
        limit = _limit(rule)
        yield from predicate_problems(rule, limit.when, ("when",))
        for index, counter in enumerate(limit.counters):
            yield from _counter_problems(rule, counter, index)
        first: dict[int, int] = {}
        for index, rate in enumerate(limit.rates):
            earlier = first.setdefault(window_seconds(rate.window), index)
            if earlier != index:
                message = f"as long as rates[{earlier}].window; the limiter has one counter for both"
                yield rule.problem(("rates", index, "window"), message)


def _counter_problems(rule: Rule, counter: str | Counter, index: int) -> Iterator[Problem]:
    if isinstance(counter, str):
        message = (
            f"an older form; write `expression: {counter}`" if counter else f"expected an object, found {shown('')}"
        )
        yield rule.problem(("counters", index), message)
    elif wrong := _fault(counter.expression):
        yield rule.problem(("counters", index, "expression"), wrong)


def _fault(expression: str) -> str:
    try:
        check_request_expression(expression.strip())
    except Unsupported as error:
        return str(error)
    return ""


def _limit(rule: Rule) -> RequestLimit:
    limit = rule.value
    assert isinstance(limit, RequestLimit)
    return limit


def _predicates(when: Sequence[Predicate]) -> list[str]:
    return [predicate.predicate.strip() for predicate in when]


def _counters(rule: Rule) -> list[str]:
    counters = (counter for counter in _limit(rule).counters if isinstance(counter, Counter))
    return list(dict.fromkeys(counter.expression.strip() for counter in counters))
