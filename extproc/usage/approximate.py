"""Tokens of a text without a tokenizer, from the kinds of characters in it."""

from __future__ import annotations

from random import Random
from secrets import randbits
from typing import Final
from zlib import crc32

SECRET: Final = randbits(64)
"""What nobody outside of this process knows."""
_SLICES = 128
_SLICE = 512
"""Characters. Of a longer text than all slices together, one of each part stands for the whole."""
_LONGEST = 16
"""Characters for which a text has a token at least; no text that says something has as few."""

_UPPER = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTERS = _UPPER + _UPPER.lower()
_DIGITS = b"0123456789"
_PUNCTUATION = bytes(byte for byte in range(0x21, 0x7F) if byte not in _LETTERS + _DIGITS)
_CONTROLS = bytes(byte for byte in (*range(0x20), 0x7F) if byte not in b"\t\n\r")

# Hundredths of a token for a byte of each kind. Fitted by least squares of the relative error to o200k_base on prose,
# code, mark-up and JSON in 26 languages. A character that is not ASCII counts by its first byte alone.
_WORD = 16
_ASCII = ((_LETTERS, 23), (_UPPER, 20), (_DIGITS, 77), (_PUNCTUATION, 35), (b"\n", 70), (_CONTROLS, 100))
_BEYOND_ASCII = (
    (bytes(range(0xC2, 0xCA)), 180),  # letters with accents, which break a word's token in pieces
    (bytes(range(0xCA, 0xE0)), 40),  # Greek, Cyrillic, Hebrew, Arabic
    (bytes(range(0xE0, 0xE2)), 40),  # Indic, Thai, Georgian, the rest of Vietnamese
    (bytes(range(0xE2, 0xF0)), 84),  # Chinese, Japanese, Korean, symbols
    (bytes(range(0xF0, 0xF8)), 140),  # emoji
)


def approximate(text: str, seed: int = SECRET) -> int:
    """Tokens of a text, rounded up; takes a few milliseconds at most, whatever its length.

    Which places of a long text are looked at depends on `seed`, so that whoever writes it cannot know them.
    """
    least = len(text) // _LONGEST
    if len(text) <= _SLICES * _SLICE:
        return max(least, -(-_hundredths(text) // 100))
    part = len(text) // _SLICES
    ahead = part - _SLICE + 1
    random = Random(seed ^ crc32(text.encode("utf-8", "surrogatepass"))).random  # noqa: S311 - nobody gets to see them
    places = [part * index + int(random() * ahead) for index in range(_SLICES)]
    sample = "".join([text[start : start + _SLICE] for start in places])
    return max(least, -(-_hundredths(sample) * len(text) // (100 * len(sample))))


def _hundredths(text: str) -> int:
    encoded = text.encode("utf-8", "surrogatepass")
    # Two counts make a run of spaces, as in indented code, cheaper than as many words.
    hundredths = _WORD * (encoded.count(b" ") - encoded.count(b"  "))
    kinds = _ASCII if len(encoded) == len(text) else _ASCII + _BEYOND_ASCII
    for members, weight in kinds:
        hundredths += weight * (len(encoded) - len(encoded.translate(None, members)))
    return hundredths
