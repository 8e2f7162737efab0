"""Which provider one request goes to, and what its headers need for that."""

from __future__ import annotations

from extproc import replies
from extproc.exchange import denials
from extproc.exchange.record import Record
from extproc.facts import RequestFacts
from extproc.plan.routing import Routing
from extproc.plan.sight import ActionFailure
from extproc.providers.choice import Refused
from extproc.providers.provider import Provider
from extproc.replies import Reply


class Directions:
    """Found by the head of a request, or when its body names the model. What has to change is put into the replies."""

    __slots__ = ("_record", "_routing", "changes", "edits", "facts", "waits")

    def __init__(self, record: Record, routing: Routing) -> None:
        self._record = record
        self._routing = routing
        self.waits = False
        """Whether the model in the body decides."""
        self.edits = False
        """Whether the body is one of those that are edited, and whose prompts are counted."""
        self.changes = b""
        """More of the reply to the body."""
        self.facts: RequestFacts | None = None
        """Of the head, where the body decides: expressions then see the request as the gateway routes it."""

    def by_head(self, facts: RequestFacts, *, has_body: bool) -> Reply | None:
        """None to go on, or the reply that ends the exchange."""
        choice = self._routing.choice
        self.edits = has_body and choice.edits(facts)
        stripped = choice.stripped(facts)
        try:
            found = choice.by_head(facts, self._routing.ruled(facts))
        except ActionFailure as error:
            return denials.failed(self._record, f"routing.rules: {error}")
        facts.change_headers((), (*stripped, self._routing.header))
        if found is None and self.edits:
            self.waits = True
            self.facts = facts
            self._change_head((), (*stripped, self._routing.header))
            return None
        if found is None:
            found = choice.by_model("")
        refusal = self._take(found)
        if refusal is None and isinstance(found, Provider):
            self._change_head(found.set_headers, (*stripped, *found.remove_headers))
            self._show(found, facts)
        return refusal

    def by_model(self, model: str) -> Reply | None:
        """The same when the body is there, where the head was not enough."""
        self.waits = False
        found = self._routing.choice.by_model(model)
        refusal = self._take(found)
        if isinstance(found, Provider) and self.facts is not None:
            self.changes = replies.body_changes(found.set_headers, found.remove_headers)
            self._show(found, self.facts)
        return refusal

    def _show(self, found: Provider, facts: RequestFacts) -> None:
        """A credential is for the provider alone: no expression gets to see it."""
        facts.change_headers(((self._routing.header, found.destination),), ())

    def _take(self, found: Provider | Refused) -> Reply | None:
        record = self._record
        if isinstance(found, Refused) or found.refusal is not None:
            message = found.message if isinstance(found, Refused) else found.refusal or ""
            return denials.rejected(record, "no_provider", 400, message, message=message)
        record.provider = found
        record.shared.metrics.guarding.routed(found.name)
        record.trace(f"selected llm: {found.name}")
        return None

    def _change_head(self, change: tuple[tuple[str, str], ...], remove: tuple[str, ...]) -> None:
        # Where the body decides, too: a route that Envoy has found meanwhile would stay, whatever the body reply says.
        self._record.change_headers(change, remove)
        self._record.reroutes = True


def not_routed(routing: Routing, facts: RequestFacts) -> tuple[str, ...]:
    """What is taken off a request whose provider is not ours to choose, nor its client's."""
    header = (routing.header,) if routing.header in facts.headers else ()
    removed = (*routing.choice.stripped(facts), *header)
    facts.change_headers((), removed)
    return removed
