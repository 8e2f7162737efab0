"""How the answers of one family of models look, as far as a reader must know."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """Pointers are RFC 6901 with `*` for every element of an array, and hold for documents and stream events alike.

    An array of documents is read as the documents that it holds.
    """

    name: str
    opening: bytes
    """A regular expression found in the first event of a stream, or in the first 4 KiB of a document, of this family
    and of no family that is asked before it."""
    needles: tuple[bytes, ...]
    """An event with token counts contains one of these; the others are not parsed."""
    counts: tuple[str, ...]
    event_counts: tuple[str, ...] = ()
    """More counts, which occur in events alone."""
    own: tuple[str, ...] = ()
    """Those of `counts` that no other family has: a document with one of them needs no `opening`."""
    models: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    """Generated text in a document: strings, or values whose JSON counts (tool call arguments)."""
    twins: tuple[tuple[str, ...], ...] = ()
    """Of `text`, those that say the same where an object has several of them."""
    event_keys: tuple[str, ...] = ()
    """Keys of strings that hold generated text in an event, wherever they are in it."""
    event_text: tuple[str, ...] = ()
    exact_needles: tuple[bytes, ...] = ()
    """An event with one of these has its text at the pointers `event_text` alone: the keys would count what is no
    generated text, or miss what is no string. It is parsed."""
