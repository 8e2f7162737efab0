"""Names of hosts and headers as an operator writes them, and what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from extproc.config.address import valid_hostname, valid_ipv6
from extproc.config.errors import Problem, Step, listed, quoted
from extproc.config.masking import without_userinfo

ESSENTIAL: Final = frozenset(
    {":authority", ":method", ":path", ":scheme", "content-length", "content-type", "host", "transfer-encoding"}
)
"""Headers without which a request is none; they belong to the gateway."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def find_hostname_problems(hostnames: Iterable[str], steps: Sequence[Step]) -> Iterator[Problem]:
    """Of a list of `*`, `*.suffix` and exact hosts at `steps`."""
    first: dict[str, int] = {}
    for index, hostname in enumerate(hostnames):
        if (earlier := first.setdefault(hostname, index)) != index:
            yield Problem.at((*steps, index), f"{quoted(hostname)} is given twice, also as {steps[-1]}[{earlier}]")
        elif wrong := _hostname_fault(hostname):
            yield Problem.at((*steps, index), f"{quoted(without_userinfo(hostname))}: {wrong}")


def find_header_problems(headers: Mapping[str, str], steps: Sequence[Step]) -> Iterator[Problem]:
    """Of headers with literal values at `steps`."""
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name):
            yield Problem.at((*steps, name), "not the name of an HTTP header")
        if not fits_header(value):
            yield Problem.at((*steps, name), "a header's value holds no line breaks or control characters")


def find_removal_problems(patterns: Iterable[str], steps: Sequence[Step]) -> Iterator[Problem]:
    """Of a list of headers to remove at `steps`, in which `*` at the end of a name stands for anything."""
    for index, pattern in enumerate(patterns):
        beginning = pattern.removesuffix("*").lower()
        if not _TOKEN.fullmatch(beginning or "x") or "*" in beginning:
            yield Problem.at((*steps, index), "expected the name of an HTTP header, or its beginning and `*`")
        elif lost := _concerned(pattern):
            message = f"{quoted(pattern)} would take away {listed(lost)}, which requests need"
            yield Problem.at((*steps, index), message)


def fits_header(value: str) -> bool:
    """Whether a header can have this value."""
    return not _CONTROL.search(value)


def _concerned(pattern: str) -> list[str]:
    beginning = pattern.removesuffix("*").lower()
    whole = beginning == pattern.lower()
    return sorted(name for name in ESSENTIAL if (name == beginning if whole else name.startswith(beginning)))


def _hostname_fault(hostname: str) -> str:
    """What is wrong with a pattern, "" when it is right."""
    name = hostname.removeprefix("*.")
    if hostname == "*" or valid_hostname(name) or _is_bracketed_ipv6(hostname):
        return ""
    if "://" in hostname:
        return "a hostname has no scheme"
    if "*" in name:
        return "`*` stands alone or in front of the first dot, as in `*.example.com`"
    if ":" in name:
        return "a hostname has no port; an IPv6 address is written in brackets"
    if not name.isascii():
        return "write an international name in its `xn--` form"
    return "not a hostname"


def _is_bracketed_ipv6(hostname: str) -> bool:
    return hostname.startswith("[") and hostname.endswith("]") and valid_ipv6(hostname[1:-1])
