"""What was charged before a call, when it is known what the call took."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from time import monotonic

from extproc.exchange.record import Precharged, Record
from extproc.exchange.reporting import charging
from extproc.limiter.seam import Answer, Metadata, Query
from extproc.plan.action import Refund


def settle_rest(record: Record, endpoint: str, query: Query, hits: int) -> int:
    """What a report of `hits` still has to charge, of which a part may have been charged before the call.

    A report goes with the charge whose entries it has; it may have more. What it does not take of that is left for the
    next report.
    """
    entries = set(query.descriptors[0])
    charges = [
        (key, before)
        for key, before in record.precharged.items()
        if key[:2] == (endpoint, query.domain) and entries.issuperset(key[2])
    ]
    if not charges:
        return hits
    key, before = max(charges, key=lambda charge: len(charge[0][2]))
    covered = min(hits, before.query.hits_addend)
    record.shared.metrics.tokens_reported += covered
    left = charging(before.query, before.query.hits_addend - covered)
    record.precharged[key] = replace(before, query=left, settled=True)
    return hits - covered


def give_back_rest(record: Record) -> None:
    """After all reports: what they left of the charges that they went with. Others are all that is ever counted."""
    for before in record.precharged.values():
        if before.settled and not before.keeps:
            _give_back(record, before)
    record.precharged.clear()


def give_back(record: Record) -> None:
    """Nothing was used. Of a model that was called all the same it may be wanted that the charge stays."""
    for before in record.precharged.values():
        if not (record.called and before.keeps):
            _give_back(record, before)
    record.precharged.clear()


def _give_back(record: Record, before: Precharged) -> None:
    if before.refund is not None and before.query.hits_addend:
        ask = partial(_refund, before.refund, before.when)
        record.shared.reports.submit(ask, before.query, record.metadata, record.request_id)


def _refund(refund: Refund, charged: float, query: Query, metadata: Metadata) -> Answer:
    return refund(query, metadata, monotonic() - charged)
