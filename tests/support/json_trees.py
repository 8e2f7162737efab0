"""JSON documents of any spelling, and what edits should make of them: a second opinion that knows every byte's place.

A tree holds each token as it is written, and the space around it; `write` gives the document. Edits change the tree.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st


@dataclass
class Scalar:
    text: str


@dataclass
class Item:
    lead: str
    value: Tree
    trail: str


@dataclass
class Member(Item):
    spelled: str
    """The key, with quotes."""
    colon: str

    @property
    def key(self) -> str:
        return str(json.loads(self.spelled, strict=False))


@dataclass
class List:
    items: list[Item]
    blank: str
    """Inside of an empty one."""


@dataclass
class Object:
    members: list[Member] = field(default_factory=list)
    blank: str = ""


Tree = Scalar | List | Object


def write(tree: Tree) -> str:
    """The document."""
    match tree:
        case Scalar(text):
            return text
        case List(items, blank):
            return f"[{','.join(item.lead + write(item.value) + item.trail for item in items) or blank}]"
        case Object(members, blank):
            written = (f"{one.lead}{one.spelled}{one.colon}{write(one.value)}{one.trail}" for one in members)
            return f"{{{','.join(written) or blank}}}"


def tokens(document: bytes) -> str:
    """What a document says, in order, duplicates and the spelling of numbers included; without space."""
    text = document.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogatepass")
    pairs = json.loads(
        text,
        strict=False,
        object_pairs_hook=tuple,
        parse_int=str.strip,
        parse_float=str.strip,
        parse_constant=str.strip,
    )
    return repr(pairs)


def remove(tree: Tree, way: Sequence[str]) -> None:
    """Take out the members that `way` leads to."""
    if isinstance(tree, List):
        for index, item in enumerate(tree.items):
            if len(way) > 1 and way[0] in ("*", str(index)):
                remove(item.value, way[1:])
    elif isinstance(tree, Object):
        for member in [member for member in tree.members if member.key == way[0]]:
            if len(way) == 1:
                _take_out(tree, member)
            else:
                remove(member.value, way[1:])


def _take_out(tree: Object, member: Member) -> None:
    """One comma goes, the one before it where there is one; the space at the object's braces stays."""
    at = next(index for index, one in enumerate(tree.members) if one is member)
    del tree.members[at]
    if not tree.members:
        tree.blank = member.trail
    elif at:
        tree.members[at - 1].trail = member.trail
    else:
        tree.members[0].lead = member.lead


def put(tree: Object, key: str, text: str) -> None:
    """Set a member of an object: where it is, or at the end."""
    found = [member for member in tree.members if member.key == key]
    for member in found:
        member.value = Scalar(text)
    if not found:
        trail = tree.members[-1].trail if tree.members else tree.blank
        if tree.members:
            tree.members[-1].trail = ""
        tree.members.append(Member("", Scalar(text), trail, json.dumps(key), ":"))


def replace(tree: Tree, path: Sequence[str | int], text: str) -> None:
    """Set the value at `path`, by the last one of duplicate keys."""
    match tree, path[0]:
        case List(items, _), int(index):
            found: Item = items[index]
        case Object(members, _), key:
            found = [member for member in members if member.key == key][-1]
        case _:
            raise AssertionError(path)
    if len(path) == 1:
        found.value = Scalar(text)
    else:
        replace(found.value, path[1:], text)


SPACE = st.sampled_from(["", "", "", " ", "\n\t", "\r\n  "])
STRICT_SCALARS = (
    'null true false 0 -0.0 -1.50e+2 1E5 123456789012345678901 "" "model" "\\"model\\":1" "}],{[" "\\\\" "\\\\\\"" '
    '"\\u00e9\\/" "\\u006d" "\\ud83d\\ude00" "é😀"'
).split()
LENIENT_SCALARS = ["1e400", "NaN", "-Infinity", '"\\ud800"', '"\ud800"', '"a\nb"']
KEYS = st.sampled_from(["model", "model", "metadata", "messages", "messages", "x", "", "é", 'a"b\\', "0"])


@st.composite
def _spelled(draw: st.DrawFn) -> str:
    """A key, mostly as anybody writes it."""
    key = draw(KEYS)
    if draw(st.integers(0, 3)):
        return json.dumps(key)
    escaped = draw(st.lists(st.sampled_from(["", "x", "X"]), min_size=len(key), max_size=len(key)))
    letters = (
        json.dumps(one)[1:-1] if not how else f"\\u{ord(one):04{how}}" for one, how in zip(key, escaped, strict=True)
    )
    return f'"{"".join(letters)}"'


def objects(values: st.SearchStrategy[Tree]) -> st.SearchStrategy[Object]:
    """Objects of such values."""
    colons = st.builds("{}:{}".format, SPACE, SPACE)
    return st.builds(Object, st.lists(st.builds(Member, SPACE, values, SPACE, _spelled(), colons), max_size=5), SPACE)


def documents(*, lenient: bool = True) -> st.SearchStrategy[Object]:
    """Objects; `lenient`: with what only some parsers take."""
    scalars = st.sampled_from(STRICT_SCALARS + (LENIENT_SCALARS if lenient else [])).map(Scalar)
    values = st.recursive(
        scalars,
        lambda inner: st.one_of(
            objects(inner), st.builds(List, st.lists(st.builds(Item, SPACE, inner, SPACE), max_size=4), SPACE)
        ),
        max_leaves=12,
    )
    return objects(values)
