"""Authorino's selectors, which are paths of gjson, as CEL.

Written for `auth.identity...`, `request...` and `context.request.http...`; a dot that belongs to a key is escaped.
gjson's queries, wildcards and modifiers, and Authorino's templates, are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from extproc.config.errors import listed, quoted
from extproc.policies.cel_text import CALLER_MEMBERS, TRUE, Unsupported, all_of, literal

Steps = tuple[str | int, ...]

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_INDEXED = re.compile(r"(.+?)((?:\[[0-9]{1,6}\])+)")
_INDEX = re.compile(r"[0-9]{1,6}")
_RESERVED = frozenset(
    "as break const continue else false for function if import in let loop namespace null package return true "
    "var void while".split()
)
_SPECIAL = frozenset("#@|*?!{}")
_HTTP = ("context", "request", "http")


@dataclass(frozen=True, slots=True)
class Selected:
    """What a selector leads to: `steps` from `auth` or `request`."""

    steps: Steps

    @property
    def cel(self) -> str:
        """The value; evaluating fails where a step leads nowhere."""
        return _written(self.steps)

    @property
    def present(self) -> str:
        """Whether every step leads somewhere, as far as steps are names."""
        return all_of(
            _has(self.steps[:end], step) for end, step in enumerate(self.steps) if end > 1 and isinstance(step, str)
        )

    def or_else(self, expression: str) -> str:
        """The value, or what `expression` says when there is none."""
        present = self.present
        return self.cel if present == TRUE else f"({present} ? {self.cel} : {expression})"

    def get(self, key: str, expression: str) -> str:
        """The value of `key` in the object that this leads to, or what `expression` says when it has no such key."""
        return f"({_has(self.steps, key)} ? {_written((*self.steps, key))} : {expression})"


def parse_selector(selector: str) -> Selected:
    """The way that `selector` describes. Raises Unsupported."""
    keys = _keys(selector)
    if tuple(keys[:3]) == _HTTP:
        keys = ["request", *keys[3:]]
    match keys:
        case ["auth", "identity", *_]:
            return Selected(("auth", "identity", *_indexed(keys[2:])))
        case ["request", "headers", name]:
            if name != name.lower():
                raise Unsupported(f"headers have names in lower case: write `request.headers.{name.lower()}`")
            return Selected(("request", "headers", name))
        case ["request", field] if field in CALLER_MEMBERS["request"] and field != "headers":
            return Selected(("request", field))
    known = listed(f"{root}.{name}" for root, names in CALLER_MEMBERS.items() for name in sorted(names))
    raise Unsupported(f"the selector {quoted(selector)} leads nowhere here, known are {known}")


def _keys(selector: str) -> list[str]:
    keys = [""]
    characters = iter(selector)
    for character in characters:
        if character == "\\":
            keys[-1] += next(characters, "")
        elif character == ".":
            keys.append("")
        elif character in _SPECIAL:
            raise Unsupported(
                f"`{character}` in the selector {quoted(selector)}: write a CEL `expression` in its place"
            )
        else:
            keys[-1] += character
    if not all(keys):
        raise Unsupported(f"the selector {quoted(selector)} has an empty step")
    return keys


def _indexed(keys: list[str]) -> Steps:
    """Keys, and the indexes among them: `tier[0]` as people write it, `tier.0` as gjson does."""
    steps: list[str | int] = []
    for key in keys:
        if (found := _INDEXED.fullmatch(key)) is not None:
            steps += [found.group(1), *(int(index) for index in _INDEX.findall(found.group(2)))]
        else:
            steps.append(int(key) if steps and _INDEX.fullmatch(key) else key)
    return tuple(steps)


def _is_name(step: str) -> bool:
    return _IDENTIFIER.fullmatch(step) is not None and step not in _RESERVED


def _written(steps: Steps) -> str:
    text = str(steps[0])
    for step in steps[1:]:
        text += f".{step}" if isinstance(step, str) and _is_name(step) else f"[{literal(step)}]"
    return text


def _has(before: Steps, step: str) -> str:
    return f"has({_written(before)}.{step})" if _is_name(step) else f"{literal(step)} in {_written(before)}"
