"""Estimates: exact with a vocabulary, near without, never in the way of others."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.vocabularies import loaded_vocabulary

from extproc.bodies.text import Text
from extproc.usage.approximate import approximate
from extproc.usage.estimate import PIECE, Estimate, Estimator, Job, pieces
from extproc.usage.prompt import ATTACHMENT_TOKENS
from extproc.usage.vocabulary import Vocabulary

DEADLINE = 20.0
PAUSE = 0.05
"""Seconds: G17."""


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return loaded_vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def estimator(vocabulary: Vocabulary) -> Iterator[Estimator]:
    estimator = Estimator(vocabulary)
    yield estimator
    estimator.close()


@pytest.fixture
def without() -> Iterator[Estimator]:
    estimator = Estimator()
    yield estimator
    estimator.close()


async def counted(estimator: Estimator, job: Job) -> Estimate:
    estimate = estimator.estimate(job)
    if isinstance(estimate, Estimate):
        return estimate
    async with asyncio.timeout(DEADLINE):
        return await estimate


def text(content: str, limit: int = 1 << 20) -> Text:
    held = Text(limit)
    held.add_value(content)
    return held


def chat(*contents: str) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": content} for content in contents]}).encode()


# --- with a vocabulary -----------------------------------------------------------------------------------------------


async def test_the_tokenizer_of_the_model_counts(estimator: Estimator) -> None:
    """S2.25."""
    job = Job("gpt-3.5-turbo", answer=text("How many tokens does this sentence have?"))
    assert await counted(estimator, job) == Estimate(0, 8, "tokenizer")


async def test_a_chat_has_the_overhead_that_openai_documents(estimator: Estimator) -> None:
    """Three for each message and one for its role, three for the answer."""
    sentence = "How many tokens does this sentence have?"
    one = Job("gpt-3.5-turbo", chat(sentence))
    two = Job("gpt-3.5-turbo", chat(sentence, sentence))
    assert await counted(estimator, one) == Estimate(3 + 4 + 8, 0, "tokenizer")
    assert await counted(estimator, two) == Estimate(3 + 2 * (4 + 8), 0, "tokenizer")


async def test_names_of_special_tokens_are_text(estimator: Estimator) -> None:
    estimate = await counted(estimator, Job("gpt-4", answer=text("<|endoftext|>")))
    assert estimate == Estimate(0, 7, "tokenizer")


async def test_an_image_is_a_constant_and_not_its_base64(estimator: Estimator) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 900_000}}
    body = json.dumps({"messages": [{"role": "user", "content": [image]}]}).encode()
    assert (await counted(estimator, Job("gpt-4o", body))).prompt == ATTACHMENT_TOKENS + 3 + 4


async def test_a_lone_surrogate_is_counted_as_some_character(estimator: Estimator) -> None:
    answer = Text(100)
    answer.add(rb"a \ud83d b")
    assert 0 < (await counted(estimator, Job("gpt-4", answer=answer))).completion < 10


async def test_what_was_kept_stands_for_the_whole_answer(estimator: Estimator) -> None:
    whole = "The cat sat on the mat. " * 1000
    exact = await counted(estimator, Job("gpt-4o", answer=text(whole)))
    guessed = await counted(estimator, Job("gpt-4o", answer=text(whole, limit=6000)))
    assert guessed.completion == pytest.approx(exact.completion, rel=0.01)
    assert guessed.method == "tokenizer"


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (Job("gpt-4o", b'{"messages": [{"content": "cut', 4000, text("Hello")), Estimate(1000, 1, "bytes")),
        (Job("gpt-4o", None, 4000, text("Hello")), Estimate(1000, 1, "bytes")),
        (Job("gpt-4o", None, 4000, None, 401), Estimate(1000, 101, "bytes")),
        (Job("gpt-4o", None, 0, text("")), Estimate(0, 0, "bytes")),
        (Job("gpt-4o", chat("Hello"), 10, text("Hello", limit=0)), Estimate(8, 2, "bytes")),
    ],
)
async def test_the_method_tells_when_a_part_was_known_by_its_size_alone(
    estimator: Estimator, job: Job, expected: Estimate
) -> None:
    assert await counted(estimator, job) == expected


LONG = {
    "a": "a" * 1_000_000,
    "spaces": " " * 1_000_000,
    "emoji": "😀" * 250_000,
    "random": random.Random(1).randbytes(700_000).decode("latin1"),
    "letters": "".join(random.Random(1).choices("abcdefgh", k=1_000_000)),
    "newlines": "\n" * 1_000_000,
    "English": "The quick brown fox jumps over the lazy dog. " * 22_000,
}


async def longest_pause(done: asyncio.Event) -> float:
    """Seconds for which the loop did not run."""
    longest = 0.0
    last = time.perf_counter()
    while not done.is_set():
        await asyncio.sleep(0)
        now = time.perf_counter()
        longest = max(longest, now - last)
        last = now
    return longest


@pytest.mark.parametrize("content", LONG.values(), ids=LONG)
async def test_a_megabyte_does_not_hold_up_the_loop(estimator: Estimator, content: str) -> None:
    """G17. The best of a few tries: other processes hold it up as well."""
    body = json.dumps({"prompt": content}, ensure_ascii=False).encode()
    pauses: list[float] = []
    while (not pauses or pauses[-1] > PAUSE) and len(pauses) < 5:
        done = asyncio.Event()
        watch = asyncio.create_task(longest_pause(done))
        await asyncio.sleep(0)
        estimate = await counted(estimator, Job("gpt-4o", body))
        done.set()
        pauses.append(await watch)
        assert estimate.method == "tokenizer"
        assert estimate.prompt > 7000
    assert pauses[-1] <= PAUSE, pauses


@given(
    st.lists(st.text("abcXYZ019.,;äß中!'", min_size=1, max_size=12), min_size=1, max_size=200).map(" ".join),
    st.integers(30, 200),
)
def test_pieces_are_cut_where_no_token_is(vocabulary: Vocabulary, words: str, length: int) -> None:
    cut = list(pieces(words, length))
    assert "".join(cut) == words
    assert all(len(piece) <= length for piece in cut)
    for model in ("gpt-4", "gpt-4o"):
        encoding: Any = vocabulary.encoding_for(model)
        assert [token for piece in cut for token in encoding.encode_ordinary(piece)] == encoding.encode_ordinary(words)


@given(st.text(st.sampled_from(" \n\tab😀"), max_size=400), st.integers(1, 50))
def test_pieces_are_the_text(content: str, length: int) -> None:
    cut = list(pieces(content, length))
    assert "".join(cut) == content
    assert all(len(piece) <= length for piece in cut)


# --- without a vocabulary --------------------------------------------------------------------------------------------

KINDS = {
    "English": "Tides are caused by the moon, which pulls at the water of the oceans a little more strongly on the "
    "side that faces it. As the earth turns, each coast passes through two bulges of water a day. Where a bay "
    "narrows, the water piles up, and the difference between high and low tide can be as much as a house is tall.",
    "German": "Die Gezeiten entstehen, weil der Mond das Wasser der Meere auf der ihm zugewandten Seite etwas stärker "
    "anzieht. Während sich die Erde dreht, durchläuft jede Küste zweimal täglich einen Flutberg. Wo sich eine Bucht "
    "verengt, staut sich das Wasser, und der Unterschied zwischen Ebbe und Flut kann so groß sein wie ein Haus hoch.",
    "French": "Les marées sont dues à la lune, qui attire un peu plus fortement l'eau des océans du côté qui lui fait "
    "face. Comme la terre tourne, chaque côte traverse deux fois par jour une bosse d'eau. Là où une baie se "
    "resserre, l'eau s'accumule, et la différence entre marée haute et marée basse peut atteindre celle d'une maison.",
    "Chinese": "潮汐是由月球引起的,月球对朝向它的一侧海水的引力稍强一些。"
    "随着地球自转,每个海岸每天都会经过两次水的隆起。"
    "在海湾变窄的地方,海水会堆积起来,高潮与低潮之间的差别可能有一座房子那么高。渔民很早就学会了看月亮来安排出海的时间。",
    "Japanese": "潮の満ち引きは月によって起こります。月は自分に向いた側の海の水を少し強く引っ張ります。地球が回るので、"
    "どの海岸も一日に二回、水のふくらみを通ります。"
    "湾が狭くなるところでは水がたまり、満潮と干潮の差は家の高さほどになることもあります。",
    "Russian": "Приливы вызывает луна: она чуть сильнее притягивает воду океанов на той стороне, которая к ней "
    "обращена. "
    "Земля вращается, и каждый берег дважды в день проходит через водяной горб. Там, где залив сужается, вода "
    "накапливается, и разница между приливом и отливом может быть высотой с дом.",
    "Python": "def longest_run(values: list[int]) -> tuple[int, int]:\n"
    "    best_start, best_length = 0, 0\n    start = 0\n"
    "    for index in range(1, len(values) + 1):\n"
    "        if index == len(values) or values[index] < values[index - 1]:\n"
    "            if index - start > best_length:\n                best_start, best_length = start, index - start\n"
    "            start = index\n    return best_start, best_length\n",
    "JavaScript": "export async function load(url, { retries = 3 } = {}) {\n  for (let attempt = 0; ; attempt++) {\n"
    "    try {\n      const response = await fetch(url);\n"
    "      if (!response.ok) throw new Error(`${response.status}`);\n"
    "      return await response.json();\n    } catch (error) {\n      if (attempt >= retries) throw error;\n"
    "      await new Promise((done) => setTimeout(done, 100 * 2 ** attempt));\n    }\n  }\n}\n",
    "JSON": json.dumps(
        {
            "order": 4711,
            "customer": {"name": "Ada", "city": "Turin", "since": "2021-03-09"},
            "items": [{"sku": "TR-118", "count": 2, "price": 19.9}, {"sku": "QX-20", "count": 1, "price": 4.25}],
            "shipped": True,
            "note": "Please leave it with the neighbour.",
        }
    ),
    "Markdown": "## How to install\n\n1. Download the archive from the **releases** page.\n2. Unpack it: "
    "`tar xf app.tar.gz`\n"
    "3. Run `./app --help` to see all options.\n\n| option | default | meaning |\n|---|---|---|\n| `--port` | 8080 "
    "| where to listen |\n| `--quiet` | off | say nothing |\n\n> On Windows, use the installer instead.\n",
}


async def test_the_rule_without_a_vocabulary_is_near_for_every_kind_of_text(
    estimator: Estimator, without: Estimator
) -> None:
    errors: dict[str, float] = {}
    for kind, content in KINDS.items():
        exact = await counted(estimator, Job("gpt-4o", answer=text(content)))
        near = await counted(without, Job("gpt-4o", answer=text(content)))
        assert near.method == "bytes"
        errors[kind] = abs(near.completion - exact.completion) / exact.completion
    assert statistics.median(errors.values()) <= 0.15, errors
    assert max(errors.values()) <= 0.35, errors


async def test_without_a_vocabulary_messages_have_their_overhead_and_base64_is_not_text(without: Estimator) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 900_000}}
    body = json.dumps({"messages": [{"role": "user", "content": ["Hi", image]}]}).encode()
    assert await counted(without, Job("gpt-4o", body)) == Estimate(3 + 4 + 1 + ATTACHMENT_TOKENS, 0, "bytes")


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (Job(), (0, 0)),
        (Job(prompt_size=4001), (1001, 0)),
        (Job(prompt=b"no JSON at all", prompt_size=0), (4, 0)),
        (Job(answer_size=5), (0, 2)),
        (Job(answer=text("a" * 400, limit=0)), (0, 100)),
    ],
)
def test_sizes_are_a_quarter(without: Estimator, job: Job, expected: tuple[int, int]) -> None:
    assert without.estimate(job) == Estimate(*expected, "bytes")


def test_without_a_vocabulary_no_loop_is_needed(tmp_path: Path) -> None:
    empty = Vocabulary.open(tmp_path)
    empty.load()
    estimate = Estimator(empty).estimate(Job("gpt-4o", chat("Hello there"), 60, text("Hello")))
    assert isinstance(estimate, Estimate)
    assert estimate.method == "bytes"


@given(st.text(max_size=300), st.text(max_size=300))
def test_more_text_is_never_fewer_tokens(first: str, second: str) -> None:
    assert approximate(first) >= 0
    assert approximate(first + "x" + second) >= approximate(first)


def test_a_sample_stands_for_a_long_text() -> None:
    content = "".join(KINDS.values())
    assert approximate(content * 400) == pytest.approx(approximate(content) * 400, rel=0.1)


@pytest.mark.parametrize("filler", ["\t", "\r", " ", "\0", "\u200b"])
@pytest.mark.parametrize("period", [4096, 20_000, 62_500])
def test_nothing_is_hidden_between_the_places_that_are_looked_at(filler: str, period: int) -> None:
    """Whoever wants to get around a limit writes what counts little where a sample might be taken."""
    words = "word " * (period // 10)
    hidden = (filler * (period - len(words)) + words) * (1_000_000 // period)
    assert approximate(hidden) > 0.7 * approximate(words) * (1_000_000 // period)


@pytest.mark.parametrize("character", ["\t", "\r", " ", "\0", "\x1b", "\x7f", "\u200b", "\ufeff", "\U000e0041"])
@pytest.mark.parametrize("times", [160, 100_000])
def test_no_character_is_free(character: str, times: int) -> None:
    """A prompt of nothing counts something: a limiter is asked about it."""
    assert approximate(character * times) >= times // 16


# --- bounds, endings -------------------------------------------------------------------------------------------------


class Gate:
    """A vocabulary whose one encoding waits until it is let go; a token for every character."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()
        self.pieces: list[str] = []

    def encoding_for(self, _: str) -> Gate:
        return self

    def encode_ordinary(self, piece: str) -> list[int]:
        self.reached.set()
        assert self.open.wait(DEADLINE)
        self.pieces.append(piece)
        return [0] * len(piece)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


