"""An overview as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from extproc.telemetry.names import printable
from extproc.top.overview import Overview, total_of
from extproc.top.page import Limit, Spent

NEAR: Final = 0.8
"""The share of a limit from which on it is shown as nearly used up."""
_BAR: Final = 16
"""Characters."""
_FRAME: Final = 14
"""Lines that are not rows: the summary, four of each of three tables, and that of all other users."""
_LEAST: Final = 6
"""Rows that are shown in the smallest of terminals."""


def view(overview: Overview, height: int | None = None, complaints: Sequence[str] = ()) -> RenderableType:
    """The summary, users, limits and refusals; in `height` lines, or all there are."""
    users, limits, refusals = len(overview.users), len(overview.limits), len(overview.refusals)
    if height is not None:
        room = max(_LEAST, height - _FRAME - len(complaints))
        refusals = min(refusals, room // 5)
        limits = min(limits, room // 3)
        users = min(users, room - limits - refusals)
    parts: list[RenderableType] = [_summary(overview)]
    parts += [Text(printable(complaint), style="bold red") for complaint in complaints]
    parts.append(_users(overview, users) if overview.users else Text("\nNo requests yet.", style="dim"))
    if limits:
        parts.append(_limits(overview.limits[:limits]))
    if refusals:
        parts.append(_refusals(overview.refusals[:refusals]))
    return Group(*parts)


def _summary(overview: Overview) -> Text:
    requests = overview.requests
    rejected = sum(count for reason, count in requests.items() if reason not in {"allowed", "refused"})
    lost = overview.reports.get("failed", 0) + overview.reports.get("dropped", 0)
    facts = [
        f"up {_duration(overview.uptime)}",
        f"{_count(overview.tokens)} tokens" + ("" if overview.rate is None else f", {_count(overview.rate)} a minute"),
        f"{_count(requests.get('allowed', 0))} allowed",
        f"{_count(requests.get('refused', 0))} refused",
        f"{_count(rejected)} rejected",
    ]
    text = Text.assemble((f"extproc {overview.version}", "bold"), "  ", "  ".join(facts), no_wrap=False)
    if lost:
        text.append(f"  {_count(lost)} reports lost", style="bold red")
    return text


def _users(overview: Overview, most: int) -> Table:
    table = _table(*overview.labels)
    costs = any(user.spent.cost is not None for user in overview.users)
    table.add_column("", width=_BAR)
    for name in ("tokens", "a minute", *(("cost",) if costs else ()), "requests", "refused"):
        table.add_column(name, justify="right", no_wrap=True)
    largest = max(1, *(user.spent.tokens.total for user in overview.users))
    for user in overview.users[:most]:
        names = [Text(name or "–", style="bold" if not index else "") for index, name in enumerate(user.who)]
        table.add_row(*names, _bar(user.spent.tokens.total / largest, "blue"), *_numbers(user.spent, user.rate, costs))
    others = [user.spent for user in overview.users[most:]]
    rest = total_of(others if overview.other is None else [*others, overview.other])
    if rest is not None:
        names = [Text("all others" if not index else "") for index in range(len(overview.labels))]
        table.add_row(*names, "", *_numbers(rest, None, costs), style="dim")
    return table


def _numbers(spent: Spent, rate: float | None, costs: bool) -> list[Text]:
    refused = spent.requests.refused
    return [
        Text(_count(spent.tokens.total)),
        Text("–" if rate is None else _count(rate)),
        *([Text("–" if spent.cost is None else f"{spent.cost / 1e6:,.2f}")] if costs else []),
        Text(_count(spent.requests.allowed + refused)),
        Text(_count(refused), style="red") if refused else Text("–"),
    ]


def _limits(limits: Sequence[Limit]) -> Table:
    table = _table("nearest to a limit", "limit", "namespace")
    table.add_column("", width=_BAR)
    for name in ("used", "of", "resets in"):
        table.add_column(name, justify="right", no_wrap=True)
    for limit in limits:
        style = "red" if limit.used > limit.maximum else "yellow" if limit.ratio >= NEAR else "green"
        table.add_row(
            Text(" · ".join(limit.values) or "everybody", style="bold"),
            Text(limit.limit or "–"),
            Text(limit.namespace),
            _bar(min(1.0, limit.ratio), style),
            Text(_count(limit.used), style=style),
            Text(_count(limit.maximum)),
            Text(_duration(limit.resets_in)),
        )
    return table


def _refusals(refusals: Sequence[tuple[str, str, int]]) -> Table:
    table = _table("refused by", "namespace")
    table.add_column("requests", justify="right", no_wrap=True)
    for namespace, limit, count in refusals:
        table.add_row(Text(limit or "–", style="bold"), Text(namespace), Text(_count(count)))
    return table


def _table(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for name in names:
        table.add_column(Text(name), no_wrap=True, overflow="ellipsis")
    return table


def _bar(share: float, style: str) -> ProgressBar:
    return ProgressBar(
        total=1.0, completed=share, width=_BAR, style="grey23", complete_style=style, finished_style=style
    )


def _count(number: float) -> str:
    """1,234, then 12.3K."""
    if number < 9999.5:
        return f"{number:,.0f}"
    for unit in ("K", "M", "G"):
        number /= 1000
        if number < 999.95:
            return f"{number:.1f}{unit}"
    return f"{number / 1000:.1f}T"


def _duration(seconds: float) -> str:
    """Rounded to the largest unit that tells enough."""
    seconds = max(0.0, seconds)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} d"
