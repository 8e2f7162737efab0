"""The whole page."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sized

from extproc.active import Active
from extproc.config.model import (
    Action,
    AuthConfig,
    ConditionalData,
    Config,
    DenyWith,
    Fixed,
    IncludeUsage,
    Price,
    Service,
    Source,
)
from extproc.explain.directions import directions, prompt_limits
from extproc.explain.guarding import guards
from extproc.explain.words import counted, listed
from extproc.gateway.waiting import active_guards, longest_wait
from extproc.limiter.limits import CompiledLimit
from extproc.limiter.windows import CalendarWindow
from extproc.plan.action import Action as CompiledAction
from extproc.plan.action import AuthAction, Phase, Precharge
from extproc.plan.compile import DOMAIN, HITS_ADDEND
from extproc.plan.plan import ActionSet
from extproc.usage.vocabulary import DIRECTORY_VARIABLE

_VERBS = {
    "ratelimit": "ask and count (ShouldRateLimit)",
    "ratelimit-check": "ask (CheckRateLimit)",
    "ratelimit-report": "charge (Report)",
    "auth": "authenticate (Check)",
}
_LIMITING = ("ratelimit", "ratelimit-check")


def explain(active: Active) -> str:
    """A page for the person who wrote the configuration."""
    return "\n".join(_lines(active)) + "\n"


def _lines(active: Active) -> Iterator[str]:
    config = active.config
    yield "Listens for Envoy on " + ", ".join(listener.address for listener in config.listeners) + "."
    yield f"Health and metrics on {config.admin.address}." if config.admin else "No admin port."
    yield ""
    yield "Services"
    for name, service in config.services.items():
        yield f"  {name}: {_service(config, service)}"
    if not config.services:
        yield "  none" if config.providers or active_guards(config) else "  none: every request passes"
    for action_set, compiled in zip(config.action_sets, active.plan.action_sets, strict=True):
        yield ""
        yield f"Action set `{action_set.name}`: requests to {', '.join(action_set.route_rule_conditions.hostnames)}"
        for predicate in action_set.route_rule_conditions.predicates:
            yield f"  where {predicate}"
        for action, compiled_action in zip(action_set.actions, compiled.actions, strict=True):
            yield from _action(config, action, compiled_action)
        decides = any(config.services[action.service].type in _LIMITING for action in action_set.actions)
        over = f"Over a limit the client gets {_denial(action_set.deny_with or config.deny_with)}."
        yield f"  {over if decides else 'Nothing is refused: no action asks before the model is called.'}"
        if compiled.denies_without_limit:
            yield "  A request to which none of its limits applies is refused: 403."
        yield f"  Of the bodies it needs {_bodies(compiled)}."
        if action_set.guards:
            yield f"  It is guarded by {', '.join(action_set.guards)}, besides guards of its hosts."
        dialect = action_set.dialect or config.dialect
        if dialect != "auto" and compiled.response_reader is not None:
            yield f"  Answers are read as {dialect}'s, whatever they look like."
    yield from directions(config)
    yield from prompt_limits(config)
    yield from guards(config)
    yield ""
    if config.providers or active_guards(config):
        yield f"A request that no action set matches {_unmatched(config)}."
    yield f"A successful answer without usage is charged {_missing(config)}."
    yield f"Answers with an error status are {'charged too' if config.charge_errors else 'not charged'}."
    yield f"Only answers to {', '.join(config.metered_methods)} requests are charged."
    yield f"What was used is shown to Envoy as dynamic metadata `{config.metadata_namespace}`."
    if config.include_usage.enabled:
        yield _asking(config.include_usage, config.bodies.buffer)
    if config.prices:
        yield "Prices, per million tokens: " + "; ".join(_price(model, price) for model, price in config.prices.items())
    for name, rules in config.auth_configs.items():
        yield from _auth_config(name, rules, active.loaded.keys)
    if active.limits.limits:
        yield ""
        unused = "" if _uses_embedded(config) else ", which no service talks to, so they are not used"
        yield f"Limits of the embedded limiter{unused}:"
        yield from map(_limit, active.limits.limits)
    yield ""
    yield from _gateway(config)


def _uses_embedded(config: Config) -> bool:
    asks_about_prompts = config.prompt_limits is not None and config.prompt_limits.service is None
    return asks_about_prompts or any(config.endpoints[each.endpoint].embedded for each in config.services.values())


def _unmatched(config: Config) -> str:
    if config.on_no_match == "deny":
        return "is answered 404"
    parts = {"has its provider": bool(config.providers), "is guarded": bool(active_guards(config))}
    return f"{listed([part for part, there in parts.items() if there])} all the same"


def _gateway(config: Config) -> Iterator[str]:
    """What Envoy has to be told, for `deploy/envoy.yaml` waits for a second."""
    waiting = longest_wait(config)
    yield f"Envoy's `message_timeout` has to be {waiting.message_timeout}s at least: {waiting}, and some time besides."
    if config.providers or active_guards(config):
        yield "`extproc envoy-config` prints what Envoy, Istio or Envoy Gateway has to be told."


def _limit(limit: CompiledLimit) -> str:
    identity = limit.identity
    conditions = " and ".join(identity.conditions) or "always"
    counters = f", one counter per {', '.join(identity.variables)}" if identity.variables else ""
    window = f"{limit.max_value} in {_window(limit)} in `{identity.namespace}`"
    return f"  {limit.label}: {window}, {conditions}{counters}"


def _window(limit: CompiledLimit) -> str:
    return f"a {limit.window}" if isinstance(limit.window, CalendarWindow) else str(limit.window)


def _auth_config(name: str, rules: AuthConfig, keys: Mapping[tuple[str, str], Sized]) -> Iterator[str]:
    yield ""
    yield f"Who calls, by the rules `{name}`"
    for source_name, source in rules.authentication.items():
        yield f"  {source_name}: {_source(source, len(keys.get((name, source_name), ())))}"
    for predicate in rules.authorization:
        yield f"  may call where {predicate}"
    for filter_name, properties in rules.filters.items():
        for key, value in properties.items():
            yield f"  auth.{filter_name}.{key} = {value}"
    missing = {
        "deny": "is refused (403)",
        "allow": "passes, without it",
        "address": "is told apart by address",
        "shared": "is `anonymous`, together with all others",
    }
    yield f"  A caller without `auth.identity.{rules.user}` {missing[rules.on_missing_user]}."
    if rules.models is not None:
        yield f"  Models that may be asked for: {rules.models}; another, or one that is not certain, is a 403."
    for header, value in rules.headers.items():
        yield f"  The model is sent {header} = {value}"
    removed = [*rules.remove_headers, *([] if rules.forward_credentials else ["the key"])]
    yield f"  The model is not sent what a client sends as {', '.join(removed)}."


def _source(source: Source, keys: int) -> str:
    if source.jwt is not None:
        issuer = "" if source.jwt.issuer is None else f" of {source.jwt.issuer}"
        return f"tokens{issuer} that Envoy has verified, in metadata {source.jwt.namespace}:{source.jwt.payload}"
    assert source.api_keys is not None
    credentials = source.credentials
    scheme = f"`{credentials.scheme} KEY`" if credentials.scheme else "the key"
    files = ", ".join(source.api_keys.files)
    return f"{counted(keys, 'API key')} from {files}, as {scheme} in {credentials.header}"


def _service(config: Config, service: Service) -> str:
    endpoint = config.endpoints[service.endpoint]
    embedded = "the embedded authenticator" if service.type == "auth" else "the embedded limiter"
    where = embedded if endpoint.embedded else endpoint.address
    failure = "the request is denied (500)" if service.failure_mode == "deny" else "the request passes"
    if service.type == "ratelimit-report":
        failure = "the client is not affected"
    return f"{_VERBS[service.type]} at {where}; without an answer in {service.timeout * 1000:g} ms {failure}"


def _action(config: Config, action: Action, compiled: AuthAction | CompiledAction) -> Iterator[str]:
    service = config.services[action.service]
    if isinstance(compiled, AuthAction):
        yield f"  first of all: {_VERBS[service.type]} by `{action.scope}` through `{action.service}`"
        for predicate in action.predicates:
            yield f"    where {predicate}"
        return
    phase = {
        Phase.REQUEST_HEADERS: "before the model is called",
        Phase.REQUEST_BODY: "before the model is called, when the request body is there",
        Phase.RESPONSE: "when the answer is over",
    }[compiled.phase]
    yield f"  {phase}: {_VERBS[service.type]} in `{action.scope}` through `{action.service}`"
    for predicate in action.predicates:
        yield f"    where {predicate}"
    for block in action.conditional_data:
        yield from _block(block)
    if compiled.precharge is not None:
        yield "    and charges the estimated prompt at once; the report charges the rest"
        yield f"    of a call that fails, or takes less, that {_kept(compiled.precharge)}"


def _kept(precharge: Precharge) -> str:
    if not precharge.keeps:
        return "is given back"
    return "stays; of a request that is refused later it " + (
        "stays too" if precharge.refund is None else "is given back"
    )


def _block(block: ConditionalData) -> Iterator[str]:
    condition = " and ".join(block.predicates)
    for data in block.data:
        item = data.item
        value = f"`{item.value}`" if data.expression else f'"{item.value}"'
        name = {HITS_ADDEND: "hits", DOMAIN: "domain"}.get(item.key, item.key)
        yield f"    {name} = {value}" + (
            f" where {condition}" if condition and item.key not in (HITS_ADDEND, DOMAIN) else ""
        )


def _bodies(compiled: ActionSet) -> str:
    needed = [
        name
        for name, reader in (("the request's", compiled.request_reader), ("the answer's", compiled.response_reader))
        if reader is not None
    ]
    return " and ".join(needed) or "none"


def _denial(deny: DenyWith) -> str:
    headers = "".join(f", {name}: {value}" for name, value in deny.headers.items())
    body = f"as `{deny.profile}` words it" if deny.body is None else repr(deny.body.strip())
    return f"{deny.status}, {body}{headers}"


def _missing(config: Config) -> str:
    policy = config.on_missing_usage
    if isinstance(policy, Fixed):
        return f"{policy.fixed} tokens"
    if policy == "skip":
        return "nothing"
    read = "the text" if config.estimates.prompt == "text" else "the size"
    vocabulary = config.estimates.vocabulary or os.environ.get(DIRECTORY_VARIABLE)
    means = f"with the vocabulary in {vocabulary}" if vocabulary else "by size, without a vocabulary"
    return f"an estimate, labelled so: of {read} of the prompt and of the text of the answer, {means}"


def _asking(asked: IncludeUsage, buffer: int) -> str:
    exceptions = [*asked.except_hosts, *asked.except_models]
    but = f", but for {', '.join(exceptions)}" if exceptions else ""
    frame = "taken out of the client's stream again" if asked.strip else "left in the client's stream"
    return (
        f"Streams to {', '.join(asked.paths)} are asked for their usage{but}; the extra frame is {frame}. "
        f"Envoy holds these requests; it must be able to hold {buffer} bytes."
    )


def _price(model: str, price: Price) -> str:
    cached = "" if price.cached is None else f", cached {price.cached:g}"
    written = "" if price.cache_write is None else f", written to a cache {price.cache_write:g}"
    return f"`{model}` input {price.input:g}, output {price.output:g}{cached}{written}"
