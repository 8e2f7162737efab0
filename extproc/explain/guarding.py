"""What guards look at, and what follows."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from extproc.config.guards import AnswerGuard, Guard, Outside
from extproc.config.model import Config
from extproc.explain.words import counted, credential_of, listed, seconds

_EVENTUALLY = {"deny": "refuses the request", "allow": "lets it pass"}


def guards(config: Config) -> Iterator[str]:
    """Of `guards`, in their order."""
    for name, guard in config.guards.items():
        yield ""
        yield from _guard(name, guard, [each.name for each in config.action_sets if name in each.guards])


def _guard(name: str, guard: Guard, action_sets: list[str]) -> Iterator[str]:
    bound = [f"requests to {', '.join(guard.hosts)}"] if guard.hosts else []
    bound += [f"those of the action set{'s'[: len(action_sets) > 1]} {listed(action_sets)}"] if action_sets else []
    if not bound:
        yield f"Guard `{name}`: of no host and no action set, so it is never asked"
        return
    yield f"Guard `{name}`: {' and '.join(bound)}"
    if guard.mode == "shadow":
        yield "  Only logged and counted (shadow): everything passes."
    last = ", of `user` only the last message" if guard.check_last_user_message_only else ""
    whose = "everybody" if "*" in guard.check_roles else listed(guard.check_roles)
    yield f"  It looks at what is said by {whose}{last}; a body that it cannot read is {_then(guard.on_unparsable)}."
    if guard.deny:
        yield f"  Refused is what matches any of {counted(len(guard.deny), 'pattern')}."
    if guard.allow:
        yield f"  Refused is what matches none of {counted(len(guard.allow), 'pattern')} that allow."
    if (model := guard.model) is not None:
        where = f"{model.scheme}://{model.host}:{model.port or 443}{model.path}"
        yield f"  Then the model {model.model} is asked, at {where}, {_outside(model)}"
        if (report := model.report) is not None:
            labels = ", ".join([f"guard = {name}", *(f"{key} = `{value}`" for key, value in report.labels.items())])
            yield f"    its tokens are charged in `{report.scope}` through `{report.service}`: {labels}"
    if (webhook := guard.webhook) is not None:
        # A path or a query may hold what nobody else is to see.
        origin = urlsplit(webhook.url)._replace(path="/...", query="", fragment="").geturl()
        yield f"  Then {origin} is asked, {_outside(webhook)}"
    if not (guard.deny or guard.allow or guard.model or guard.webhook):
        yield "  It refuses nothing of what it can read: it has no patterns, no model and no webhook."
    yield f"  {_denial(guard)}"
    if guard.answers is not None:
        yield from _answers(guard, guard.answers)


def _outside(outside: Outside) -> str:
    cache = outside.cache
    remembered = f"verdicts count for {seconds(cache.ttl)}" if cache.entries else "no verdict is remembered"
    return (
        f"{credential_of(outside.credential)}, within {seconds(outside.timeout)}; {remembered}\n"
        f"    no answer in time {_EVENTUALLY[outside.on_timeout]}, no connection or another status than 200 "
        f"{_EVENTUALLY[outside.on_failure]};\n    overload, and an answer that is no clear verdict, refuse it always"
    )


def _denial(guard: Guard) -> str:
    denial = guard.deny_with
    if denial.body is not None:
        body = repr(denial.body.strip())
    elif denial.profile is not None:
        body = f"as `{denial.profile}` words it"
    else:
        body = "worded as `denyWith` where that is JSON, else as `asm`"
    headers = "".join(f", {name}: {value}" for name, value in denial.headers.items())
    return f"A refused request gets {denial.status}, {body}{headers}."


def _answers(guard: Guard, answers: AnswerGuard) -> Iterator[str]:
    deny = guard.deny if answers.deny is None else answers.deny
    yield f"  Answers too: what matches any of {counted(len(deny), 'pattern')} is not shown."
    yield f"    JSON and text are held, up to {answers.max_body} bytes, and refused as a whole; streams pass event by"
    yield f"    event and are cut, with matches that begin up to {answers.look_behind} characters back"
    unparsable = answers.on_unparsable or guard.on_unparsable
    yield f"    one that it cannot read is {_then(unparsable)}"


def _then(mode: str) -> str:
    return "refused" if mode == "deny" else "let pass"
