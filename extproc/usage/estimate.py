"""How many tokens an exchange took, when nobody says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from extproc.bodies.text import Text
from extproc.usage.approximate import SECRET, approximate
from extproc.usage.prompt import read_prompt
from extproc.usage.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tiktoken import Encoding

BYTES_PER_TOKEN = 4
"""Of what is known by its size alone: English text, code and JSON come to about that in every common vocabulary."""

PIECE = 16_384
"""Characters that are tokenised at a time: the worst take 6 ms. tiktoken panics on a megabyte of spaces."""
_SEAM = 1024
"""Characters at the end of a piece in which a place to cut is looked for."""

Method = Literal["tokenizer", "bytes"]


class Job(NamedTuple):
    """What there is to go by. A part that nobody wants to know is None and has size 0. Sizes are in bytes."""

    model: str = ""
    prompt: bytes | None = None
    """The request body, if it is held."""
    prompt_size: int = 0
    """Of the request body."""
    answer: Text | None = None
    answer_size: int = 0
    """Of the answer's body, where no text was recognised in it."""


class Estimate(NamedTuple):
    """Tokens. The method is `tokenizer` where every token wanted was counted in a vocabulary."""

    prompt: int
    completion: int
    method: Method


class Estimator:
    """Estimates for a whole process; call `close` when it ends.

    Text is tokenised in `workers` threads. At most `pending` jobs with `pending_bytes` of bodies and text are under
    way; further ones are estimated by their sizes at once, as everything is without a loaded vocabulary. `seed` decides
    which places of long texts are looked at where nothing is tokenised.
    """

    __slots__ = ("_bytes", "_closed", "_jobs", "_lock", "_pending", "_pending_bytes", "_pool", "_seed", "_vocabulary")

    def __init__(
        self,
        vocabulary: Vocabulary | None = None,
        *,
        workers: int = 1,
        pending: int = 256,
        pending_bytes: int = 16 << 20,
        seed: int = SECRET,
    ) -> None:
        self._vocabulary = vocabulary
        self._seed = seed
        self._pending = pending
        self._pending_bytes = pending_bytes
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="tokens")
        self._lock = threading.Lock()
        self._jobs = 0
        self._bytes = 0
        self._closed = False

    def estimate(self, job: Job) -> Estimate | Awaitable[Estimate]:
        """At once, or an awaitable where text is tokenised, which needs a running loop; never an error.

        Any number of tasks may await the awaitable, or none; one that is cancelled takes nothing from the others.
        """
        encoding = None if self._vocabulary is None else self._vocabulary.encoding_for(job.model)
        if encoding is None:
            return _approximated(job, self._seed)
        size = len(job.prompt or b"") + (job.answer.kept if job.answer is not None else 0)
        if not size or not self._admit(size):
            return by_size(job)
        try:
            future = self._pool.submit(self._run, job, encoding, size)
        except RuntimeError:
            self._leave(size)
            return by_size(job)
        return _Later(asyncio.wrap_future(future))

    def close(self) -> None:
        """What is under way is estimated by its size at the next occasion; so is everything from now on."""
        self._closed = True
        self._pool.shutdown(wait=False)

    def _admit(self, size: int) -> bool:
        with self._lock:
            if self._closed or self._jobs >= self._pending or self._bytes + size > self._pending_bytes:
                return False
            self._jobs += 1
            self._bytes += size
            return True

    def _leave(self, size: int) -> None:
        with self._lock:
            self._jobs -= 1
            self._bytes -= size

    def _run(self, job: Job, encoding: Encoding, size: int) -> Estimate:
        try:
            return self._tokenised(job, encoding)
        except BaseException:  # noqa: BLE001 - whoever waits is to get a number
            return by_size(job)
        finally:
            self._leave(size)

    def _tokenised(self, job: Job, encoding: Encoding) -> Estimate:
        method: Method = "tokenizer"
        prompt = None if job.prompt is None else read_prompt(job.prompt)
        if prompt is not None:
            prompt_tokens = prompt.overhead + sum(self._count(text, encoding) for text in prompt.texts)
        else:
            prompt_tokens = _tokens_of(_prompt_size(job))
            method = "bytes" if prompt_tokens else method
        if job.answer is not None and (job.answer.kept or not job.answer.size):
            completion = _extrapolated(job.answer, self._count(job.answer.decoded(), encoding))
        else:
            completion = _tokens_of(_answer_size(job))
            method = "bytes" if completion else method
        return Estimate(prompt_tokens, completion, method)

    def _count(self, text: str, encoding: Encoding) -> int:
        tokens = 0
        for piece in pieces(text):
            if self._closed:
                raise _ClosedError
            tokens += _count_piece(piece, encoding)
        return tokens


class _ClosedError(Exception):
    """The estimator was closed in the middle of a job."""


class _Later:
    """An estimate under way. Each await has a future of its own, so that cancelling one leaves the job alone."""

    __slots__ = ("_future",)

    def __init__(self, future: asyncio.Future[Estimate]) -> None:
        self._future = future

    def __await__(self) -> Generator[Any, None, Estimate]:
        return asyncio.shield(self._future).__await__()


def pieces(text: str, length: int = PIECE) -> Iterator[str]:
    """Cut a text so that tokens of the pieces are, wherever words allow, tokens of the whole."""
    start = 0
    while len(text) - start > length:
        end = _seam(text, start, start + length)
        yield text[start:end]
        start = end
    yield text[start:]


def _seam(text: str, start: int, limit: int) -> int:
    """The last place before a single space between words, else the limit.

    No pattern of tiktoken's joins anything to a space that follows it, or looks ahead from a word.
    """
    first = max(start, limit - _SEAM)
    space = text.rfind(" ", first + 1, limit)
    while space > first:
        if not text[space - 1].isspace() and not text[space + 1].isspace():
            return space
        space = text.rfind(" ", first + 1, space)
    return limit


def _count_piece(piece: str, encoding: Encoding) -> int:
    try:
        return len(encoding.encode_ordinary(piece))
    except BaseException:  # noqa: BLE001 - a panic of tiktoken is no Exception
        return approximate(piece)


def _approximated(job: Job, seed: int) -> Estimate:
    prompt = None if job.prompt is None else read_prompt(job.prompt)
    if prompt is not None:
        prompt_tokens = prompt.overhead + approximate("".join(prompt.texts), seed)
    else:
        prompt_tokens = _tokens_of(_prompt_size(job))
    if job.answer is not None and job.answer.kept:
        completion = _extrapolated(job.answer, approximate(job.answer.decoded(), seed))
    else:
        completion = _tokens_of(_answer_size(job))
    return Estimate(prompt_tokens, completion, "bytes")


def by_size(job: Job) -> Estimate:
    """An estimate that takes no time, for what is known by its size alone."""
    return Estimate(_tokens_of(_prompt_size(job)), _tokens_of(_answer_size(job)), "bytes")


def _prompt_size(job: Job) -> int:
    return max(job.prompt_size, len(job.prompt or b""))


def _answer_size(job: Job) -> int:
    return job.answer_size if job.answer is None else job.answer.size


def _tokens_of(size: int) -> int:
    return -(-size // BYTES_PER_TOKEN)


def _extrapolated(answer: Text, tokens: int) -> int:
    """What was kept of an answer stands for all of it."""
    return tokens if answer.kept >= answer.size else -(-tokens * answer.size // answer.kept)
