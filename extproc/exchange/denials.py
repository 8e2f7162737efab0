"""Replies in the model's place: each ends the exchange, counts, and leaves a line."""

from __future__ import annotations

import logging

from extproc import replies
from extproc.exchange.record import Record
from extproc.guards.final_events import replacement
from extproc.guards.seam import Verdict
from extproc.limiter.seam import Decision
from extproc.plan.guarding import PlannedGuard
from extproc.refusals import Refusals
from extproc.replies import Reply
from extproc.telemetry.spending import Rejection

Headers = tuple[tuple[str, str], ...]


def unmatched(record: Record) -> Reply:
    """No action set is for the request, and that is not wanted: 404."""
    refusals = record.plan.no_match
    assert refusals is not None
    record.shared.metrics.denied += 1
    record.shared.spending.rejected("no_match")
    fields = {**record.about, "decision": "denied", "code": 404, "reason": "no match"}
    record.shared.decisions.note("denied", fields)
    return refusals.rejected("no_match", 404, shown=record.shown, request_id=record.request_id)


def rejected(
    record: Record,
    kind: Rejection,
    status: int,
    reason: str,
    headers: Headers = (),
    body: bytes | None = None,
    *,
    message: str = "",
) -> Reply:
    """A caller, or what it asks for, is refused for another reason than a limit."""
    assert record.action_set is not None
    record.shared.metrics.denied += 1
    record.shared.spending.rejected(kind)
    record.end("denied")
    fields = {**record.about, "decision": "denied", "code": status, "reason": reason}
    record.shared.decisions.note("denied", fields)
    return record.action_set.refusals.rejected(
        kind, status, headers, body, record.shown, request_id=record.request_id, message=message
    )


def guarded(record: Record, planned: PlannedGuard, verdict: Verdict) -> Reply:
    """A guard refused; it has told the log and the metrics why."""
    assert record.action_set is not None
    record.shared.metrics.denied += 1
    record.shared.spending.rejected("guard")
    record.end("denied")
    denial = planned.denial
    return planned.refusals(record.action_set.refusals).rejected(
        "guard",
        denial.status,
        tuple((name.lower(), value) for name, value in denial.headers.items()),
        None if denial.body is None else denial.body.encode(),
        record.shown,
        request_id=record.request_id,
        message=verdict.message,
    )


def note_answer(record: Record, planned: PlannedGuard, outcome: str, rule: str) -> None:
    """What a guard found in an answer; `rule` is "" where it is let pass all the same."""
    guard, metrics = planned.guard, record.shared.metrics.guarding
    metrics.judged(guard.name, "answer", outcome, enforced=guard.enforces)
    if rule:
        metrics.denied(guard.name, rule, enforced=guard.enforces)
    fields = {**record.about, "guard": guard.name, "subject": "answer", "rule": rule, "outcome": outcome}
    record.shared.decisions.note("guard", {**fields, "enforced": guard.enforces})


def note_allowed_answer(record: Record, planned: PlannedGuard) -> None:
    """A guard found nothing in an answer."""
    guard = planned.guard
    record.shared.metrics.guarding.judged(guard.name, "answer", "allow", enforced=guard.enforces)


def withheld(record: Record, planned: PlannedGuard) -> Reply:
    """In place of an answer whose headers have not left."""
    assert record.action_set is not None
    denial = planned.denial
    told = replacement(planned.profile(record.action_set.refusals))
    body = told.body if denial.body is None else denial.body.encode()
    own = {} if denial.body is not None else {"content-type": told.content_type}
    headers = own | {name.lower(): value for name, value in denial.headers.items()}
    return replies.immediate(denial.status, body, (*headers.items(), *record.shown), details="guard_answer")


def over_prompt_limit(record: Record, decision: Decision, legacy_body: bytes | None) -> Reply:
    """A prompt is more than a limit has left; `legacy_body` are Plano's words for it."""
    record.shared.metrics.guarding.prompts_limited += 1
    return over_limit(record, decision, legacy_body)


def over_limit(record: Record, decision: Decision, body: bytes | None = None) -> Reply:
    """A limiter refused; `body` is in place of the usual one."""
    assert record.action_set is not None
    record.shared.metrics.denied += 1
    record.shared.spending.refused(record.who, record.namespace, decision.limit)
    record.end("denied")
    fields = {**record.about, "decision": "denied", "code": "OVER_LIMIT", "limit": decision.limit}
    record.shared.decisions.note("denied", fields)
    return record.action_set.refusals.limited(decision, record.shown, body, request_id=record.request_id)


def too_large(record: Record) -> Reply:
    """Nothing is decided on a part of a body: 413 (G14)."""
    return rejected(
        record, "too_large", 413, "the request body does not fit into Envoy's buffer, or has too many values"
    )


def unreadable(record: Record, why: str) -> Reply:
    """Nothing is decided on a body that others may read otherwise: 400, or 415 for an encoding."""
    encoded = why == "encoding"
    record.shared.metrics.body_unread("encoding" if encoded else "corrupt")
    reason = f"the request body cannot be read: {why}"
    return rejected(record, "encoding" if encoded else "body", 415 if encoded else 400, reason)


def not_seen(record: Record) -> Reply:
    """A gateway that takes no orders did not send what was to be looked at."""
    return failed(record, "the gateway did not send the request body: it has to allow mode overrides")


def not_held(record: Record) -> Reply:
    """A gateway that streams would have sent on what is not decided yet."""
    return failed(record, "nothing can be decided on a request body that the gateway does not hold")


def undecided(record: Record, reason: str, service: str, *, denies: bool) -> Reply | None:
    """No decision was reached: what the service's failure mode makes of that."""
    if denies:
        return failed(record, reason, service)
    record.shared.metrics.errors += 1
    record.shared.metrics.action_failed(record.action_set_name)
    record.log(logging.WARNING, "allowed without a decision", reason=reason, service=service)
    return None


def failed(record: Record, reason: str, service: str = "") -> Reply:
    """No decision, and that denies: 500 (S0.14)."""
    record.shared.metrics.errors += 1
    reply = broken(record)
    record.log(logging.ERROR, "denied: no decision", reason=reason, **({"service": service} if service else {}))
    return reply


def broken(record: Record) -> Reply:
    """The same after a defect of ours, which was counted and logged where it was caught."""
    record.shared.metrics.denied += 1
    record.shared.metrics.action_failed(record.action_set_name)
    record.end("error")
    refusals = Refusals() if record.action_set is None else record.action_set.refusals
    return refusals.rejected("failure", 500, shown=record.shown, request_id=record.request_id)
