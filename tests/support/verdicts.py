"""Answers of guards, which come at once or later."""

from __future__ import annotations

from extproc.guards.seam import Answer, Verdict


async def whenever(answer: Answer) -> Verdict:
    """The verdict."""
    return answer if isinstance(answer, Verdict) else await answer
