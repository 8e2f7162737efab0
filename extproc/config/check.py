"""What a well-formed configuration can still get wrong: names, addresses and files that lead nowhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from extproc.config.address import Address, Tcp, parse_address
from extproc.config.check_guards import find_guard_problems
from extproc.config.check_providers import find_provider_problems, find_provider_warnings
from extproc.config.errors import ConfigError, Problem, Step, listed, quoted, shown, similar
from extproc.config.fields import ClientTls
from extproc.config.files import Files, Unreadable
from extproc.config.http_names import find_header_problems, find_hostname_problems
from extproc.config.masking import without_userinfo
from extproc.config.model import Config, Endpoint, ServerTls
from extproc.config.storage import parse_storage

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def find_problems(config: Config, files: Files) -> Iterator[Problem]:
    """Everything but expressions, in the order of the fields. `files` tells whether TLS files can be read."""
    yield from _services(config)
    yield from _action_sets(config)
    yield from _endpoints(config, files)
    yield from _listeners(config, files)
    yield from _answers(config)
    yield from _storage(config, files)
    yield from _auth_headers(config)
    yield from _metric_labels(config)
    yield from find_provider_problems(config)
    yield from find_guard_problems(config, files)


def find_warnings(config: Config) -> Iterator[Problem]:
    """What works, but hardly as meant."""
    embedded = {name for name, endpoint in config.endpoints.items() if endpoint.embedded}
    used = {service.endpoint for service in config.services.values() if service.type != "auth"}
    for name in sorted(embedded & used if not config.limits else ()):
        yield Problem.at(("endpoints", name), "the embedded limiter has no `limits`, so it allows everything")
    scopes = {action.scope for action_set in config.action_sets for action in action_set.actions}
    for name in config.auth_configs:
        if name not in scopes:
            yield Problem.at(
                ("authConfigs", name), "no action asks an `auth` service with this scope, so it is not used"
            )
    yield from find_provider_warnings(config)


def _services(config: Config) -> Iterator[Problem]:
    for name, service in config.services.items():
        if service.endpoint not in config.endpoints:
            yield Problem.at(
                ("services", name, "endpoint"),
                f"{quoted(service.endpoint)} is not in `endpoints` (known: {listed(config.endpoints)}); "
                f'write `endpoints: {{{shown(service.endpoint)}: "host:port"}}`, or `embedded` as its address',
            )


def _action_sets(config: Config) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, action_set in enumerate(config.action_sets):
        steps = ("actionSets", index)
        if (earlier := first.setdefault(action_set.name, index)) != index:
            yield Problem.at((*steps, "name"), f"{quoted(action_set.name)} is the name of actionSets[{earlier}] too")
        hostnames = action_set.route_rule_conditions.hostnames
        yield from find_hostname_problems(hostnames, (*steps, "routeRuleConditions", "hostnames"))
        for number, action in enumerate(action_set.actions):
            service = config.services.get(action.service)
            where = (*steps, "actions", number, "service")
            if service is None:
                guess = similar(action.service, config.services)
                known = listed(config.services)
                yield Problem.at(where, f"no service is named {quoted(action.service)}{guess or ','} known: {known}")
            elif service.type == "auth":
                yield from _auth_scope(config, action.scope, service.endpoint, (*steps, "actions", number, "scope"))


def _auth_scope(config: Config, scope: str, endpoint: str, where: Sequence[Step]) -> Iterator[Problem]:
    """The rules by which the embedded authenticator judges have to be there."""
    found = config.endpoints.get(endpoint)
    if found is not None and found.embedded and scope not in config.auth_configs:
        guess = similar(scope, config.auth_configs)
        known = listed(config.auth_configs)
        yield Problem.at(where, f"{quoted(scope)} is not in `authConfigs`{guess or ','} known: {known}")


def _endpoints(config: Config, files: Files) -> Iterator[Problem]:
    for name, endpoint in config.endpoints.items():
        steps = ("endpoints", name)
        if endpoint.embedded:
            if endpoint.tls is not None:
                yield Problem.at((*steps, "tls"), "the embedded limiter is not called over a network: remove `tls`")
        else:
            yield from _address(endpoint.address, (*steps, "address"))
            yield from _client_tls(endpoint, (*steps, "tls"), files)


def _client_tls(endpoint: Endpoint, steps: Sequence[Step], files: Files) -> Iterator[Problem]:
    if (tls := endpoint.tls) is None:
        return
    if (tls.cert is None) != (tls.key is None):
        yield Problem.at(steps, "`cert` and `key` belong together")
    yield from _tls_files(tls, steps, files)


def _listeners(config: Config, files: Files) -> Iterator[Problem]:
    first: dict[Address, str] = {}
    for index, listener in enumerate(config.listeners):
        steps = ("listeners", index)
        yield from _address(listener.address, (*steps, "address"), first)
        if listener.tls is not None:
            yield from _tls_files(listener.tls, (*steps, "tls"), files)
    if config.admin is not None:
        if config.admin.address.startswith("unix:"):
            yield Problem("admin.address", "write `host:port`: administration is HTTP over TCP")
        else:
            yield from _address(config.admin.address, ("admin", "address"), first)


def _address(text: str, steps: Sequence[Step], bound: dict[Address, str] | None = None) -> Iterator[Problem]:
    """Problems of one address; `bound` are the addresses that are listened on, and gets this one as well."""
    try:
        address = parse_address(text, bind=bound is not None)
    except ValueError as error:
        yield Problem.at(steps, f"{quoted(without_userinfo(text, address=True))}: {error}")
        return
    if bound is None or (isinstance(address, Tcp) and address.port == 0):
        return
    path = Problem.at(steps, "").path
    if (earlier := bound.setdefault(address, path)) != path:
        yield Problem(path, f"{quoted(text)} is taken by {earlier}")


def _tls_files(tls: ClientTls | ServerTls, steps: Sequence[Step], files: Files) -> Iterator[Problem]:
    named = {"ca": tls.ca} if isinstance(tls, ClientTls) else {"clientCa": tls.client_ca}
    for name, path in {"cert": tls.cert, "key": tls.key, **named}.items():
        if path is not None:
            try:
                files.read(Path(path))
            except Unreadable as error:
                yield Problem.at((*steps, name), f"{quoted(path, longest=250)}: {error}")


def _metric_labels(config: Config) -> Iterator[Problem]:
    for name, candidates in config.metrics.labels.items():
        if not candidates:
            yield Problem.at(("metrics", "labels", name), "expected at least one expression")


def _storage(config: Config, files: Files) -> Iterator[Problem]:
    try:
        parse_storage(config.storage)
    except ConfigError as error:
        yield from error.problems
        return
    storage = config.storage
    if storage.tls is not None:
        yield from _tls_files(storage.tls, ("storage", "tls"), files)
    if storage.password_file is not None:
        try:
            files.read(Path(storage.password_file))
        except Unreadable as error:
            yield Problem("storage.passwordFile", f"{quoted(storage.password_file, longest=250)}: {error}")


def _auth_headers(config: Config) -> Iterator[Problem]:
    for name, auth in config.auth_configs.items():
        for denial in ("unauthenticated", "unauthorized"):
            yield from find_header_problems(getattr(auth, denial).headers, ("authConfigs", name, denial, "headers"))
        for header in auth.headers:
            if not _TOKEN.fullmatch(header):
                yield Problem.at(("authConfigs", name, "headers", header), "not the name of an HTTP header")
        for index, pattern in enumerate(auth.remove_headers):
            if not _TOKEN.fullmatch(pattern.removesuffix("*") or "x") or "*" in pattern[:-1]:
                message = "expected the name of an HTTP header, or its beginning and `*`"
                yield Problem.at(("authConfigs", name, "removeHeaders", index), message)
        for source_name, source in auth.authentication.items():
            if not _TOKEN.fullmatch(source.credentials.header):
                steps = ("authConfigs", name, "authentication", source_name, "credentials", "header")
                yield Problem.at(steps, "not the name of an HTTP header")


def _answers(config: Config) -> Iterator[Problem]:
    yield from find_header_problems(config.deny_with.headers, ("denyWith", "headers"))
    for index, action_set in enumerate(config.action_sets):
        if action_set.deny_with is not None:
            yield from find_header_problems(action_set.deny_with.headers, ("actionSets", index, "denyWith", "headers"))
    identifier = config.observability.http_header_identifier
    if identifier is not None and not _TOKEN.fullmatch(identifier):
        yield Problem("observability.httpHeaderIdentifier", "not the name of an HTTP header")
