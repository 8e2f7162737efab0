"""Compressed answers are read while they stream past, within bounds (S0.D11)."""

from __future__ import annotations

import random
import tracemalloc
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise, product

import brotli
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from extproc.bodies.decoders import MAX_CODINGS, PIECE, ZSTD_WINDOW, Decoder, DecodingError, decoder_for

MIB = 1024 * 1024
PLENTY = 1024 * MIB
Kinds = tuple[str, ...]
Encoder = tuple[Callable[[bytes], bytes], Callable[[], bytes]]
"""Compresses and flushes, so that the receiver can decode all of it; ends the encoding."""


def zlib_encoder(window_bits: int) -> Encoder:
    stream = zlib.compressobj(wbits=window_bits)
    return lambda data: stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH), stream.flush


def brotli_encoder() -> Encoder:
    stream = brotli.Compressor(quality=5)
    return lambda data: stream.process(data) + stream.flush(), stream.finish


def zstd_encoder() -> Encoder:
    stream = zstandard.ZstdCompressor().compressobj()
    return lambda data: stream.compress(data) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK), stream.flush


def plain_encoder() -> Encoder:
    return lambda data: data, lambda: b""


# By the name that is sent; deflate without its zlib wrapper goes by `deflate` too.
ENCODERS: dict[str, Callable[[], Encoder]] = {
    "gzip": partial(zlib_encoder, 31),
    "deflate": partial(zlib_encoder, 15),
    "bare deflate": partial(zlib_encoder, -15),
    "br": brotli_encoder,
    "zstd": zstd_encoder,
    "identity": plain_encoder,
}
COMPRESSED = [kind for kind in ENCODERS if kind != "identity"]
SINGLES: list[Kinds] = [(kind,) for kind in ENCODERS]
PAIRS: list[Kinds] = list(product(COMPRESSED, repeat=2))


def header(kinds: Kinds) -> str:
    return ", ".join(kind.removeprefix("bare ") for kind in kinds)


def encode(kinds: Kinds, frames: Iterable[bytes]) -> list[bytes]:
    """One flushed chunk for each frame and a last one for the end, with the codings applied in order."""
    chunks = [*frames, b""]
    for kind in kinds:
        push, finish = ENCODERS[kind]()
        *body, end = chunks
        chunks = [*map(push, body), push(end) + finish()]
    return chunks


def whole(kinds: Kinds, data: bytes) -> bytes:
    return b"".join(encode(kinds, [data]))


def opened(kinds: Kinds, limit: int = PLENTY) -> Decoder:
    decoder = decoder_for(header(kinds), limit)
    assert decoder is not None
    return decoder


def drain(decoder: Decoder, chunks: Iterable[bytes]) -> tuple[bytes, DecodingError | None]:
    """What came out, and the error that ended it."""
    out = bytearray()
    try:
        for chunk in chunks:
            for piece in decoder.decode(chunk):
                assert 0 < len(piece) <= PIECE
                out += piece
        for piece in decoder.flush():
            out += piece
    except DecodingError as error:
        return bytes(out), error
    return bytes(out), None


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    bounds = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(bounds)]


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


around_pieces = st.builds(
    lambda boundary, offset: boundary + offset,
    st.sampled_from([32 * 1024, PIECE, 2 * PIECE, 4 * PIECE]),
    st.integers(-3, 300),
)
bodies = st.one_of(
    st.binary(max_size=600),
    st.builds(lambda unit, times: unit * times, st.binary(min_size=1, max_size=9), st.integers(0, 4000)),
    around_pieces.map(bytes),
    around_pieces.map(noise),
)
places = st.lists(st.integers(0, 700), max_size=12)
every_coding = pytest.mark.parametrize("kinds", SINGLES + PAIRS, ids="+".join)
every_single = pytest.mark.parametrize("kinds", SINGLES, ids="+".join)
every_compression = pytest.mark.parametrize("kind", COMPRESSED)


@every_single
@given(body=bodies, where=places)
def test_any_split_decodes_to_the_same_bytes(kinds: Kinds, body: bytes, where: list[int]) -> None:
    assert drain(opened(kinds), cut(whole(kinds, body), where)) == (body, None)


@pytest.mark.parametrize("kinds", PAIRS, ids="+".join)
@settings(max_examples=20)
@given(body=bodies, where=places)
def test_any_split_of_two_codings_decodes_to_the_same_bytes(kinds: Kinds, body: bytes, where: list[int]) -> None:
    assert drain(opened(kinds), cut(whole(kinds, body), where)) == (body, None)


