"""What guards can get wrong though they are well-formed (S3.13); their patterns are compiled elsewhere.

`intelligent guard` is what the ASM proxy calls a guard's model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from extproc.config.address import valid_hostname, valid_ipv6
from extproc.config.credentials import NO_GUARD_KEY
from extproc.config.errors import Problem, Step, listed, quoted, similar
from extproc.config.files import Files, Unreadable
from extproc.config.guards import GuardModel, GuardReport, Outside, Webhook
from extproc.config.http_names import ESSENTIAL, find_header_problems, find_hostname_problems, fits_header
from extproc.config.masking import without_userinfo
from extproc.config.model import Config
from extproc.config.providers import Credential

NO_GUARD_HOST: Final = "intelligent guard cluster cannot be empty"


def find_guard_problems(config: Config, files: Files) -> Iterator[Problem]:
    """Of `guards`, and of the action sets that name them. `files` tells whether trusted roots can be read."""
    for name, guard in config.guards.items():
        steps = ("guards", name)
        yield from find_hostname_problems(guard.hosts, (*steps, "hosts"))
        yield from find_header_problems(guard.deny_with.headers, (*steps, "denyWith", "headers"))
        if guard.model is not None:
            yield from _model(guard.model, (*steps, "model"), config)
            yield from _outside(guard.model, (*steps, "model"), files)
        if guard.webhook is not None:
            yield from _webhook(guard.webhook, (*steps, "webhook"))
            yield from _outside(guard.webhook, (*steps, "webhook"), files)
    for index, action_set in enumerate(config.action_sets):
        for number, name in enumerate(action_set.guards):
            if name not in config.guards:
                guess = similar(name, config.guards)
                message = f"no guard is named {quoted(name)}{guess or ','} known: {listed(config.guards)}"
                yield Problem.at(("actionSets", index, "guards", number), message)


def _model(model: GuardModel, steps: Sequence[Step], config: Config) -> Iterator[Problem]:
    if not model.host:
        yield Problem.at((*steps, "host"), NO_GUARD_HOST)
    elif not _is_host(model.host):
        message = f"{quoted(without_userinfo(model.host, address=True))}: expected a name or an address, without a port"
        yield Problem.at((*steps, "host"), message)
    if not model.path.startswith("/") or not model.path.isprintable() or " " in model.path:
        yield Problem.at((*steps, "path"), "expected a path, beginning with `/`")
    if not model.model:
        yield Problem.at((*steps, "model"), "the name of a model is not empty")
    if model.credential is None:
        yield Problem.at((*steps, "credential"), f"{NO_GUARD_KEY}; write `none` if it needs none")
    if model.report is not None:
        yield from _report(model.report, (*steps, "report"), config)


def _report(report: GuardReport, steps: Sequence[Step], config: Config) -> Iterator[Problem]:
    service = config.services.get(report.service)
    if service is None:
        guess = similar(report.service, config.services)
        message = f"no service is named {quoted(report.service)}{guess or ','} known: {listed(config.services)}"
        yield Problem.at((*steps, "service"), message)
    elif service.type != "ratelimit-report":
        message = f"{quoted(report.service)} is of the type `{service.type}`, not `ratelimit-report`"
        yield Problem.at((*steps, "service"), message)


def _webhook(webhook: Webhook, steps: Sequence[Step]) -> Iterator[Problem]:
    if fault := _url_fault(webhook.url):
        yield Problem.at((*steps, "url"), f"{quoted(without_userinfo(webhook.url))}: {fault}")
    yield from find_header_problems(webhook.headers, (*steps, "headers"))
    carrier = webhook.credential.header if isinstance(webhook.credential, Credential) else ""
    for name in webhook.headers:
        if name in ESSENTIAL:
            yield Problem.at((*steps, "headers", name), "this header is not for you to set")
        elif name == carrier:
            yield Problem.at((*steps, "headers", name), "set already: it carries the credential")


def _outside(outside: Outside, steps: Sequence[Step], files: Files) -> Iterator[Problem]:
    """What is asked of everybody outside."""
    credential = outside.credential
    if credential == "client":
        message = "what a client sent is for its provider; give the guard a credential of its own, or `none`"
        yield Problem.at((*steps, "credential"), message)
    elif isinstance(credential, Credential):
        if credential.header in ESSENTIAL:
            yield Problem.at((*steps, "credential", "header"), "this header carries no credential")
        if credential.prefix is not None and not fits_header(credential.prefix):
            message = "a header's value holds no line breaks or control characters"
            yield Problem.at((*steps, "credential", "prefix"), message)
    if outside.ca is not None:
        try:
            files.read(Path(outside.ca))
        except Unreadable as error:
            yield Problem.at((*steps, "ca"), f"{quoted(outside.ca, longest=250)}: {error}")


def _is_host(text: str) -> bool:
    return valid_hostname(text.removesuffix(".")) or valid_ipv6(text.removeprefix("[").removesuffix("]"))


def _url_fault(url: str) -> str:
    """What is wrong with the URL of a webhook, "" when it is right."""
    if not url.isprintable() or " " in url:
        return "a URL holds no spaces or control characters"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "the host or the port is not one"
    if parts.scheme not in ("https", "http"):
        return "expected `https://...` or `http://...`"
    if "@" in parts.netloc:
        return "a URL holds no user information; a secret belongs into `credential`"
    if not parts.hostname or not _is_host(parts.hostname) or port == 0:
        return "the host or the port is not one"
    return ""
