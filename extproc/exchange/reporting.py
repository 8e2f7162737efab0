"""Telling limiters what was used."""

from __future__ import annotations

import asyncio

from extproc.exchange.record import Record
from extproc.limiter.seam import Query
from extproc.plan.action import Action
from extproc.usage.usage import Source, Usage


def report(
    record: Record,
    action: Action,
    query: Query,
    usage: Usage | None = None,
    source: Source = "fixed",
    precharged: int = 0,
) -> asyncio.Task[None] | None:
    """Hand a report over; none for 0 hits, which Limitador would count as 1 (S0.D8).

    The log tells of all hits, of which so many may have been charged before the call.
    """
    decisions = record.shared.decisions
    if decisions.enabled:
        fields = record.about
        fields["decision"] = "allowed"
        fields["domain"] = query.domain
        fields["hits_addend"] = query.hits_addend + precharged
        if precharged:
            fields["precharged"] = precharged
        if usage is not None:
            fields["usage"] = source
            fields["ending"] = usage.ending
            fields["model"] = usage.model
        fields["status"] = record.status
        decisions.note("consumed", fields)
    if query.hits_addend == 0:
        return None
    record.shared.metrics.tokens_reported += query.hits_addend
    return record.shared.reports.submit(action.service.ask, query, record.metadata, record.request_id)


def charging(query: Query, hits: int) -> Query:
    """`query` for `hits`."""
    return Query(query.domain, query.descriptors, hits)
