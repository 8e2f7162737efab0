"""Ports that are asked for by number."""

from __future__ import annotations

import socket

import pytest

from extproc.gateway import PortInUse, ensure_free, free_port


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_free_port_is_free(host: str) -> None:
    ensure_free(free_port(host), host)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_with_a_listener_is_named_in_the_error(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {port} on {host} is already in use"):
            ensure_free(port, host)


def test_a_listener_that_shares_its_port_counts_too() -> None:
    """Envoy listens with SO_REUSEPORT; a second one would silently take half of the requests."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as server, pytest.raises(PortInUse):
        ensure_free(server.getsockname()[1])


def test_an_address_of_another_machine_is_not_called_in_use() -> None:
    with pytest.raises(OSError, match="assign"):
        ensure_free(free_port(), "192.0.2.1")
