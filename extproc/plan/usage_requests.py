"""Which requests are to ask the model for usage, though their client did not."""

from __future__ import annotations

from collections.abc import Iterable

from extproc.facts import RequestFacts
from extproc.plan.hosts import HostTable
from extproc.usage.patterns import ModelPattern


class UsageRequests:
    """Requests whose path ends as one of `paths`, but for some hosts and models."""

    __slots__ = ("_except_hosts", "_except_models", "_paths", "buffer", "strip")

    def __init__(
        self,
        paths: Iterable[str],
        except_hosts: Iterable[str],
        except_models: Iterable[str],
        *,
        strip: bool,
    ) -> None:
        self.strip = strip
        """Whether the extra frame is taken out of the client's stream again."""
        self._paths = tuple(paths)
        self._except_hosts = HostTable(dict.fromkeys(except_hosts, True))
        self._except_models = tuple(map(ModelPattern, except_models))

    def may_ask(self, facts: RequestFacts) -> bool:
        """Whether the headers allow it; a body in a content coding cannot be edited."""
        path = (facts.header(":path") or "").partition("?")[0]
        return (
            path.endswith(self._paths)
            and "content-encoding" not in facts.headers
            and not self._except_hosts.find(facts.host)
        )

    def may_ask_model(self, model: str) -> bool:
        """Whether the model that the request names may be asked."""
        return not any(pattern.matches(model) for pattern in self._except_models)
