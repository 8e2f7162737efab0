"""What guards say of a request, and what follows from it."""

from __future__ import annotations

from time import monotonic
from typing import Final

from extproc.bodies.edits import replace_texts
from extproc.bodies.json_edit import Uneditable
from extproc.exchange import denials
from extproc.exchange.record import Record
from extproc.exchange.request_body import RequestBody
from extproc.facts import RequestFacts
from extproc.guards.seam import Asked, Path, Text, Verdict
from extproc.guards.texts import has_repeated_names, read_texts
from extproc.limiter.seam import MAX_HITS, Query
from extproc.plan.guarding import GuardMeter, PlannedGuard
from extproc.replies import Reply

_CHARSET: Final = "charset"
_UTF_8: Final = frozenset({"utf-8", "utf8", "us-ascii"})


class Guarding:
    """Asks the guards of one request, one after the other: what a later one sees is what an earlier one made of it."""

    __slots__ = ("_facts", "_record")

    def __init__(self, record: Record, facts: RequestFacts) -> None:
        self._record = record
        self._facts = facts

    @property
    def enforces(self) -> bool:
        """Whether any of them may refuse."""
        return any(planned.guard.enforces for planned in self._record.guards)

    async def ask(self, body: RequestBody, *, whole: bool) -> Reply | None:
        """None to go on, perhaps with other texts in `body`; or the reply that ends the exchange.

        A body that is not `whole` is not understood (S3.D16).
        """
        whole = whole and body.unread != "too_large"
        texts, problem = self._texts(body) if whole else (None, "the body does not fit into Envoy's buffer")
        for planned in self._record.guards:
            guard, started = planned.guard, monotonic()
            verdict = guard.unparsable(problem) if texts is None else await guard.judge(self._asked(texts))
            self._note(planned, verdict, monotonic() - started)
            if not guard.enforces:
                continue
            if not verdict.allowed:
                return self._refusal(planned, verdict) if whole else denials.too_large(self._record)
            if verdict.replacements and texts is not None:
                if not _replace(body, verdict):
                    return self._refusal(planned, guard.unparsable("a text cannot be replaced")._replace(allowed=False))
                texts = _with(texts, dict(verdict.replacements))
        return None

    def _texts(self, body: RequestBody) -> tuple[tuple[Text, ...] | None, str]:
        """The texts of the request; None where they cannot be found for certain, and why."""
        if body.is_encoded:
            return None, "the body is compressed"
        if not is_utf_8(self._facts.header("content-type") or ""):
            return None, "the body is not in UTF-8"
        if not body.data.strip():
            return (), ""
        if body.document is None or body.unread is not None:
            return None, "the body is not JSON"
        if has_repeated_names(body.data):
            return None, "a name is given twice"
        tools = any(planned.guard.reads_tools for planned in self._record.guards)
        texts = read_texts(body.document, definitions=tools)
        return texts, "" if texts is not None else "no texts are known in the body"

    def _asked(self, texts: tuple[Text, ...]) -> Asked:
        facts = self._facts
        return Asked(
            texts=texts,
            model=self._record.model,
            identity=facts.identity(),
            request_id=self._record.request_id,
            host=facts.host,
            path=facts.header(":path") or "",
        )

    def _note(self, planned: PlannedGuard, verdict: Verdict, seconds: float) -> None:
        guard, record = planned.guard, self._record
        metrics = record.shared.metrics.guarding
        metrics.judged(guard.name, "request", verdict.outcome, enforced=guard.enforces)
        metrics.took(guard.name, seconds, verdict.tokens)
        if not verdict.allowed:
            metrics.denied(guard.name, verdict.rule, enforced=guard.enforces)
        if not verdict.allowed or verdict.outcome != "allow" or verdict.replacements:
            fields = {**record.about, "guard": guard.name, "rule": verdict.rule, "outcome": verdict.outcome}
            fields["enforced"] = guard.enforces
            fields["reason"] = verdict.reason or ("texts replaced" if verdict.replacements else "")
            record.shared.decisions.note("guard", fields)
        if verdict.tokens and planned.meter is not None:
            self._meter(planned.meter, guard.name, verdict.tokens)

    def _meter(self, meter: GuardMeter, guard: str, tokens: int) -> None:
        labels = zip(meter.labels.names, meter.labels.of(self._facts), strict=True)
        descriptor = (("guard", guard), *((name, value) for name, value in labels if value))
        query = Query(meter.domain, (descriptor,), min(tokens, MAX_HITS))
        record = self._record
        record.shared.reports.submit(meter.service.ask, query, record.metadata, record.request_id)

    def _refusal(self, planned: PlannedGuard, verdict: Verdict) -> Reply:
        return denials.guarded(self._record, planned, verdict)


def is_utf_8(content_type: str) -> bool:
    """Whether a content type leaves no doubt about what the bytes of JSON say: it names no other charset anywhere."""
    content_type = content_type.lower()
    parameters = (parameter.partition("=") for parameter in content_type.split(";")[1:])
    known = sum(name.strip() == _CHARSET and value.strip().strip("\"'") in _UTF_8 for name, _, value in parameters)
    return content_type.count(_CHARSET) == known


def _replace(body: RequestBody, verdict: Verdict) -> bool:
    """Exchange the texts that a guard wants others for. Whether that was possible, for all of them."""
    try:
        replaced = replace_texts(body.data, verdict.replacements)
    except Uneditable:
        return False
    if replaced is not None:
        body.replace(replaced)
    return replaced is not None


def _with(texts: tuple[Text, ...], replacements: dict[Path, str]) -> tuple[Text, ...]:
    return tuple(text._replace(text=replacements.get(text.path, text.text)) for text in texts)
