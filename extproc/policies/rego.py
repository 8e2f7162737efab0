"""The few sentences of Rego that policies for API keys are made of, as CEL.

    groups := split(object.get(input.auth.identity.metadata.annotations, "kuadrant.io/groups", ""), ",")
    allow { groups[_] == "free" }
    allow { groups[_] == "premium" }

Understood are `allow` rules (also `default allow = false`, `allow = true`, `allow if { ... }`), in them and before
them `name := ...` with `split`, `object.get`, a reference into `input.auth.identity`, a text or a set of texts, and
conditions `true`, `false`, `list[_] == "text"`, `list[_] == set[_]`, `set[list[_]]`, `reference == "text"`. Everything
else is refused with its line: a policy that is half understood would let strangers in.

As in Rego, a reference that leads nowhere has no value, and a rule in which something has no value does not allow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from extproc.policies.cel_text import FALSE, TRUE, Unsupported, all_of, any_of, literal
from extproc.policies.selectors import Selected

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r]+|\#[^\n]*)
      |(?P<newline>\n)
      |(?P<string>"(?:[^"\\\n]|\\["\\/])*")
      |(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)
      |(?P<mark>:=|==|[=(){}\[\],;.])
      |(?P<other>.)""",
    re.VERBOSE,
)
_WORDS = frozenset(
    "_ allow as contains data default else every false if import in input not null package some true with".split()
)


class Token(NamedTuple):
    kind: str
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class _List:
    """CEL of a list of texts, and of whether there is one."""

    cel: str
    present: str


@dataclass(frozen=True, slots=True)
class _Text:
    """CEL of what should be a text, and of whether there is one."""

    cel: str
    present: str = TRUE


@dataclass(frozen=True, slots=True)
class _Set:
    """Texts known beforehand; those of an array are not looked up by what they are."""

    members: tuple[str, ...]
    is_array: bool
    present: str = TRUE


_Value = _List | _Text | _Set


def rego_as_cel(rego: str) -> str:
    """What `allow` is, in CEL. Raises Unsupported with the line of what is not understood."""
    return _Reader(_tokens(rego)).module()


def _tokens(rego: str) -> list[Token]:
    line = 1
    found: list[Token] = []
    for match in _TOKEN.finditer(rego):
        kind = str(match.lastgroup)
        if kind != "space":
            found.append(Token(kind, match.group(), line))
        line += kind == "newline"
    return [*found, Token("newline", "\n", line), Token("end", "the end", line)]


