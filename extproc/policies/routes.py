"""A route's matches as CEL, and which of them is asked first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from extproc.policies.cel_text import literal, regular_expression
from extproc.policies.gateway_api import Match, NamedMatch, PathMatch, RouteRule

Rank = tuple[int, ...]
_PATH_RANK = {"Exact": 0, "RegularExpression": 1, "PathPrefix": 2}


def matches_of(rule: RouteRule) -> Sequence[Match]:
    """A rule without matches is for every request."""
    return rule.matches or [Match()]


def rank(match: Match) -> Rank:
    """The smallest is asked first: the Gateway API's precedence, regular expressions between exact and prefix."""
    path = match.path
    return (
        _PATH_RANK[path.type],
        -len(path.value),
        match.method is None,
        -len(match.headers),
        -len(match.query_params),
    )


def predicates(match: Match) -> list[str]:
    """CEL expressions that all hold for a request of `match`. Raises Unsupported for a wrong regular expression."""
    return [*_method(match), *_path(match.path), *_headers(match.headers), *_query(match.query_params)]


def _method(match: Match) -> Iterator[str]:
    if match.method is not None:
        yield f"request.method == {literal(match.method)}"


def _path(path: PathMatch) -> Iterator[str]:
    """A prefix is one of whole segments: `/v1` is for `/v1` and `/v1/x`, not for `/v1x`."""
    if path.type == "Exact":
        yield f"request.url_path == {literal(path.value)}"
    elif path.type == "RegularExpression":
        yield f"request.url_path.matches({_whole(path.value)})"
    elif prefix := path.value.rstrip("/"):
        yield f"request.url_path == {literal(prefix)} || request.url_path.startsWith({literal(prefix + '/')})"


def _headers(headers: Sequence[NamedMatch]) -> Iterator[str]:
    for name, match in _first_of_each((header.name.lower(), header) for header in headers):
        yield _named("request.headers", name, match)


def _query(parameters: Sequence[NamedMatch]) -> Iterator[str]:
    for name, match in _first_of_each((parameter.name, parameter) for parameter in parameters):
        yield _named("queryMap(request.query)", name, match)


def _first_of_each(named: Iterator[tuple[str, NamedMatch]]) -> Iterator[tuple[str, NamedMatch]]:
    """As the Gateway API has it: of a name that is given twice, the first counts."""
    found: dict[str, NamedMatch] = {}
    for name, match in named:
        found.setdefault(name, match)
    yield from found.items()


def _named(where: str, name: str, match: NamedMatch) -> str:
    value = f"{where}[{literal(name)}]"
    if match.type == "RegularExpression":
        return f"{literal(name)} in {where} && {value}.matches({_whole(match.value)})"
    return f"{literal(name)} in {where} && {value} == {literal(match.value)}"


def _whole(expression: str) -> str:
    """Proxies compare a whole text with a regular expression; CEL searches."""
    return literal(f"^(?:{regular_expression(expression)})$")


def host_in_common(first: str, second: str) -> str | None:
    """The narrower of two hostname patterns, when every host of it is one of the wider; None when none is."""
    if covers(first, second):
        return second
    return first if covers(second, first) else None


def covers(wide: str, narrow: str) -> bool:
    """Whether every host that `narrow` stands for is one of `wide`."""
    if wide == "*" or wide == narrow:
        return True
    return wide.startswith("*.") and narrow != "*" and narrow.removeprefix("*").endswith(wide[1:])
