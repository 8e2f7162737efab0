"""The rules of one AuthConfig: who is let in, as whom, and what the model gets to see of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, Literal, TypeVar

from extproc.expressions import text_of
from extproc.facts import RequestFacts
from extproc.identity.address import host_and_port
from extproc.identity.denials import NO_USER, Denials
from extproc.identity.readings import NO_VALUE, Needs, Reading, Sight
from extproc.identity.seam import Headers, Verdict
from extproc.identity.sources import Caller, CallerSource

ANONYMOUS: Final = "anonymous"
"""The user that callers without one are together, where they are to be."""

T = TypeVar("T")
OnMissingUser = Literal["allow", "deny", "address", "shared"]
Auth = Mapping[str, Any]
_CARRIED = re.compile(r"[\t\x20-\x7e\x80-\ud7ff\ue000-\U0010ffff]+")
_NONE: Final = object()
"""No value: null would be one."""


class Stage(Generic[T]):
    """One thing to find out about a caller; once and for all, where it does not depend on the request."""

    def __init__(self, name: str, readings: Iterable[Reading], find: Callable[[Sight], T]) -> None:
        self.readings = tuple(readings)
        self.repeatable = all(reading.repeatable for reading in self.readings)
        self._name = name
        self._find = find

    def of(self, caller: Caller, sight: Sight) -> T:
        if not self.repeatable:
            return self._find(sight)
        if caller.known is None:
            caller.known = {}
        if self._name not in caller.known:
            caller.known[self._name] = self._find(sight)
        found: T = caller.known[self._name]
        return found


@dataclass(frozen=True, slots=True)
class Expressions:
    """The expressions of one AuthConfig, compiled."""

    authorization: tuple[Reading, ...]
    filters: Mapping[str, Mapping[str, Reading]]
    models: Reading | None
    headers: Mapping[str, Reading]


_SHORT = 256
"""Characters of header names that are remembered with a verdict: clients may choose them."""


@dataclass(frozen=True, slots=True)
class Removal:
    """Headers of a client that the model never sees: those named exactly, and those that begin so.

    With `_` in the place of `-` too: to CGI and its descendants they are the same.
    """

    names: frozenset[str]
    beginnings: tuple[str, ...]

    def of(self, facts: RequestFacts) -> tuple[str, ...]:
        """Those that the request carries."""
        names, beginnings = self.names, self.beginnings
        unwanted = [name for name in facts.headers if name in names or name.startswith(beginnings)]
        if "_" in "".join(facts.headers):
            unwanted += [name for name in facts.headers if "_" in name and self.concerns(name)]
        return tuple(unwanted)

    def concerns(self, name: str) -> bool:
        """Whether a header called `name` is removed."""
        name = name.replace("_", "-")
        return name in self.names or name.startswith(self.beginnings)


class Rules:
    """Judges callers. All of its expressions see what a source found, `filters` change what comes after."""

    def __init__(
        self,
        sources: Iterable[CallerSource],
        denials: Denials,
        expressions: Expressions,
        removal: Removal,
        user: str,
        on_missing_user: OnMissingUser,
    ) -> None:
        self._sources = tuple(sources)
        self._denials = denials
        self._removal = removal
        self._user = user
        self._on_missing_user = on_missing_user
        self._allowed = _allowed(expressions.authorization)
        self._auth = _auth(expressions.filters, user)
        self._models = _models(expressions.models)
        self._headers = _headers(expressions.headers)
        stages: tuple[Stage[Any], ...] = (self._allowed, self._auth, self._models, self._headers)
        self._needs = Needs(reading for stage in stages for reading in stage.readings)
        self._repeatable = on_missing_user != "address" and all(stage.repeatable for stage in stages)

    def judge(self, facts: RequestFacts) -> Verdict:
        """The verdict on a request. Never raises."""
        reasons = []
        for source in self._sources:
            found = source.find(facts)
            if isinstance(found, Caller):
                return self._known(found, facts)
            reasons.append(found)
        return self._denials.unauthenticated(tuple(reasons))

    def _known(self, caller: Caller, facts: RequestFacts) -> Verdict:
        unwanted = self._removal.of(facts)
        verdict = caller.verdict or self._decide(caller, facts, unwanted)
        if not verdict.status:
            if verdict.set_headers:
                kept = {name for name, _ in verdict.set_headers}
                unwanted = tuple([name for name in unwanted if name not in kept])
            if verdict.remove_headers != unwanted:
                verdict = replace(verdict, remove_headers=unwanted)
        if self._repeatable:
            short = sum(map(len, verdict.remove_headers)) <= _SHORT
            caller.verdict, caller.known = verdict if short else replace(verdict, remove_headers=()), None
        return verdict

    def _decide(self, caller: Caller, facts: RequestFacts, hidden: tuple[str, ...]) -> Verdict:
        """The verdict on somebody who is known, but for the headers to remove; those are not believed (S1.D4)."""
        sight = Sight(caller.identity, facts, hidden, self._needs)
        if not self._allowed.of(caller, sight):
            return self._denials.unauthorized()
        auth = self._with_user(self._auth.of(caller, sight), facts)
        if auth is None:
            return self._denials.unauthorized(NO_USER)
        set_headers = self._headers.of(caller, sight)
        return Verdict(auth=auth, set_headers=set_headers, models=self._models.of(caller, sight))

    def _with_user(self, auth: Auth, facts: RequestFacts) -> Auth | None:
        """`auth` with somebody to count for; None to refuse it (S4.D2)."""
        if self._on_missing_user == "allow" or self._user in auth["identity"]:
            return auth
        if self._on_missing_user == "shared":
            user = ANONYMOUS
        elif self._on_missing_user == "address" and (address := facts.attribute("source.address")):
            user = f"address:{host_and_port(str(address))[0]}"
        else:
            return None
        return {**auth, "identity": {**auth["identity"], self._user: user}}


def _allowed(readings: tuple[Reading, ...]) -> Stage[bool]:
    def find(sight: Sight) -> bool:
        return all(_value(reading, sight) is True for reading in readings)

    return Stage("allowed", readings, find)


def _auth(filters: Mapping[str, Mapping[str, Reading]], user: str) -> Stage[Auth]:
    """What later expressions see. A property without a value is null, as Authorino's; the user is a text, or not there
    (S4.D2)."""

    def find(sight: Sight) -> Auth:
        found: dict[str, Any] = dict(sight.auth)
        for name, properties in filters.items():
            values = ((key, _value(reading, sight)) for key, reading in properties.items())
            found[name] = {key: None if value is _NONE else value for key, value in values}
        if user in found["identity"]:
            found["identity"] = _with_text(found["identity"], user)
        return found

    return Stage("auth", [reading for properties in filters.values() for reading in properties.values()], find)


def _with_text(identity: Mapping[str, Any], user: str) -> Mapping[str, Any]:
    """`identity` with `user` as a text, or without it where it names nobody."""
    value = identity[user]
    if isinstance(value, str) and value.strip():
        return identity
    rest = {key: item for key, item in identity.items() if key != user}
    if isinstance(value, int | float) and not isinstance(value, bool) and _is_exact(value):
        rest[user] = text_of(value)
    return rest


def _is_exact(number: float) -> bool:
    """Envoy holds the numbers of a token as doubles: beyond 2**53, different ones have become the same."""
    return isinstance(number, int) or abs(number) < 2**53


def _models(reading: Reading | None) -> Stage[frozenset[str] | None]:
    """The models that may be asked for: none at all where the expression has no value that names some (S4.5)."""

    def find(sight: Sight) -> frozenset[str] | None:
        if reading is None:
            return None
        value = _value(reading, sight)
        values = value if isinstance(value, list) else [value]
        return frozenset(item for item in values if isinstance(item, str))

    return Stage("models", () if reading is None else (reading,), find)


def _headers(readings: Mapping[str, Reading]) -> Stage[Headers]:
    """Headers with a value that is a text, and one that a header can carry."""

    def find(sight: Sight) -> Headers:
        found = []
        for name, reading in readings.items():
            try:
                text = text_of(reading.value(sight))
            except NO_VALUE:
                continue
            if _CARRIED.fullmatch(text):
                found.append((name, text))
        return tuple(found)

    return Stage("headers", readings.values(), find)


def _value(reading: Reading, sight: Sight) -> Any:
    try:
        return reading.value(sight)
    except NO_VALUE:
        return _NONE
