"""Which provider a request goes to: by rule, hint, model, or as the default (S2.1-S2.3).

All is decided by looking up what was compiled once; nothing here raises, whatever a client sends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from posixpath import normpath
from typing import Final
from urllib.parse import unquote

from extproc.config.http_names import ESSENTIAL
from extproc.config.model import Config
from extproc.config.providers import Credential
from extproc.config.secret_documents import Steps
from extproc.facts import RequestFacts
from extproc.identity.rules import Removal
from extproc.providers.models import ModelTable
from extproc.providers.provider import Provider, compile_provider
from extproc.usage.patterns import ModelPattern

DEFAULT: Final = b"default"
"""The hint that means the default provider (S2.2)."""

_DETOURS = re.compile(r"[%\\;]|//|/\.|/$")
_PARAMETERS = re.compile(r";[^/]*")
"""In a path that may lead to the same place as another text."""


@dataclass(frozen=True, slots=True)
class Refused:
    """No provider gets the request (400). `message` is for the client, and shows nothing of what it sent."""

    message: str


class Choice:
    """The providers of a configuration, and how a request gets one of them.

    A provider without a credential is chosen like any other, and refuses then: see `Provider.refusal`. A single
    provider is the default by itself; among several none is taken by chance (S2.D21).
    """

    def __init__(self, config: Config, credentials: Mapping[Steps, str]) -> None:
        """`config` has been checked; `credentials` are the secrets that were read for it."""
        routing, limits = config.routing, config.prompt_limits
        self.providers = _compiled(config, credentials)
        defaults = [each.name for each in config.providers if each.default or len(config.providers) == 1]
        self.default = self.providers[defaults[0]] if defaults else None
        self._otherwise = self.default or Refused("no LLM Provider is configured for this request")
        self._hint_header = routing.hint_header
        self._hints = {name.encode(): provider for name, provider in self.providers.items()}
        if self.default is not None:
            self._hints[DEFAULT] = self.default
        unknown = Refused(f"the LLM Provider that `{routing.hint_header}` names is not known")
        self._unknown = unknown if routing.unknown_hint == "reject" else None
        self._models = ModelTable(
            {name: self.providers[each.name] for each in config.providers for name in each.models}
        )
        self._is_path = _path_test(routing.paths)
        selecting = () if limits is None else (limits.selector_header,)
        self._removal = _removal((*routing.remove_headers, routing.header, routing.hint_header, *selecting))
        self._kept = ESSENTIAL | {routing.header}

    def by_head(self, facts: RequestFacts, rule: str | None) -> Provider | Refused | None:
        """By the head of a request. `rule` is the provider of the first rule that holds.

        None where the model decides, which the body names: `by_model`; of a request without a body as for "".
        """
        if rule is not None:
            return self.providers[rule]
        hint = facts.headers.get(self._hint_header)
        if hint:
            hinted = self._hints.get(hint) or self._unknown
            if hinted is not None:
                return hinted
        return None if self._models and self.edits(facts) else self._otherwise

    def by_model(self, model: str) -> Provider | Refused:
        """By the model that a request names, "" when it names none."""
        return self._models.find(model) or self._otherwise

    def edits(self, facts: RequestFacts) -> bool:
        """Whether the request's path is one of `routing.paths`, so that its body decides and is edited (S2.22).

        Without the query (S2.D16). Other spellings of the same path count, for nobody is to get around a limit by a
        doubled slash, an escape or a capital letter that a model's server may not mind.
        """
        return self._is_path(facts.headers.get(":path", b"").partition(b"?")[0].decode("utf-8", "replace"))

    def stripped(self, facts: RequestFacts) -> tuple[str, ...]:
        """Headers in the request that are nobody's business but ours, or pretend to be ours (S2.D11).

        Never those without which a request is none, nor `routing.header`: that is set whatever a client sent.
        """
        return tuple([name for name in self._removal.of(facts) if name not in self._kept])


def _compiled(config: Config, credentials: Mapping[Steps, str]) -> dict[str, Provider]:
    """By name."""
    carriers = [each.credential.header for each in config.providers if isinstance(each.credential, Credential)]
    return {
        each.name: compile_provider(each, config.routing.header, credentials.get(("providers", index)), carriers)
        for index, each in enumerate(config.providers)
    }


def _removal(patterns: Sequence[str]) -> Removal:
    """`*` at the end of a pattern stands for anything."""
    lower = [pattern.lower() for pattern in patterns]
    names = frozenset(pattern for pattern in lower if not pattern.endswith("*"))
    return Removal(names, tuple(pattern[:-1] for pattern in lower if pattern.endswith("*")))


def _path_test(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a path, in any spelling, is one of `patterns`."""
    exact = {pattern.lower() for pattern in patterns} | {_straight(pattern) for pattern in patterns}
    wild = [ModelPattern(pattern) for pattern in patterns if "*" in pattern]

    def matches(path: str) -> bool:
        return path in exact or any(pattern.matches(path) for pattern in wild)

    def matches_any_spelling(path: str) -> bool:
        return matches(path.lower()) or (_DETOURS.search(path) is not None and matches(_straight(path)))

    return matches_any_spelling


def _straight(path: str) -> str:
    """`path` in lower case, without escapes, parameters, dots and needless slashes."""
    return normpath("/" + _PARAMETERS.sub("", unquote(path)).replace("\\", "/").lstrip("/")).lower()