@every_coding
def test_byte_by_byte(kinds: Kinds) -> None:
    encoded = whole(kinds, b"data: {}\n\n" * 50)
    assert drain(opened(kinds), (encoded[i : i + 1] for i in range(len(encoded)))) == (b"data: {}\n\n" * 50, None)


@every_coding
def test_a_flushed_event_comes_out_with_the_chunk_that_completes_it(kinds: Kinds) -> None:
    events = [f'data: {{"choices":[{{"delta":{{"content":"word {n}"}}}}]}}\n\n'.encode() for n in range(40)]
    decoder = opened(kinds)
    for event, chunk in zip(events, encode(kinds, events), strict=False):
        assert b"".join(decoder.decode(chunk)) == event


@every_coding
def test_a_flushed_event_in_halves_comes_out_with_its_last_byte(kinds: Kinds) -> None:
    events = [f'data: {{"choices":[{{"delta":{{"content":"word {n}"}}}}]}}\n\n'.encode() for n in range(40)]
    decoder = opened(kinds)
    for event, chunk in zip(events, encode(kinds, events), strict=False):
        assert b"".join(piece for half in cut(chunk, [len(chunk) // 2]) for piece in decoder.decode(half)) == event


@every_single
@given(body=bodies, part=st.floats(0, 1))
def test_a_truncated_body_is_decoded_as_far_as_it_goes(kinds: Kinds, body: bytes, part: float) -> None:
    encoded = whole(kinds, body)
    out, error = drain(opened(kinds), [encoded[: int(len(encoded) * part)]])
    assert error is None
    assert body.startswith(out)


@every_coding
def test_a_body_cut_after_a_flush_loses_nothing(kinds: Kinds) -> None:
    chunks = encode(kinds, [b"data: 1\n\n", b"data: 2\n\n"])
    assert drain(opened(kinds), chunks[:-1]) == (b"data: 1\n\ndata: 2\n\n", None)


@every_single
def test_an_empty_body(kinds: Kinds) -> None:
    assert drain(opened(kinds), []) == (b"", None)
    assert drain(opened(kinds), [b"", b""]) == (b"", None)


# Names


@pytest.mark.parametrize(
    ("value", "kinds"),
    [
        ("GZip", ("gzip",)),
        ("x-gzip", ("gzip",)),
        ("X-GZIP", ("gzip",)),
        (" br ", ("br",)),
        ("", ()),
        ("identity", ()),
        ("Identity, identity", ()),
        ("identity,gzip", ("gzip",)),
        ("gzip,br", ("gzip", "br")),
        ("gzip , , zstd", ("gzip", "zstd")),
        ("gzip, deflate, br, zstd", ("gzip", "deflate", "br", "zstd")),
    ],
)
def test_names_and_order(value: str, kinds: Kinds) -> None:
    decoder = decoder_for(value, PLENTY)
    assert decoder is not None
    assert drain(decoder, [whole(kinds, b"hello" * 9)]) == (b"hello" * 9, None)


@pytest.mark.parametrize("value", ["compress", "gzip, exi", "gzip;q=1", "*", "gzip br"])
def test_an_unknown_coding_is_said_to_be_unknown(value: str) -> None:
    assert decoder_for(value, PLENTY) is None


def test_a_long_list_is_unknown() -> None:
    assert decoder_for(", ".join(["gzip"] * MAX_CODINGS), PLENTY) is not None
    assert decoder_for(", ".join(["gzip"] * (MAX_CODINGS + 1)), PLENTY) is None


# Several streams in one body

FRAME = zstandard.ZstdCompressor().compress
SKIPPABLE = b"\x5a\x2a\x4d\x18\x03\x00\x00\x00abc"


@pytest.mark.parametrize(
    ("coding", "encoded"),
    [
        ("gzip", whole(("gzip",), b"one ") + whole(("gzip",), b"") + whole(("gzip",), b"two")),
        ("zstd", FRAME(b"one ") + FRAME(b"") + FRAME(b"two")),
        ("zstd", SKIPPABLE + FRAME(b"one ") + SKIPPABLE + FRAME(b"two") + SKIPPABLE),
        ("zstd", zstandard.ZstdCompressor(write_checksum=True).compress(b"one ") + FRAME(b"two")),
    ],
    ids=["members", "frames", "skippable frames", "checksum"],
)
@given(where=places)
def test_streams_that_follow_each_other(coding: str, encoded: bytes, where: list[int]) -> None:
    assert drain(opened((coding,)), cut(encoded, where)) == (b"one two", None)


@pytest.mark.parametrize("level", [1, 3, 19])
@pytest.mark.parametrize("known_size", [True, False])
@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_791, 65_792, 300_000])
def test_every_form_of_zstd_frame_header(level: int, known_size: bool, size: int) -> None:
    body = (noise(size // 2) + bytes(size))[:size]
    stream = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=known_size)
    encoded = stream.compress(body) * 2
    assert drain(opened(("zstd",)), cut(encoded, range(0, len(encoded), 1000))) == (body * 2, None)


@pytest.mark.parametrize("kind", ["gzip", "deflate", "bare deflate"])
def test_no_output_stays_behind_when_a_piece_is_just_full(kind: str) -> None:
    """A single bit of deflate can stand for 258 bytes, so input may be used up long before its output."""
    window_bits = {"gzip": 31, "deflate": 15, "bare deflate": -15}[kind]
    for size in range(PIECE - 5, PIECE + 600, 7):
        stream = zlib.compressobj(9, wbits=window_bits)
        encoded = stream.compress(bytes(size)) + stream.flush()
        assert drain(opened((kind,)), [encoded]) == (bytes(size), None)


def test_bare_deflate_whose_first_byte_looks_like_zlib() -> None:
    """A stored block whose padding is not zero: 0x78 is also how most zlib streams begin."""
    stored = b"\x78\x05\x00\xfa\xffhello" + b"\x03\x00"
    assert drain(opened(("deflate",)), [stored]) == (b"hello", None)


# Corruption


@every_compression
@given(garbage=st.binary(max_size=400), where=places)
@example(garbage=bytes(100), where=[])
@example(garbage=b"\x1f\x8b\x08\x1c" + b"\xff" * 300, where=[])
@example(garbage=b"\x28\xb5\x2f\xfd" + b"\xff" * 300, where=[])
def test_garbage_raises_nothing_but_decoding_errors(kind: str, garbage: bytes, where: list[int]) -> None:
    drain(opened((kind,), MIB), cut(garbage, where))


@every_compression
@given(data=st.data(), where=places)
def test_a_damaged_body_raises_nothing_but_decoding_errors(kind: str, data: st.DataObject, where: list[int]) -> None:
    encoded = bytearray(whole((kind,), noise(100) + b"data: [DONE]\n\n" * 40))
    for place in data.draw(st.lists(st.integers(0, len(encoded) - 1), min_size=1, max_size=5)):
        encoded[place] = data.draw(st.integers(0, 255))
    drain(opened((kind,), MIB), cut(bytes(encoded), where))


@pytest.mark.parametrize(
    ("coding", "encoded"),
    [
        ("gzip", b"{}" * 30),
        ("gzip", whole(("gzip",), b"secret")[:-8] + bytes(8)),
        ("gzip", whole(("gzip",), b"secret") + b"trailing"),
        ("deflate", whole(("deflate",), b"secret")[:-4] + bytes(4)),
        ("deflate", whole(("deflate",), b"secret") + b"trailing"),
        ("deflate", whole(("bare deflate",), b"secret") + b"trailing"),
        ("br", b"secret" * 30),
        ("br", whole(("br",), b"secret") + b"trailing"),
        ("zstd", b"secret" * 30),
        ("zstd", FRAME(b"secret") + b"trailing"),
    ],
)
def test_a_corrupt_body_names_the_coding_and_not_the_content(coding: str, encoded: bytes) -> None:
    _, error = drain(opened((coding,)), [encoded])
    assert error is not None
    assert error.limit is None
    assert str(error).startswith(f"{coding}: ")
    assert "secret" not in str(error)


@pytest.mark.parametrize("kind", [kind for kind in COMPRESSED if kind != "br"])
def test_what_precedes_trailing_bytes_is_read(kind: str) -> None:
    out, error = drain(opened((kind,)), [whole((kind,), b"data: [DONE]\n\n") + b"trailing"])
    assert out == b"data: [DONE]\n\n"
    assert error is not None


@pytest.mark.parametrize("kinds", [("gzip", "br"), ("zstd", "gzip")], ids="+".join)
def test_corruption_below_another_coding(kinds: Kinds) -> None:
    inner, outer = kinds
    _, error = drain(opened(kinds), [whole((outer,), b"not compressed at all")])
    assert str(error).startswith(f"{inner}: ")


# Bounds


@every_compression
@given(body=bodies, where=places, data=st.data())
def test_the_limit_is_exact(kind: str, body: bytes, where: list[int], data: st.DataObject) -> None:
    limit = data.draw(st.integers(0, len(body) + 1) | st.sampled_from([len(body), max(0, len(body) - 1)]))
    out, error = drain(opened((kind,), limit), cut(whole((kind,), body), where))
    assert out == body[:limit]
    if len(body) <= limit:
        assert error is None
    else:
        assert error is not None
        assert error.limit == limit


def test_a_body_without_coding_has_no_limit() -> None:
    assert drain(opened((), limit=10), [b"x" * 100]) == (b"x" * 100, None)


def zeros(kind: str, size: int = 10 * MIB) -> bytes:
    """`size` encoded bytes of nothing but zeros: a compressed MiB of them over and over, in one stream if possible."""
    push, finish = ENCODERS[kind]()
    match kind:
        case "gzip":
            start, again = b"", push(bytes(MIB)) + finish()
        case "zstd":
            # A frame header with a window of 1 MiB, and blocks that are a run of 128 KiB in four bytes each.
            start, again = FRAME(b"")[:4] + b"\x00\x50", (131_072 << 3 | 1 << 1).to_bytes(3, "little") + b"\x00"
        case _:
            start, again = push(bytes(MIB)), push(bytes(MIB))
    return start + again * (size // len(again))


def sizes_and_peak(decoder: Decoder, encoded: bytes) -> tuple[list[int], int, DecodingError | None]:
    """Sizes of the pieces, none of which is kept; the most memory in use, in bytes; the error at the end."""
    sizes: list[int] = []
    caught = None
    tracemalloc.start()
    try:
        sizes.extend(map(len, decoder.decode(encoded)))
    except DecodingError as error:
        caught = error
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return sizes, peak, caught


@every_compression
def test_a_bomb_is_stopped_at_the_limit_in_little_memory(kind: str) -> None:
    bomb, limit = zeros(kind), 64 * MIB
    assert len(bomb) > 9 * MIB
    sizes, peak, error = sizes_and_peak(opened((kind,), limit), bomb)
    assert error is not None
    assert error.limit == sum(sizes) == limit
    assert max(sizes) <= PIECE
    assert peak < MIB


def zstd_frame(content: bytes, *, single_segment: int, dictionary_flag: int, size_flag: int) -> bytes:
    """RFC 8878 section 3.1.1.1 by hand, because compressors write only some of its forms."""
    window = b"" if single_segment else b"\x50"
    width = (single_segment, 2, 4, 8)[size_flag]
    size = (len(content) - (256 if width == 2 else 0)).to_bytes(width, "little") if width else b""
    descriptor = bytes([size_flag << 6 | single_segment << 5 | dictionary_flag])
    block = (len(content) << 3 | 1).to_bytes(3, "little") + content
    return FRAME(b"")[:4] + descriptor + window + bytes((0, 1, 2, 4)[dictionary_flag]) + size + block


ZSTD_FORMS = {
    "checksum": zstandard.ZstdCompressor(write_checksum=True).compress(noise(250)),
    "skippable": FRAME(noise(250)) + SKIPPABLE,
    **{
        f"{single_segment=} {dictionary_flag=} {size_flag=}": zstd_frame(
            noise(250 if size_flag != 1 else 400),
            single_segment=single_segment,
            dictionary_flag=dictionary_flag,
            size_flag=size_flag,
        )
        for single_segment, dictionary_flag, size_flag in product(range(2), range(4), range(4))
    },
}


@pytest.mark.parametrize("form", ZSTD_FORMS)
def test_a_zstd_bomb_is_bounded_after_every_form_of_frame(form: str) -> None:
    sizes, peak, error = sizes_and_peak(opened(("zstd",)), ZSTD_FORMS[form] + zeros("zstd", 400))
    assert error is None
    assert sum(sizes) - 100 * 128 * 1024 in (250, 400)
    assert peak < MIB


@pytest.mark.parametrize("outer", COMPRESSED)
def test_a_bomb_that_decodes_to_nothing_is_stopped_too(outer: str) -> None:
    members = whole(("gzip",), b"") * 2000
    out, error = drain(opened(("gzip", outer), limit=10_000), [whole((outer,), members)])
    assert out == b""
    assert error is not None
    assert error.limit == 10_000


@pytest.mark.parametrize(("window_log", "accepted"), [(23, True), (24, False)])
def test_zstd_windows_up_to_8_mib(window_log: int, accepted: bool) -> None:
    assert ZSTD_WINDOW == 8 * MIB
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    out, error = drain(opened(("zstd",)), [stream.compress(b"hello") + stream.flush()])
    assert (out, error is None) == (b"hello" if accepted else b"", accepted)
