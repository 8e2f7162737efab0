"""The model that a request names in its URL, for answers that do not name one."""

from __future__ import annotations

import re
from urllib.parse import unquote

from extproc.bodies.findings import MAX_MODEL

MAX_PATH = 1024
"""Characters of a path that are looked at: the pattern takes a time that grows with their square."""
_PATHS = re.compile(
    # Bedrock. An ARN may come with its slash as it is.
    r"/model/(?P<bedrock>[^?#]+?)/(?:converse|converse-stream|invoke|invoke-with-response-stream)(?:[?#]|$)"
    # Gemini and Vertex AI, publishers other than Google included.
    r"|/(?:models|tunedModels)/(?P<gemini>[^/:?#]+)(?::|%3[Aa])"
    r"(?:generateContent|streamGenerateContent|embedContent|batchEmbedContents|rawPredict|streamRawPredict|predict)\b"
    r"|/deployments/(?P<azure>[^/?#]+)/"
)


def model_from_path(path: str) -> str:
    """The model in `path` (query allowed), percent-decoded and at most 128 characters, "" when it names none."""
    found = _PATHS.search(path.partition("?")[0][:MAX_PATH])
    if found is None or found.lastgroup is None:
        return ""
    return unquote(found[found.lastgroup])[:MAX_MODEL]