def gated(gate: Gate, **bounds: int) -> Estimator:
    vocabulary: Any = gate
    return Estimator(vocabulary, **bounds)


async def test_jobs_that_find_no_place_are_estimated_at_once(gate: Gate) -> None:
    estimator = gated(gate, pending=2)
    job = Job(answer=text("abcdefgh"))
    waiting = [estimator.estimate(job), estimator.estimate(job)]
    assert estimator.estimate(job) == Estimate(0, 2, "bytes")
    gate.open.set()
    async with asyncio.timeout(DEADLINE):
        assert [await one for one in waiting if not isinstance(one, Estimate)] == [Estimate(0, 8, "tokenizer")] * 2
    assert await counted(estimator, job) == Estimate(0, 8, "tokenizer"), "there is a place again"
    estimator.close()


async def test_bytes_that_find_no_place_are_estimated_at_once(gate: Gate) -> None:
    estimator = gated(gate, pending_bytes=10)
    waiting = estimator.estimate(Job(answer=text("abcdefgh")))
    assert estimator.estimate(Job(answer=text("abc"))) == Estimate(0, 1, "bytes")
    assert estimator.estimate(Job(prompt=chat("abc"), prompt_size=40)) == Estimate(13, 0, "bytes")
    assert not isinstance(estimator.estimate(Job(answer=text("ab"))), Estimate)
    gate.open.set()
    assert not isinstance(waiting, Estimate)
    async with asyncio.timeout(DEADLINE):
        await waiting
    estimator.close()


