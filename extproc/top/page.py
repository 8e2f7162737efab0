"""What `/usage` says, read with care: whoever answers at an address need not be extproc."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, FiniteFloat, NonNegativeInt, ValidationError

from extproc.telemetry.names import printable

Name = Annotated[str, AfterValidator(printable)]
"""Nothing in it can steer a terminal."""


class NoUsage(ValueError):
    """The answer is not a page of usage; the text says what is wrong with it."""


class Part(BaseModel):
    """Something on the page; what a newer version adds to it is not read."""

    model_config = ConfigDict(frozen=True)


class Requests(Part):
    """How many limits let through and refused."""

    allowed: NonNegativeInt = 0
    refused: NonNegativeInt = 0


class Tokens(Part):
    """Of answers; `total` may be more than input and output."""

    input: NonNegativeInt
    output: NonNegativeInt
    total: NonNegativeInt
    charged: NonNegativeInt


class Spent(Part):
    """Numbers since the start of the process. `cost` is in millionths, None where nothing has a price."""

    requests: Requests
    tokens: Tokens
    cost: NonNegativeInt | None
    last_seen: FiniteFloat


class Row(Spent):
    """Those of one user."""

    who: dict[Name, Name]


class Limit(Part):
    """A counter: hits `used` of `maximum`, seconds until it starts anew."""

    namespace: Name
    limit: Name
    values: tuple[Name, ...]
    used: NonNegativeInt
    maximum: NonNegativeInt
    resets_in: FiniteFloat

    @property
    def ratio(self) -> float:
        """Hits by maximum; of a limit of 0 at least 1."""
        return self.used / self.maximum if self.maximum else 1.0 + self.used


class Refusals(Part):
    """How many requests a limit refused."""

    namespace: Name
    limit: Name
    requests: NonNegativeInt


class Totals(Part):
    """Of everybody, whether shown one by one or not."""

    tokens: NonNegativeInt = 0
    requests: dict[Name, NonNegativeInt] = {}
    refusals: tuple[Refusals, ...] = ()
    sources: dict[Name, NonNegativeInt]
    reports: dict[Name, NonNegativeInt]


class Page(Part):
    """The page of one process."""

    now: FiniteFloat
    version: Name
    uptime: FiniteFloat
    labels: tuple[Name, ...]
    rows: tuple[Row, ...]
    other: Spent | None
    limits: tuple[Limit, ...]
    totals: Totals


def read(content: bytes) -> Page:
    """A page from its JSON. Raises NoUsage."""
    try:
        return Page.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise NoUsage(f"not a page of usage: {where + ': ' if where else ''}{first['msg']}") from None
