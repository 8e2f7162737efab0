"""What providers, their choice and limits of prompts can get wrong though they are well-formed (S2.21).

The words in English case, `LLM Provider`, are Plano's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from extproc.config.errors import Problem, Step, listed, quoted, shown, similar
from extproc.config.http_names import (
    ESSENTIAL,
    find_header_problems,
    find_hostname_problems,
    find_removal_problems,
    fits_header,
)
from extproc.config.masking import without_userinfo
from extproc.config.model import Config
from extproc.config.origins import Origin, parse_origin
from extproc.config.prompts import PromptLimit, PromptLimits
from extproc.config.providers import Credential, Provider, Routing
from extproc.config.secret_headers import secret_headers

MAX_TOKENS: Final = 2**32
"""Of one limit: more than that no call can ask for at once."""
MODEL_KEY: Final = "model"
"""Of the descriptor by which prompts are limited."""

_READ = re.compile(r"""request\.headers\[\s*(["'])([^"']+)\1\s*\]""")
_TESTED = r"""["']{}["']\s+in\s+request\.headers"""
"""A CEL expression that reads a header, and one that asks whether it is there, after a header's name."""
_CARRIED = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


def find_provider_problems(config: Config) -> Iterator[Problem]:
    """Of `providers`, `routing` and `promptLimits`, in this order; expressions are not looked at."""
    used = config.prompt_limits is not None or config.routing != Routing()
    if not config.providers and used:
        yield Problem("providers", "There must be at least one LLM Provider")
    for index, provider in enumerate(config.providers):
        yield from _provider(provider, ("providers", index), config.routing)
    yield from _names(config.providers)
    yield from _destinations(config.providers)
    yield from _defaults(config)
    yield from _models(config.providers)
    yield from _routing(config.routing, [provider.name for provider in config.providers])
    if config.routing.hint_header in secret_headers(config):
        yield Problem("routing.hintHeader", "this header carries keys, and a hint goes to nobody")
    if config.prompt_limits is not None:
        yield from _service(config, config.prompt_limits)
        yield from _limits(config.prompt_limits.limits)


def find_provider_warnings(config: Config) -> Iterator[Problem]:
    """What works, but hardly as meant."""
    for index, provider in enumerate(config.providers):
        if provider.credential is None:
            message = "missing: its requests are refused (400); write `none` if it needs none"
            yield Problem.at(("providers", index, "credential"), message)
    yield from _shared_destinations(config.providers)
    yield from _unguarded_reads(config.routing)
    if config.prompt_limits is not None:
        yield from _hardly_limited(config, config.prompt_limits)
        if config.prompt_limits.domain in {limit.namespace for limit in config.embedded_limits}:
            message = (
                f"{quoted(config.prompt_limits.domain)} is a namespace of `limits` too: those count prompts as well"
            )
            yield Problem("promptLimits.domain", message)


def _provider(provider: Provider, steps: Sequence[Step], routing: Routing) -> Iterator[Problem]:
    """All that one provider can be told from."""
    if not _CARRIED.fullmatch(provider.name) or "," in provider.name:
        message = "expected a name that a header can carry: visible ASCII characters, no comma"
        yield Problem.at((*steps, "name"), message)
    if provider.cluster is not None and not _CARRIED.fullmatch(provider.cluster):
        yield Problem.at((*steps, "cluster"), "expected what a header can carry: visible ASCII characters")
    if provider.model == "":
        yield Problem.at((*steps, "model"), "empty; leave it out to let clients choose")
    for asked, model in provider.models.items():
        if not asked or model == "":
            yield Problem.at((*steps, "models", asked), "the name of a model is not empty")
    if provider.address is not None:
        yield from _address(provider.address, (*steps, "address"))
    yield from find_header_problems(provider.headers, (*steps, "headers"))
    taken = {routing.header: "`routing.header` is set to the destination"}
    if isinstance(provider.credential, Credential):
        taken[provider.credential.header] = "it carries the credential"
        yield from _credential(provider.credential, (*steps, "credential"), routing)
    for name in provider.headers:
        if name in ESSENTIAL:
            yield Problem.at((*steps, "headers", name), "this header belongs to the gateway")
        elif name in taken:
            yield Problem.at((*steps, "headers", name), f"set already: {taken[name]}")


def _address(address: str, steps: Sequence[Step]) -> Iterator[Problem]:
    """Traffic does not need it, but whoever prints a gateway's configuration does."""
    try:
        parse_origin(address)
    except ValueError as error:
        yield Problem.at(steps, f"{quoted(without_userinfo(address, address=True))}: {error}")


def _credential(credential: Credential, steps: Sequence[Step], routing: Routing) -> Iterator[Problem]:
    if credential.header in ESSENTIAL | {routing.header}:
        yield Problem.at((*steps, "header"), "this header belongs to the gateway")
    if credential.prefix is not None and not fits_header(credential.prefix):
        yield Problem.at((*steps, "prefix"), "a header's value holds no line breaks or control characters")


def _names(providers: Sequence[Provider]) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, provider in enumerate(providers):
        if provider.name in seen:
            message = f"'{quoted(provider.name)[1:-1]}' is not a unique name"
            yield Problem.at(("providers", index, "name"), message)
        seen.add(provider.name)
        if provider.name == "default" and not provider.default and len(providers) > 1:
            message = "a hint of `default` means the default provider; another one needs another name"
            yield Problem.at(("providers", index, "name"), message)


def _destinations(providers: Sequence[Provider]) -> Iterator[Problem]:
    """The gateway has one place for a destination: the credential of one would go to the address of another."""
    first: dict[str, int] = {}
    for index, provider in enumerate(providers):
        if provider.address is None:
            continue
        earlier = first.setdefault(provider.destination, index)
        if _place(providers[earlier].address) != _place(provider.address):
            message = f"providers[{earlier}] goes to {quoted(provider.destination)} too, and says another address"
            yield Problem.at(("providers", index, "address"), message)


def _place(address: str | None) -> Origin | str | None:
    """Where an address leads, however it is written."""
    try:
        return parse_origin(address or "")
    except ValueError:
        return address


def _shared_destinations(providers: Sequence[Provider]) -> Iterator[Problem]:
    """Two keys for one place are meant where both say which place it is."""
    first: dict[str, int] = {}
    for index, provider in enumerate(providers):
        other = providers[first.setdefault(provider.destination, index)]
        if other.credential != provider.credential and None in (other.address, provider.address):
            message = (
                f"{quoted(other.name)} goes to {quoted(provider.destination)} too, with another credential: "
                "one place gets both; say the same `address` in both if that is meant"
            )
            yield Problem.at(("providers", index, "cluster"), message)


def _unguarded_reads(routing: Routing) -> Iterator[Problem]:
    for index, rule in enumerate(routing.rules):
        for name in dict.fromkeys(found.group(2) for found in _READ.finditer(rule.when)):
            if not name.startswith(":") and not re.search(_TESTED.format(re.escape(name)), rule.when):
                message = (
                    f"a request without the header {quoted(name)} is answered 500; write "
                    f"`{shown(name)} in request.headers && ...` if it may be missing"
                )
                yield Problem.at(("routing", "rules", index, "when"), message)


def _hardly_limited(config: Config, limits: PromptLimits) -> Iterator[Problem]:
    """Limits that no request comes under."""
    known = _provided(config.providers)
    aliases = _aliases(config.providers)
    for index, limit in enumerate(limits.limits):
        steps = ("promptLimits", "limits", index)
        model, called = quoted(limit.model), aliases.get(limit.model.lower())
        if "*" in limit.model:
            yield Problem.at(
                (*steps, "model"), f"no model is called {model}; a limit is for one model, not for a pattern"
            )
        elif called is not None:
            message = f"{model} is what clients ask for; a limit is for what the provider calls it, {quoted(called)}"
            yield Problem.at((*steps, "model"), message)
        elif known is not None and limit.model.lower() not in known:
            yield Problem.at((*steps, "model"), f"no provider calls a model {model}, so the limit is for no request")
        if limit.selector is not None and (taker := _taker(config, limit.selector.header)) is not None:
            message = f"{taker} takes this header away before prompts are counted, so every request lacks it"
            yield Problem.at((*steps, "selector", "header"), message)


def _taker(config: Config, header: str) -> str | None:
    """The field that takes a header out of requests before it could select a limit, unless `authConfigs` set it."""
    auth = config.auth_configs
    if any(header == name.lower() for each in auth.values() for name in each.headers):
        return None
    if header == config.routing.hint_header or any(_covers(each, header) for each in config.routing.remove_headers):
        return "`routing`"
    for scope, each in auth.items():
        keyed = [source for source in each.authentication.values() if source.api_keys is not None]
        taken = [] if each.forward_credentials else [source.credentials.header.lower() for source in keyed]
        if header in taken or any(_covers(pattern, header) for pattern in each.remove_headers):
            return quoted(f"authConfigs.{scope}")
    return None


def _covers(pattern: str, header: str) -> bool:
    """`*` at the end of a pattern stands for anything."""
    pattern = pattern.lower()
    return header.startswith(pattern[:-1]) if pattern.endswith("*") else header == pattern


def _defaults(config: Config) -> Iterator[Problem]:
    providers = config.providers
    defaults = [index for index, provider in enumerate(providers) if provider.default]
    for index in defaults[1:]:
        yield Problem.at(("providers", index, "default"), "There must be at most one default LLM Provider")
    chosen = defaults or config.routing.rules or any(provider.models for provider in providers)
    if len(providers) > 1 and not chosen:
        message = "no request without a hint would get one: say which is the `default`, or which `models` they have"
        yield Problem("providers", message)


def _models(providers: Sequence[Provider]) -> Iterator[Problem]:
    """A model is one provider's, whatever its case."""
    owners: dict[str, int] = {}
    for index, provider in enumerate(providers):
        for model in provider.models:
            if (owner := owners.setdefault(model.lower(), index)) != index:
                message = f"requests for {quoted(model)} go to providers[{owner}] already"
                yield Problem.at(("providers", index, "models", model), message)


def _routing(routing: Routing, names: Sequence[str]) -> Iterator[Problem]:
    yield from find_hostname_problems(routing.hosts, ("routing", "hosts"))
    for name, header in (("header", routing.header), ("hintHeader", routing.hint_header)):
        if header in ESSENTIAL:
            yield Problem.at(("routing", name), "this header belongs to the gateway")
    if routing.header == routing.hint_header:
        yield Problem("routing.hintHeader", "the same as `routing.header`, which no client may decide")
    for index, rule in enumerate(routing.rules):
        if rule.provider not in names:
            guess = similar(rule.provider, names)
            message = f"no provider is named {quoted(rule.provider)}{guess or ','} known: {listed(names)}"
            yield Problem.at(("routing", "rules", index, "provider"), message)
    yield from find_removal_problems(routing.remove_headers, ("routing", "removeHeaders"))
    for index, path in enumerate(routing.paths):
        if not path.startswith(("/", "*")) or "?" in path:
            message = "expected a path without a query, beginning with `/` or `*`"
            yield Problem.at(("routing", "paths", index), message)


def _service(config: Config, limits: PromptLimits) -> Iterator[Problem]:
    name = limits.service
    if name is None:
        return
    service = config.services.get(name)
    if service is None:
        guess = similar(name, config.services)
        message = f"no service is named {quoted(name)}{guess or ','} known: {listed(config.services)}"
        yield Problem("promptLimits.service", message)
    elif service.type != "ratelimit":
        message = f"{quoted(name)} is of the type `{service.type}`; prompts need `ratelimit`, which asks and counts"
        yield Problem("promptLimits.service", message)


def _limits(limits: Iterable[PromptLimit]) -> Iterator[Problem]:
    """Of one model and selector there may be limits for several units, but one for each."""
    seen: set[tuple[str, str, str, str]] = set()
    for index, limit in enumerate(limits):
        steps = ("promptLimits", "limits", index)
        selector = limit.selector
        header, value = (selector.header, selector.value or "") if selector is not None else ("", "")
        identity = (limit.model.lower(), header, value, limit.per)
        if identity in seen:
            message = "repeated selector. Selectors per provider must be unique"
            yield Problem.at((*steps, "selector"), message)
        seen.add(identity)
        if not limit.model:
            yield Problem.at((*steps, "model"), "the name of a model is not empty")
        if header == MODEL_KEY:
            yield Problem.at((*steps, "selector", "header"), "`model` is what descriptors call the model: take another")
        if limit.tokens <= 0:
            yield Problem.at((*steps, "tokens"), "Limit's tokens must be positive")
        elif limit.tokens > MAX_TOKENS:
            yield Problem.at((*steps, "tokens"), f"expected at most {MAX_TOKENS}")


def _aliases(providers: Sequence[Provider]) -> dict[str, str]:
    """What clients ask for, in lower case, and no provider calls so -> what the provider calls it."""
    names = {
        asked.lower(): called
        for provider in providers
        for asked, called in provider.models.items()
        if called is not None and "*" not in asked
    }
    called = {called.lower() for called in names.values()}
    called |= {provider.model.lower() for provider in providers if provider.model is not None}
    called |= {asked.lower() for provider in providers for asked, name in provider.models.items() if name is None}
    return {asked: name for asked, name in names.items() if asked not in called}


def _provided(providers: Sequence[Provider]) -> set[str] | None:
    """What the providers call their models, in lower case; None when clients may name others."""
    names: set[str] = set()
    for provider in providers:
        if provider.model is None:
            return None
        names.add(provider.model.lower())
        for asked, model in provider.models.items():
            if model is None and "*" in asked:
                return None
            names.add((model or asked).lower())
    return names if providers else None
