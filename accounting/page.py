"""How a ledger is shown: as aligned text, and as a page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from accounting.ledger import WITH_VOCABULARY, WITHOUT_VOCABULARY, Errors, Ledger, Row
from accounting.transcript import Source

HEAD = ("transcript", "dialect", "form", "encoding", "ending", "source", "true", "counted", "difference", "without")
_NUMBERS = HEAD.index("true")
"""The columns from here on are numbers."""

_INTRODUCTION = """\
# Accounting

What is counted, next to what was used. Each row is an exchange of [accounting/transcripts](../accounting/transcripts)
that went through the real exchange, message by message as Envoy sends them; `make accounting` plays them all and
writes this page. [accounting/README.md](../accounting/README.md) tells how to bring transcripts of your own.
"""

_LEGEND = """\
- **true**: tokens in all. For `reported`, what the provider says. For `estimated`, the answer does not say, and the
  texts were counted with OpenAI's tokenizers (`o200k_base`, for older models `cl100k_base`), chats with the overhead
  that OpenAI documents; `python -m accounting.truth` counts them again.
- **counted**: what the limiter was told; **difference**: from the truth, in tokens and in parts of it.
- **without**: the same difference without a vocabulary, when an estimate goes by the kinds of characters.
- `reported` rows are exact in every field (prompt, completion, cached, written to a cache, reasoning), with a
  vocabulary and without. `none` is an error, for which nothing is charged.
- The other providers' tokenizers are not public. For their models the truth here is that of OpenAI's for the same
  text: it shows that no text is lost or counted twice, not how far their own count would be from it.
"""


def text(ledger: Ledger) -> str:
    """The table and its summary, for a terminal."""
    lines = [HEAD, *map(_cells, ledger.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join([*(_aligned(line, widths) for line in lines), "", *summary(ledger), ""])


def markdown(ledger: Ledger) -> str:
    """The page docs/accounting.md."""
    rule = ["---"] * _NUMBERS + ["---:"] * (len(HEAD) - _NUMBERS)
    table = ["| " + " | ".join(line) + " |" for line in (HEAD, rule, *map(_cells, ledger.rows))]
    lines = [
        _INTRODUCTION,
        *(f"- {line}" for line in summary(ledger)),
        "",
        "## How to read the table",
        "",
        _LEGEND,
        "## The table",
        "",
        *table,
        "",
    ]
    return "\n".join(lines)


def summary(ledger: Ledger) -> list[str]:
    """A line for each source: what has to be exact, and how near estimates are."""
    exact: dict[Source, list[bool]] = {"reported": [], "none": []}
    for row in ledger.exact:
        exact[row.transcript.source].append(not row.problems)
    return [
        f"reported: {sum(exact['reported'])} of {len(exact['reported'])} exact",
        f"errors: {sum(exact['none'])} of {len(exact['none'])} not charged",
        _estimates("with a vocabulary", ledger.with_vocabulary, WITH_VOCABULARY, ledger),
        _estimates("without a vocabulary", ledger.without_vocabulary, WITHOUT_VOCABULARY, ledger),
    ]


def _estimates(how: str, errors: Errors | None, bound: float, ledger: Ledger) -> str:
    if errors is None:
        return f"estimated {how}: none"
    number = len(ledger.rows) - len(ledger.exact)
    worst = f"worst {errors.worst:.1%} ({errors.of})" if errors.worst else "worst 0.0%"
    return f"estimated {how}: {number}, median error {errors.median:.1%} (at most {bound:.0%}), {worst}"


def _cells(row: Row) -> tuple[str, ...]:
    transcript = row.transcript
    counted = row.without if row.counted is None and not row.estimated else row.counted
    return (
        transcript.name,
        transcript.dialect,
        transcript.form,
        transcript.encoding or "-",
        transcript.ending if transcript.response.status < 400 else f"error {transcript.response.status}",
        transcript.source,
        str(row.true),
        "-" if counted is None else str(counted),
        _difference(row, counted),
        _difference(row, row.without) if row.estimated else "-",
    )


def _difference(row: Row, counted: int | None) -> str:
    if counted is None:
        return "-"
    difference = counted - row.true
    return f"{difference:+} ({row.error(counted):.1%})" if difference else "0"


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(
        cell.ljust(width) if column < _NUMBERS else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ).rstrip()
