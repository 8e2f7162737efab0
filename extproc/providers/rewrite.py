"""What is changed in the body of a request that goes to a provider: its model, and members that are not for others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from extproc.bodies.edits import Edits
from extproc.bodies.json_edit import Uneditable, read_object, to_json
from extproc.expressions.pointer import parse_pointer

_MODEL = "model"


class Rewrite:
    """Puts a model into request bodies, and takes members out (S2.9); every other byte stays (S2.D12)."""

    __slots__ = ("_edits",)

    def __init__(self, remove: Sequence[str]) -> None:
        """`remove`: JSON pointers to members, `*` for every item of a list. Raises ValueError naming a bad one."""
        ways = []
        for pointer in remove:
            try:
                ways.append(parse_pointer(pointer))
                Edits(ways[-1:])
            except ValueError as error:
                raise ValueError(f"`{pointer}`: {error}") from None
        self._edits = Edits(ways)

    def apply(self, body: bytes, model: str | None, document: Any = None) -> bytes | None:
        """The whole `body` rewritten; None where it stays as it is, as an empty one does (S2.11).

        `model` becomes the model, whatever it was, and also where there was none (S4.1); None leaves it alone. Give the
        parsed `document` where there is one: it saves parsing.

        Raises Uneditable for what is no JSON object: its text, without anything of the body, is for a 400 (S2.10).
        """
        if not body or body.isspace():
            return None
        value = read_object(body, document)
        if model is not None and any(key != _MODEL and key.casefold() == _MODEL for key in value):
            # Servers written in Go take it for the model, and the last one counts.
            raise Uneditable(f"a member is called `{_MODEL}` in another spelling")
        edited = self._edits.apply(body, value, {} if model is None else {_MODEL: to_json(model)})
        return None if edited is body else edited
