"""TCP ports of this machine."""

from __future__ import annotations

import errno
import socket

from extproc.gateway.errors import PortInUse


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on right now. Where a server can bind port 0 itself, that is safer."""
    with _socket(host) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def ensure_free(port: int, host: str = "127.0.0.1") -> None:
    """Raise PortInUse when somebody listens on `host:port`, OSError when `host` is not ours.

    Envoy binds with SO_REUSEPORT: without this check two of them would share a port and halve the traffic.
    """
    with _socket(host) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except PermissionError:
            raise PortInUse(f"port {port} on {host} needs privileges; choose one above 1023") from None
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise PortInUse(
                f"port {port} on {host} is already in use; stop the other process or choose another"
            ) from None


def _socket(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
