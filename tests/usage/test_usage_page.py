"""docs/usage.md is worked out: its examples give the numbers that it says, its queries name metrics that there are."""

from __future__ import annotations

import re
from pathlib import Path

import cel
import pytest
import yaml

from extproc.expressions import Expression
from extproc.expressions.functions import LIBRARY
from extproc.plan.action import hits_of
from extproc.plan.bodies import BodyValues
from extproc.telemetry.metrics import Metrics
from extproc.usage.prices import Price, Prices
from extproc.usage.usage import Usage

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "usage.md").read_text()
ANSWER = {
    ("usage", "input_tokens"): 86,
    ("usage", "cache_read_input_tokens"): 1024,
    ("usage", "cache_creation_input_tokens"): 200,
    ("usage", "output_tokens"): 70,
}


def price_table() -> dict[str, Price]:
    """The example of the page."""
    (block,) = re.findall(r"```yaml\n(prices:.*?)```", PAGE, re.DOTALL)
    prices = yaml.safe_load(block)["prices"]
    return {
        model: Price(each["input"], each["output"], each.get("cached"), each.get("cacheWrite"))
        for model, each in prices.items()
    }


def usage() -> Usage:
    """What the page's answer of Anthropic's comes to."""
    counted = Usage(1310, 70, 1380, 1024, 200, 0, "claude-sonnet-4-5", "reported", "complete", "anthropic")
    return counted._replace(cost=Prices(price_table()).cost(counted))


def evaluated(source: str) -> int:
    """The hits of an expression, as an exchange with that answer has them when the number is not found in it."""
    bodies = BodyValues()
    bodies.response, bodies.usage = dict(ANSWER), usage()
    context = cel.Context(variables={"usage": usage()._asdict()})
    for name, function in {**LIBRARY, "responseBodyJSON": bodies.function("responseBodyJSON")}.items():
        context.add_function(name, function)
    return hits_of(Expression(source).evaluate(context))


def rows(section: str, pattern: str) -> list[tuple[str, ...]]:
    """What `pattern` finds in the lines of a section."""
    (text,) = re.findall(rf"^## {section}\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
    found = [match.groups() for match in re.finditer(pattern, text, re.MULTILINE)]
    assert found
    return found


@pytest.mark.parametrize(("source", "hits"), rows("In expressions", r"^\| `([^|]+)` \| (\d+) \|"))
def test_expressions_come_to_what_the_page_says(source: str, hits: str) -> None:
    """Output four times as dear, caches at a tenth, money."""
    assert evaluated(source) == int(hits)


def test_openai_pointers_charge_another_providers_answer() -> None:
    (source,) = re.findall(r"`(responseBodyJSON\([^`]*\) \+ 4 \* [^`]*)` charges", PAGE)
    assert evaluated(source) == 1590
    assert evaluated('responseBodyJSON("/usage/total_tokens")') == 1380
    assert evaluated('responseBodyJSON("/usage/input_tokens")') == 86


@pytest.mark.parametrize(("names", "field"), rows("In expressions", r"^\| ((?:`\w+`(?:, )?)+) \| `usage\.(\w+)` \|"))
def test_names_of_counts_are_those_of_the_page(names: str, field: str) -> None:
    for name in re.findall(r"\w+", names):
        assert evaluated(f'responseBodyJSON("/elsewhere/{name}")') == getattr(usage(), field), name


def test_metrics_of_the_page_are_there() -> None:
    metrics = Metrics()
    metrics.used(usage(), "anthropic", 1.0, 0.1)
    text = metrics.render()[0].decode()
    named = {name for (name,) in rows("Metrics", r"((?:extproc|gen_ai)_(?!response_|provider_|token_)\w+)")}
    for name in named:
        assert re.search(rf"^{name}(_bucket)?[ {{]", text, re.MULTILINE), name


def test_fields_of_the_page_are_those_of_usage() -> None:
    listed = [name for (names,) in rows("The fields", r"^\| (`[^|]*) \|") for name in re.findall(r"\w+", names)]
    assert sorted(listed) == sorted(Usage._fields)
