"""What a guard is asked, and what it says."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Path = tuple[str | int, ...]
"""Keys and indices from the root of a JSON document."""
Outcome = Literal["allow", "deny", "overload", "timeout", "failure", "unparsable"]
"""`overload`: not asked, or too late; `timeout`, `failure`: no answer; `unparsable`: an answer, or a request, that is
not understood."""


class Text(NamedTuple):
    """One text of a request: who says it, and where in the document it stands.

    `role` is in lower case. `message` is the number of its message, -1 for what stands beside the messages. Texts of
    one message are parts of one statement.
    """

    role: str
    text: str
    path: Path
    message: int = -1


@dataclass(frozen=True, slots=True)
class Asked:
    """What a guard is told of a request: the texts of the roles that it looks at, and whose request it is."""

    texts: tuple[Text, ...]
    model: str
    """That the client asks for; "" for none."""
    identity: Mapping[str, Any] | None
    request_id: str
    host: str
    path: str


class Verdict(NamedTuple):
    """What a guard says; it never raises.

    `outcome` other than `allow` and `deny` is why there was no verdict; `allowed` is what follows from it all the same.
    """

    allowed: bool
    outcome: Outcome = "allow"
    rule: str = ""
    """Which part of the guard decided, for metrics: `deny[0]`, `allow`, `model`, `webhook`."""
    reason: str = ""
    """For the log. Never what the request says."""
    message: str = ""
    """For the client, of the `asm` profile: what the guard says of it."""
    replacements: tuple[tuple[Path, str], ...] = ()
    """Texts of the request to be exchanged."""
    tokens: int = 0
    """That the guard itself took."""


ALLOWED = Verdict(allowed=True)

Answer = Verdict | Awaitable[Verdict]
"""At once, or later where the guard has to wait."""
