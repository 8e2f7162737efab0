"""What an AuthPolicy says of callers, as an entry of `authConfigs`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from extproc.config.errors import Problem, Step, listed, quoted
from extproc.expressions.references import Path
from extproc.policies.auth_policy import (
    ApiKey,
    Authentication,
    Authorization,
    DenyResponse,
    Evaluator,
    Placement,
    SuccessItem,
    ValueOrSelector,
)
from extproc.policies.cel_text import TRUE, Unsupported, check_caller_expression, literal, with_identity_of
from extproc.policies.documents import Document
from extproc.policies.patterns import conjunction
from extproc.policies.policy import Rule, Rules, named
from extproc.policies.rego import rego_as_cel
from extproc.policies.selectors import Selected, parse_selector

KUADRANT_NAMESPACE = "kuadrant-system"
"""Where Kuadrant looks for Secrets when a policy does not say `allNamespaces`: its own namespace."""
_REASON = "x-ext-auth-reason"
_USER = "userid"
_OF_METADATA = (
    "creationTimestamp deletionTimestamp finalizers generateName generation managedFields ownerReferences "
    "resourceVersion uid"
)
_NOT_KNOWN_OF_SECRETS: tuple[Path, ...] = (
    *(("auth", "identity", name) for name in ("data", "immutable", "type")),
    *(("auth", "identity", "metadata", name) for name in _OF_METADATA.split()),
)
"""What Authorino knows of a Secret beyond what is kept here; it must not look as if it were missing."""

Data = dict[str, Any]
Steps = tuple[Step, ...]


class AuthConfigWriter:
    """Writes the entry for `rules`; `problems` and `warnings` are what was found on the way.

    `secrets` are the Secrets among the documents.
    """

    def __init__(self, rules: Rules, secrets: Sequence[Document]) -> None:
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self._rules = rules
        self._secrets = secrets
        self._patterns = {name: rule.value for name, rule in named(rules, "patterns").items()}
        self._replaced: Mapping[str, str] = {}
        has_keys = any(rule.value.api_key is not None for rule in named(rules, "authentication").values())
        self._absent = _NOT_KNOWN_OF_SECRETS if has_keys else ()

    def write(self) -> Data:
        """The entry, in the form of the configuration file; of no use when there are problems."""
        authentication = named(self._rules, "authentication")
        self._replaced = self._extended(authentication)
        by_priority = sorted(authentication.items(), key=lambda item: item[1].value.priority)
        filters = self._filters()
        data: Data = {
            "authentication": {name: self._source(rule) for name, rule in by_priority},
            "authorization": self._authorization(),
            "filters": filters,
            "headers": self._headers(),
        }
        if _USER not in filters.get("identity", {}):
            data["onMissingUser"] = "allow"
        for name in ("unauthenticated", "unauthorized"):
            if (rule := self._rules.get((name, ""))) is not None:
                data[name] = self._denial(rule)
        return {name: value for name, value in data.items() if value}

    def _source(self, rule: Rule) -> Data:
        spec: Authentication = rule.value
        self._without_effect(rule, spec)
        if (spec.api_key is None) == (spec.jwt is None):
            self._refuse(rule, (), "expected exactly one of `apiKey`, `jwt`")
            return {}
        credentials = self._credentials(rule, spec.credentials)
        if spec.api_key is not None:
            return {"apiKeys": self._api_keys(rule, spec.api_key), "credentials": credentials}
        assert spec.jwt is not None
        issuer = spec.jwt.issuer_url
        self.warnings.append(rule.problem(("jwt",), _needed_filter(issuer, credentials)))
        return {"jwt": {"issuer": issuer} if issuer else {}}

    def _credentials(self, rule: Rule, spec: Placement) -> Data:
        if spec.authorization_header is not None and spec.custom_header is not None:
            self._refuse(rule, ("credentials",), "expected one of `authorizationHeader`, `customHeader`")
        if spec.custom_header is not None:
            return {"header": spec.custom_header.name.lower(), "prefix": ""}
        prefix = spec.authorization_header.prefix if spec.authorization_header is not None else ""
        return {"header": "authorization", "prefix": prefix or "Bearer"}

    def _api_keys(self, rule: Rule, spec: ApiKey) -> Data:
        labels = spec.selector.match_labels
        labelled = [secret for secret in self._secrets if labels.items() <= secret.labels.items()]
        chosen = [secret for secret in labelled if spec.all_namespaces or secret.namespace == KUADRANT_NAMESPACE]
        if not chosen:
            where = "" if spec.all_namespaces else f" in namespace `{KUADRANT_NAMESPACE}`, where Kuadrant looks"
            there = listed(sorted({secret.namespace for secret in labelled}))
            hint = f"; there are some in {there}: write `allNamespaces: true`" if labelled else ""
            wanted = ", ".join(f"{name}={value}" for name, value in labels.items()) or "none"
            message = f"nobody can call: no Secret{where} has the labels {quoted(wanted, 200)}{hint}"
            self.warnings.append(rule.problem(("apiKey", "selector"), message))
        files = sorted({str(secret.path) for secret in self._secrets}) or [str(rule.document.path)]
        data: Data = {"files": files, "selector": {"matchLabels": dict(labels)}}
        return data if spec.all_namespaces else {**data, "namespace": KUADRANT_NAMESPACE}

    def _extended(self, authentication: Mapping[str, Rule]) -> dict[str, str]:
        """Properties that a source adds to an identity, each as an expression over what was found."""
        found: dict[str, str] = {}
        for rule in authentication.values():
            spec: Authentication = rule.value
            if (spec.overrides or spec.defaults) and len(authentication) > 1:
                name = "overrides" if spec.overrides else "defaults"
                self._refuse(rule, (name,), "not supported beside other sources: write `response.success.filters`")
            for name, value in spec.defaults.items():
                otherwise = self._value(rule, ("defaults", name), value)
                found[name] = Selected(("auth", "identity", name)).or_else(otherwise)
            for name, value in spec.overrides.items():
                found[name] = self._value(rule, ("overrides", name), value)
        return found

    def _authorization(self) -> list[str]:
        found = (self._rule(rule) for rule in named(self._rules, "authorization").values())
        return [condition for condition in found if condition != TRUE]

    def _rule(self, rule: Rule) -> str:
        spec: Authorization = rule.value
        self._without_effect(rule, spec)
        if (spec.pattern_matching is None) == (spec.opa is None):
            self._refuse(rule, (), "expected exactly one of `patternMatching`, `opa`")
            return TRUE
        if spec.pattern_matching is not None:
            patterns = spec.pattern_matching.patterns
            allowed = self._written(
                rule, ("patternMatching", "patterns"), lambda: conjunction(patterns, self._patterns)
            )
        else:
            assert spec.opa is not None
            rego = spec.opa.rego or ""
            allowed = self._written(rule, ("opa", "rego"), lambda: rego_as_cel(rego))
        if not spec.when or allowed == TRUE:
            return allowed
        when = self._written(rule, ("when",), lambda: conjunction(spec.when, self._patterns))
        return f"({when}) ? ({allowed}) : true"

    def _filters(self) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for name, rule, item in self._items("filters", found):
            if item.json_ is None:
                self._refuse(rule, (), "not supported: anything but `json`; write `json: {properties: ...}`")
            else:
                found[name] = {
                    key: self._value(rule, ("json", "properties", key), value)
                    for key, value in item.json_.properties.items()
                }
        return found

    def _headers(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, rule, item in self._items("headers", found):
            if item.plain is None:
                self._refuse(rule, (), "not supported: anything but `plain`; write one header for each value")
            else:
                found[name] = self._value(rule, ("plain",), item.plain)
        return found

    def _items(self, group: str, found: Mapping[str, Any]) -> Iterator[tuple[str, Rule, SuccessItem]]:
        """What is told of a caller, by the name it gets."""
        for name, rule in named(self._rules, group).items():
            item: SuccessItem = rule.value
            self._without_effect(rule, item)
            key = item.key or name
            if key in found:
                self._refuse(rule, ("key",), f"{quoted(key)} is given twice")
            yield key, rule, item

    def _denial(self, rule: Rule) -> Data:
        spec: DenyResponse = rule.value
        if spec.code is not None and spec.code < 400:
            self._refuse(rule, ("code",), "not supported: a redirection; expected a code of at least 400")
        headers = {name: self._fixed(rule, ("headers", name), value) for name, value in spec.headers.items()}
        if spec.message is not None:
            headers.setdefault(_REASON, self._fixed(rule, ("message",), spec.message))
        body = None if spec.body is None else self._fixed(rule, ("body",), spec.body)
        data = {"status": spec.code, "headers": headers or None, "body": body}
        return {name: value for name, value in data.items() if value is not None}

    def _fixed(self, rule: Rule, steps: Steps, value: ValueOrSelector) -> str:
        """A text that is known beforehand."""
        if value.model_fields_set != {"value"}:
            self._refuse(rule, steps, "not supported: a refusal that differs from request to request; write `value`")
        return value.value if isinstance(value.value, str) else json.dumps(value.value)

    def _value(self, rule: Rule, steps: Steps, value: ValueOrSelector) -> str:
        """A value as CEL."""

        def written() -> str:
            if len(value.model_fields_set) != 1:
                raise Unsupported("expected exactly one of `value`, `selector`, `expression`")
            if value.selector is not None:
                return parse_selector(value.selector).cel
            if value.expression is not None:
                return value.expression.strip()
            return literal(value.value)

        return self._written(rule, steps, written)

    def _written(self, rule: Rule, steps: Steps, write: Callable[[], str]) -> str:
        """What `write` says, with the properties of sources written out; a problem and `true` when that cannot be."""
        try:
            expression = with_identity_of(write(), self._replaced)
            check_caller_expression(expression, self._absent)
        except Unsupported as error:
            self._refuse(rule, steps, str(error))
            return TRUE
        return expression

    def _without_effect(self, rule: Rule, spec: Evaluator) -> None:
        for name, given in (("metrics", spec.metrics), ("cache", spec.cache is not None)):
            if given:
                self.warnings.append(rule.problem((name,), "has no effect here"))

    def _refuse(self, rule: Rule, steps: Steps, message: str) -> None:
        self.problems.append(rule.problem(steps, message))


def _needed_filter(issuer: str | None, credentials: Data) -> str:
    after = f" after `{credentials['prefix']} `" if credentials["prefix"] else ""
    return (
        "tokens are verified by Envoy: its filter jwt_authn must stand in front of this one, with a provider for "
        f"{quoted(issuer, 200) if issuer else 'the issuer'}, `payload_in_metadata: principal`, and tokens in the "
        f"header `{credentials['header']}`{after}"
    )
