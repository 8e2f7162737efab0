"""Limits of prompts: what the embedded limiter is to count, and what a limiter is asked before a call (S2.12-S2.20)."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from extproc.config.check_providers import MODEL_KEY
from extproc.config.model import Limit
from extproc.config.prompts import PromptLimit, PromptLimits, PromptSelector, Unit
from extproc.config.secret_headers import CREDENTIAL_HEADERS
from extproc.facts import RequestFacts
from extproc.limiter.seam import MAX_HITS, Query

SECONDS: Final[Mapping[Unit, int]] = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}

_ESCAPES: Final = {"\0": r"\0", "\t": r"\t", "\n": r"\n", "\r": r"\r", '"': r"\"", "\\": r"\\"}
_COMBINING: Final = ("Mn", "Me")
_SHOWN_DIGITS: Final = 16

Selection = Mapping[str, str]
"""Headers that may select a limit, as far as a request has them."""


@dataclass(frozen=True, slots=True)
class Missing:
    """The request lacks a header without which it is refused (403)."""

    header: str


def limits_of(config: PromptLimits, secret: Collection[str] = CREDENTIAL_HEADERS) -> list[Limit]:
    """What the embedded limiter counts by; `config` has been checked, the values of headers in `secret` are hashed.

    A limit for a header alone has a bucket for each of its values, but for those that have limits of their own for
    that model (S2.15, S2.16). Names of limits are shown to clients, so they say nothing of values (S2.D24).
    """
    limits = _without_secrets(config.limits, secret)
    models = _models(limits)
    return [_limit(config, limit, models[limit.model.lower()]) for limit in limits]


def counted_value(header: str, value: str, secret: Collection[str]) -> str:
    """What the value of a selector's header is counted as: that of one in `secret` as a part of its SHA-256 (S2.D24).

    Whoever reads counters, descriptors or refusals learns no key from them, and can still tell keys apart.
    """
    if not value or header not in secret:
        return value
    return f"sha256:{hashlib.sha256(value.encode('utf-8', 'surrogatepass')).hexdigest()[:_SHOWN_DIGITS]}"


class PromptQueries:
    """Says what a limiter is asked about a request: `[[model=gpt-4, selector-key=selector-value]]` (S2.13).

    A model's limits are found by its name in any case, and asked for by the name in the first of them.
    """

    def __init__(self, config: PromptLimits, secret: Collection[str] = CREDENTIAL_HEADERS) -> None:
        """`secret` are the headers whose values nobody is to see."""
        self._config = config
        self._secret = secret
        self._models = _models(config.limits)
        self._headers = tuple(dict.fromkeys(header for model in self._models.values() for header in model.headers))

    def select(self, facts: RequestFacts) -> Selection:
        """What is to be known of the head of a request, before anything in it is changed; no secret is in it."""
        headers = self._headers
        if self._config.trust_selector_header:
            named = (facts.header(self._config.selector_header) or "").strip().lower()
            headers = (named,) if named in headers else ()
        found = {name: facts.header(name) for name in headers}
        return {name: counted_value(name, value, self._secret) for name, value in found.items() if value}

    def query(self, selection: Selection, model: str, tokens: int) -> Query | Missing | None:
        """What is asked about `tokens` of a prompt for `model`, as its provider calls it.

        None where nothing is limited: another model, no tokens (S2.D7), no selector. More tokens than a call can
        count are as many as it can.
        """
        limited = self._models.get(model.lower())
        if limited is None or tokens <= 0:
            return None
        config, headers = self._config, limited.headers
        trusted, missing = config.trust_selector_header, config.on_missing_selector
        present = [header for header in headers if header in selection]
        if missing == "deny" and len(present) < (min(1, len(headers)) if trusted else len(headers)):
            return Missing(config.selector_header if trusted else next(each for each in headers if each not in present))
        if missing == "shared" and not trusted:
            present = list(headers)
        if not present and not limited.for_all:
            return None
        entries = ((MODEL_KEY, limited.name), *[(header, selection.get(header, "")) for header in present])
        return Query(config.domain, (entries,), min(tokens, MAX_HITS))


def legacy_body(query: Query) -> bytes:
    """What Plano tells a client who is over a limit (S2.13). It shows what the first selector's value is counted as.

    What the value is made of is escaped as Rust does it.
    """
    (_, model), *selectors = query.descriptors[0]
    key, value = selectors[0] if selectors else ("", "")
    selector = f"Header {{ key: {_debug(key)}, value: {_debug(value)} }}"
    text = f"exceeded limit provider={model}, selector={selector}, tokens_used={query.hits_addend}"
    return text.encode("utf-8", "replace")


@dataclass(slots=True)
class _Model:
    """A model that has limits; `own` are the values, by header, that have limits of their own."""

    name: str
    own: dict[str, list[str]] = field(default_factory=dict)
    for_all: bool = False

    @property
    def headers(self) -> tuple[str, ...]:
        return tuple(self.own)

    def add(self, limit: PromptLimit) -> None:
        if limit.selector is None:
            self.for_all = True
            return
        values = self.own.setdefault(limit.selector.header, [])
        if limit.selector.value:
            values.append(limit.selector.value)


def _without_secrets(limits: Iterable[PromptLimit], secret: Collection[str]) -> list[PromptLimit]:
    return [_without_secret(limit, limit.selector, secret) for limit in limits]


def _without_secret(limit: PromptLimit, selector: PromptSelector | None, secret: Collection[str]) -> PromptLimit:
    if selector is None or not selector.value:
        return limit
    value = counted_value(selector.header, selector.value, secret)
    return limit.model_copy(update={"selector": selector.model_copy(update={"value": value})})


def _models(limits: Iterable[PromptLimit]) -> dict[str, _Model]:
    """By the name in lower case."""
    models: dict[str, _Model] = {}
    for limit in limits:
        models.setdefault(limit.model.lower(), _Model(limit.model)).add(limit)
    return models


def _limit(config: PromptLimits, limit: PromptLimit, model: _Model) -> Limit:
    selector = limit.selector
    conditions = [f"{_entry(MODEL_KEY)} == {_literal(model.name)}"]
    variables = []
    if selector is not None:
        value, own = _entry(selector.header), model.own[selector.header]
        if selector.value:
            conditions.append(f"{value} == {_literal(selector.value)}")
        else:
            variables = [value]
            conditions += [f"!({value} in {_literal(own)})"] if own else []
    words = (model.name, selector.header if selector is not None else "", f"{limit.tokens}/{limit.per}")
    return Limit(
        namespace=config.domain,
        max_value=limit.tokens,
        seconds=SECONDS[limit.per],
        name=" ".join(filter(None, words)),
        algorithm=config.algorithm,
        conditions=conditions,
        variables=variables,
    )


def _entry(key: str) -> str:
    return f"descriptors[0][{_literal(key)}]"


def _literal(value: str | list[str]) -> str:
    """As CEL writes it."""
    return json.dumps(value, ensure_ascii=False)


def _debug(text: str) -> str:
    """`{:?}` of a Rust string."""
    return '"' + "".join(map(_debug_character, text)) + '"'


def _debug_character(character: str) -> str:
    if (escape := _ESCAPES.get(character)) is not None:
        return escape
    if character.isprintable() and unicodedata.category(character) not in _COMBINING:
        return character
    return f"\\u{{{ord(character):x}}}"
