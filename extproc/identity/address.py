"""Addresses as Envoy writes them."""

from __future__ import annotations


def host_and_port(address: str) -> tuple[str, int | None]:
    """`10.0.0.1:80`, `[::1]:80`, and bare hosts, taken apart; None where there is no port."""
    if address.startswith("["):
        host, _, rest = address[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        host, _, port = address.rpartition(":")
        if not host or ":" in host:
            return address, None
    return host, int(port) if _is_port(port) else None


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5
