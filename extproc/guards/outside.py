"""Asking somebody outside: when to ask, whom else the answer is for, how long it is remembered."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from yarl import URL

from extproc.config.guards import Outside, VerdictCache
from extproc.config.providers import Credential
from extproc.guards.http import MAX_ANSWER, HttpClient, HttpError, Response, TooLongError
from extproc.guards.seam import Answer, Asked, Outcome, Verdict

Clock = Callable[[], float]
"""Seconds that never go back."""
Put = Callable[[], Awaitable[Verdict]]
"""Puts a question; gives a verdict, of which `allowed` counts for `allow` and `deny` only, or raises HttpError."""

MAX_TEXTS = 10_000
"""Texts of one request that are sent; requests with more are refused."""
MAX_SHOWN = 1024
"""Characters that are kept of what an answer says to people."""
_WAITING = 10
"""So many times `max_concurrent` questions may wait for their turn."""
_MAX_REMEMBERED = 16 * 1024
"""Characters of replacements in a verdict that is remembered."""
_FRAMING = frozenset(
    ("connection", "content-encoding", "content-length", "content-type", "expect", "te", "trailer", "transfer-encoding")
)


class Peer:
    """Where one guard's questions go, and with which headers. Raises ValueError that begins with the field's name."""

    def __init__(
        self,
        url: URL,
        config: Outside,
        secret: str | None,
        client: HttpClient,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._url = str(url)
        self._client = client
        self._trust = client.trust(config.ca)
        self._headers = {
            **_sendable(headers or {}),
            **_authorization(config, secret),
            "content-type": "application/json",
        }

    async def post(self, body: bytes, longest: int = MAX_ANSWER) -> Response:
        """The answer to `body`, which is JSON. Raises HttpError."""
        return await self._client.post(self._url, body, self._headers, self._trust, longest)


class Questions:
    """The questions to one peer.

    At most `max_concurrent` are put at a time, ten times as many wait, all of them within their deadline. Those that
    are the same are put once, for all who wait for them, and until the last of these is gone. Verdicts are
    remembered, nothing else is. The tokens of a verdict are told to the first who gets it.
    """

    def __init__(self, rule: str, config: Outside, clock: Clock = time.monotonic) -> None:
        self._rule = rule
        self._config = config
        self._most = config.max_concurrent * (1 + _WAITING)
        self._turns = asyncio.Semaphore(config.max_concurrent)
        self._under_way: dict[bytes, _Question] = {}
        self._verdicts = _Verdicts(config.cache, clock)

    def ask(self, key: bytes, put: Put) -> Answer:
        """The verdict on the question that `key` stands for; never raises, but CancelledError when awaited."""
        remembered = self._verdicts.get(key)
        return self._join(key, put) if remembered is None else remembered

    def refused(self, reason: str) -> Verdict:
        """The verdict on a request about which nobody is asked."""
        return Verdict(allowed=False, outcome="deny", rule=self._rule, reason=reason, message=reason)

    def _settled(self, verdict: Verdict) -> Verdict:
        """`verdict`, with what follows from it where it is none.

        Only what a client has no part in can be let pass: it may ask so much that there is no turn for it, and write
        what the answer to it is not a verdict for.
        """
        match verdict.outcome:
            case "allow":
                allowed = verdict.allowed
            case "timeout":
                allowed = self._config.on_timeout == "allow"
            case "failure":
                allowed = self._config.on_failure == "allow"
            case _:
                allowed = False
        return verdict._replace(rule=self._rule, allowed=allowed)

    async def _join(self, key: bytes, put: Put) -> Verdict:
        question = self._under_way.get(key)
        if question is None:
            if len(self._under_way) >= self._most:
                return self._settled(_OVERLOADED)
            question = self._under_way[key] = _Question(asyncio.create_task(self._answer(key, put)))
        question.waiting += 1
        try:
            verdict = await asyncio.shield(question.task)
        finally:
            question.waiting -= 1
            if not question.waiting and not question.task.done():
                # Gone at once, so that nobody joins a question that is on its way out.
                self._forget(key, question.task)
                question.task.cancel()
        return question.paid(verdict)

    async def _answer(self, key: bytes, put: Put) -> Verdict:
        try:
            verdict = await self._put(put)
        finally:
            self._forget(key, asyncio.current_task())
        verdict = self._settled(verdict)
        if verdict.outcome in ("allow", "deny"):
            self._verdicts.add(key, verdict)
        return verdict

    async def _put(self, put: Put) -> Verdict:
        # What had to wait had less time for its answer: that is not for the guard to answer for.
        waits = self._turns.locked()
        try:
            async with asyncio.timeout(self._config.timeout), self._turns:
                return await put()
        except TimeoutError:
            return _OVERLOADED if waits else _LATE
        except TooLongError as error:
            return no_verdict(f"external service: {error}")
        except HttpError as error:
            return failed(f"external service: {error}")
        except Exception as error:  # noqa: BLE001 - a defect must not let a request pass, nor cost its stream
            return no_verdict(f"external service: {type(error).__name__}")

    def _forget(self, key: bytes, task: asyncio.Task[Any] | None) -> None:
        question = self._under_way.get(key)
        if question is not None and question.task is task:
            del self._under_way[key]


class _Question:
    """One that is under way."""

    __slots__ = ("_free", "task", "waiting")

    def __init__(self, task: asyncio.Task[Verdict]) -> None:
        self.task = task
        self.waiting = 0
        self._free = False

    def paid(self, verdict: Verdict) -> Verdict:
        """`verdict` for one who waited; its tokens are told once."""
        free, self._free = self._free, True
        return verdict._replace(tokens=0) if free else verdict


class _Verdicts:
    """Those given lately, by the digest of their question; the one not used for longest gives way."""

    def __init__(self, config: VerdictCache, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._kept: OrderedDict[bytes, tuple[float, Verdict]] = OrderedDict()

    def get(self, key: bytes) -> Verdict | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        until, verdict = kept
        if self._clock() >= until:
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        return verdict

    def add(self, key: bytes, verdict: Verdict) -> None:
        if not self._config.entries or sum(len(text) for _, text in verdict.replacements) > _MAX_REMEMBERED:
            return
        self._kept[key] = self._clock() + self._config.ttl, verdict._replace(tokens=0)
        self._kept.move_to_end(key)
        if len(self._kept) > self._config.entries:
            self._kept.popitem(last=False)


def failed(reason: str, outcome: Outcome = "failure") -> Verdict:
    """No answer, and why: in words that hold nothing of the request, for the log and for the client."""
    return Verdict(allowed=False, outcome=outcome, reason=reason, message=reason)


def no_verdict(reason: str, tokens: int = 0) -> Verdict:
    """An answer that is no clear verdict, which never allows (S3.D3): the request may have talked it out of one."""
    return failed(reason, "unparsable")._replace(tokens=tokens)


_OVERLOADED = failed("too many questions wait for their turn", "overload")
_LATE = failed("external service did not answer in time", "timeout")


def wrong_status(status: int) -> Verdict:
    """No verdict, because of another status than 200."""
    return failed(f"external service returned non-200 status : {status}")


def too_much(asked: Asked, most: int) -> str:
    """Why nobody is asked about so much, "" where it fits into `most` bytes.

    A part would not do: what is not seen is not guarded. All that a client may write counts.
    """
    if len(asked.texts) > MAX_TEXTS:
        return f"request has more than {MAX_TEXTS} texts"
    size = _size(asked.model)
    for text in asked.texts:
        size += _size(text.role) + _size(text.text)
        if size > most:
            return f"request has more than {most} bytes of text"
    return ""


def to_json(document: Any) -> bytes:
    """`document` as JSON; what is no character, half of a surrogate pair, becomes U+FFFD.

    Raises TypeError, ValueError or RecursionError for what is no JSON.
    """
    try:
        return orjson.dumps(document, default=_plain)
    except orjson.JSONEncodeError:  # surrogates, or an integer of more than 64 bits
        written = json.dumps(document, ensure_ascii=False, allow_nan=False, default=_plain)
        return written.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def digest(document: Any) -> bytes:
    """What a question is recognised by. Raises what `to_json` does."""
    return hashlib.sha256(to_json(document)).digest()


def printable(text: str) -> str:
    """`text` on one line, not too long, and safe to show."""
    return "".join(c if c.isprintable() else " " for c in text[:MAX_SHOWN]) + ("…" if len(text) > MAX_SHOWN else "")


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"no JSON: {type(value).__name__}")


def _authorization(config: Outside, secret: str | None) -> dict[str, str]:
    if secret is None or not isinstance(config.credential, Credential):
        return {}
    value = config.credential.carried(secret)
    if not secret or not _fits_header(value):
        raise ValueError("credential: expected a secret that a header can carry: ASCII, on one line and not empty")
    return {config.credential.header: value}


def _sendable(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if name in _FRAMING:
            raise ValueError(f"headers: `{name}` cannot be chosen")
        if not _fits_header(value):
            raise ValueError(f"headers: `{name}`: expected ASCII on one line")
    return dict(headers)


def _fits_header(value: str) -> bool:
    return value.isascii() and value.isprintable()
