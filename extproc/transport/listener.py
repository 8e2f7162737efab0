"""gRPC servers: addresses, TLS, options, health and reflection."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_health.v1.health import aio as health_aio
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection

from extproc.config.address import Address, Tcp, Unix, parse_address
from extproc.config.model import Listener
from extproc.transport.tls import server_credentials


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
        self._services: tuple[str, ...] = ()

    def listen(self, listeners: Iterable[Listener]) -> None:
        """Bind every address; raises ListenError naming the field that is wrong."""
        for index, listener in enumerate(listeners):
            field = f"listeners[{index}]"
            self.bind(listener.address, f"{field}.address", _credentials(listener, field))

    def bind(self, address: str, field: str, credentials: grpc.ServerCredentials | None = None) -> None:
        """Bind `address`, called `field` by the ListenError that is raised when this cannot be done."""
        try:
            target = parse_address(address, bind=True)
        except ValueError as error:
            raise ListenError(f"{field}: `{address}`: {error}") from None
        if isinstance(target, Unix) and _is_served(target.path):
            raise ListenError(f"{field}: cannot listen on `{address}`: another process does")
        try:
            if credentials is None:
                port = self.server.add_insecure_port(address)
            else:
                port = self.server.add_secure_port(address, credentials)
        except RuntimeError:
            raise ListenError(f"{field}: cannot listen on `{address}`: {_reason(target)}") from None
        self.addresses.append(str(target if isinstance(target, Unix) else Tcp(target.host, port)))

    async def start(self, services: Iterable[str]) -> None:
        """Serve; `services` are the full names of what was added. Health says NOT_SERVING until `set_ready`."""
        self._services = tuple(services)
        # Behind what was added: gRPC asks handlers in the order in which they came, for every new stream.
        add_HealthServicer_to_server(self._health, self.server)
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


def check_tls(listeners: Iterable[Listener]) -> None:
    """Raise the ListenError that `GrpcServer.listen` would raise for TLS files that cannot be used."""
    for index, listener in enumerate(listeners):
        _credentials(listener, f"listeners[{index}]")


def _credentials(listener: Listener, field: str) -> grpc.ServerCredentials | None:
    try:
        return None if listener.tls is None else server_credentials(listener.tls)
    except ValueError as error:
        raise ListenError(f"{field}.{error}") from None


def _is_served(path: str) -> bool:
    """Whether somebody listens on the socket `path`: gRPC would take it away from them without a word."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except OSError as error:
            return isinstance(error, BlockingIOError)
        return True


def _reason(target: Address) -> str:
    """Why gRPC could not bind `target`; it tells only its own log."""
    try:
        if isinstance(target, Unix):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(target.path)
            Path(target.path).unlink()
        else:
            family, kind, *_, name = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                probe.bind(name)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return "is it in use?"
