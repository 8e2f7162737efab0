"""Limits as Limitador understands them: which counters a call touches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple, TypeVar

from extproc.config.model import Limit
from extproc.expressions import Expression, ExpressionError, MissingKey
from extproc.limiter.matching import NO_CONTEXT, CelMatcher, LookupMatcher, Matcher, context_of
from extproc.limiter.matching import Values as Values
from extproc.limiter.seam import Descriptor
from extproc.limiter.windows import SteadyRefill, Window, window_of

logger = logging.getLogger(__name__)

MEMO_SIZE = 8192
MAX_REMEMBERED = 512
"""Characters of a call's descriptor values; clients may choose them, so what is remembered is bounded by both."""
_BOUND = frozenset({"descriptors", "limit"})

T = TypeVar("T")
K = TypeVar("K")


class InvalidLimit(ValueError):
    """A limit cannot work; the text starts with its field, such as `limits[2].conditions[0]`."""


class Identity(NamedTuple):
    """What makes a limit the same limit after a change: everything but id, name and max_value.

    `window` is the text of the limit's window. Conditions and variables are sets, as in Limitador, so they are sorted.
    """

    namespace: str
    window: str
    conditions: tuple[str, ...]
    variables: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class CompiledLimit:
    """At most `max_value` hits in a `window`, for each distinct tuple of values of `variables`.

    With a `steady` window it has buckets: `max_value` hits at once, and as many flow back within its seconds.
    """

    identity: Identity
    window: Window
    max_value: int
    id: str
    name: str
    conditions: tuple[Expression, ...]
    variables: tuple[Expression, ...]

    @property
    def steady(self) -> bool:
        """Whether it has buckets in place of windows."""
        return isinstance(self.window, SteadyRefill)

    @property
    def label(self) -> str:
        """Its name, else its id, else ""."""
        return self.name or self.id


Touched = tuple[CompiledLimit, Values]
"""One counter that a call touches."""


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Limits that follow each other and are decided together: same namespace, conditions and variables."""

    limits: tuple[CompiledLimit, ...]
    matcher: Matcher


class LimitSet:
    """A limits file, compiled.

    Of limits with one identity the last counts; `warnings` tells where that happened, and which limits are hardly
    meant as they are. `groups` has all limits, those of a namespace in their order.
    Raises InvalidLimit for expressions that do not compile or name what no limit can see, and unknown time zones.
    """

    def __init__(self, limits: Iterable[Limit] = (), memo_size: int = MEMO_SIZE) -> None:
        chosen: dict[Identity, tuple[int, CompiledLimit]] = {}
        replaced: list[str] = []
        for index, limit in enumerate(limits):
            compiled = _compile(limit, f"limits[{index}]")
            if (earlier := chosen.get(compiled.identity)) is not None:
                replaced.append(
                    f"limits[{index}] replaces limits[{earlier[0]}]: "
                    "namespace, window, conditions and variables are the same"
                )
            chosen[compiled.identity] = (index, compiled)
        self.limits = tuple(limit for _, limit in chosen.values())
        self.warnings = (*replaced, *_doubts(list(chosen.values())))
        by_namespace = _grouped(self.limits, lambda limit: limit.identity.namespace)
        self._namespaces = {name: _Namespace(alike) for name, alike in by_namespace.items()}
        self.groups = tuple(group for namespace in self._namespaces.values() for group in namespace.groups)
        self._memo: Callable[[str, Sequence[Descriptor]], Sequence[tuple[Group, Values]]]
        self._memo = lru_cache(memo_size)(lambda domain, descriptors: self._namespaces[domain].touched(descriptors))

    def counters(self, domain: str, descriptors: tuple[Descriptor, ...]) -> tuple[Touched, ...]:
        """The counters of `domain` that a call with `descriptors` touches, in the order of the limits.

        A limit whose expressions name a key the descriptors do not have does not apply (Limitador);
        neither does one that fails otherwise, which is logged once per limit.
        """
        touched = self.touched(domain, descriptors)
        return tuple([(limit, values) for group, values in touched for limit in group.limits])

    def touched(self, domain: str, descriptors: tuple[Descriptor, ...]) -> Sequence[tuple[Group, Values]]:
        """The same, by group.

        The answer depends on the arguments only. In a namespace where finding it takes CEL, the last `memo_size`
        distinct ones are remembered, if they are short; elsewhere looking is as fast as remembering.
        """
        namespace = self._namespaces.get(domain)
        if namespace is None:
            return ()
        if namespace.needs_cel and sum(len(value) for each in descriptors for _, value in each) <= MAX_REMEMBERED:
            return self._memo(domain, descriptors)
        return namespace.touched(descriptors)


class _Namespace:
    """The limits of one namespace."""

    def __init__(self, limits: Sequence[CompiledLimit]) -> None:
        self.groups = tuple(_groups(limits))
        self._tests = [(group, group.matcher.values) for group in self.groups]
        self.needs_cel = any(group.matcher.needs_cel for group in self.groups)
        self._failed: set[CompiledLimit] = set()

    def touched(self, descriptors: Sequence[Descriptor]) -> Sequence[tuple[Group, Values]]:
        """As LimitSet's."""
        entries = [dict(descriptor) for descriptor in descriptors]
        context = context_of(descriptors) if self.needs_cel else NO_CONTEXT
        touched: list[tuple[Group, Values]] = []
        for group, values_of in self._tests:
            try:
                values = values_of(entries, context)
            except MissingKey:
                continue
            except ExpressionError as error:
                self._tell(group.limits, error)
                continue
            if values is not None:
                touched.append((group, values))
        return touched

    def _tell(self, limits: Sequence[CompiledLimit], error: ExpressionError) -> None:
        for limit in limits:
            if limit not in self._failed:
                self._failed.add(limit)
                logger.warning(
                    "limit %r of namespace %r did not apply to a call: %s (logged once)",
                    limit.label,
                    limit.identity.namespace,
                    error,
                )


