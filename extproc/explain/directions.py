"""Which provider gets a request, what of it is changed, and how prompts are limited."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from extproc.config.model import Config
from extproc.config.prompts import PromptLimit, PromptLimits
from extproc.config.providers import Provider, Routing
from extproc.config.secret_headers import secret_headers
from extproc.explain.words import counted, credential_of, listed
from extproc.providers.prompt_limits import counted_value

_MISSING = {
    "shared": "shares one count with all others that lack it",
    "deny": "is refused (403)",
    "allow": "is not limited by it",
}


def directions(config: Config) -> Iterator[str]:
    """Of `providers` and `routing`, in the order in which they are asked."""
    routing, providers = config.routing, config.providers
    if not providers:
        return
    yield ""
    yield f"Providers, for requests to {', '.join(routing.hosts)}: the first of these that says one"
    for rule in routing.rules:
        yield f"  rule: {rule.provider} where {rule.when}"
    unknown = "is refused (400)" if routing.unknown_hint == "reject" else "is as none"
    yield f"  hint: the one that the client names in `{routing.hint_header}`, or `default`; an unknown one {unknown}"
    owned = [each for each in providers if each.models]
    if owned:
        models = "; ".join(f"{', '.join(each.models)} to {each.name}" for each in owned)
        yield f"  model in the body, of requests to {', '.join(routing.paths)}: {models}"
        if not any("*" in each.models for each in owned):
            yield "  Bodies that name no model get what is next."
    yield f"  otherwise: {_otherwise(providers)}"
    for provider in providers:
        yield f"  {provider.name}: {_provider(provider)}"
    yield from _changes(routing)
    apart = [action_set.name for action_set in config.action_sets if not action_set.routed]
    if apart:
        yield f"  Not for requests of the action sets {listed(apart)}."


def prompt_limits(config: Config) -> Iterator[str]:
    """Of `promptLimits`."""
    limits = config.prompt_limits
    if limits is None:
        return
    service = None if limits.service is None else config.services[limits.service]
    where = "the embedded limiter" if service is None else f"`{limits.service}`"
    yield ""
    yield f"Prompt limits, of requests to {', '.join(config.routing.paths)}: estimated tokens, asked of {where}"
    for limit in limits.limits:
        yield f"  {_prompt_limit(limit, limits, secret_headers(config))}"
    yield "  Other models are not limited."
    yield f"  {_algorithm(limits, theirs=service is not None and not config.endpoints[service.endpoint].embedded)}"
    if any(limit.selector is not None for limit in limits.limits):
        yield f"  A request without the header {_MISSING[limits.on_missing_selector]}."
    if limits.trust_selector_header:
        yield f"  Clients say in `{limits.selector_header}` by which header they are limited: they can leave it out."
    shown = "Plano's text, which shows the selector's value" if limits.legacy_error_body else "what `denyWith` says"
    yield f"  The whole prompt is charged, whatever the model makes of it; over a limit the client gets {shown}."


def _otherwise(providers: Sequence[Provider]) -> str:
    defaults = [each.name for each in providers if each.default or len(providers) == 1]
    return defaults[0] if defaults else "nobody: 400"


def _provider(provider: Provider) -> str:
    if provider.credential is None:
        return "refuses everything (400): it has no credential; write `credential: none` if it needs none"
    where = "wherever the gateway's route leads" if provider.address is None else f"at {provider.address}"
    name = "" if provider.destination == provider.name else f"by the name {provider.destination}, "
    models = "; ".join(_renamed(provider)) or "models as they are asked for"
    # What they say may be a secret all the same.
    headers = f"; {listed(list(provider.headers))} set" if provider.headers else ""
    dialect = "" if provider.dialect is None else f"; answers are read as {provider.dialect}'s"
    return f"{name}{where}, {credential_of(provider.credential)}; {models}{headers}{dialect}"


def _renamed(provider: Provider) -> Iterator[str]:
    for asked, model in provider.models.items():
        if model is not None and model != asked:
            yield f"{asked} becomes {model}"
    if provider.model is not None:
        yield f"{'other models become' if provider.models else 'the model becomes'} {provider.model}"


def _changes(routing: Routing) -> Iterator[str]:
    yield f"  The gateway routes by `{routing.header}`, which is set whatever a client sent. Nobody gets what a client"
    yield f"  sends as {listed([*routing.remove_headers, routing.hint_header])}, nor a key for another provider."
    taken = f", {listed(routing.remove)} taken out" if routing.remove else ""
    yield f"  In bodies of requests to {', '.join(routing.paths)} the model is set{taken}; every other byte stays."
    yield "  One that cannot be edited is refused: 400, compressed 415, larger than Envoy's buffer 413."


def _prompt_limit(limit: PromptLimit, limits: PromptLimits, secret: Collection[str]) -> str:
    selector = limit.selector
    whose = "all requests together"
    if selector is not None and selector.value:
        whose = f"{selector.header}: {counted_value(selector.header, selector.value, secret)}"
    elif selector is not None:
        own = list(_own_values(limit.model, selector.header, limits, secret))
        whose = f"each {'other ' if own else ''}value of {selector.header}"
        whose += f" than {', '.join(own)}" if own else ""
    return (
        f"{limit.model}, {whose}: {counted(limit.tokens, 'token')} {'an' if limit.per == 'hour' else 'a'} {limit.per}"
    )


def _own_values(model: str, header: str, limits: PromptLimits, secret: Collection[str]) -> Iterator[str]:
    """Of a header, those that have limits of their own for a model."""
    values = [
        each.selector.value
        for each in limits.limits
        if each.selector is not None and (each.model.lower(), each.selector.header) == (model.lower(), header)
    ]
    return (counted_value(header, value, secret) for value in dict.fromkeys(values) if value)


def _algorithm(limits: PromptLimits, *, theirs: bool) -> str:
    if theirs:
        return "How they are counted is that service's own business; it has to have limits for these descriptors."
    if limits.algorithm == "gcra":
        return "Buckets that fill steadily (gcra): what is refused now fits in a while, not at the end of a window."
    return "Windows from their first request on (fixed)."
