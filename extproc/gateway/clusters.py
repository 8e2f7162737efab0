"""Clusters of Envoy: our server, and the models behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from extproc.config.address import Address, Tcp, Unix, parse_address
from extproc.config.origins import Origin, is_name, parse_origin

Json = dict[str, Any]

EXTPROC = "extproc"
UPSTREAM = "upstream"
SYSTEM_ROOTS = "/etc/ssl/certs/ca-certificates.crt"
"""Where Debian, Ubuntu and Alpine, and so Envoy's images, keep the roots they trust."""

TYPES = "type.googleapis.com/envoy.extensions"
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_TLS = f"{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files on Envoy's machine, as PEM: the roots it trusts, and its own certificate where one is demanded."""

    ca: str = SYSTEM_ROOTS
    cert: str | None = None
    key: str | None = None


def extproc_cluster(addresses: Sequence[str], tls: TlsFiles | None = None) -> Json:
    """The cluster of our server: HTTP/2, one endpoint per worker; in plain text, or with `tls`.

    Raises ValueError, which begins with `extproc: `, for an address that cannot be read.
    """
    places = [read_address(EXTPROC, address) for address in addresses]
    hosts = [place for place in places if isinstance(place, Tcp)]
    return {
        **_cluster(EXTPROC, places),
        **({} if tls is None else {"transport_socket": _tls_socket(hosts, tls, alpn="h2")}),
        **_http_options(
            explicit_http_config={
                "http2_protocol_options": {
                    "max_concurrent_streams": 1000,
                    "connection_keepalive": {"interval": "30s", "timeout": "5s"},
                }
            }
        ),
    }


def model_cluster(name: str, origin: Origin, *, ca: str = SYSTEM_ROOTS) -> Json:
    """The cluster of a model. TLS names it and verifies it against the roots in the file `ca`."""
    # Of a large answer ext_proc gets pieces of this size; the default of 1 MiB costs memory and saves nothing.
    cluster = {**_cluster(name, [origin.address]), "per_connection_buffer_limit_bytes": 262_144}
    if not origin.tls:
        return cluster
    assert isinstance(origin.address, Tcp)
    if is_name(origin.address):
        # What large services resolve to changes by the minute: connections must not be closed for it.
        cluster.update(type="LOGICAL_DNS", dns_lookup_family="ALL")
    return {
        **cluster,
        # A handshake across the internet.
        "connect_timeout": "5s",
        "transport_socket": _tls_socket([origin.address], TlsFiles(ca)),
        **_http_options(auto_config={"http_protocol_options": {}, "http2_protocol_options": {}}),
    }


def read_address(option: str, text: str, *, bind: bool = False) -> Address:
    """The address in `text`. Raises ValueError that names the option."""
    try:
        return parse_address(text, bind=bind)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def read_origin(option: str, text: str) -> Origin:
    """The origin in `text`. Raises ValueError that names the option."""
    try:
        return parse_origin(text)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def written(address: Address) -> Json:
    """An address as Envoy writes it."""
    if isinstance(address, Unix):
        return {"pipe": {"path": address.path}}
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def _cluster(name: str, addresses: Sequence[Address]) -> Json:
    """Envoy's own circuit breakers stop at 1024 requests, which streams that last minutes soon reach."""
    return {
        "name": name,
        "type": "STRICT_DNS" if any(map(is_name, addresses)) else "STATIC",
        "connect_timeout": "0.25s",
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": 100_000,
                    "max_pending_requests": 100_000,
                    "max_requests": 100_000,
                    "max_retries": 1000,
                }
            ]
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": written(address)}} for address in addresses]}],
        },
    }


def _tls_socket(hosts: Sequence[Tcp], files: TlsFiles, alpn: str | None = None) -> Json:
    """TLS to whoever proves to be one of `hosts`; to anybody whom the roots vouch for when there are none."""
    validation: Json = {"trusted_ca": {"filename": files.ca}}
    if names := list(dict.fromkeys(host.host for host in hosts)):
        validation["match_typed_subject_alt_names"] = [_alternative(name) for name in names]
    common: Json = {"validation_context": validation}
    if files.cert is not None and files.key is not None:
        chain = {"certificate_chain": {"filename": files.cert}, "private_key": {"filename": files.key}}
        common["tls_certificates"] = [chain]
    if alpn is not None:
        common["alpn_protocols"] = [alpn]
    named = next((host.host for host in hosts if is_name(host)), None)
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": _TLS,
            **({} if named is None else {"sni": named}),
            "common_tls_context": common,
        },
    }


def _alternative(host: str) -> Json:
    kind = "DNS" if is_name(Tcp(host, 0)) else "IP_ADDRESS"
    return {"san_type": kind, "matcher": {"exact": host}}


def _http_options(**options: Json) -> Json:
    return {
        "typed_extension_protocol_options": {
            _HTTP_OPTIONS: {"@type": f"type.googleapis.com/{_HTTP_OPTIONS}", **options}
        }
    }
