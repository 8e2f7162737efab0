"""Who spends how much: requests, refusals, tokens and cost by user.

A user is a tuple of label values, such as `("alice", "premium")`, which come out of requests. So everything is
bounded: users are told apart in the order in which they come, up to a capacity, and so are namespaces, limits, models
and the models of users. Whatever is beyond a bound is counted under `(other)`: sums stay exact (S1.D6).

On the hot path these are a few lookups and additions; `spending_metrics` makes text of them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal, get_args

from extproc.telemetry.exposition import escaped
from extproc.telemetry.genai import MAX_MODELS
from extproc.telemetry.names import OTHER, bounded, printable
from extproc.usage.usage import Usage

Who = tuple[str, ...]
"""One value for each label, in their order; "" where it is not known."""
Rejection = Literal[
    "unauthenticated",
    "unauthorized",
    "model",
    "no_limit",
    "no_match",
    "no_provider",
    "no_selector",
    "body",
    "encoding",
    "too_large",
    "guard",
    "failure",
]
"""Why a request was refused but for a limit: caller unknown; caller known and refused; model not allowed; no limit for
the caller; no action set; no provider; no header that a prompt limit goes by; a body that cannot be read, is encoded or
too large; a guard; no decision."""

MAX_NAMESPACES: Final = 100
MAX_LIMITS: Final = 500
MODELS_PER_USER: Final = 10
"""On average: of all users together, so many times the capacity are told apart by model, namespace and provider."""
RESERVED: Final = frozenset({"namespace", "model", "direction", "decision", "limit", "llm"})
"""Labels that the metrics have anyway."""

_LABEL = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]*")


def label_problem(label_names: Sequence[str]) -> str | None:
    """What is wrong with names of labels, None when nothing is."""
    for index, name in enumerate(label_names):
        if not _LABEL.fullmatch(name):
            return f"`{name}` cannot be the name of a label: letters, digits and `_`, no digit first, no `__` first"
        if name in RESERVED:
            return f"`{name}` is a label of the metrics already"
        if name in label_names[:index]:
            return f"`{name}` is there twice"
    return None


class Requests:
    """Requests of one user in one namespace."""

    __slots__ = ("allowed", "refused")

    def __init__(self) -> None:
        self.allowed = 0
        self.refused: dict[str, int] = {}
        """By the limit that refused, "" where it is not known."""


class Spent:
    """Answers of one model for one user in one namespace."""

    __slots__ = ("charged", "cost", "errors", "input", "output", "total")

    def __init__(self) -> None:
        self.input = 0
        self.output = 0
        self.total = 0
        """As usages say it, which may be more than input and output."""
        self.charged = 0
        """Hits addends."""
        self.errors = 0
        """Answers that were errors."""
        self.cost: int | None = None
        """Millionths; None while no answer had a price."""

    def add(self, other: Spent) -> None:
        """Count what `other` has counted."""
        self.input += other.input
        self.output += other.output
        self.total += other.total
        self.charged += other.charged
        self.errors += other.errors
        if other.cost is not None:
            self.cost = other.cost + (self.cost or 0)


class Account:
    """All of one user."""

    __slots__ = ("last_seen", "parts", "requests", "spent", "tokens", "who")

    def __init__(self, who: Who, label_names: tuple[str, ...]) -> None:
        self.who = who
        self.parts = tuple(f'{name}="{escaped(value)}"' for name, value in zip(label_names, who, strict=True))
        """Its labels as metrics show them."""
        self.tokens = 0
        """Of all answers, to find who spends most."""
        self.last_seen = 0.0
        """Seconds since 1970."""
        self.requests: dict[str, Requests] = {}
        """By namespace."""
        self.spent: dict[tuple[str, str, str], Spent] = {}
        """By namespace, model and provider."""


class Spending:
    """Counts by user; every number ever given is in some series until the labels change.

    `families` adds the same numbers under the names of Models-as-a-Service (`maas`) or Gloo (`gloo`). Label names are
    usable, see `label_problem`. `clock` gives seconds since 1970.
    """

    def __init__(
        self,
        label_names: tuple[str, ...],
        capacity: int,
        families: Iterable[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._models: set[str] = set()
        self._namespaces: set[str] = set()
        self._limits: set[str] = set()
        self.rejections: dict[Rejection, int] = dict.fromkeys(get_args(Rejection), 0)
        self.allowed_requests = 0
        self.refusals: dict[tuple[str, str], int] = {}
        """By namespace and limit."""
        self.tokens = 0
        """Of all answers."""
        self._begin(label_names, capacity, families)

    @property
    def label_names(self) -> tuple[str, ...]:
        """What users are told apart by."""
        return self._label_names

    @property
    def capacity(self) -> int:
        """How many users are told apart."""
        return self._capacity

    @property
    def told_apart(self) -> int:
        """Users that are."""
        return len(self._accounts)

    @property
    def families(self) -> frozenset[str]:
        """Whose names of metrics are used beside ours."""
        return self._families

    def reconfigure(self, label_names: tuple[str, ...], capacity: int, families: Iterable[str] = ()) -> None:
        """Use other labels, another capacity, other families.

        Totals by user are kept where the labels that remain tell users apart as before, or less; with a label that
        was not there they begin anew, as after a start. Those beyond a smaller capacity become `(other)`.
        """
        if label_names == self._label_names and capacity >= self.told_apart:
            self._capacity, self._families = capacity, frozenset(families)
            return
        before, known = self.accounts(), self._label_names
        self._begin(label_names, capacity, families)
        if not set(label_names) <= set(known):
            return
        order = [known.index(name) for name in label_names]
        for account in before:
            self._adopt(account, tuple(account.who[index] for index in order))

    def _begin(self, label_names: tuple[str, ...], capacity: int, families: Iterable[str]) -> None:
        self._label_names = label_names
        self._capacity = capacity
        self._families = frozenset(families)
        self._other = Account((OTHER,) * len(label_names), label_names)
        self._accounts: dict[Who, Account] = {}
        self._places = 0

    def _adopt(self, old: Account, who: Who) -> None:
        account = self._account(who)
        account.last_seen = max(account.last_seen, old.last_seen)
        account.tokens += old.tokens
        for namespace, counted in old.requests.items():
            requests = self._requests(account, namespace)
            requests.allowed += counted.allowed
            for limit, count in counted.refused.items():
                requests.refused[limit] = requests.refused.get(limit, 0) + count
        for (namespace, model, provider), spent in old.spent.items():
            self._spent(account, namespace, model, provider).add(spent)

    def allowed(self, who: Who, namespace: str) -> None:
        """A request passed its checks."""
        account = self._accounts.get(who) or self._account(who)
        account.last_seen = self._clock()
        requests = account.requests.get(namespace) or self._requests(account, namespace)
        requests.allowed += 1
        self.allowed_requests += 1

    def refused(self, who: Who, namespace: str, limit: str) -> None:
        """A request was refused by a limit, "" where its name is not known."""
        account = self._accounts.get(who) or self._account(who)
        account.last_seen = self._clock()
        requests = account.requests.get(namespace) or self._requests(account, namespace)
        if limit not in self._limits:
            self._limits.add(limit := bounded(printable(limit), self._limits, MAX_LIMITS))
        requests.refused[limit] = requests.refused.get(limit, 0) + 1
        place = (self._namespace(namespace), limit)
        self.refusals[place] = self.refusals.get(place, 0) + 1

    def used(self, who: Who, namespace: str, usage: Usage, hits: int | None, provider: str = "") -> None:
        """An answer is over and was charged `hits`; None, and it was not.

        `provider` is one of a bounded number, "" when it is not known.
        """
        account = self._accounts.get(who) or self._account(who)
        account.last_seen = self._clock()
        account.tokens += usage.total_tokens
        self.tokens += usage.total_tokens
        spent = account.spent.get((namespace, usage.model, provider))
        if spent is None:
            spent = self._spent(account, namespace, usage.model, provider)
        spent.input += usage.prompt_tokens
        spent.output += usage.completion_tokens
        spent.total += usage.total_tokens
        if hits is not None:
            spent.charged += hits
        if usage.cost is not None:
            spent.cost = usage.cost + (spent.cost or 0)
        if usage.ending == "error":
            spent.errors += 1

    def rejected(self, reason: Rejection) -> None:
        """A request was answered 401 or 403."""
        self.rejections[reason] += 1

    def _account(self, who: Who) -> Account:
        """That of a user who is not among `_accounts` as given: a new one, one beyond, or one to be made printable.

        A request that began under other labels, of another number, is nobody's.
        """
        if len(who) != len(self._label_names):
            return self._other
        who = tuple(map(printable, who))
        if (account := self._accounts.get(who)) is not None:
            return account
        if len(self._accounts) >= self._capacity or who == self._other.who:
            return self._other
        return self._accounts.setdefault(who, Account(who, self._label_names))

    def _requests(self, account: Account, namespace: str) -> Requests:
        return account.requests.setdefault(self._namespace(namespace), Requests())

    def _spent(self, account: Account, namespace: str, model: str, provider: str) -> Spent:
        namespace = self._namespace(namespace)
        model = bounded(printable(model), self._models, MAX_MODELS)
        self._models.add(model)
        place = (namespace, model, provider)
        if place not in account.spent and self._places >= self._capacity * MODELS_PER_USER:
            place = (namespace, OTHER, provider)
        if (spent := account.spent.get(place)) is None:
            spent = account.spent[place] = Spent()
            self._places += 1
        return spent

    def _namespace(self, namespace: str) -> str:
        if namespace not in self._namespaces:
            self._namespaces.add(namespace := bounded(printable(namespace), self._namespaces, MAX_NAMESPACES))
        return namespace

    def accounts(self) -> tuple[Account, ...]:
        """All users in the order in which they came, `(other)` last."""
        other = (self._other,) if self._other.requests or self._other.spent else ()
        return (*self._accounts.values(), *other)

    def is_other(self, account: Account) -> bool:
        """True for that of the users beyond the capacity."""
        return account is self._other
