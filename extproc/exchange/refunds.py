"""What was charged before a call, when it turns out that it was too much."""

from __future__ import annotations

from functools import partial
from time import monotonic

from extproc.exchange.record import Precharged, Record
from extproc.exchange.reporting import charging
from extproc.limiter.seam import Answer, Metadata, Query
from extproc.plan.action import Refund


def settle_rest(record: Record, query: Query, hits: int) -> int:
    """What a report of `hits` still has to charge, of which a part may have been charged before the call.

    Where that was more than `hits`, the difference is given back, if that is wanted and possible.
    """
    before = record.precharged.pop((query.domain, query.descriptors[0]), None)
    if before is None:
        return hits
    rest = hits - before.query.hits_addend
    if rest < 0:
        _give_back(record, before, -rest)
    return max(0, rest)


def give_all_back(record: Record) -> None:
    """The call was not made, or failed: nothing of what was charged before it was used."""
    for before in record.precharged.values():
        _give_back(record, before, before.query.hits_addend)
    record.precharged.clear()


def _give_back(record: Record, before: Precharged, hits: int) -> None:
    if before.refund is None:
        return
    ask = partial(_refund, before.refund, before.when)
    record.shared.reports.submit(ask, charging(before.query, hits), record.metadata, record.request_id)


def _refund(refund: Refund, charged: float, query: Query, metadata: Metadata) -> Answer:
    return refund(query, metadata, monotonic() - charged)
