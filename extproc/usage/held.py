"""Prompts held for as long as their exchange may need an estimate, within one budget for all exchanges."""

from __future__ import annotations


class PromptBudget:
    """Bytes of prompts that may be held at a time."""

    __slots__ = ("held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0


class HeldPrompt:
    """One request body as it goes by. Call `release` when the exchange is over."""

    __slots__ = ("_budget", "_pieces", "size")

    def __init__(self, budget: PromptBudget) -> None:
        self.size = 0
        self._budget = budget
        self._pieces: list[bytes] | None = []

    def add(self, piece: bytes) -> None:
        """Hold one more piece; a body that does not fit into the budget is let go altogether."""
        self.size += len(piece)
        if self._pieces is None:
            return
        if self._budget.held + len(piece) > self._budget.limit:
            self.release()
            return
        self._budget.held += len(piece)
        self._pieces.append(piece)

    def body(self) -> bytes | None:
        """What was held, None when it was let go."""
        return None if self._pieces is None else b"".join(self._pieces)

    def release(self) -> None:
        """Let go of it; `size` stays. Any number of times."""
        if self._pieces is not None:
            self._budget.held -= sum(map(len, self._pieces))
            self._pieces = None
