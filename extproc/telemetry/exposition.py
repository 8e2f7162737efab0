"""Prometheus' text written directly: for names that its client library cannot make, and for series by the thousand.

The library turns every sample into objects, some 5 us each, which is nothing for the hundred series of a process and
too long for those of all its users. It also has no counter without `_total`, which is what others' dashboards ask for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from extproc.telemetry.names import printable

Sample = tuple[str, float]
"""What stands between the braces, as `labels` makes it, and the value."""

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Family(NamedTuple):
    """One metric, under the name that its samples have."""

    name: str
    about: str
    kind: Literal["counter", "gauge"] = "counter"

    def header(self, openmetrics: bool) -> str:
        """HELP and TYPE. OpenMetrics names a counter without its `_total`, and knows none that has no `_total`."""
        name, kind = self.name, str(self.kind)
        if openmetrics and kind == "counter":
            name, kind = (name.removesuffix("_total"), kind) if name.endswith("_total") else (name, "unknown")
        return f"# HELP {name} {self.about}\n# TYPE {name} {kind}\n"

    def lines(self, samples: Iterable[Sample]) -> str:
        """A line for each sample."""
        name = self.name
        return "".join(f"{name}{{{labels}}} {value}\n" if labels else f"{name} {value}\n" for labels, value in samples)


def labels(**values: str) -> str:
    """Label values for a sample: printable, and escaped."""
    return ",".join(f'{name}="{escaped(value)}"' for name, value in values.items())


def escaped(value: str) -> str:
    """A label's value as it stands between quotes, made printable first."""
    return printable(value).translate(_ESCAPES)
