"""Where Envoy finds extproc, by `listeners` of a configuration."""

from __future__ import annotations

from extproc.config.address import Tcp, parse_address
from extproc.config.errors import Problem
from extproc.config.model import Config, Listener
from extproc.gateway.clusters import TlsFiles
from extproc.gateway.fitted import Unfit
from extproc.workers.seats import reachable, shifted


def listening(config: Config, workers: int = 1) -> list[str]:
    """Addresses on this machine, of all workers. Raises Unfit for one that is not known beforehand."""
    addresses: list[str] = []
    for field, listener in _serving(config):
        for index in range(workers):
            try:
                addresses.append(reachable(shifted(listener.address, index)))
            except ValueError as error:
                message = f"{error}; or say with --extproc where Envoy finds extproc"
                raise Unfit([Problem(f"{field}.address", message)]) from None
    return addresses


def port(config: Config) -> int | None:
    """That of the first listener that has one, for Services."""
    for _, listener in _serving(config):
        address = parse_address(listener.address, bind=True)
        if isinstance(address, Tcp) and address.port:
            return address.port
    return None


def serves_tls(config: Config) -> str | None:
    """The field that makes Envoy speak TLS to extproc."""
    field, listener = _serving(config)[0]
    return None if listener.tls is None else f"{field}.tls"


def tls_files(config: Config, ca: str | None, cert: str | None, key: str | None) -> TlsFiles | None:
    """What Envoy needs for TLS to extproc; None for plain text. Raises Unfit for what is not given."""
    field, listener = _serving(config)[0]
    if listener.tls is None:
        return None
    if ca is None:
        raise Unfit([Problem(f"{field}.tls", "say with --extproc-ca which roots Envoy is to trust")])
    if listener.tls.client_ca is not None and (cert is None or key is None):
        message = "it demands a certificate of Envoy: say with --extproc-cert and --extproc-key which"
        raise Unfit([Problem(f"{field}.tls.clientCa", message)])
    return TlsFiles(ca, cert, key)


def _serving(config: Config) -> list[tuple[str, Listener]]:
    """Those in plain text where there are any: one cluster has one kind."""
    fields = [(f"listeners[{index}]", listener) for index, listener in enumerate(config.listeners)]
    return [each for each in fields if each[1].tls is None] or fields
