"""One request body: how it is asked for, and what is held of it."""

from __future__ import annotations

from typing import Final, Literal

from extproc import replies
from extproc.bodies.reader import BodyReader
from extproc.usage.held import HeldPrompt
from extproc.wire.processing_mode_pb2 import ProcessingMode

Reply = bytes
Reading = Literal["nothing", "passing", "held", "editable"]
"""How it is asked for: not at all; while it goes on; before it goes on, as much as fits into Envoy's buffer; all of it,
where it surely fits: then it may be edited and keep a content-length."""
_MODES: Final[dict[Reading, ProcessingMode | None]] = {
    "nothing": None,
    "passing": replies.WATCH_REQUEST,
    "held": replies.READ_REQUEST,
    "editable": replies.EDIT_REQUEST,
}


def _go_on(reading: Reading, *, encoded: bool) -> Reply:
    return replies.request_headers(_MODES[reading], remove=("accept-encoding",) if encoded else ())


GO_ON: Final = {(reading, encoded): _go_on(reading, encoded=encoded) for reading in _MODES for encoded in (True, False)}
"""Keyed by what is asked for, and by whether an accept-encoding is taken away (S0.D11)."""


class RequestBody:
    """What came of a body. Everything that is kept longer than until it is decided about is kept in `prompt`."""

    __slots__ = ("_pieces", "_prompt", "reader")

    def __init__(self, prompt: HeldPrompt, reader: BodyReader | None) -> None:
        self._prompt = prompt
        self._pieces: list[bytes] = []
        self.reader = reader
        """None where it is only held, and when it was read."""

    def add(self, piece: bytes) -> None:
        """Take one more piece."""
        self._prompt.add(piece)
        if self.reader is not None:
            self.reader.feed(piece)
            self._pieces.append(piece)

    @property
    def data(self) -> bytes:
        """All of it."""
        return b"".join(self._pieces)

    @property
    def in_one_piece(self) -> bool:
        """Whether it came as one message, and so can be edited in the reply to that."""
        return len(self._pieces) == 1

    def forget(self) -> None:
        """It is decided."""
        self._pieces = []
