"""One request body: how it is asked for, and what is held of it."""

from __future__ import annotations

from typing import Any, Final, Literal

from extproc import replies
from extproc.bodies.findings import Values
from extproc.bodies.reader import BodyReader, Unread
from extproc.bodies.request_reader import RequestReader, added
from extproc.replies import Reply
from extproc.usage.held import HeldPrompt
from extproc.wire.processing_mode_pb2 import ProcessingMode

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

    __slots__ = (
        "_data",
        "_messages",
        "_prompt",
        "_reader",
        "complete",
        "document",
        "edited",
        "is_encoded",
        "model",
        "unread",
        "values",
    )

    def __init__(self, prompt: HeldPrompt, reader: BodyReader | None) -> None:
        self._prompt = prompt
        self._data: bytes | bytearray = b""
        self._messages = 0
        self._reader = reader
        self.complete = False
        """Whether a whole JSON document was there."""
        self.unread: Unread | None = None
        """Why it could not be read."""
        self.document: Any = None
        """What it says; None while it is not read, and for what is no JSON."""
        self.model = ""
        self.values: Values = {}
        self.edited = False
        self.is_encoded = False
        """Whether it is compressed: it may be read, but not edited."""

    @property
    def waits(self) -> bool:
        """Whether somebody waits for it to be whole."""
        return self._reader is not None

    def add(self, piece: bytes) -> None:
        """Take one more piece."""
        self._prompt.add(piece)
        if self._reader is not None:
            self._reader.feed(piece)
            self._messages += 1
            if self._reader.unread == "too_large":
                self._data = b""  # nobody looks at a part
            else:
                self._data = added(self._data, piece)

    def read(self) -> None:
        """No more will come."""
        reader, self._reader = self._reader, None
        assert reader is not None
        reader.close()
        self.complete, self.unread = reader.complete, reader.unread
        self.model, self.values = reader.findings.model, reader.findings.values
        if isinstance(reader, RequestReader):
            self.document = reader.document

    @property
    def came(self) -> bool:
        """Whether any message brought a piece of it, though that may have been empty."""
        return self._messages > 0

    @property
    def in_one_piece(self) -> bool:
        """Whether it came as one message, and so can be edited in the reply to that."""
        return self._messages == 1

    @property
    def data(self) -> bytes:
        """All of it, as it is to go on."""
        if not isinstance(self._data, bytes):
            self._data = bytes(self._data)
        return self._data

    def replace(self, data: bytes) -> None:
        """Let other bytes go on in its place."""
        self._data = data
        self.edited = True

    def forget(self) -> None:
        """It is decided."""
        self._data = b""
        self.document = None
