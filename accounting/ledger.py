"""True usage against counted usage, transcript by transcript, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from accounting.play import Played, Stage
from accounting.transcript import Counts, Transcript
from extproc.usage.vocabulary import Vocabulary

WITH_VOCABULARY = 0.05
WITHOUT_VOCABULARY = 0.25
"""Medians of the relative error of estimates that are kept."""


@dataclass(frozen=True, slots=True)
class Row:
    """One transcript. `counted` and `without` are totals with and without a vocabulary; None: not exactly one."""

    transcript: Transcript
    without: int | None
    counted: int | None
    problems: tuple[str, ...]
    """What makes it wrong, in words."""

    @property
    def estimated(self) -> bool:
        return self.transcript.source == "estimated"

    @property
    def true(self) -> int:
        return self.transcript.usage.total_tokens

    def error(self, counted: int | None) -> float:
        """Of `counted`, relative to the truth."""
        return abs((counted or 0) - self.true) / max(1, self.true)


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors of the totals of estimates."""

    median: float
    worst: float
    of: str
    """The transcript with the worst."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """All rows; `vocabulary` tells whether one was there."""

    rows: tuple[Row, ...]
    vocabulary: bool

    @property
    def exact(self) -> tuple[Row, ...]:
        """Those whose answers tell what they used: no difference is allowed."""
        return tuple(row for row in self.rows if not row.estimated)

    @property
    def with_vocabulary(self) -> Errors | None:
        """None where nothing was estimated with one."""
        rows = self._estimated if self.vocabulary else ()
        return _errors((row.error(row.counted), row.transcript.name) for row in rows)

    @property
    def without_vocabulary(self) -> Errors | None:
        """None where nothing was estimated."""
        return _errors((row.error(row.without), row.transcript.name) for row in self._estimated)

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that is wrong, in words; empty when the count can be trusted."""
        of_rows = [f"{row.transcript.name}: {problem}" for row in self.rows for problem in row.problems]
        bounds = (
            ("with", self.with_vocabulary, WITH_VOCABULARY),
            ("without", self.without_vocabulary, WITHOUT_VOCABULARY),
        )
        of_medians = [
            f"estimates {how} a vocabulary: median error {errors.median:.1%}, more than {bound:.0%}"
            for how, errors, bound in bounds
            if errors is not None and errors.median > bound
        ]
        return (*of_rows, *of_medians)

    @property
    def _estimated(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.estimated)


async def account(transcripts: Iterable[Transcript], vocabulary: Vocabulary | None) -> Ledger:
    """Play every transcript without a vocabulary, and again with one if there is one. Raises TranscriptError."""
    without, counting = Stage(), None if vocabulary is None else Stage(vocabulary)
    try:
        rows = [
            _row(each, await without.play(each), None if counting is None else await counting.play(each))
            for each in transcripts
        ]
    finally:
        without.close()
        if counting is not None:
            counting.close()
    return Ledger(tuple(rows), vocabulary is not None)


def _row(transcript: Transcript, without: Played, counted: Played | None) -> Row:
    problems = dict.fromkeys(
        problem for played in (without, counted) if played for problem in wrong(transcript, played)
    )
    return Row(transcript, _total(without), _total(counted), tuple(problems))


def _total(played: Played | None) -> int | None:
    return None if played is None else sum(played.hits)


def wrong(transcript: Transcript, played: Played) -> list[str]:
    """What of an exchange is not as its transcript says; how near an estimate comes is no part of that."""
    if transcript.source == "none":
        return [f"charged {played.hits}, and nothing was used"] if played.usages or played.hits else []
    usage = played.usage
    if usage is None or len(played.hits) > 1:
        return [f"settled {len(played.usages)} times, and reported {len(played.hits)} times"]
    problems = []
    if sum(played.hits) != usage.total_tokens:
        problems.append(f"the limiter was told {played.hits}, and {usage.total_tokens} tokens were counted")
    if usage.source != transcript.source:
        problems.append(f"the source is {usage.source}, not {transcript.source}")
    if usage.ending != transcript.ending:
        problems.append(f"the ending is {usage.ending}, not {transcript.ending}")
    if transcript.source == "reported":
        problems += _differences(transcript.usage, Counts(**{key: getattr(usage, key) for key in Counts.model_fields}))
    return problems


def _differences(true: Counts, counted: Counts) -> Sequence[str]:
    return [
        f"{field} is {value}, not {getattr(true, field)}"
        for field, value in counted.model_dump().items()
        if value != getattr(true, field)
    ]


def _errors(found: Iterable[tuple[float, str]]) -> Errors | None:
    errors = list(found)
    if not errors:
        return None
    worst, name = max(errors)
    return Errors(median(error for error, _ in errors), worst, name)
