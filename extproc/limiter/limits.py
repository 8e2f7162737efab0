"""Limits as Limitador understands them: which counters a call touches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple

import cel

from extproc.config.model import Limit
from extproc.expressions import Expression, ExpressionError, MissingKey, text_of
from extproc.limiter.messages import encodable
from extproc.limiter.seam import Descriptor

logger = logging.getLogger(__name__)

MEMO_SIZE = 8192
MAX_REMEMBERED = 512
"""Characters of a call's descriptor values; clients may choose them, so what is remembered is bounded by both."""
MAX_VALUE = 256
"""Characters of a counter's value as it is; a longer one is its digest, which is as distinct."""
_BOUND = frozenset({"descriptors", "limit"})

Values = tuple[str, ...]
"""What a limit's variables evaluate to, in the order of `CompiledLimit.variables`."""


class InvalidLimit(ValueError):
    """A limit cannot work; the text starts with its field, such as `limits[2].conditions[0]`."""


class Identity(NamedTuple):
    """What makes a limit the same limit after a change: everything but id, name and max_value.

    Conditions and variables are sets, as in Limitador, so they are sorted here.
    """

    namespace: str
    seconds: int
    conditions: tuple[str, ...]
    variables: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class CompiledLimit:
    """At most `max_value` hits in `seconds`, for each distinct tuple of values of `variables`."""

    identity: Identity
    max_value: int
    id: str
    name: str
    conditions: tuple[Expression, ...]
    variables: tuple[Expression, ...]

    @property
    def label(self) -> str:
        """Its name, else its id, else ""."""
        return self.name or self.id

    def values(self, context: cel.Context) -> Values | None:
        """The counter a call belongs to; None when a condition does not hold.

        Raises ExpressionError (MissingKey for an absent descriptor key).
        """
        for condition in self.conditions:
            holds = condition.evaluate(context)
            if not isinstance(holds, bool):
                raise ExpressionError(f"`{condition.source}`: expected a bool")
            if not holds:
                return None
        return tuple(_bounded(text_of(variable.evaluate(context))) for variable in self.variables)


Touched = tuple[CompiledLimit, Values]
"""One counter that a call touches."""


class LimitSet:
    """A limits file, compiled.

    Of limits with one identity the last counts; `warnings` tells where that happened.
    Raises InvalidLimit for expressions that do not compile or name what no limit can see.
    """

    def __init__(self, limits: Iterable[Limit] = (), memo_size: int = MEMO_SIZE) -> None:
        chosen: dict[Identity, tuple[int, CompiledLimit]] = {}
        warnings: list[str] = []
        for index, limit in enumerate(limits):
            compiled = _compile(limit, f"limits[{index}]")
            if (earlier := chosen.get(compiled.identity)) is not None:
                warnings.append(
                    f"limits[{index}] replaces limits[{earlier[0]}]: "
                    "namespace, seconds, conditions and variables are the same"
                )
            chosen[compiled.identity] = (index, compiled)
        self.limits = tuple(limit for _, limit in chosen.values())
        self.warnings = tuple(warnings)
        self._by_namespace: dict[str, list[CompiledLimit]] = {}
        for kept in self.limits:
            self._by_namespace.setdefault(kept.identity.namespace, []).append(kept)
        self._failed: set[CompiledLimit] = set()
        self._memo: Callable[[str, Sequence[Descriptor]], tuple[Touched, ...]] = lru_cache(memo_size)(self._resolve)

    def counters(self, domain: str, descriptors: tuple[Descriptor, ...]) -> tuple[Touched, ...]:
        """The counters of `domain` that a call with `descriptors` touches, in the order of the limits.

        A limit whose expressions name a key the descriptors do not have does not apply (Limitador);
        neither does one that fails otherwise, which is logged once per limit.
        The answer depends on the arguments only; the last `memo_size` distinct ones are remembered, if they are short.
        """
        memorable = sum(len(value) for entries in descriptors for _, value in entries) <= MAX_REMEMBERED
        return self._memo(domain, descriptors) if memorable else self._resolve(domain, descriptors)

    def _resolve(self, domain: str, descriptors: Sequence[Descriptor]) -> tuple[Touched, ...]:
        limits = self._by_namespace.get(domain)
        if limits is None:
            return ()
        maps = [{encodable(key): encodable(value) for key, value in entries} for entries in descriptors]
        context = cel.Context(variables={"descriptors": maps})
        touched: list[Touched] = []
        for limit in limits:
            context.add_variable("limit", {"id": limit.id, "name": limit.name})
            if (values := self._values(limit, context)) is not None:
                touched.append((limit, values))
        return tuple(touched)

    def _values(self, limit: CompiledLimit, context: cel.Context) -> Values | None:
        try:
            return limit.values(context)
        except MissingKey:
            return None
        except ExpressionError as error:
            if limit not in self._failed:
                self._failed.add(limit)
                logger.warning(
                    "limit %r of namespace %r did not apply to a call: %s (logged once)",
                    limit.label,
                    limit.identity.namespace,
                    error,
                )
            return None


def _bounded(value: str) -> str:
    return value if len(value) <= MAX_VALUE else "sha256:" + sha256(encodable(value).encode()).hexdigest()


def _compile(limit: Limit, where: str) -> CompiledLimit:
    conditions = _expressions(limit.conditions, f"{where}.conditions")
    variables = _expressions(limit.variables, f"{where}.variables")
    return CompiledLimit(
        identity=Identity(limit.namespace, limit.seconds, tuple(conditions), tuple(variables)),
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
