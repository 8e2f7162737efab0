"""How a story begins: who talks to whom."""

from __future__ import annotations

from extproc.demo.page import Page
from extproc.demo.stack import Stack


def introduce(page: Page, stack: Stack, title: str, *, filters: str = "ext_proc") -> None:
    """The title and a picture of what runs; `filters` are Envoy's, ours the last."""
    models = stack.providers or {"simulated model": stack.model}
    whom = ", ".join(f"{name} {model.address}" for name, model in models.items())
    page.line(title)
    page.line()
    page.line(f"  client ──> Envoy {stack.envoy.address} ──> {whom}")
    page.line(f"               │ {filters}")
    page.line(f"               └──> extproc {stack.server.addresses[0]}, with the embedded limiter")
    page.line()
