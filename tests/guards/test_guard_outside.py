"""When somebody outside is asked: turns, deadlines, what is asked once, what is remembered. Without a network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.verdicts import whenever
from support.virtual_time import play

from extproc.config.guards import Outside, VerdictCache
from extproc.guards.http import HttpError, TooLongError
from extproc.guards.outside import (
    MAX_SHOWN,
    MAX_TEXTS,
    Questions,
    digest,
    failed,
    no_verdict,
    printable,
    to_json,
    too_much,
)
from extproc.guards.seam import Answer, Asked, Text, Verdict

KEY = b"key"
YES = Verdict(allowed=True, tokens=7)
NO = Verdict(allowed=False, outcome="deny", reason="no", tokens=7)


class Peer:
    """Counts who is asked, and lets them wait until `answer`."""

    def __init__(self, verdict: Verdict = YES) -> None:
        self.verdict = verdict
        self.asked = self.under_way = self.most = self.cancelled = 0
        self.answer = asyncio.Event()
        self.begun = asyncio.Semaphore(0)

    async def put(self) -> Verdict:
        self.asked += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.begun.release()
        try:
            await self.answer.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1
        return self.verdict


def waiting(answer: Answer) -> asyncio.Future[Verdict]:
    assert not isinstance(answer, Verdict)
    return asyncio.ensure_future(answer)


async def gives(verdict: Verdict) -> Verdict:
    return verdict


async def raises(error: Exception) -> Verdict:
    raise error


def questions(clock: Callable[[], float] = lambda: 0.0, **config: Any) -> Questions:
    return Questions("model", Outside(**config), clock)


def asked(*texts: str, role: str = "user", model: str = "") -> Asked:
    said = tuple(Text(role, text, ("messages", number), number) for number, text in enumerate(texts))
    return Asked(said, model, None, "", "", "")


# --- turns and deadlines


def test_no_more_are_asked_at_a_time_than_configured() -> None:
    async def scene() -> None:
        peer, line = Peer(), questions(max_concurrent=3)
        answers = [waiting(line.ask(bytes([number]), peer.put)) for number in range(10)]
        for _ in range(3):
            await peer.begun.acquire()
        assert (peer.asked, peer.under_way) == (3, 3)
        peer.answer.set()
        assert {verdict.allowed for verdict in await asyncio.gather(*answers)} == {True}
        assert (peer.asked, peer.most) == (10, 3)

    play(scene())


@pytest.mark.parametrize(("mode", "allowed"), [("deny", False), ("allow", True)])
def test_waiting_for_a_turn_counts_into_the_deadline(mode: str, allowed: bool) -> None:
    """`onTimeout` is for who was asked at once; the others are too many, which clients can see to."""

    async def scene() -> None:
        peer, line = Peer(), questions(max_concurrent=1, timeout=10.0, on_timeout=mode, on_failure="allow")
        answers = [waiting(line.ask(bytes([number]), peer.put)) for number in range(3)]
        verdicts = await asyncio.gather(*answers)
        assert asyncio.get_running_loop().time() == pytest.approx(10.0)
        assert [(verdict.allowed, verdict.outcome) for verdict in verdicts] == [
            (allowed, "timeout"),
            (False, "overload"),
            (False, "overload"),
        ]
        assert {verdict.rule for verdict in verdicts} == {"model"}
        assert peer.asked == peer.cancelled == 1

    play(scene())


def test_a_turn_that_comes_late_leaves_too_little_time_for_an_answer() -> None:
    """Who keeps the line busy must not get its next question past a guard that is no slower than usual."""

    async def scene() -> None:
        peer, line = Peer(), questions(max_concurrent=1, timeout=10.0, on_timeout="allow", on_failure="allow")
        first = waiting(line.ask(b"first", peer.put))
        await peer.begun.acquire()
        await asyncio.sleep(1)
        second = waiting(line.ask(b"second", peer.put))
        await peer.begun.acquire()
        assert ((await first).outcome, peer.asked) == ("timeout", 2)
        assert not (verdict := await second).allowed
        assert verdict.outcome == "overload"
        assert asyncio.get_running_loop().time() == pytest.approx(11.0)

    play(scene())


@pytest.mark.parametrize("mode", ["deny", "allow"])
def test_who_finds_the_line_full_is_refused_at_once(mode: str) -> None:
    """Whatever is configured: any client can fill it."""

    async def scene() -> None:
        peer, line = Peer(), questions(max_concurrent=2, on_failure=mode, on_timeout=mode)
        answers = [waiting(line.ask(bytes([number]), peer.put)) for number in range(22)]
        await peer.begun.acquire()
        late = await whenever(line.ask(b"late", peer.put))
        assert (late.allowed, late.outcome) == (False, "overload")
        assert late.reason == "too many questions wait for their turn"
        assert asyncio.get_running_loop().time() == 0
        peer.answer.set()
        assert all(verdict.outcome == "allow" for verdict in await asyncio.gather(*answers))
        assert (await whenever(line.ask(b"later", peer.put))).outcome == "allow", "places are given back"

    play(scene())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (HttpError("cannot connect"), failed("external service: cannot connect")._replace(allowed=True)),
        (TooLongError("answer is too long"), no_verdict("external service: answer is too long")),
        (KeyError("the prompt"), no_verdict("external service: KeyError")),
    ],
)
async def test_what_goes_wrong_tells_nothing(error: Exception, expected: Verdict) -> None:
    """An answer that does not end, and a defect of ours: a prompt may be the cause of either, so none passes."""
    verdict = await whenever(questions(on_failure="allow", on_timeout="allow").ask(KEY, lambda: raises(error)))
    assert verdict == expected._replace(rule="model")


@pytest.mark.parametrize("outcome", ["deny", "overload", "unparsable"])
async def test_only_failures_and_timeouts_can_be_allowed(outcome: Any) -> None:
    line = questions(on_failure="allow", on_timeout="allow")
    answered = Verdict(allowed=True, outcome=outcome)
    assert not (await whenever(line.ask(KEY, lambda: gives(answered)))).allowed


# --- the same question


def test_who_asks_the_same_at_the_same_time_shares_an_answer() -> None:
    """And its tokens are counted once."""

    async def scene() -> None:
        peer, line = Peer(), questions()
        answers = [waiting(line.ask(KEY, peer.put)) for _ in range(5)]
        other = waiting(line.ask(b"other", peer.put))
        await peer.begun.acquire()
        await peer.begun.acquire()
        peer.answer.set()
        verdicts = await asyncio.gather(*answers)
        assert peer.asked == 2
        assert sorted(verdict.tokens for verdict in verdicts) == [0, 0, 0, 0, 7]
        assert (await other).tokens == 7

    play(scene())


def test_one_who_leaves_takes_nobodys_answer_along() -> None:
    """Not the one who asked first either; what it cost is told to another."""

    async def scene() -> None:
        peer, line = Peer(), questions()
        first, second, third = (waiting(line.ask(KEY, peer.put)) for _ in range(3))
        await peer.begun.acquire()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        peer.answer.set()
        assert {(await second).tokens, (await third).tokens} == {7, 0}
        assert (peer.asked, peer.cancelled) == (1, 0)

    play(scene())


def test_a_question_that_nobody_waits_for_is_cancelled() -> None:
    async def scene() -> None:
        peer, line = Peer(), questions()
        answers = [waiting(line.ask(KEY, peer.put)) for _ in range(2)]
        await peer.begun.acquire()
        for answer in answers:
            answer.cancel()
        await asyncio.wait(answers)
        await asyncio.sleep(0)
        assert (peer.asked, peer.cancelled) == (1, 1)

    play(scene())


def test_nobody_joins_a_question_that_is_on_its_way_out() -> None:
    """Asked again at the moment the last one leaves, before the question knows that it is cancelled."""

    async def scene() -> None:
        peer, line = Peer(), questions()

        async def leaves_and_comes_back() -> Verdict:
            try:
                return await whenever(line.ask(KEY, peer.put))
            except asyncio.CancelledError:
                peer.answer.set()
                return await whenever(line.ask(KEY, peer.put))

        answer = asyncio.create_task(leaves_and_comes_back())
        await peer.begun.acquire()
        answer.cancel()
        assert (await answer).allowed
        assert peer.asked == 2

    play(scene())


def test_one_who_leaves_while_waiting_for_a_turn_gives_it_up() -> None:
    async def scene() -> None:
        peer, line = Peer(), questions(max_concurrent=1)
        first, second, third = (waiting(line.ask(bytes([number]), peer.put)) for number in range(3))
        await peer.begun.acquire()
        second.cancel()
        await asyncio.wait([second])
        peer.answer.set()
        assert (await first).allowed
        assert (await third).allowed
        assert peer.asked == 2

    play(scene())


# --- what is remembered


@pytest.mark.parametrize("verdict", [YES, NO])
async def test_a_verdict_is_remembered_and_costs_nothing_the_second_time(verdict: Verdict) -> None:
    line = questions()
    first = await whenever(line.ask(KEY, lambda: gives(verdict)))
    assert first == verdict._replace(rule="model")
    assert line.ask(KEY, lambda: raises(AssertionError())) == first._replace(tokens=0)


@pytest.mark.parametrize("outcome", ["failure", "timeout", "overload", "unparsable"])
async def test_what_is_no_verdict_is_not_remembered(outcome: Any) -> None:
    line = questions()
    await whenever(line.ask(KEY, lambda: gives(Verdict(allowed=False, outcome=outcome))))
    assert (await whenever(line.ask(KEY, lambda: gives(YES)))).allowed


async def test_a_verdict_is_forgotten_in_time() -> None:
    now = 100.0
    line = questions(lambda: now, cache=VerdictCache(ttl=60.0))
    await whenever(line.ask(KEY, lambda: gives(YES)))
    now = 159.9
    assert isinstance(line.ask(KEY, lambda: gives(NO)), Verdict)
    now = 160.0
    assert (await whenever(line.ask(KEY, lambda: gives(NO)))).outcome == "deny"


async def test_the_verdict_not_used_for_longest_gives_way() -> None:
    line = questions(cache=VerdictCache(entries=2))
    for key in (b"a", b"b", b"a", b"c"):
        await whenever(line.ask(key, lambda: gives(YES)))
    assert isinstance(line.ask(b"a", lambda: gives(NO)), Verdict)
    assert isinstance(line.ask(b"c", lambda: gives(NO)), Verdict)
    assert (await whenever(line.ask(b"b", lambda: gives(NO)))).outcome == "deny"


@pytest.mark.parametrize(
    ("verdict", "entries"),
    [(YES, 0), (Verdict(allowed=True, replacements=((("prompt",), "x" * 16_385),)), 1000)],
    ids=["none are", "too large"],
)
async def test_a_verdict_that_is_not_kept(verdict: Verdict, entries: int) -> None:
    line = questions(cache=VerdictCache(entries=entries))
    await whenever(line.ask(KEY, lambda: gives(verdict)))
    assert (await whenever(line.ask(KEY, lambda: gives(NO)))).outcome == "deny"


@given(st.lists(st.sampled_from("abcde"), max_size=30), st.integers(1, 4))
def test_never_more_are_kept_than_configured(keys: list[str], entries: int) -> None:
    async def scene() -> None:
        line = questions(cache=VerdictCache(entries=entries))
        for key in keys:
            await whenever(line.ask(key.encode(), lambda: gives(YES)))
        kept = 0
        for key in set(keys):
            answer = line.ask(key.encode(), lambda: gives(failed("gone")))
            kept += isinstance(answer, Verdict)
            await whenever(answer)
        assert kept == min(len(set(keys)), entries)

    asyncio.run(scene())


# --- what is sent


@pytest.mark.parametrize(
    ("request_", "fits"),
    [
        (asked(), True),
        (asked("x" * 96), True),
        (asked("x" * 97), False),
        (asked("ж" * 48), True),
        (asked("ж" * 48 + "x"), False),
        (asked("\ud800" * 33), False),
        (asked(*["x" * 44] * 2), True),
        (asked(*["x" * 44] * 2, "x"), False),
        (asked("x", role="r" * 100), False),
        (asked("x", model="m" * 100), False),
        (asked(*[""] * 25), True),
        (asked(*[""] * MAX_TEXTS, "", role=""), False),
    ],
)
def test_what_is_too_much_is_measured_in_bytes(request_: Asked, fits: bool) -> None:
    assert bool(too_much(request_, 100)) is not fits


def test_a_refusal_without_a_question() -> None:
    assert questions(on_failure="allow").refused("too long") == Verdict(
        allowed=False, outcome="deny", rule="model", reason="too long", message="too long"
    )


ANY_TEXT = st.text(st.characters(), max_size=20)


@given(ANY_TEXT)
def test_every_text_arrives(text: str) -> None:
    """S3.D6: as it is, but for halves of surrogate pairs, which are no characters."""
    (arrived,) = json.loads(to_json([text]))
    assert arrived == text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@pytest.mark.parametrize(
    "text",
    [
        "".join(map(chr, range(32))),
        "\x7f\x85\u2028\u2029\ufeff",
        '"\\',
        "\U000e0001\U000e0061\U000e007f",
        "\u202e",
        "\ufffe",
    ],
    ids=["control", "separators", "quotes", "tags", "bidi", "noncharacter"],
)
@pytest.mark.parametrize("beside", ["", "\ud800"])
def test_characters_that_broke_the_question_elsewhere(text: str, beside: str) -> None:
    assert json.loads(to_json([text, beside])) == [text, beside and "\ufffd"]


@pytest.mark.parametrize("value", [object(), float("nan"), {1: object()}, b"bytes"])
def test_what_is_no_json_is_said_or_made_null(value: Any) -> None:
    if value != value:
        assert to_json(value) == b"null"
    else:
        with pytest.raises((TypeError, ValueError)):
            to_json(value)


@given(st.lists(st.tuples(ANY_TEXT, ANY_TEXT), max_size=4), st.lists(st.tuples(ANY_TEXT, ANY_TEXT), max_size=4))
def test_different_questions_are_never_taken_for_one(a: list[tuple[str, str]], b: list[tuple[str, str]]) -> None:
    assert (digest(a) == digest(b)) == (to_json(a) == to_json(b))


def test_what_is_shown_is_short_and_on_one_line() -> None:
    assert printable('{"result":"deny","reason":"含有QQ号"}') == '{"result":"deny","reason":"含有QQ号"}'
    assert printable("a\r\nb\x1b[31m\u202ec") == "a  b [31m c"
    assert len(printable("x" * 2 * MAX_SHOWN)) == MAX_SHOWN + 1


async def test_an_awaitable_is_not_a_verdict() -> None:
    """What the seam says of telling the two apart."""
    answer = questions().ask(KEY, lambda: gives(YES))
    assert isinstance(answer, Awaitable)
    assert not isinstance(answer, Verdict)
    await answer
