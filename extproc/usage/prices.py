"""What tokens cost: a table of prices by model, and the cost of one exchange in whole millionths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Final, NamedTuple

from extproc.usage.patterns import ModelPattern
from extproc.usage.usage import Usage

MAX_PRICE: Final = 10**9
REMEMBERED: Final = 1024
"""Models whose price is remembered. Answers name models, so there can be any number of them."""
_MIN_EXPONENT: Final = -400
"""A little below the smallest float; further down only memory is lost."""

Amount = Decimal | int | float | str
"""A decimal number. A float is taken for the shortest text that stands for it: 0.1 is a tenth."""


@dataclass(frozen=True, slots=True)
class Price:
    """Of one million tokens, in any currency. `cached` and `cache_write` are those of `input` when they are None."""

    input: Amount
    output: Amount
    cached: Amount | None = None
    cache_write: Amount | None = None


class _Rates(NamedTuple):
    """A price in whole numbers: millionths of the currency per `scale` tokens."""

    input: int
    output: int
    cached: int
    cache_write: int
    scale: int

    def cost(self, usage: Usage) -> int:
        read, written = usage.cached_tokens, usage.cache_write_tokens
        plain = max(0, usage.prompt_tokens - read - written)
        scaled = (
            plain * self.input + read * self.cached + written * self.cache_write + usage.completion_tokens * self.output
        )
        return -(-scaled // self.scale)


class Prices:
    """Prices by the name of a model, where `*` stands for any characters.

    A name as it is written in the table wins, then one that differs in case only, then the longest pattern that
    matches, upper and lower case alike; of patterns of the same length the first. A model without a name is matched
    by `*` alone. Raises ValueError that names the price which is no number from 0 to a billion.
    """

    __slots__ = ("_any", "_any_case", "_find", "_names", "_patterns")

    def __init__(self, table: Mapping[str, Price]) -> None:
        rates = {model: _rates(model, price) for model, price in table.items()}
        self._any = bool(rates)
        self._names = {model: each for model, each in rates.items() if "*" not in model}
        self._any_case: dict[str, _Rates] = {}
        for model, each in self._names.items():
            self._any_case.setdefault(model.lower(), each)
        patterns = sorted((model for model in rates if "*" in model), key=len, reverse=True)
        self._patterns = [(ModelPattern(pattern), rates[pattern]) for pattern in patterns]
        self._find = lru_cache(REMEMBERED)(self._search)

    def cost(self, usage: Usage) -> int | None:
        """Millionths of the currency, rounded up; None when no price matches the model.

        Tokens from and for a cache are part of the prompt and cost their own price instead of its; reasoning is part
        of the completion and costs as much.
        """
        if not self._any:
            return None
        rates = self._find(usage.model)
        return None if rates is None else rates.cost(usage)

    def _search(self, model: str) -> _Rates | None:
        named = self._names.get(model) or self._any_case.get(model.lower())
        return named or next((rates for pattern, rates in self._patterns if pattern.matches(model)), None)


def _rates(model: str, price: Price) -> _Rates:
    fallback = price.input
    amounts = (
        _amount(f"{model}.input", price.input),
        _amount(f"{model}.output", price.output),
        _amount(f"{model}.cached", fallback if price.cached is None else price.cached),
        _amount(f"{model}.cache_write", fallback if price.cache_write is None else price.cache_write),
    )
    scale: int = 10 ** max(0, *(-_exponent(amount) for amount in amounts))
    ratios = (amount.as_integer_ratio() for amount in amounts)
    whole = [numerator * (scale // denominator) for numerator, denominator in ratios]
    return _Rates(whole[0], whole[1], whole[2], whole[3], scale)


def _amount(field: str, amount: Amount) -> Decimal:
    try:
        value = Decimal(str(amount))
    except InvalidOperation:
        raise ValueError(f"prices.{field}: {amount!r} is not a number") from None
    if not value.is_finite() or not 0 <= value <= MAX_PRICE or _exponent(value) < _MIN_EXPONENT:
        raise ValueError(f"prices.{field}: {amount!r} is not a price from 0 to {MAX_PRICE}")
    return value


def _exponent(finite: Decimal) -> int:
    return int(finite.as_tuple().exponent)
