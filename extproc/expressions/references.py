"""What a CEL expression needs, found by reading its text.

`cel.Program.references()` names root variables only. Building `request` with all of its headers costs
tens of microseconds an exchange, so the plan must know that `request.headers['x-tenant']` needs one header,
and that `responseBodyJSON("/usage/total_tokens")` needs the response body and that pointer in it.
The answer may name too much (a local variable called `request`), never too little.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cel

from extproc.expressions.pointer import parse_pointer

_TOKEN = re.compile(
    r"""
    (?P<space>\s+|//[^\n]*)
  | (?P<string>(?:[rR][bB]?|[bB][rR]?)?(?:'''.*?(?<!\\)'''|\"\"\".*?(?<!\\)\"\"\"
      |'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"))
  | (?P<ident>[_a-zA-Z][_a-zA-Z0-9]*)
  | (?P<number>[0-9][0-9a-zA-Z_.]*)
  | (?P<mark>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_MACROS = frozenset({"all", "exists", "exists_one", "map", "filter"})
_BODY_FUNCTIONS = ("requestBodyJSON", "responseBodyJSON")
ValueKind = Literal["any", "number", "string", "bool"]
_KINDS: tuple[ValueKind, ...] = ("any", "number", "string", "bool")

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PointerCall:
    """One call of a body function: the pointers in order of preference, and the kind of value wanted."""

    body: Literal["request", "response"]
    pointers: tuple[Path, ...]
    kind: ValueKind = "any"


@dataclass(frozen=True, slots=True)
class References:
    """`members`: chains such as ("request", "headers", "x-tenant"); `locals`: names bound by macros.

    `sole_call` is the call of a body function that is all of the expression.
    """

    members: frozenset[Path]
    locals: frozenset[str]
    calls: tuple[PointerCall, ...]
    sole_call: PointerCall | None


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str

    @property
    def literal(self) -> str | None:
        """The value of a string literal; None for anything else."""
        if self.kind != "string":
            return None
        value = cel.evaluate(self.text)
        return value if isinstance(value, str) else None


_END = _Token("end", "")


def find_references(source: str) -> References:
    """Read `source`, which must compile; raises ValueError when a body function's argument is not literal."""
    tokens = [
        _Token(str(match.lastgroup), match.group()) for match in _TOKEN.finditer(source) if match.lastgroup != "space"
    ]
    members: set[Path] = set()
    bound: set[str] = set()
    calls: list[PointerCall] = []
    sole_call: PointerCall | None = None
    for index, token in enumerate(tokens):
        if token.kind != "ident":
            continue
        method = index > 0 and tokens[index - 1].text == "."
        called = _at(tokens, index + 1).text == "("
        if called and token.text in _BODY_FUNCTIONS:
            call, end = _pointer_call(token.text, tokens, index + 2)
            calls.append(call)
            if index == 0 and end == len(tokens):
                sole_call = call
        elif called and method and token.text in _MACROS:
            bound.add(_at(tokens, index + 2).text)
        elif not called and not method:
            members.add(_chain(tokens, index))
    return References(frozenset(members), frozenset(bound), tuple(calls), sole_call)


def _at(tokens: Sequence[_Token], index: int) -> _Token:
    return tokens[index] if index < len(tokens) else _END


def _chain(tokens: Sequence[_Token], index: int) -> Path:
    path = [tokens[index].text]
    index += 1
    while True:
        mark, name, after = (_at(tokens, index + offset) for offset in range(3))
        if mark.text == "." and name.kind == "ident" and after.text != "(":
            path.append(name.text)
            index += 2
        elif mark.text == "[" and after.text == "]" and (key := name.literal) is not None:
            path.append(key)
            index += 3
        else:
            return tuple(path)


def _pointer_call(function: str, tokens: Sequence[_Token], index: int) -> tuple[PointerCall, int]:
    """The call whose first argument is at `index`, and the index behind its closing parenthesis."""
    pointers: list[str] = []
    kind: ValueKind = "any"
    problem = f"{function} takes a string literal, or a list of them and a kind ({', '.join(_KINDS[1:])})"
    if _at(tokens, index).text == "[":
        index += 1
        while (pointer := _at(tokens, index).literal) is not None:
            pointers.append(pointer)
            index += 2 if _at(tokens, index + 1).text == "," else 1
        if _at(tokens, index).text != "]":
            raise ValueError(problem)
        index += 1
    elif (pointer := _at(tokens, index).literal) is not None:
        pointers.append(pointer)
        index += 1
    if _at(tokens, index).text == ",":
        found = next((known for known in _KINDS if known == _at(tokens, index + 1).literal), None)
        if found is None:
            raise ValueError(problem)
        kind = found
        index += 2
    if not pointers or _at(tokens, index).text != ")":
        raise ValueError(problem)
    body: Literal["request", "response"] = "request" if function == _BODY_FUNCTIONS[0] else "response"
    return PointerCall(body, tuple(parse_pointer(pointer) for pointer in pointers), kind), index + 1
