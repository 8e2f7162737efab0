"""Embeddings without end: real numbers, made while they are sent."""

from __future__ import annotations

import functools
import itertools
import math
import struct
from array import array
from base64 import b64encode
from collections.abc import Iterator

import orjson

_DISTINCT = 4
_LARGEST = 0.1


def vectors(count: int, dimensions: int, base64: bool) -> Iterator[bytes]:
    """`count` JSON values: lists of numbers, or strings of base64 of little-endian 32-bit floats.

    A few vectors take turns, so that making 20 MB of them costs no more than copying.
    """
    return itertools.islice(itertools.cycle(_vectors(dimensions, base64)), count)


@functools.lru_cache(maxsize=4)
def _vectors(dimensions: int, base64: bool) -> tuple[bytes, ...]:
    made = (_vector(number * dimensions, dimensions) for number in range(_DISTINCT))
    return tuple(_in_base64(vector) if base64 else orjson.dumps(vector) for vector in made)


def _vector(first: int, dimensions: int) -> list[float]:
    """Numbers of single precision, so with as many digits as those of real embeddings."""
    return array("f", (_LARGEST * math.sin(first + number) for number in range(1, dimensions + 1))).tolist()


def _in_base64(vector: list[float]) -> bytes:
    return b'"%b"' % b64encode(struct.pack(f"<{len(vector)}f", *vector))
