"""From findings to one `Usage`: what was reported stands, what was not is estimated as far as the policy says."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from typing import Any

import pytest

from extproc.bodies.findings import Findings
from extproc.bodies.reader import BodyLimits, ReaderFactory
from extproc.bodies.wanted import Wanted
from extproc.usage.dialects import DIALECTS
from extproc.usage.estimate import Estimate, Estimator, Job
from extproc.usage.held import HeldPrompt, PromptBudget
from extproc.usage.meter import Meter, MissingUsage, Request
from extproc.usage.prices import Price, Prices
from extproc.usage.usage import Ending, Usage
from fuzz.framing import compact

WANTED = Wanted(frozenset(), [dialect.shape for dialect in DIALECTS.values()], keep_text=1 << 16)
NOWHERE = Request("/", "", None, 0)
CHAT = {"object": "chat.completion", "model": "m", "choices": [{"message": {"content": "Hello"}}]}
START = {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 10, "output_tokens": 3}}}
DELTA = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}}


class FixedEstimator(Estimator):
    """The same estimate for everything, now or later."""

    def __init__(self, prompt: int = 100, completion: int = 50, *, later: bool = False) -> None:
        super().__init__()
        self._answer = Estimate(prompt, completion, "tokenizer")
        self._later = later
        self.jobs: list[Job] = []

    def estimate(self, job: Job) -> Estimate | Awaitable[Estimate]:
        self.jobs.append(job)
        return self._soon() if self._later else self._answer

    async def _soon(self) -> Estimate:
        return self._answer


def found(*events: Any, content_type: str = "") -> Findings:
    """What a document, or several events, come to."""
    body = b"".join(b"data: " + compact(event) + b"\n\n" for event in events) if len(events) > 1 else compact(events[0])
    reader = ReaderFactory(WANTED, BodyLimits()).open("text/event-stream" if len(events) > 1 else content_type, "")
    reader.feed(body)
    reader.close()
    return reader.findings


def meter(policy: Any = "estimate", *, fixed: int = 0, **prices: Price) -> Meter:
    return Meter(MissingUsage(policy, fixed), Prices(prices))


async def read(
    findings: Findings,
    request: Request = NOWHERE,
    ending: Ending = "complete",
    *,
    by: Meter | None = None,
    estimator: Estimator | None = None,
    methods: list[str] | None = None,
) -> Usage:
    told: list[str] = [] if methods is None else methods
    usage = (by or meter()).read(findings, lambda: request, ending, estimator or FixedEstimator(), told.append)
    return usage if isinstance(usage, Usage) else await usage


async def test_what_is_reported_is_taken_whole_and_nothing_estimated() -> None:
    usage = {
        "prompt_tokens": 30,
        "completion_tokens": 20,
        "total_tokens": 50,
        "prompt_tokens_details": {"cached_tokens": 10},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    estimator, methods = FixedEstimator(), list[str]()
    by = meter(m=Price(1, 2, 0.5))
    got = await read(found({**CHAT, "usage": usage}), by=by, estimator=estimator, methods=methods)
    assert got == Usage(30, 20, 50, 10, 0, 5, "m", "reported", "complete", "openai", 65)
    assert (estimator.jobs, methods) == ([], [])


@pytest.mark.parametrize("ending", ["complete", "client_gone", "upstream_cut", "error"])
@pytest.mark.parametrize("later", [False, True])
async def test_every_usage_knows_how_it_ended(ending: Ending, later: bool) -> None:
    estimator = FixedEstimator(later=later)
    for findings in (found(CHAT), found({**CHAT, "usage": {"prompt_tokens": 1, "completion_tokens": 1}})):
        assert (await read(findings, ending=ending, estimator=estimator)).ending == ending


@pytest.mark.parametrize("later", [False, True])
async def test_what_nobody_reports_is_estimated_and_told(later: bool) -> None:
    methods: list[str] = []
    by = meter(m=Price(1, 2))
    got = await read(found(CHAT), by=by, estimator=FixedEstimator(later=later), methods=methods)
    assert got == Usage(100, 50, 150, model="m", source="estimated", dialect="openai", cost=200)
    assert methods == ["tokenizer"]


async def test_an_estimate_is_waited_for_only_where_it_takes_time() -> None:
    """An exchange without a vocabulary stays synchronous."""
    assert isinstance(meter().read(found(CHAT), lambda: NOWHERE, "complete", FixedEstimator(), print), Usage)
    usage = meter().read(found(CHAT), lambda: NOWHERE, "complete", FixedEstimator(later=True), lambda _: None)
    assert inspect.isawaitable(usage)
    assert (await usage).source == "estimated"


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("estimate", Usage(10, 50, 60, model="m", source="estimated", dialect="anthropic")),
        ("skip", Usage(10, 3, 13, model="m", source="reported", dialect="anthropic")),
    ],
)
async def test_the_part_that_was_reported_stands(policy: str, expected: Usage) -> None:
    """Anthropic tells the prompt at once, and of the completion the beginning."""
    assert await read(found(START, DELTA), by=meter(policy), ending="complete") == expected


async def test_an_estimate_is_never_less_than_what_was_said_of_it() -> None:
    got = await read(found(START, DELTA), estimator=FixedEstimator(completion=1))
    assert (got.prompt_tokens, got.completion_tokens, got.total_tokens) == (10, 3, 13)


async def test_only_what_was_not_said_is_counted() -> None:
    """A prompt of a megabyte is not tokenised for a completion that was cut."""
    budget = PromptBudget(1000)
    prompt = HeldPrompt(budget)
    prompt.add(b'{"messages":[]}')
    request = Request("/", "", prompt, prompt.size)
    estimator = FixedEstimator()
    await read(found(START, DELTA), request, estimator=estimator)
    await read(found({"model": "m", "embeddings": [[0.1]], "created_at": "x"}), request, estimator=estimator)
    first, second = estimator.jobs
    assert (first.prompt, first.prompt_size, first.answer is not None) == (None, 0, True)
    assert (second.prompt, second.prompt_size) == (b'{"messages":[]}', prompt.size)


async def test_a_prompt_that_was_let_go_goes_by_its_size() -> None:
    prompt = HeldPrompt(PromptBudget(2))
    prompt.add(b"x" * 400)
    estimator = FixedEstimator()
    await read(found(CHAT), Request("/", "", prompt, prompt.size), estimator=estimator)
    assert (estimator.jobs[0].prompt, estimator.jobs[0].prompt_size) == (None, 400)


async def test_an_answer_that_nobody_knows_goes_by_its_size() -> None:
    """Text for all we know; of a known dialect only what was generated counts, and not the JSON around it."""
    estimator = FixedEstimator()
    unknown_answer = found({"surprise": "x" * 400})
    unknown_answer.body_size = 415
    await read(unknown_answer, estimator=estimator)
    await read(found(CHAT), estimator=estimator)
    unknown, known = estimator.jobs
    assert (unknown.answer, unknown.answer_size) == (None, 415)
    assert known.answer is not None
    assert known.answer.decoded() == "Hello"


async def test_skip_charges_nothing_and_says_so() -> None:
    estimator, methods = FixedEstimator(), list[str]()
    got = await read(found(CHAT), by=meter("skip", m=Price(1, 2)), estimator=estimator, methods=methods)
    assert got == Usage(model="m", source="none", dialect="openai", cost=0)
    assert (estimator.jobs, methods) == ([], [])


@pytest.mark.parametrize("fixed", [0, 7, 2**32 - 1])
async def test_a_fixed_charge_is_no_estimate(fixed: int) -> None:
    estimator, methods = FixedEstimator(), list[str]()
    answers: list[tuple[Findings, Ending]] = [(found(CHAT), "complete"), (found(START, DELTA), "client_gone")]
    for findings, ending in answers:
        got = await read(findings, ending=ending, by=meter("fixed", fixed=fixed), estimator=estimator, methods=methods)
        assert got.total_tokens >= fixed
    assert (await read(found(CHAT), by=meter("fixed", fixed=fixed))).source == "fixed"
    assert (estimator.jobs, methods) == ([], [])


async def test_a_reported_usage_is_not_replaced_by_a_fixed_charge() -> None:
    findings = found({**CHAT, "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}})
    got = await read(findings, by=meter("fixed", fixed=700))
    assert (got.total_tokens, got.source) == (3, "reported")


@pytest.mark.parametrize(
    ("answered", "asked", "path", "model"),
    [
        ("a", "b", "/model/c/converse", "a"),
        ("", "b", "/model/c/converse", "b"),
        ("", "", "/model/c/converse", "c"),
        ("", "", "/v1/chat/completions", ""),
    ],
)
async def test_the_model_is_who_answered_else_who_was_asked(answered: str, asked: str, path: str, model: str) -> None:
    """And it is that model's price, and its vocabulary."""
    estimator = FixedEstimator()
    by = Meter(MissingUsage("estimate"), Prices({model or "*": Price(1, 1), "never": Price(9, 9)}))
    got = await read(found({**CHAT, "model": answered}), Request(path, asked, None, 0), by=by, estimator=estimator)
    assert (got.model, got.cost) == (model, 150)
    assert estimator.jobs[0].model == model


async def test_without_a_price_there_is_no_cost() -> None:
    assert (await read(found(CHAT), by=meter(other=Price(1, 1)))).cost is None


@pytest.mark.parametrize("value", [-1, "12", 2**32, 1.5, None, True, [], {}, float("1e300")])
async def test_a_count_that_is_none_is_as_good_as_missing(value: Any) -> None:
    findings = found({**CHAT, "usage": {"prompt_tokens": value, "completion_tokens": value, "total_tokens": value}})
    got = await read(findings)
    assert (got.source, got.total_tokens) == ("estimated", 150)


@pytest.mark.parametrize(("cached", "reasoning"), [(5000, 5000), (2**32 - 1, 0)])
async def test_parts_are_no_more_than_their_whole(cached: int, reasoning: int) -> None:
    """Whatever a server says: a cost is never negative, and no cheaper than its tokens."""
    usage = {
        "prompt_tokens": 30,
        "completion_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
    got = await read(found({**CHAT, "usage": usage}), by=meter(m=Price(2, 1, 1)))
    assert got.cached_tokens + got.cache_write_tokens <= got.prompt_tokens
    assert got.reasoning_tokens <= got.completion_tokens
    assert got.cost == 30 + 20