async def test_a_cancelled_waiter_takes_nothing_from_the_others(gate: Gate) -> None:
    estimator = gated(gate)
    waiting = estimator.estimate(Job(answer=text("abcd")))
    assert not isinstance(waiting, Estimate)

    async def wait() -> Estimate:
        return await waiting

    first, second = asyncio.create_task(wait()), asyncio.create_task(wait())
    await asyncio.to_thread(gate.reached.wait, DEADLINE)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.open.set()
    async with asyncio.timeout(DEADLINE):
        assert await second == Estimate(0, 4, "tokenizer")
        assert await counted(estimator, Job(answer=text("ab"))) == Estimate(0, 2, "tokenizer")
    estimator.close()


async def test_closing_ends_a_long_job_with_the_piece_it_is_at(gate: Gate) -> None:
    estimator = gated(gate)
    long = estimator.estimate(Job(answer=text("a" * (4 * PIECE))))
    queued = estimator.estimate(Job(answer=text("abcdefgh")))
    assert not isinstance(long, Estimate)
    assert not isinstance(queued, Estimate)
    await asyncio.to_thread(gate.reached.wait, DEADLINE)
    estimator.close()
    gate.open.set()
    async with asyncio.timeout(DEADLINE):
        assert await long == Estimate(0, PIECE, "bytes")
        assert await queued == Estimate(0, 2, "bytes")
    assert len(gate.pieces) == 1
    assert estimator.estimate(Job(answer=text("abcdefgh"))) == Estimate(0, 2, "bytes")
    estimator.close()


class Panic(BaseException):
    """As a panic in tiktoken arrives."""


async def test_a_panic_of_the_tokenizer_is_a_piece_that_is_approximated() -> None:
    class Panicking(Gate):
        def encode_ordinary(self, piece: str) -> list[int]:
            raise Panic

    estimator = gated(Panicking())
    content = "The cat sat on the mat."
    assert await counted(estimator, Job(answer=text(content))) == Estimate(0, approximate(content), "tokenizer")
    estimator.close()


async def test_an_answer_that_cannot_be_decoded_is_estimated_by_its_size(gate: Gate) -> None:
    class Broken(Text):
        def decoded(self) -> str:
            raise ValueError

    answer = Broken(100)
    answer.add(b"abcdefgh")
    estimator = gated(gate)
    assert await counted(estimator, Job(answer=answer)) == Estimate(0, 2, "bytes")
    estimator.close()