@dataclass(slots=True)
class _Reader:
    tokens: list[Token]
    at: int = 0
    names: dict[str, _Value] = field(default_factory=dict)

    def module(self) -> str:
        allowed: list[str] = []
        by_default = ""
        while self._skip_newlines().kind != "end":
            start = self._next
            if self._taken("default"):
                self._expect("allow")
                if by_default:
                    raise _refused(start, "`default allow` is given a second time")
                by_default = self._constant()
            elif self._taken("allow"):
                allowed.append(self._rule())
            else:
                self._definition()
            self._end_of_line()
        return any_of([*allowed, by_default or FALSE])

    def _rule(self) -> str:
        start = self._next
        if start.text in ("=", ":="):
            if self._constant() == FALSE:
                raise _refused(
                    start, "`allow = false` contradicts every rule that allows; write `default allow = false`"
                )
            return TRUE
        self._taken("if")
        self._expect("{")
        outer = dict(self.names)
        conditions: list[str] = []
        defined: list[str] = []
        while not self._taken("}"):
            if self._next.kind == "newline" or self._next.text == ";":
                self.at += 1
                continue
            if self._is_definition():
                defined.append(self._definition().present)
            else:
                conditions.append(self._condition())
            if self._next.text != "}":
                self._end_of_line()
        if not conditions:
            raise self._not_understood(self.tokens[self.at - 1])
        self.names = outer
        return all_of([*defined, *conditions])

    def _constant(self) -> str:
        if self._next.text not in ("=", ":="):
            raise self._not_understood()
        self.at += 1
        token = self._next
        if token.text not in ("true", "false"):
            raise self._not_understood()
        self.at += 1
        return token.text

    def _is_definition(self) -> bool:
        return self._next.kind == "name" and self.tokens[self.at + 1].text == ":="

    def _definition(self) -> _Value:
        name = self._next
        if not self._is_definition() or name.text in _WORDS or "." in name.text:
            raise self._not_understood()
        if name.text in self.names:
            raise _refused(name, f"`{name.text}` is defined a second time")
        self.at += 2
        self.names[name.text] = value = self._value()
        return value

    def _value(self) -> _Value:
        token = self._next
        if self._taken("split"):
            self._expect("(")
            text = self._text()
            self._expect(",")
            if self._next.text == '""':
                raise self._not_understood()
            separator = self._string()
            self._expect(")")
            return _List(f"{text.cel}.split({literal(separator)})", text.present)
        if token.kind == "mark" and token.text in ("{", "["):
            self.at += 1
            is_array = token.text == "["
            return _Set(self._strings("]" if is_array else "}"), is_array)
        if token.kind == "name" and token.text in self.names:
            self.at += 1
            return self.names[token.text]
        return self._text()

    def _text(self) -> _Text:
        token = self._next
        if token.kind == "string":
            return _Text(literal(self._string()))
        if self._taken("object.get"):
            self._expect("(")
            way = self._reference()
            self._expect(",")
            key = self._string()
            self._expect(",")
            otherwise = self._string()
            self._expect(")")
            return _Text(way.get(key, literal(otherwise)), _is_object(way))
        if isinstance(known := self.names.get(token.text), _Text):
            self.at += 1
            return known
        found = self._reference()
        return _Text(found.cel, found.present)

    def _reference(self) -> Selected:
        token = self._next
        steps = token.text.split(".")
        if token.kind != "name" or steps[:3] != ["input", "auth", "identity"]:
            raise self._not_understood()
        self.at += 1
        while self._next.text == "[" and self.tokens[self.at + 1].kind == "string":
            self.at += 1
            steps.append(self._string())
            self._expect("]")
            while self._next.text == "." and self.tokens[self.at + 1].kind == "name":
                steps += self.tokens[self.at + 1].text.split(".")
                self.at += 2
        return Selected(tuple(steps[1:]))

    def _condition(self) -> str:
        if self._next.text in ("true", "false"):
            self.at += 1
            return self.tokens[self.at - 1].text
        start = self._next
        value = self._value()
        if self._wildcard():
            if not isinstance(value, _List):
                raise self._not_understood(start)
            self._expect("==")
            return self._exists(value)
        if isinstance(value, _Set) and not value.is_array and self._taken("["):
            many = self._value()
            if not isinstance(many, _List) or not self._wildcard():
                raise self._not_understood(start)
            self._expect("]")
            return all_of([many.present, f"{many.cel}.exists(v, v in {literal(list(value.members))})"])
        if isinstance(value, _Text) and self._taken("=="):
            other = self._text()
            return all_of([value.present, other.present, f"{value.cel} == {other.cel}"])
        raise self._not_understood(start)

    def _exists(self, many: _List) -> str:
        """One of `many` is what stands after `list[_] ==`: a text, or any of a set."""
        start = self._next
        value = self._value()
        if isinstance(value, _Text):
            return all_of([many.present, value.present, f"{many.cel}.exists(v, v == {value.cel})"])
        if isinstance(value, _Set) and self._wildcard():
            return all_of([many.present, f"{many.cel}.exists(v, v in {literal(list(value.members))})"])
        raise self._not_understood(start)

    def _wildcard(self) -> bool:
        """Takes `[_]` when it comes next."""
        if [token.text for token in self.tokens[self.at : self.at + 3]] != ["[", "_", "]"]:
            return False
        self.at += 3
        return True

    def _strings(self, end: str) -> tuple[str, ...]:
        found = [self._string()]
        while self._taken(","):
            found.append(self._string())
        self._expect(end)
        return tuple(found)

    def _string(self) -> str:
        token = self._next
        if token.kind != "string":
            raise self._not_understood()
        self.at += 1
        return re.sub(r"\\(.)", r"\1", token.text[1:-1])

    @property
    def _next(self) -> Token:
        return self.tokens[self.at]

    def _taken(self, text: str) -> bool:
        if self._next.text != text or self._next.kind == "string":
            return False
        self.at += 1
        return True

    def _expect(self, text: str) -> None:
        if not self._taken(text):
            raise self._not_understood()

    def _skip_newlines(self) -> Token:
        while self._next.kind == "newline":
            self.at += 1
        return self._next

    def _end_of_line(self) -> None:
        if self._next.kind not in ("newline", "end") and self._next.text != ";":
            raise self._not_understood()

    def _not_understood(self, token: Token | None = None) -> Unsupported:
        token = token or self._next
        what = "the end of the line" if token.kind in ("newline", "end") else f"`{token.text}`"
        return _refused(token, f"{what} is not understood; write `patternMatching` with a `predicate`")


def _refused(token: Token, why: str) -> Unsupported:
    return Unsupported(f"line {token.line}: {why}")


def _is_object(way: Selected) -> str:
    """That `object.get` has something to look into: the annotations of a Secret without any are an empty object here,
    and nothing in Kubernetes."""
    return all_of([way.present, f"type({way.cel}) == map", f"{way.cel} != {{}}"])
