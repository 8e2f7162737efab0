"""The web page: one file, which asks nobody but the server that it came from."""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.resources import files

_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_STYLE = re.compile(rb"<style>(.*?)</style>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Page:
    """Its bytes, and the headers that let a browser run the script and style in them and nothing else."""

    html: bytes
    headers: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        policy = (
            "default-src 'none'",
            f"script-src {_hashes(_SCRIPT, self.html)}",
            f"style-src {_hashes(_STYLE, self.html)}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
        headers = {"Content-Security-Policy": "; ".join(policy), "Referrer-Policy": "no-referrer"}
        object.__setattr__(self, "headers", headers)


def _hashes(element: re.Pattern[bytes], html: bytes) -> str:
    return " ".join(f"'sha256-{b64encode(sha256(content).digest()).decode()}'" for content in element.findall(html))


PAGE = Page((files("extproc.admin") / "page.html").read_bytes())
