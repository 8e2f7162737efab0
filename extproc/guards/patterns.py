"""Allow and deny patterns: what a text may not say, and what it must.

Patterns are RE2's: searched anywhere in a text, `.` is no newline, upper and lower case differ unless a pattern says
`(?i)`. They see a text as it is: nothing is normalised, decoded or left out first; of what is JSON itself they see what
it reads as, too. A search takes time that is linear in the text, whatever the pattern.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Protocol

import re2

from extproc.guards.seam import Outcome, Text
from extproc.guards.texts import all_lines, is_beside, statements

_MEMORY: Final = 2 << 20
"""Bytes that one pattern may take, compiled and searching. Where a search needs more it takes longer instead."""
_JOINT_MEMORY: Final = 16 << 20
"""Of all patterns of a list as one."""
_AT_ONCE: Final = 8192
_STEPS_AT_ONCE: Final = 1_000_000
"""Of 5 to 8 ns each, one for each character and instruction of a program, in a search without RE2's automaton."""

_NOT_BY_LINES: Final = re.compile(r"\\[Az]|\(\?[A-Za-z]*-")
"""What a pattern has that tells the end of a line from that of a text: `\\A`, `\\z`, flags that are taken back."""


class PatternError(ValueError):
    """A pattern that RE2 does not take. The text begins as an operator's scripts may look for (S3.13)."""

    def __init__(self, pattern: str, problem: str, rule: str) -> None:
        super().__init__(f"error in compile regex {pattern}: {problem} ({rule})")
        self.rule = rule
        """`allow[0]`, `deny[2]`: which one."""


class Refusal(NamedTuple):
    """Why texts may not pass; `outcome` is `deny`, or why nobody knows."""

    rule: str
    """`deny[2]`, or `allow` where no rule of the list matched."""
    reason: str
    """For the log. Says nothing of the text."""
    outcome: Outcome = "deny"


class Patterns:
    """The patterns of a guard, compiled. Raises PatternError. Any number of threads may use them at a time."""

    __slots__ = ("_allow", "_deny", "at_once")

    def __init__(self, allow: Sequence[str] = (), deny: Sequence[str] = ()) -> None:
        self._allow = _List("allow", allow)
        self._deny = _List("deny", deny)
        steps = self._allow.size + self._deny.size
        self.at_once = min(_AT_ONCE, _STEPS_AT_ONCE // max(steps, 1))
        """Characters that are searched within milliseconds even if they were made to take long."""

    def judge(self, texts: Sequence[Text]) -> Refusal | None:
        """Why one of the texts may not pass; None when all may.

        No text may match a deny rule, nor may the parts of one message read as one, nor what is JSON as it reads. Each
        text, an empty one too, has to match an allow rule if there are any, but for names and stop sequences: nobody
        says those.
        """
        if self._deny and not self._deny.is_in_no_line(texts):
            for text in statements(texts):
                rule = self.denied_by(text)
                if rule is not None:
                    return Refusal(rule, f"request was denied by deny rule {rule}")
        said = (text for text in texts if not is_beside(text)) if self._allow else ()
        if not all(self._allow.matches(_bytes(text.text)) for text in said):
            return Refusal("allow", "request was denied because no allow rule matched")
        return None

    def denied_by(self, text: str) -> str | None:
        """The first deny rule that matches, such as `deny[0]`."""
        return self._deny.first(_bytes(text)) if self._deny else None


class _Regexp(Protocol):
    """As RE2's binding compiles it."""

    programsize: int

    def search(self, text: bytes) -> object | None:
        """Its first match."""


class _List:
    """Patterns, of which any may match."""

    __slots__ = ("_joint", "_lines", "_name", "_rules", "size")

    def __init__(self, name: str, patterns: Sequence[str]) -> None:
        self._name = name
        self._rules = [_compiled(pattern, f"{name}[{index}]") for index, pattern in enumerate(patterns)]
        self._joint = _joint(patterns) if len(patterns) > 1 else None
        self._lines = None if any(_NOT_BY_LINES.search(pattern) for pattern in patterns) else _joint(patterns, "(?m)")
        joint_size = 0 if self._joint is None else self._joint.programsize
        self.size = max(joint_size, sum(rule.programsize for rule in self._rules))
        """Instructions of the programs that are run for a text."""

    def __bool__(self) -> bool:
        return bool(self._rules)

    def is_in_no_line(self, texts: Sequence[Text]) -> bool:
        """Whether one search tells that no statement matches any pattern; where it does not, one may or may not.

        The end of a line is an edge to `^` and `$` then, and no part of a word to `\\b` and `\\B`, just as the end of a
        text. So among others a pattern matches wherever it does in a text alone.
        """
        return self._lines is not None and self._lines.search(_bytes(all_lines(texts))) is None

    def matches(self, text: bytes) -> bool:
        """Whether any pattern matches."""
        rules: Iterable[_Regexp] = self._rules if self._joint is None else (self._joint,)
        return any(rule.search(text) is not None for rule in rules)

    def first(self, text: bytes) -> str | None:
        """The first pattern that matches."""
        if self._joint is not None and self._joint.search(text) is None:
            return None
        found = (index for index, rule in enumerate(self._rules) if rule.search(text) is not None)
        index = next(found, None)
        return None if index is None else f"{self._name}[{index}]"


def _compiled(pattern: str, rule: str) -> _Regexp:
    try:
        compiled: _Regexp = re2.compile(pattern, _options(_MEMORY))
    except re2.error as error:
        raise PatternError(pattern, _problem(error), rule) from None
    except UnicodeEncodeError:
        raise PatternError(ascii(pattern), "lone surrogate", rule) from None
    return compiled


def _joint(patterns: Sequence[str], flags: str = "") -> _Regexp | None:
    r"""One pattern that matches where any does, ten times as fast as twenty one by one.

    None where they do not go together: names of groups that are the same, too much memory. An open `\Q` would quote
    what follows. RE2 has sets for this, but a set that runs out of memory says that nothing matched.
    """
    if not patterns or any(r"\Q" in pattern for pattern in patterns):
        return None
    try:
        joint: _Regexp = re2.compile(
            flags + "|".join(f"(?:{pattern})" for pattern in patterns), _options(_JOINT_MEMORY)
        )
    except re2.error:
        return None
    return joint


def _options(memory: int) -> re2.Options:
    options = re2.Options()
    options.max_mem = memory
    options.never_capture = True
    options.log_errors = False
    return options


def _problem(error: re2.error) -> str:
    problem = error.args[0]
    return problem.decode("utf-8", "replace") if isinstance(problem, bytes) else str(problem)


def _bytes(text: str) -> bytes:
    """As UTF-8; halves of surrogate pairs, which it cannot spell, are put together or become U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
