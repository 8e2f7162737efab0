"""Spending as Prometheus' text: under our names, those of Models-as-a-Service (S1.20) and those of Gloo (S4.12)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Final, TypeVar

from extproc.telemetry.exposition import Family, Sample, escaped
from extproc.telemetry.spending import Account, Spending, Spent

TOKENS: Final = Family("extproc_user_tokens_total", "Tokens of answers, by user.")
CHARGED: Final = Family("extproc_user_charged_tokens_total", "Tokens charged to limits (hits addends), by user.")
COST: Final = Family("extproc_user_cost_total", "Cost of answers in millionths of the prices' currency, by user.")
REQUESTS: Final = Family("extproc_user_requests_total", "Requests that limits allowed or refused, by user.")
REJECTIONS: Final = Family("extproc_rejections_total", "Requests answered 401 or 403, by why.")
USERS: Final = Family("extproc_users", "Users told apart in metrics.", "gauge")
USERS_MAX: Final = Family("extproc_users_max", "Users told apart at most; others are `(other)` together.", "gauge")

MAAS_TOTAL: Final = Family("token_usage_total", "Tokens of answers.")
MAAS_TOKENS: Final = Family("token_usage_with_user_and_group", "Tokens of answers, by user and group.")
MAAS_AUTHORIZED: Final = Family("authorized_calls_with_user_and_group", "Requests allowed, by user and group.")
MAAS_LIMITED: Final = Family("limited_calls_with_user_and_group", "Requests refused by a limit, by user and group.")

AI_PROMPT: Final = Family("ai_prompt_tokens_total", "Input tokens of answers.")
AI_COMPLETION: Final = Family("ai_completion_tokens_total", "Output tokens of answers.")
AI_LIMITED: Final = Family("ai_rate_limited_tokens_total", "Tokens charged to limits.")
AI_ERRORS: Final = Family("ai_exception_raised_total", "Answers that were errors.")

_BATCH: Final = 200
"""Users in a piece of text: one or two milliseconds."""

_text = lru_cache(1024)(escaped)
"""For names of which there is a bounded number: of namespaces, limits, models."""

Place = tuple[str, str, str]
"""Namespace, model and provider."""
Series = Callable[[Account], Iterable[Sample]]
K = TypeVar("K")


def exposition(spending: Spending, openmetrics: bool) -> Iterator[str]:
    """The metrics, in pieces between which other work may be done."""
    accounts = spending.accounts()
    for family, series in _by_user(spending):
        yield family.header(openmetrics)
        for start in range(0, len(accounts), _BATCH):
            yield family.lines(sample for account in accounts[start : start + _BATCH] for sample in series(account))
    yield REJECTIONS.header(openmetrics) + REJECTIONS.lines(
        (f'reason="{reason}"', count) for reason, count in spending.rejections.items()
    )
    yield USERS.header(openmetrics) + USERS.lines([("", spending.told_apart)])
    yield USERS_MAX.header(openmetrics) + USERS_MAX.lines([("", spending.capacity)])
    if "maas" in spending.families:
        yield MAAS_TOTAL.header(openmetrics) + MAAS_TOTAL.lines([("", spending.tokens)])


def _by_user(spending: Spending) -> Iterator[tuple[Family, Series]]:
    yield TOKENS, _tokens
    yield CHARGED, _charged
    yield COST, _cost
    yield REQUESTS, _requests
    if "maas" in spending.families:
        named = _UserAndGroup(spending.label_names)
        yield MAAS_TOKENS, named.tokens
        yield MAAS_AUTHORIZED, named.authorized
        yield MAAS_LIMITED, named.limited
    if "gloo" in spending.families:
        yield AI_PROMPT, _ai(lambda spent: spent.input)
        yield AI_COMPLETION, _ai(lambda spent: spent.output)
        yield AI_LIMITED, _ai(lambda spent: spent.charged)
        yield AI_ERRORS, _ai(lambda spent: spent.errors)


def _tokens(account: Account) -> Iterator[Sample]:
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for (namespace, model, _), spent in account.spent.items():
        before = sums.get((namespace, model), (0, 0))
        sums[namespace, model] = (before[0] + spent.input, before[1] + spent.output)
    for (namespace, model), (read, written) in sums.items():
        labels = _join(*account.parts, f'namespace="{_text(namespace)}"', f'model="{_text(model)}"')
        yield f'{labels},direction="input"', read
        yield f'{labels},direction="output"', written


def _charged(account: Account) -> Iterator[Sample]:
    for namespace, count in _sums(account, lambda place: place[0], lambda spent: spent.charged).items():
        yield _join(*account.parts, f'namespace="{_text(namespace)}"'), count


def _cost(account: Account) -> Iterator[Sample]:
    """Models without a price are left out: theirs is not known, which is not 0."""
    for model, millionths in _sums(account, lambda place: place[1], lambda spent: spent.cost).items():
        yield _join(*account.parts, f'model="{_text(model)}"'), millionths


def _requests(account: Account) -> Iterator[Sample]:
    for namespace, requests in account.requests.items():
        labels = _join(*account.parts, f'namespace="{_text(namespace)}"')
        yield f'{labels},decision="allowed",limit=""', requests.allowed
        for limit, count in requests.refused.items():
            yield f'{labels},decision="refused",limit="{_text(limit)}"', count


class _UserAndGroup:
    """Labels `user`, `group` and `namespace` first, "" where they are not configured; then all others."""

    def __init__(self, label_names: tuple[str, ...]) -> None:
        self._named = tuple(
            (name, label_names.index(name) if name in label_names else None) for name in ("user", "group")
        )
        self._rest = tuple(index for index, name in enumerate(label_names) if name not in {"user", "group"})

    def tokens(self, account: Account) -> Iterator[Sample]:
        sums = _sums(account, lambda place: place[0], lambda spent: spent.total)
        return ((self._labels(account, namespace), count) for namespace, count in sums.items())

    def authorized(self, account: Account) -> Iterator[Sample]:
        for namespace, requests in account.requests.items():
            yield self._labels(account, namespace), requests.allowed

    def limited(self, account: Account) -> Iterator[Sample]:
        for namespace, requests in account.requests.items():
            yield self._labels(account, namespace), sum(requests.refused.values())

    def _labels(self, account: Account, namespace: str) -> str:
        parts = account.parts
        return _join(
            *(f'{name}=""' if index is None else parts[index] for name, index in self._named),
            f'namespace="{_text(namespace)}"',
            *(parts[index] for index in self._rest),
        )


def _ai(value_of: Callable[[Spent], int]) -> Series:
    def samples(account: Account) -> Iterator[Sample]:
        for (provider, model), count in _sums(account, lambda place: (place[2], place[1]), value_of).items():
            yield _join(f'llm="{_text(provider)}"', f'model="{_text(model)}"', *account.parts), count

    return samples


def _sums(account: Account, key_of: Callable[[Place], K], value_of: Callable[[Spent], int | None]) -> dict[K, int]:
    """What was spent, added up by a part of the place; places without a value are left out."""
    sums: dict[K, int] = {}
    for place, spent in account.spent.items():
        if (value := value_of(spent)) is not None:
            key = key_of(place)
            sums[key] = sums.get(key, 0) + value
    return sums


def _join(*parts: str) -> str:
    return ",".join(parts)
