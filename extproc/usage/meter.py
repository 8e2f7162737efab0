"""From what was found in an answer to one `Usage`: reported, or estimated, or what the configuration says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import orjson

from extproc.bodies.findings import MAX_MODEL, Findings
from extproc.usage.dialects import reported
from extproc.usage.estimate import Estimate, Estimator, Job, Method
from extproc.usage.held import HeldPrompt
from extproc.usage.model_name import model_from_path
from extproc.usage.prices import Prices
from extproc.usage.usage import Ending, Reported, Usage

_NOTHING = Reported(final=False)


@dataclass(frozen=True, slots=True)
class MissingUsage:
    """What a successful answer without usage is charged: an estimate, nothing, or a fixed number of tokens."""

    policy: Literal["estimate", "skip", "fixed"]
    fixed: int = 0


class Request(NamedTuple):
    """What is known of a request when its answer is over."""

    path: str
    model: str
    """As its body names it, "" when that was not read."""
    prompt: HeldPrompt | None
    size: int
    """Of its body in bytes, as far as it is known."""


class Meter:
    """Decisions of one configuration."""

    __slots__ = ("_missing", "_prices")

    def __init__(self, missing: MissingUsage, prices: Prices) -> None:
        self._missing = missing
        self._prices = prices

    def read(
        self,
        findings: Findings,
        about: Callable[[], Request],
        ending: Ending,
        estimator: Estimator,
        estimated: Callable[[Method], None],
    ) -> Usage | Awaitable[Usage]:
        """The usage of an exchange; an awaitable where tokens have to be counted first.

        `about` is asked for the request where the answer does not tell all, `estimated` is told how an estimate was
        made.
        """
        dialect, said = reported(findings)
        if said is not None and _says_nothing(said, findings):
            said = None
        model = findings.model or _named(about())
        if said is not None and _tells_all(said, findings):
            return self._priced(_reported(said, model, ending, dialect))
        known = Usage(model=model, ending=ending, dialect=dialect)
        if self._missing.policy == "skip":
            return self._priced(known if said is None else _reported(said, model, ending, dialect))
        if self._missing.policy == "fixed":
            return _fixed(known, said or _NOTHING, self._missing.fixed)
        estimate = estimator.estimate(_job(known, findings, about(), said or _NOTHING))

        def finished(estimate: Estimate) -> Usage:
            estimated(estimate.method)
            return self._priced(_estimated(known, said or _NOTHING, estimate))

        return finished(estimate) if isinstance(estimate, Estimate) else _later(estimate, finished)

    def _priced(self, usage: Usage) -> Usage:
        cost = self._prices.cost(usage)
        return usage if cost is None else usage._replace(cost=cost)


def _says_nothing(said: Reported, findings: Findings) -> bool:
    """Zeros throughout for an answer with text are what a server writes that does not count. One alone may be meant."""
    used = said.prompt or said.completion or said.total
    return not used and len(findings.counts) > 1 and findings.text.size > 0


def _tells_all(said: Reported, findings: Findings) -> bool:
    """Whether nothing is left to estimate: without text, nothing was generated beyond what was said."""
    if said.prompt is None:
        return False
    if said.final and said.completion:
        return True
    # To ask for the text has it collected. A zero beside text is a field that somebody filled in, unless it is all
    # that is said.
    meant = said.final and said.completion == 0 and len(findings.counts) == 1
    return meant or not findings.text.size


def _named(request: Request) -> str:
    """The model that a request asked for, "" when it cannot be told."""
    return request.model or model_from_path(request.path) or _model_in(request.prompt)


def _model_in(prompt: HeldPrompt | None) -> str:
    body = None if prompt is None else prompt.body()
    if not body:
        return ""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    model = document.get("model") if isinstance(document, dict) else None
    return model[:MAX_MODEL] if isinstance(model, str) else ""


async def _later(estimate: Awaitable[Estimate], finished: Callable[[Estimate], Usage]) -> Usage:
    return finished(await estimate)


def _reported(said: Reported, model: str, ending: Ending, dialect: str) -> Usage:
    prompt, completion, total, cached, cache_write, reasoning, _ = said
    prompt, completion = prompt or 0, completion or 0
    if total is None or total < prompt + completion:
        total = prompt + completion
    return Usage(prompt, completion, total, cached, cache_write, reasoning, model, "reported", ending, dialect)


def _fixed(known: Usage, said: Reported, tokens: int) -> Usage:
    """What was said of a part is charged too where it is more."""
    prompt, completion = said.prompt or 0, said.completion or 0
    return known._replace(
        source="fixed",
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=max(tokens, prompt + completion),
    )


def _estimated(known: Usage, said: Reported, estimate: Estimate) -> Usage:
    """What was said stands; the rest is estimated, and never less than what was said of a part."""
    prompt = estimate.prompt if said.prompt is None else said.prompt
    completion = said.completion if said.final and said.completion is not None else estimate.completion
    completion = max(completion, said.completion or 0)
    whole = said._replace(prompt=prompt, completion=completion, total=None)
    return _reported(whole, known.model, known.ending, known.dialect)._replace(source="estimated")


def _job(known: Usage, findings: Findings, request: Request, said: Reported) -> Job:
    """What has to be estimated: what was not said."""
    job = Job(known.model)
    if said.prompt is None:
        body = None if request.prompt is None else request.prompt.body()
        job = job._replace(prompt=body, prompt_size=request.size)
    if said.completion is None or not said.final:
        # An answer in which nothing was recognised is text for all we know.
        recognised = known.dialect or findings.text.size
        return job._replace(answer=findings.text) if recognised else job._replace(answer_size=findings.body_size)
    return job
