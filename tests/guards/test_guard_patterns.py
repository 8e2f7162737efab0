"""What patterns refuse, in which time, and that others do not wait for it."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from extproc.guards.offload import PatternWorker
from extproc.guards.patterns import PatternError, Patterns, Refusal
from extproc.guards.seam import Text
from extproc.guards.texts import read_texts, statements


def said(*texts: str) -> list[Text]:
    """Messages of a user."""
    return [Text("user", text, ("messages", index, "content"), index) for index, text in enumerate(texts)]


def rule_of(refusal: Refusal | None) -> str | None:
    return None if refusal is None else refusal.rule


# allow, deny, messages, the rule that refuses them
RULES: dict[str, tuple[list[str], list[str], list[str], str | None]] = {
    "S3.3": ([], [".*账号.*"], ["我的账号是什么"], "deny[0]"),
    "S3.3 anywhere": ([], ["账号"], ["我的账号是什么"], "deny[0]"),
    "harmless": ([], [".*账号.*"], ["你好"], None),
    "no rules": ([], [], ["anything"], None),
    "S3.5 every message": ([], ["x", "bad"], ["bad", "good"], "deny[1]"),
    "S3.5 a dot is no line's end": ([], ["a.b"], ["a\nb"], None),
    "S3.5 unless it is told": ([], ["(?s)a.b"], ["a\nb"], "deny[0]"),
    "case counts": ([], ["bad"], ["BAD"], None),
    "unless it is told": ([], ["good", "(?i)bad"], ["BAD"], "deny[1]"),
    "a flag is for its pattern alone": ([], ["(?i)bad", "worse"], ["WORSE"], None),
    "S3.6": (["weather"], [], ["the weather", "my account"], "allow"),
    "S3.6 any rule will do": (["weather", "account"], [], ["the weather", "my account"], None),
    "S3.6 empty text": (["weather"], [], [""], "allow"),
    "no texts": (["weather"], ["bad"], [], None),
    "deny comes first": (["weather"], ["bad"], ["other", "bad"], "deny[0]"),
    "ends": (["^[a-z]+$"], [], ["abc\nX"], "allow"),
    "quoting to the end": ([], [r"\Qa(b", "c"], ["c"], "deny[1]"),
    "quoting that would run into the next": ([], [r"\Qa", r"\Qx\E"], ["x"], "deny[1]"),
    "groups of the same name": ([], ["(?P<n>a)", "(?P<n>b)"], ["b"], "deny[1]"),
    "nul": ([], ["b"], ["a\x00b"], "deny[0]"),
    "control characters (S3.D6)": ([], ["\\x07"], ["a\x07"], "deny[0]"),
    "emoji tags (S3.D6)": ([], ["\U000e0001"], ["🏴\U000e0001\U000e007f"], "deny[0]"),
    "lone surrogate (S3.D6)": ([], ["bad"], ["\ud800bad\udfff"], "deny[0]"),
    "halves of a pair": ([], ["😀"], ["\ud83d\ude00"], "deny[0]"),
    "a lone surrogate is a character": ([], ["a.b"], ["a\ud800b"], "deny[0]"),
}


@pytest.mark.parametrize(("allow", "deny", "messages", "rule"), RULES.values(), ids=RULES)
def test_rules(allow: list[str], deny: list[str], messages: list[str], rule: str | None) -> None:
    assert rule_of(Patterns(allow, deny).judge(said(*messages))) == rule


def test_reasons_name_the_rule_and_nothing_of_the_text() -> None:
    """S3.6, S3.D8."""
    patterns = Patterns(["weather"], ["account"])
    denied, other = patterns.judge(said("secret account")), patterns.judge(said("secret"))
    assert denied is not None
    assert other is not None
    assert "was denied by deny rule" in denied.reason
    assert "was denied because no allow rule matched" in other.reason
    assert "secret" not in denied.reason + other.reason
    assert denied.outcome == other.outcome == "deny"


def test_a_word_split_over_parts_is_found() -> None:
    for parts in (["pass", "word"], ["hunt\nfor pass", "word"], ["a", "b"]):
        body = {"messages": [{"role": "user", "content": [{"type": "text", "text": part} for part in parts]}]}
        assert rule_of(Patterns(deny=["password", r"a\sb"]).judge(read_texts(body) or ())) is not None


@given(st.text(), st.text())
def test_more_text_hides_no_match(before: str, after: str) -> None:
    patterns = Patterns(deny=["never", ".*账号.*"])
    assert rule_of(patterns.judge(said(f"{before}账号{after}"))) is not None
    assert rule_of(patterns.judge(said(before, "账号", after))) is not None


@given(st.text(), st.text(), st.text())
def test_a_cut_hides_no_match(before: str, after: str, between: str) -> None:
    whole = f"{before}账{between}号{after}"
    for cut in range(len(whole) + 1):
        parts = [{"type": "text", "text": part} for part in (whole[:cut], whole[cut:])]
        texts = read_texts({"messages": [{"role": "user", "content": parts}]})
        assert rule_of(Patterns(deny=["(?s)账.*号"]).judge(texts or ())) == "deny[0]"


@given(
    st.lists(st.sampled_from(["a", "b+$", "^c", "(?i)D", "a|e", "", r"\bf", "(a+)+$", r"\Qg."]), max_size=5),
    st.text("abcdefgD. \n"),
)
def test_all_patterns_together_say_what_each_says(deny: list[str], text: str) -> None:
    each = [index for index, pattern in enumerate(deny) if Patterns(deny=[pattern]).denied_by(text)]
    assert Patterns(deny=deny).denied_by(text) == (f"deny[{each[0]}]" if each else None)
    assert (Patterns(allow=deny).judge(said(text)) is None) == (bool(each) or not deny)


EDGES = [
    "a",
    "b+$",
    "^c",
    r"\Ad",
    r"d\z",
    "(?-m)^a$",
    "(?m)^b$",
    "(?i)D",
    "",
    r"\bf",
    r"\B",
    r"f\Bf",
    "^$",
    r"c\sd",
    "(?s)a.b",
]


@given(
    st.lists(st.sampled_from(EDGES), min_size=1, max_size=4),
    st.lists(st.lists(st.text("abcdfD. \n", max_size=4), min_size=1, max_size=3), max_size=4),
)
@example([r"\Ad"], [["b"], ["d"]])
@example([r"d\z"], [["d"], ["b"]])
@example(["(?-m)^a$"], [["b"], ["a"], ["b"]])
@example(["(?i-m:^A)"], [["b"], ["a"]])
def test_one_search_of_everything_finds_what_a_search_of_each_finds(deny: list[str], messages: list[list[str]]) -> None:
    contents = [[{"type": "text", "text": part} for part in parts] for parts in messages]
    texts = read_texts({"messages": [{"role": "user", "content": content} for content in contents]}) or ()
    patterns = Patterns(deny=deny)
    found = next(filter(None, map(patterns.denied_by, statements(texts))), None)
    assert rule_of(patterns.judge(texts)) == found


@pytest.mark.parametrize("text", ['{"q": "\\u8d26\\u53f7"}', ' ["\\u8d26号"]', '{"q": "账号", "r": "\\'])
def test_nothing_hides_in_the_escapes_of_json(text: str) -> None:
    """S3.D2: arguments of tools are a string of JSON; a string that only looks like it is read as well."""
    assert rule_of(Patterns(deny=["harmless", "账号"]).judge(said("hello", text))) == "deny[1]"
    halves = [{"type": "text", "text": text[:9]}, {"type": "text", "text": text[9:]}]
    parts = read_texts({"messages": [{"role": "user", "content": halves}]}) or ()
    assert rule_of(Patterns(deny=["账号"]).judge(parts)) == "deny[0]"


@pytest.mark.parametrize(
    ("allow", "deny", "which"),
    [
        (["ok", "a)(b"], [], "allow[1]"),
        ([], ["(?=look)"], "deny[0]"),
        ([], [r"\1"], "deny[0]"),
        (["(?P<n"], [], "allow[0]"),
    ],
)
def test_patterns_that_are_none(allow: list[str], deny: list[str], which: str) -> None:
    """S3.13: the server refuses to start, and says why in these words."""
    with pytest.raises(PatternError) as caught:
        Patterns(allow, deny)
    pattern = (allow or deny)[-1]
    assert str(caught.value).startswith(f"error in compile regex {pattern}: ")
    assert which in str(caught.value)
    assert caught.value.rule == which


@pytest.mark.parametrize("pattern", ["\ud800", r"(?:\pL{500}\pN{500}){1}"])
def test_patterns_that_cannot_be_compiled(pattern: str) -> None:
    with pytest.raises(ValueError, match="error in compile regex"):
        Patterns(deny=[pattern])


LONG = 50_000
HARD: dict[str, tuple[str, str, bool]] = {
    "nested": ("(a+)+$", "a" * LONG, True),
    "nested, at the end not": ("(a+)+$", "a" * LONG + "!", False),
    "nested twice": ("(x+x+)+y", "x" * LONG, False),
    "many dots": ("(.*a){20}", "a" * LONG, True),
    "many dots, not": ("(.*a){20}b", "a" * LONG, False),
    "more states than memory": ("[ab]*a[ab]{20}c", "ab" * (LONG // 2), False),
    "more states than memory, found": ("[ab]*a[ab]{20}c", "abba" * (LONG // 4) + "c", True),
}


@pytest.mark.parametrize(("pattern", "text", "denied"), HARD.values(), ids=HARD)
def test_what_backtracks_elsewhere_is_decided_in_time(pattern: str, text: str, denied: bool) -> None:
    """S3.D12."""
    patterns = Patterns(deny=["something else", pattern])
    started = time.monotonic()
    assert patterns.denied_by(text) == ("deny[1]" if denied else None)
    assert time.monotonic() - started < 1


class Held(Patterns):
    """Patterns whose search ends when it is told to."""

    __slots__ = ("begun", "end", "searched")

    def __init__(self) -> None:
        super().__init__(deny=["bad"])
        self.begun = threading.Event()
        self.end = threading.Event()
        self.searched = 0

    def judge(self, texts: Sequence[Text]) -> Refusal | None:
        self.begun.set()
        self.searched += 1
        assert self.end.wait(10)
        return super().judge(texts)


class Broken(Patterns):
    """Patterns that raise."""

    __slots__ = ()

    def judge(self, texts: Sequence[Text]) -> Refusal | None:
        raise MemoryError


MakeWorker = Callable[..., PatternWorker]
BAD = said("x" * 10_000 + "bad")


@pytest.fixture
async def worker() -> AsyncIterator[MakeWorker]:
    made: list[PatternWorker] = []

    def make(**options: float) -> PatternWorker:
        made.append(PatternWorker(**{"workers": 1, **options}))
        return made[-1]

    yield make
    for one in made:
        one.close()


async def outcome(found: Refusal | Awaitable[Refusal | None] | None) -> str | None:
    refusal = found if found is None or isinstance(found, Refusal) else await found
    return None if refusal is None else refusal.outcome


def test_short_texts_are_judged_at_once() -> None:
    """Without a loop even."""
    worker = PatternWorker()
    assert rule_of(worker.judge(Patterns(deny=["bad"]), said("bad"))) == "deny[0]"  # type: ignore[arg-type]
    assert worker.judge(Patterns(deny=["bad"]), said("good")) is None
    worker.close()


async def test_long_texts_are_judged_elsewhere(worker: MakeWorker) -> None:
    searching = worker()
    found = searching.judge(Patterns(deny=["bad"]), BAD)
    assert found is not None
    assert not isinstance(found, Refusal)
    assert rule_of(await found) == "deny[0]"
    assert await outcome(searching.judge(Patterns(deny=["worse"]), BAD)) is None


def test_costly_patterns_are_not_for_the_event_loop_even_over_short_texts() -> None:
    assert Patterns(deny=["bad"]).at_once > 4000
    assert Patterns(deny=["(?:[ab]{1,30}a){30}c"]).at_once < 1000


async def test_too_many_are_refused_and_take_nothing_from_others(worker: MakeWorker) -> None:
    held, searching = Held(), worker(pending=2)
    first, second = searching.judge(held, BAD), searching.judge(held, BAD)
    assert await outcome(searching.judge(held, BAD)) == "failure"
    held.end.set()
    assert [await outcome(first), await outcome(second)] == ["deny", "deny"]
    assert await outcome(searching.judge(held, BAD)) == "deny"


async def test_too_much_text_is_refused(worker: MakeWorker) -> None:
    held, searching = Held(), worker(pending_size=15_000)
    first = searching.judge(held, BAD)
    assert await outcome(searching.judge(held, BAD)) == "failure"
    held.end.set()
    assert await outcome(first) == "deny"


async def test_a_search_past_its_deadline_is_refused(worker: MakeWorker) -> None:
    held, searching = Held(), worker(deadline=0.01)
    running, waiting = searching.judge(held, BAD), searching.judge(held, BAD)
    assert await asyncio.gather(outcome(running), outcome(waiting)) == ["timeout", "timeout"]
    held.end.set()
    searching.close()
    assert held.searched == 1, "what nobody waits for any more is not begun"


async def test_whoever_hangs_up_leaves_nothing_behind(worker: MakeWorker) -> None:
    held, searching = Held(), worker(pending=2)
    task = asyncio.ensure_future(outcome(searching.judge(held, BAD)))
    await asyncio.to_thread(held.begun.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    held.end.set()
    assert await outcome(searching.judge(held, BAD)) == "deny"
    both = searching.judge(held, BAD), searching.judge(held, BAD)
    assert [await outcome(found) for found in both] == ["deny", "deny"]


async def test_a_search_that_fails_refuses(worker: MakeWorker) -> None:
    assert await outcome(worker().judge(Broken(), BAD)) == "failure"


async def test_closing_refuses_what_waits(worker: MakeWorker) -> None:
    held, searching = Held(), worker()
    running, waiting = searching.judge(held, BAD), searching.judge(held, BAD)
    await asyncio.to_thread(held.begun.wait, 10)
    searching.close()
    held.end.set()
    assert [await outcome(running), await outcome(waiting)] == ["deny", "failure"]
    assert await outcome(searching.judge(held, BAD)) == "failure"


async def test_others_go_on_while_a_long_text_is_searched(worker: MakeWorker) -> None:
    """RE2 lets go of the interpreter: a search of some hundred milliseconds leaves the loop alone."""
    patterns = Patterns(deny=["(?:[ab]{1,30}a){30}c"])
    searching = asyncio.ensure_future(
        outcome(worker().judge(patterns, said("".join(random.Random(1).choices("ab", k=60_000)))))
    )
    turns = 0
    while not searching.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert await searching is None
    assert turns > 20


@pytest.mark.parametrize("extra", [{"stop": ["\n"]}, {"stop": "END"}, {"stop_sequences": ["x"]}])
def test_what_nobody_says_needs_no_allow_rule(extra: dict[str, Any]) -> None:
    """A name and stop sequences may be denied, but an allow list is about what is said (S3.6)."""
    message = {"role": "user", "content": "the weather", "name": "ann"}
    texts = read_texts({"messages": [message], **extra})
    assert texts is not None
    assert {"ann"} < {text.text for text in texts}
    assert Patterns(allow=["weather"]).judge(texts) is None
    assert Patterns(allow=["sports"]).judge(texts) is not None
    assert Patterns(deny=["^ann$"]).judge(texts) is not None
