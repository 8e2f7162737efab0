"""Prompts held for estimates never take more memory than they may, and give all of it back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from extproc.usage.held import HeldPrompt, PromptBudget


def test_what_is_held_is_what_came() -> None:
    budget = PromptBudget(100)
    prompt = HeldPrompt(budget)
    assert prompt.body() == b""
    prompt.add(b"one ")
    prompt.add(b"two")
    assert (prompt.body(), prompt.size, budget.held) == (b"one two", 7, 7)


def test_release_keeps_the_size_and_may_come_twice() -> None:
    """An exchange that is denied, cut and closed releases more than once."""
    budget = PromptBudget(100)
    prompt = HeldPrompt(budget)
    prompt.add(b"one")
    prompt.release()
    prompt.release()
    assert (prompt.body(), prompt.size, budget.held) == (None, 3, 0)


def test_what_comes_after_the_release_is_only_counted() -> None:
    budget = PromptBudget(100)
    prompt = HeldPrompt(budget)
    prompt.release()
    prompt.add(b"late")
    assert (prompt.body(), prompt.size, budget.held) == (None, 4, 0)


def test_a_prompt_may_fill_the_budget_and_not_a_byte_more() -> None:
    budget = PromptBudget(4)
    prompt = HeldPrompt(budget)
    prompt.add(b"four")
    assert prompt.body() == b"four"
    prompt.add(b"!")
    assert (prompt.body(), prompt.size, budget.held) == (None, 5, 0)


def test_one_prompt_too_many_takes_nothing_from_the_others() -> None:
    """The one that does not fit is let go of altogether: half a prompt is worth no more than its size."""
    budget = PromptBudget(10)
    first, second, third = (HeldPrompt(budget) for _ in range(3))
    first.add(b"x" * 6)
    second.add(b"y" * 3)
    second.add(b"y" * 3)
    assert (first.body(), second.body(), budget.held) == (b"x" * 6, None, 6)
    third.add(b"z" * 4)
    assert (third.body(), budget.held) == (b"z" * 4, 10)
    first.release()
    second.add(b"y")
    assert (second.body(), second.size, budget.held) == (None, 7, 4)


steps = st.lists(st.tuples(st.integers(0, 4), st.one_of(st.none(), st.binary(max_size=40))), max_size=60)


@given(steps, st.integers(0, 100))
def test_the_budget_is_the_sum_of_what_is_held(moves: list[tuple[int, bytes | None]], limit: int) -> None:
    """In any order of pieces and releases: never above the limit, never below nothing, nothing left at the end."""
    budget = PromptBudget(limit)
    prompts = [HeldPrompt(budget) for _ in range(5)]
    came = [b""] * 5
    for which, piece in moves:
        if piece is None:
            prompts[which].release()
        else:
            came[which] += piece
            prompts[which].add(piece)
        assert 0 <= budget.held <= limit
        assert budget.held == sum(len(prompt.body() or b"") for prompt in prompts)
    for prompt, everything in zip(prompts, came, strict=True):
        assert prompt.size == len(everything)
        assert prompt.body() in (None, everything)
        prompt.release()
    assert budget.held == 0
