"""gRPC servers: addresses, TLS, options, health and reflection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_health.v1.health import aio as health_aio
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection

from extproc.config.model import Listener, ServerTls


class ListenError(Exception):
    """An address cannot be listened on, or its TLS files cannot be used."""


def options(max_message: int) -> Sequence[tuple[str, int]]:
    """Server options; `max_message` is the largest message accepted, in bytes."""
    return (
        ("grpc.max_receive_message_length", max_message),
        ("grpc.max_send_message_length", max_message),
        # A second server on the same port is a mistake to be told, not a silent half of the traffic.
        ("grpc.so_reuseport", 0),
        # Envoy pings idle connections; gRPC's defaults would answer with GOAWAY too_many_pings.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        # Envoy opens one stream per request in flight and refuses requests beyond the limit it is told.
        ("grpc.max_concurrent_streams", 2**31 - 1),
    )


class GrpcServer:
    """A grpc.aio server with health and reflection, not ready until told so."""

    def __init__(self, max_message: int) -> None:
        self.server = grpc.aio.server(options=options(max_message))
        self.addresses: list[str] = []
        self._health = health_aio.HealthServicer()
        add_HealthServicer_to_server(self._health, self.server)
        self._services: tuple[str, ...] = ()

    def listen(self, listeners: Iterable[Listener]) -> None:
        """Bind every address; raises ListenError naming the one that cannot be bound."""
        for index, listener in enumerate(listeners):
            field = f"listeners[{index}]"
            address = listener.address
            try:
                if listener.tls is None:
                    port = self.server.add_insecure_port(address)
                else:
                    port = self.server.add_secure_port(address, _credentials(listener.tls, f"{field}.tls"))
            except RuntimeError:
                raise ListenError(f"{field}.address: cannot listen on `{address}`: is it in use?") from None
            self.addresses.append(address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}")

    async def start(self, services: Iterable[str]) -> None:
        """Serve; `services` are the full names of what was added. Health says NOT_SERVING until `set_ready`."""
        self._services = tuple(services)
        await self.set_ready(ready=False)
        reflection.enable_server_reflection((*self._services, HEALTH_SERVICE, reflection.SERVICE_NAME), self.server)
        await self.server.start()

    async def set_ready(self, *, ready: bool) -> None:
        """What grpc.health.v1 answers for each service and for the server as a whole."""
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", *self._services):
            await self._health.set(service, status)

    async def stop(self, deadline: float) -> None:
        """GOAWAY: running calls may finish for `deadline` seconds, then they are cancelled."""
        await self.server.stop(deadline)


def _credentials(tls: ServerTls, field: str) -> grpc.ServerCredentials:
    client_ca = None if tls.client_ca is None else _read(tls.client_ca, f"{field}.clientCa")
    pair = (_read(tls.key, f"{field}.key"), _read(tls.cert, f"{field}.cert"))
    return grpc.ssl_server_credentials([pair], client_ca, require_client_auth=client_ca is not None)


def _read(path: str, field: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ListenError(f"{field}: cannot read `{path}`: {error.strerror}") from None
