"""Telling a family of answers from the first bytes of one: by the members of its outermost object.

Answers hold what users wrote, and not only as strings: arguments of tool calls, the schemas of tools, metadata. A
pattern that could match in there would let a user choose how an answer is counted. These match members of the
outermost object alone, or of the first object of an array.
"""

from __future__ import annotations

STRING = rb'"[^"\\]*+(?:\\[\s\S][^"\\]*+)*+"'
_DEPTH = 12
"""Of containers that a member before the one that tells may have; what is nested deeper tells nothing."""


def _container(depth: int) -> bytes:
    inner = rb"[^\"\[\]{}]++|" + STRING + (rb"|" + _container(depth - 1) if depth else b"")
    return rb"[\[{](?:" + inner + rb")*+[\]}]"


_VALUE = rb"(?:" + STRING + rb"|[^\s\"\[\]{},]++|" + _container(_DEPTH) + rb")"
_BEGINNING = rb"\A(?:\xef\xbb\xbf)?\s*+(?:\[\s*+)?+\{\s*+(?:" + STRING + rb"\s*+:\s*+" + _VALUE + rb"\s*+,\s*+)*?"


def has_member(*members: tuple[str, bytes]) -> bytes:
    """A regular expression for JSON texts that have one of `members`: a key, and an expression for its value.

    Runs in linear time. Members that come after the end of the bytes, or after a cut one, are not there.
    """
    wanted = rb"|".join(rb'"' + key.encode() + rb'"\s*+:\s*+(?:' + value + rb")" for key, value in members)
    return _BEGINNING + rb"(?:" + wanted + rb")"
