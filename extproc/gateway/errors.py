"""What can go wrong before a gateway answers."""

from __future__ import annotations


class GatewayError(Exception):
    """The local Envoy cannot be used; the message says why and what to do."""


class EnvoyNotFound(GatewayError):
    """There is no Envoy binary on this machine."""


class PortInUse(GatewayError):
    """Something else already listens on a port that was asked for."""


class EnvoyFailed(GatewayError):
    """Envoy did not start; the message ends with the last lines of its log."""
