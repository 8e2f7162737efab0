"""Making connections: where to, with which password, which certificates."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from pathlib import Path

from extproc.config.address import Address, Tcp, Unix
from extproc.config.fields import ClientTls
from extproc.config.model import Storage
from extproc.config.storage import RedisAddress
from extproc.limiter.redis_wire import ErrorReply, RedisError, Wire

CONNECT = 2.0
"""Seconds for one connection, until its server has answered."""
NAME = "extproc"
"""How CLIENT LIST shows us."""
_MAX_DETAIL = 200
_MASK = "***"
_SOON = ("LOADING", "MASTERDOWN", "BUSY")
"""Errors that pass."""


class Unwelcome(RedisError):
    """The server is there, but does not let us in: waiting alone will not help."""


class Door:
    """Connects to the servers of one storage, as `storage` says.

    Files are read for every connection, so that a password or a certificate can be replaced at any time.
    Raises ValueError, naming the field, for TLS files that cannot be used.
    """

    def __init__(self, storage: Storage, address: RedisAddress) -> None:
        self._storage = storage
        self._address = address
        self._tls = (storage.tls or ClientTls()) if address.tls else None
        if self._tls is not None:
            client_context(self._tls)

    async def server(self, node: Address) -> Wire:
        """A connection to a server that holds counters, ready for use.

        Raises RedisError, or Unwelcome when it is there and refuses us; OSError when it is not; TimeoutError.
        """
        async with asyncio.timeout(CONNECT):
            wire = await self._open(node)
            try:
                await self._introduce(wire)
            except BaseException:
                wire.abort("not let in")
                raise
        return wire

    async def master(self) -> Address:
        """The server that the Sentinels name; the first that knows it is believed. Raises RedisError."""
        problems = []
        for node in self._address.nodes:
            try:
                async with asyncio.timeout(CONNECT):
                    return await self._master_by(node)
            except (OSError, RedisError, TimeoutError) as error:
                problems.append(f"{node}: {self.masked(described(error))}")
        raise RedisError(f"no Sentinel names a server: {'; '.join(problems)}"[: 2 * _MAX_DETAIL])

    def masked(self, text: str) -> str:
        """`text` of a server without the user's name, and not too long."""
        if username := self._address.username:
            text = re.sub(rf"(?<!\w){re.escape(username)}(?!\w)", _MASK, text)
        return text[:_MAX_DETAIL]

    async def _open(self, node: Address) -> Wire:
        try:
            context = None if self._tls is None else client_context(self._tls)
            return await self._connect(node, context)
        except OSError:  # some are ValueErrors too
            raise
        except ValueError as error:  # of a file, or a name that a server gave and nobody can look up
            raise Unwelcome(str(error)) from None

    async def _connect(self, node: Address, context: ssl.SSLContext | None) -> Wire:
        loop = asyncio.get_running_loop()
        match node:
            case Unix(path):
                _, wire = await loop.create_unix_connection(Wire, path)
            case Tcp(host, port):
                name = (self._tls.server_name or host) if self._tls is not None else None
                transport, wire = await loop.create_connection(Wire, host, port, ssl=context, server_hostname=name)
                _keep_alive(transport)
        return wire

    async def _introduce(self, wire: Wire) -> None:
        try:
            await self._authenticate(wire)
            if self._address.database:
                await wire.ask("SELECT", self._address.database)
            await wire.ask("PING")
        except ErrorReply as error:
            text = self.masked(str(error))
            raise (RedisError if text.startswith(_SOON) else Unwelcome)(text) from None
        # A replica of a cluster says itself who the master is.
        if self._address.kind != "cluster" and await self._role(wire) == b"slave":
            raise RedisError("it is a replica, in which nothing can be counted")

    @staticmethod
    async def _role(wire: Wire) -> bytes:
        """b"master" or b"slave"; b"" where the server does not say, which a user may lack permission to ask."""
        try:
            reply: list[bytes] = await wire.ask("ROLE")
        except ErrorReply:
            return b""
        return reply[0]

    async def _authenticate(self, wire: Wire) -> None:
        username, password = self._address.username, self._password()
        if password:
            await wire.ask("AUTH", *([username] if username else []), password)

    def _password(self) -> str:
        path = self._storage.password_file
        if path is None:
            return self._address.password
        try:
            return Path(path).read_text("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise Unwelcome(f"cannot read passwordFile `{path}`: {getattr(error, 'strerror', 'not UTF-8')}") from None

    async def _master_by(self, sentinel: Address) -> Address:
        wire = await self._open(sentinel)
        try:
            reply = await self._ask_sentinel(wire)
        finally:
            wire.abort("asked")
        if reply is None:
            raise RedisError(f"it knows no service `{self._address.service}`")
        try:
            host, port = (part.decode() for part in reply)
            return Tcp(host, int(port))
        except ValueError:
            raise RedisError("it names no server that we understand") from None

    async def _ask_sentinel(self, wire: Wire) -> list[bytes] | None:
        question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.service)
        try:
            reply: list[bytes] | None = await wire.ask(*question)
        except ErrorReply as error:
            if not str(error).startswith("NOAUTH"):
                raise
            await self._authenticate(wire)
            reply = await wire.ask(*question)
        return reply


def client_context(tls: ClientTls) -> ssl.SSLContext:
    """What is trusted and shown; raises ValueError that names the field whose file cannot be used."""
    try:
        context = ssl.create_default_context(cafile=tls.ca)
    except OSError as error:
        raise ValueError(f"tls.ca: cannot load `{tls.ca}`: {error.strerror or error}") from None
    if tls.cert is not None:
        try:
            # Without a password an encrypted key would be asked for on the terminal.
            context.load_cert_chain(tls.cert, tls.key, password=str)
        except OSError as error:
            detail = error.strerror or error
            raise ValueError(f"tls.cert, tls.key: cannot load `{tls.cert}`, `{tls.key}`: {detail}") from None
    return context


def described(error: Exception) -> str:
    """Why a connection was not made, for logs."""
    match error:
        case TimeoutError():
            return f"no answer within {CONNECT:g} s"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {error.verify_message}"
        case _:
            return str(error)[:_MAX_DETAIL] or type(error).__name__


def _keep_alive(transport: asyncio.BaseTransport) -> None:
    """A connection that nobody needs for long stays known to what lies between."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
