"""What Bedrock adds to the last event of InvokeModelWithResponseStream, beside whatever the model itself says."""

from __future__ import annotations

from extproc.usage.dialects.dialect import Counts, total_of
from extproc.usage.usage import Reported

KEY = "amazon-bedrock-invocationMetrics"
_INPUT = f"/{KEY}/inputTokenCount"
_OUTPUT = f"/{KEY}/outputTokenCount"
_READ = f"/{KEY}/cacheReadInputTokenCount"
_WRITE = f"/{KEY}/cacheWriteInputTokenCount"
COUNTS = (_INPUT, _OUTPUT, _READ, _WRITE)


def metrics_usage(counts: Counts) -> Reported | None:
    """The usage that the metrics tell; input does not include what was read from a cache or written to it."""
    if _INPUT not in counts and _OUTPUT not in counts:
        return None
    return Reported(
        total_of(counts, _INPUT, _READ, _WRITE),
        counts.get(_OUTPUT),
        cached=counts.get(_READ, 0),
        cache_write=counts.get(_WRITE, 0),
    )
