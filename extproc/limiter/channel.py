"""gRPC channels to limiters and ext_authz servers."""

from __future__ import annotations

import ssl
from pathlib import Path
from weakref import WeakValueDictionary

import grpc

from extproc.config.fields import ClientTls
from extproc.config.model import Endpoint

EMBEDDED = "embedded"
_OPTIONS: tuple[tuple[str, int], ...] = (
    # A report is not idempotent: who repeats it must know that the first one was not counted.
    ("grpc.enable_retries", 0),
    # A limiter that comes back is found within a second. The minimum is no minimum of the backoff,
    # but how long one attempt to connect may take.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # Pings only while a call waits, which every server permits; the timeout also becomes TCP_USER_TIMEOUT,
    # which ends a connection to a node that vanished.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    # A limiter is a neighbour; HTTP_PROXY is meant for the world outside.
    ("grpc.enable_http_proxy", 0),
)


def open_channel(endpoint: Endpoint) -> grpc.aio.Channel:
    """A channel to `host:port` or `unix:/path`; it connects at its first call, or by `warm`.

    Raises ValueError, naming the field, for an address or TLS files that cannot work.
    """
    if endpoint.address == EMBEDDED or ":" not in endpoint.address:
        raise ValueError(f"address: expected `host:port` or `unix:/path`, found `{endpoint.address}`")
    if endpoint.tls is None:
        return grpc.aio.insecure_channel(endpoint.address, options=_OPTIONS)
    options: list[tuple[str, int | str]] = list(_OPTIONS)
    if endpoint.tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", endpoint.tls.server_name))
    return grpc.aio.secure_channel(endpoint.address, _credentials(endpoint.tls), options=options)


def warm(channel: grpc.aio.Channel) -> None:
    """Start connecting, so that the first call does not pay for it; returns at once."""
    channel.get_state(try_to_connect=True)


class Channels:
    """Channels by endpoint, shared between services and configurations.

    One that nobody else refers to any more is closed: a plan is gone when the last exchange that began with it is over.
    """

    def __init__(self, *, connect: bool = True) -> None:
        self._connect = connect
        self._open: WeakValueDictionary[Endpoint, grpc.aio.Channel] = WeakValueDictionary()

    def get(self, endpoint: Endpoint) -> grpc.aio.Channel:
        """The channel to `endpoint`, which starts connecting at once unless told otherwise.

        Raises ValueError as `open_channel` does.
        """
        channel = self._open.get(endpoint)
        if channel is None:
            channel = self._open[endpoint] = open_channel(endpoint)
            if self._connect:
                warm(channel)
        return channel


def _credentials(tls: ClientTls) -> grpc.ChannelCredentials:
    if (tls.cert is None) != (tls.key is None):
        raise ValueError("tls.cert and tls.key: expected both or neither")
    _verify(tls)
    return grpc.ssl_channel_credentials(
        root_certificates=_read(tls.ca), private_key=_read(tls.key), certificate_chain=_read(tls.cert)
    )


def _verify(tls: ClientTls) -> None:
    """gRPC takes any bytes and fails at the handshake; the ssl module says at once what is wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if tls.ca is not None:
            context.load_verify_locations(tls.ca)
    except OSError as error:
        raise ValueError(f"tls.ca: cannot load `{tls.ca}`: {error.strerror or error}") from None
    try:
        if tls.cert is not None:
            context.load_cert_chain(tls.cert, tls.key, password=_no_password)
    except OSError as error:
        detail = error.strerror or error
        raise ValueError(f"tls.cert, tls.key: cannot load `{tls.cert}`, `{tls.key}`: {detail}") from None


def _no_password() -> str:
    """Without it an encrypted key would be asked for on the terminal."""
    return ""


def _read(path: str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
