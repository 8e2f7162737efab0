"""What an exchange costs, to the millionth."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.usage.prices import REMEMBERED, Price, Prices
from extproc.usage.usage import Usage

TABLE = {
    "gpt-4o": Price("2.50", "10.00", "1.25"),
    "gpt-4o-mini": Price(0.15, 0.6, 0.075),
    "text-embedding-3-small": Price("0.02", "0"),
    # A write costs 1.25 times the input, a read a tenth of it.
    "claude-sonnet-4-*": Price("3", "15", "0.30", "3.75"),
}


def cost(table: dict[str, Price], model: str, *tokens: int, **more: int) -> int | None:
    return Prices(table).cost(Usage(*tokens, model=model, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "usage", "millionths"),
    [
        ("gpt-4o", {"prompt_tokens": 1_000_000}, 2_500_000),
        ("gpt-4o", {"completion_tokens": 1_000_000}, 10_000_000),
        ("gpt-4o", {"prompt_tokens": 1_000_000, "cached_tokens": 1_000_000}, 1_250_000),
        ("gpt-4o", {"prompt_tokens": 2006, "completion_tokens": 300, "cached_tokens": 1920}, 215 + 2400 + 3000),
        ("gpt-4o", {"completion_tokens": 300, "reasoning_tokens": 256}, 3000),
        ("gpt-4o-mini", {"prompt_tokens": 10, "completion_tokens": 10}, 8),
        ("text-embedding-3-small", {"prompt_tokens": 50}, 1),
        ("text-embedding-3-small", {"prompt_tokens": 51}, 2),
        ("claude-sonnet-4-5", {"prompt_tokens": 100}, 300),
        ("claude-sonnet-4-5", {"prompt_tokens": 2100, "cache_write_tokens": 2000}, 300 + 7500),
        ("claude-sonnet-4-5", {"prompt_tokens": 2100, "cached_tokens": 2000}, 300 + 600),
        (
            "claude-sonnet-4-5",
            {"prompt_tokens": 300, "completion_tokens": 10, "cached_tokens": 100, "cache_write_tokens": 100},
            300 + 30 + 375 + 150,
        ),
        ("gpt-4o", {}, 0),
        ("gpt-5", {"prompt_tokens": 1_000_000}, None),
        ("", {"prompt_tokens": 1_000_000}, None),
    ],
)
def test_every_kind_of_token_has_its_price(model: str, usage: dict[str, int], millionths: int | None) -> None:
    assert cost(TABLE, model, **usage) == millionths


def test_more_cached_than_prompted_costs_what_was_cached() -> None:
    """An answer that contradicts itself is no credit."""
    assert cost(TABLE, "gpt-4o", prompt_tokens=10, cached_tokens=100) == 125


@pytest.mark.parametrize(
    ("model", "price"),
    [
        ("gpt-4o", 1),
        ("GPT-4o", 2),
        ("gpt-4O", 1),
        ("gpt-4o-2024-08-06", 3),
        ("GPT-4o-2024-08-06", 3),
        ("gpt-4o-mini-2024-07-18", 4),
        ("gpt-4", 5),
        ("gpt-4.1", 5),
        ("meta-llama/Llama-3.1-70B-Instruct", 6),
        ("Instruct-llama", 9),
        ("llama-Instruc", 9),
        ("aXbYbZc", 7),
        ("abbc", 7),
        ("abc", 9),
        ("a[bc].?", 8),
        ("abb.x", 9),
        ("", 9),
    ],
)
def test_the_most_telling_name_wins(model: str, price: int) -> None:
    names = ("gpt-4o", "GPT-4o", "gpt-4o-*", "gpt-4o-mini*", "gpt-4*", "*llama*-Instruct", "a*b*b*c", "a[b*].?", "*")
    for ordered in (names, names[::-1]):
        table = {name: Price(names.index(name) + 1, 0) for name in ordered}
        expected = 2 if model == "gpt-4O" and ordered is not names else price
        assert cost(table, model, prompt_tokens=1) == expected


def test_of_patterns_of_the_same_length_the_first_counts() -> None:
    assert cost({"*-mini": Price(1, 0), "gpt-4*": Price(2, 0)}, "gpt-4-mini", prompt_tokens=1) == 1


def test_a_pattern_that_would_keep_an_expression_busy_does_not() -> None:
    """A matcher that tries every split of 128 characters into twenty parts would not end."""
    assert cost({"a*" * 20 + "b": Price(1, 1)}, "a" * 128, prompt_tokens=1) is None


@given(
    st.decimals(0, 1000, places=6),
    st.floats(0, 1e9),
    st.integers(0, 2**53),
    st.integers(0, 2**53),
    st.integers(0, 2**53),
)
def test_the_arithmetic_is_exact(
    input_price: Any, output_price: float, prompt: int, cached: int, completion: int
) -> None:
    usage = Usage(prompt_tokens=prompt + cached, cached_tokens=cached, completion_tokens=completion, model="m")
    exact = prompt * Fraction(str(input_price)) + cached * Fraction("0.1") + completion * Fraction(str(output_price))
    assert Prices({"m": Price(str(input_price), output_price, 0.1)}).cost(usage) == ceil(exact)


@pytest.mark.parametrize("amount", ["", "ten", "-1", -0.01, "NaN", float("nan"), float("inf"), "1e10", "1e-1000000"])
@pytest.mark.parametrize("field", ["input", "output", "cached", "cache_write"])
def test_what_is_no_price_is_refused_by_its_name(field: str, amount: str | float) -> None:
    with pytest.raises(ValueError, match=rf"^prices\.gpt-4\*\.{field}: "):
        Prices({"gpt-4*": Price(**{"input": 1, "output": 1, field: amount})})


@pytest.mark.parametrize("amount", [5e-324, 1e-9, 1e9, 0])
def test_every_price_of_a_configuration_is_one(amount: float) -> None:
    assert cost({"m": Price(amount, amount)}, "m", 1, 1) == ceil(2 * Fraction(str(amount)))


def test_any_number_of_models_takes_a_bounded_memory() -> None:
    prices = Prices({"*": Price(1, 1)})
    for number in range(2 * REMEMBERED):
        assert prices.cost(Usage(1, model=f"model-{number}")) == 1
    assert prices._find.cache_info().currsize == REMEMBERED
