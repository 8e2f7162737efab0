"""The functions an expression may call beyond CEL's own: those that wasm-shim registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from cel import stdlib

BUILT_IN = frozenset(
    "size contains startsWith endsWith matches int uint double string bytes duration timestamp dyn type "
    "getFullYear getMonth getDayOfMonth getDayOfYear getDate getDayOfWeek getHours getMinutes getSeconds "
    "getMilliseconds requestBodyJSON responseBodyJSON".split()
)
"""Always available: CEL's own, and the body functions, which every exchange binds to its bodies."""


def query_map(query: str, repeats: bool = False) -> dict[str, Any]:
    """The parameters of a query string, percent-decoded; a key without `=` has the value "".

    Of a repeated key the first value counts; with `repeats` it has the list of all its values.
    """
    found: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True, max_num_fields=None):
        if not repeats:
            found.setdefault(key, value)
        elif key not in found:
            found[key] = value
        else:
            earlier = found[key]
            found[key] = [*(earlier if isinstance(earlier, list) else [earlier]), value]
    return found


LIBRARY: dict[str, Callable[..., Any]] = {
    "charAt": stdlib.char_at,
    "indexOf": stdlib.index_of,
    "lastIndexOf": stdlib.last_index_of,
    "join": stdlib.join,
    "lowerAscii": stdlib.lower_ascii,
    "upperAscii": stdlib.upper_ascii,
    "trim": stdlib.trim,
    "replace": stdlib.replace,
    "split": stdlib.split,
    "substring": stdlib.substring,
    "min": stdlib.min_,
    "max": stdlib.max_,
    "queryMap": query_map,
}
