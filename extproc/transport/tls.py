"""TLS of a listener, whose certificate may be renewed while it serves."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

import grpc

from extproc.config.model import ServerTls

_LOG = logging.getLogger("extproc.transport")
_Fetch = Callable[[], grpc.ServerCertificateConfiguration]


class _Pem(NamedTuple):
    key: bytes
    cert: bytes
    client_ca: bytes | None

    @property
    def configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.cert)], self.client_ca)


def server_credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Credentials that follow their files. Raises ValueError, naming the field, for files that cannot be used."""
    files = _Files(tls)
    fetch = cast(_Fetch, files)  # None is what gRPC documents, the stubs do not know it
    return grpc.dynamic_ssl_server_credentials(files.current.configuration, fetch, tls.client_ca is not None)


class _Files:
    """The files of one listener. gRPC calls it for each handshake, outside of the event loop."""

    def __init__(self, tls: ServerTls) -> None:
        self._tls = tls
        self.current = _read(tls)
        _verify(tls)
        self._refused: _Pem | None = None

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """What to serve from now on; None to go on as before, also when the new files are wrong."""
        try:
            found = _read(self._tls)
            if found in (self.current, self._refused):
                return None
            self._refused = found
            _verify(self._tls)
        except ValueError as error:
            _LOG.error("renewed certificate refused, the old one stays", extra={"fields": {"problem": str(error)}})
            return None
        self.current = found
        _LOG.info("certificate renewed", extra={"fields": {"cert": self._tls.cert}})
        return found.configuration


def _read(tls: ServerTls) -> _Pem:
    def content(path: str, field: str) -> bytes:
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise ValueError(f"tls.{field}: cannot read `{path}`: {error.strerror}") from None

    client_ca = None if tls.client_ca is None else content(tls.client_ca, "clientCa")
    return _Pem(content(tls.key, "key"), content(tls.cert, "cert"), client_ca)


def _verify(tls: ServerTls) -> None:
    """gRPC says only that it failed; the ssl module says at what."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.cert, tls.key, password=_no_password)
    except OSError as error:
        raise ValueError(f"tls.cert, tls.key: cannot use `{tls.cert}`, `{tls.key}`: {_reason(error)}") from None
    try:
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
    except OSError as error:
        raise ValueError(f"tls.clientCa: cannot use `{tls.client_ca}`: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason.replace("_", " ").lower() if error.reason else "not in PEM format"
    return error.strerror or str(error)


def _no_password() -> str:
    """Without it an encrypted key would be asked for on the terminal."""
    return ""
