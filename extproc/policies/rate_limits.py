"""RateLimitPolicy and TokenRateLimitPolicy: what may be written in them."""

from __future__ import annotations

import re
from typing import Annotated, Generic, TypeVar

from pydantic import AfterValidator, Field, TypeAdapter

from extproc.config.fields import Model
from extproc.policies.objects import Anything, KubernetesObject, Predicate, Strategy, TargetRef, refused

_WINDOW = re.compile(r"(?:[0-9]{1,5}(?:h|ms|m|s)){1,4}")
_PART = re.compile(r"([0-9]+)(h|ms|m|s)")
_MILLISECONDS = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_OLDER = "an older form; write `window: 10s`, `window: 2m` or the like in place of `duration` and `unit`"


def window_seconds(window: str) -> int:
    """The length of `2m` or `1h30m` in seconds. Raises ValueError.

    Kuadrant's pattern for durations; it cuts what is no whole second, which changes the limit, so that is refused.
    """
    if not _WINDOW.fullmatch(window):
        raise ValueError("expected a window such as `30s`, `2m`, `24h` or `1h30m`")
    length = sum(int(number) * _MILLISECONDS[unit] for number, unit in _PART.findall(window))
    if length < 1000 or length % 1000:
        raise ValueError(f"expected whole seconds, at least one: Kuadrant makes {length // 1000}s of `{window}`")
    return length // 1000


def _window(window: str) -> str:
    window_seconds(window)
    return window


class Rate(Model):
    """At most `limit` in `window`."""

    limit: Annotated[int, Field(ge=0, lt=2**63)]
    window: Annotated[str, AfterValidator(_window)]
    duration: Anything = refused(_OLDER)
    unit: Anything = refused(_OLDER)


class Counter(Model):
    """CEL; each of its values is counted by itself."""

    expression: Annotated[str, Field(min_length=1)]


class RequestLimit(Model):
    """One limit, of requests."""

    rates: Annotated[list[Rate], Field(min_length=1)]
    when: list[Predicate] = Field(default_factory=list)
    counters: list[str | Counter] = Field(default_factory=list, description="Bare strings are told about later.")
    route_selectors: Anything = refused("an older form; target a rule of the route by `targetRef.sectionName`")


class TokenLimit(RequestLimit):
    """One limit, of tokens."""

    reservation: Anything = refused("tokens are counted when the answer is over, nothing is reserved before")


AnyLimit = TypeVar("AnyLimit", bound=RequestLimit)


class LimitRules(Model, Generic[AnyLimit]):
    """Limits by name, and when they count at all."""

    when: list[Predicate] = Field(default_factory=list)
    limits: dict[str, AnyLimit] = Field(default_factory=dict)


class MergeableLimitRules(LimitRules[AnyLimit], Generic[AnyLimit]):
    """The same with what happens when another policy has limits too."""

    strategy: Strategy = "atomic"


class LimitSpec(LimitRules[AnyLimit], Generic[AnyLimit]):
    """Bare rules, which are defaults; or `defaults`; or `overrides`."""

    target_ref: TargetRef
    defaults: MergeableLimitRules[AnyLimit] | None = None
    overrides: MergeableLimitRules[AnyLimit] | None = None


class RateLimitPolicy(KubernetesObject):
    """How many requests."""

    spec: LimitSpec[RequestLimit]


class TokenRateLimitPolicy(KubernetesObject):
    """How many tokens."""

    spec: LimitSpec[TokenLimit]


RATE_LIMIT_POLICY: TypeAdapter[RateLimitPolicy] = TypeAdapter(RateLimitPolicy)
TOKEN_RATE_LIMIT_POLICY: TypeAdapter[TokenRateLimitPolicy] = TypeAdapter(TokenRateLimitPolicy)
