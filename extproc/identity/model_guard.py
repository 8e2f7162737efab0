"""Which models a request asks for, as strictly as a guard must read it (S4.5).

A metric may be wrong about a model; a guard may not. Servers differ in what they make of a name that is given twice, in
another case, in the path and in the body. So every place counts that some server would look at, all names there have
to be allowed, and what cannot be read for certain is refused.
"""

from __future__ import annotations

import json
import re
from typing import Final
from urllib.parse import parse_qsl, unquote

import orjson

from extproc.facts import RequestFacts

_GENERATES_NOTHING: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"DELETE", b"TRACE"})
_PLACES: Final = (
    re.compile(r"/(?:deployments|engines)/([^/]+)", re.I),
    re.compile(r"/(?:models|tunedmodels|endpoints)/([^/:]+)", re.I),
)
"""Where paths name a model; the first group is its name."""
_BEDROCK: Final = "/model/"
MAX_TARGET: Final = 4096
"""Characters; a longer path and query are refused."""
_AMBIGUOUS: Final = re.compile(r"//|[\x00-\x1f\x7f\\;%]|/\.{1,2}(?:/|$)")
"""In a decoded path: servers and proxies differ in where it leads."""
_JSON: Final = re.compile(r'\s*(?:application|text)/(?:[\w.-]+\+)?json\s*(?:;\s*charset="?utf-8"?\s*)?', re.I)
"""In another charset the same bytes may say something else."""
_OVERRIDES: Final = ("x-http-method-override", "x-http-method", "x-method-override")
_MODEL: Final = "model"
_FALLBACKS: Final = frozenset({"models", "fallbacks"})
"""Members in which gateways find models to fall back on."""


class ModelGuard:
    """Lets a request pass that asks for nothing but `models`. Begins with its head; `has_body`: more will follow."""

    __slots__ = ("_content_type", "_in_target", "_is_encoded", "_models", "needs_body", "refuses")

    def __init__(self, models: frozenset[str], facts: RequestFacts, *, has_body: bool) -> None:
        self._models = models
        self._content_type = facts.header("content-type") or ""
        self._is_encoded = (facts.header("content-encoding") or "identity").strip().lower() not in ("", "identity")
        generates = has_body or _generates(facts)
        self._in_target = names_in_target(facts.header(":path") or "") if generates else frozenset()
        self.needs_body = generates and has_body
        """Whether the body has to be read before it is decided."""
        named = self._in_target
        unnamed = generates and not has_body and not named
        self.refuses = unnamed or named is None or not models.issuperset(named)
        """Whether the head is enough to refuse it."""

    def allows(self, body: bytes) -> bool:
        """Whether the whole request may pass, now that its body is there."""
        if self.refuses or self._is_encoded or not (not self._content_type or _JSON.fullmatch(self._content_type)):
            return False
        named = names_in_body(body)
        return named is not None and bool(named or self._in_target) and self._models.issuperset(named)


def _generates(facts: RequestFacts) -> bool:
    """Whether a request without a body may have a model work: methods that may, and what only looks harmless."""
    method = facts.headers.get(":method", b"").upper()
    headers = facts.headers
    return method not in _GENERATES_NOTHING or "upgrade" in headers or any(name in headers for name in _OVERRIDES)


def names_in_target(target: str) -> frozenset[str] | None:
    """The models that a path and its query name; None where it cannot be told for certain."""
    path, _, query = target.partition("?")
    path = unquote(path)
    if len(target) > MAX_TARGET or _AMBIGUOUS.search(path):
        return None
    names = {found.group(1) for place in _PLACES for found in place.finditer(path)}
    start = path.lower().find(_BEDROCK)
    if start >= 0:
        # An ARN may come with its slash as it is; what is behind the last one is the operation.
        names.add(path[start + len(_BEDROCK) :].rstrip("/").rpartition("/")[0])
    names |= {value for key, value in parse_qsl(query, keep_blank_values=True) if key.casefold() == _MODEL}
    return frozenset(names)


def names_in_body(body: bytes) -> frozenset[str] | None:
    """The models that a JSON object names, in any case and as often as it does; None for anything else.

    Of an object with models to fall back on it is not certain which it will be.
    """
    try:
        document = orjson.loads(body)
        if not isinstance(document, dict):
            return None
        # Of a name that is given twice orjson keeps the last value; other parsers keep the first.
        pairs = json.loads(body, object_pairs_hook=list) if _may_repeat(body) else list(document.items())
        if any(key.casefold() in _FALLBACKS for key in document):
            return None
    except (ValueError, RecursionError):
        return None
    values = [value for key, value in pairs if isinstance(key, str) and key.casefold() == _MODEL]
    names = frozenset(value for value in values if isinstance(value, str))
    return names if all(isinstance(value, str) for value in values) else None


def _may_repeat(body: bytes) -> bool:
    """Whether the name may be there more than once; it may be written with escapes."""
    return b"\\u" in body or body.lower().count(b'"model"') > 1