def _groups(limits: Sequence[CompiledLimit]) -> Iterator[Group]:
    for _, alike in groupby(limits, lambda limit: (limit.identity.conditions, limit.identity.variables)):
        run = tuple(alike)
        matcher = LookupMatcher.of(run[0].conditions, run[0].variables)
        if matcher is not None:
            yield Group(run, matcher)
            continue
        for limit in run:
            yield Group((limit,), CelMatcher(limit.id, limit.name, limit.conditions, limit.variables))


def _compile(limit: Limit, where: str) -> CompiledLimit:
    conditions = _expressions(limit.conditions, f"{where}.conditions")
    variables = _expressions(limit.variables, f"{where}.variables")
    try:
        window = window_of(limit)
    except ValueError as error:
        raise InvalidLimit(f"{where}.{error}") from None
    return CompiledLimit(
        identity=Identity(limit.namespace, str(window), tuple(conditions), tuple(variables)),
        window=window,
        max_value=limit.max_value,
        id=limit.id or "",
        name=limit.name or "",
        conditions=tuple(conditions.values()),
        variables=tuple(variables.values()),
    )


def _expressions(sources: Sequence[str], where: str) -> dict[str, Expression]:
    """Source -> expression, sorted by source."""
    compiled: dict[str, Expression] = {}
    for index, source in enumerate(sources):
        try:
            expression = Expression(source)
        except ExpressionError as error:
            raise InvalidLimit(f"{where}[{index}]: {error}") from None
        if unknown := sorted(expression.variables - _BOUND - expression.references.locals):
            raise InvalidLimit(
                f"{where}[{index}]: unknown variable `{unknown[0]}`: "
                f"a limit sees `descriptors[0]['{unknown[0]}']` and `limit`"
            )
        compiled[source] = expression
    return dict(sorted(compiled.items()))


def _doubts(limits: Sequence[tuple[int, CompiledLimit]]) -> Iterator[str]:
    """What is allowed and yet hardly meant: limits of 0, and windows that a longer one makes needless."""
    for index, limit in limits:
        if limit.max_value == 0:
            yield f"limits[{index}].max_value: 0 refuses every call that the limit applies to"
    for alike in _grouped(limits, lambda item: item[1].identity._replace(window="")).values():
        for index, limit in alike:
            for other, longer in alike:
                if longer.window.seconds > limit.window.seconds and longer.max_value <= limit.max_value:
                    yield (
                        f"limits[{index}] hardly ever matters: limits[{other}] allows the same calls "
                        f"no more than {longer.max_value} in a longer window"
                    )
                    break


def _grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
