"""HTTP to those outside who are asked: one pool of connections for the process."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

import aiohttp

MAX_ANSWER = 64 * 1024
"""Bytes of an answer that are read, unless a caller says otherwise."""
_RECEIVED = 16 * 1024
"""Bytes that the kernel takes for us beyond what was read: what one turn of the event loop can have to parse."""
_ATTEMPTS = 2
_HEADERS = {"accept": "application/json", "accept-encoding": "identity", "user-agent": "extproc"}


class Response(NamedTuple):
    """An answer. The body is read of status 200 only, otherwise empty."""

    status: int
    body: bytes


class HttpError(Exception):
    """No answer. The text says why, and holds neither an address nor anything that was sent or received."""


class TooLongError(HttpError):
    """An answer of more bytes than are read."""


class HttpClient:
    """Posts, over connections that are kept; the first post opens them, on its event loop.

    How many connections there are is bounded by who asks (`Outside.max_concurrent`). Nothing is taken from the
    environment, no cookie is kept, no redirect followed, and no compression understood.
    """

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._trusted: WeakValueDictionary[bytes, ssl.SSLContext] = WeakValueDictionary()

    def trust(self, ca: str | None) -> ssl.SSLContext | None:
        """Who is trusted, by a file of PEM roots; None for the system's.

        It reads the file: call it where a configuration is loaded. The same content gives the same object, by which
        connections are kept, so that a reload costs no handshake. Raises ValueError, naming the field `ca`.
        """
        if ca is None:
            return None
        try:
            key = hashlib.sha256(Path(ca).read_bytes()).digest()
            context = self._trusted.get(key)
            if context is None:
                context = self._trusted[key] = ssl.create_default_context(cafile=ca)
        except OSError as error:
            raise ValueError(f"ca: cannot load `{ca}`: {error.strerror or error}") from None
        return context

    async def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        trust: ssl.SSLContext | None = None,
        longest: int = MAX_ANSWER,
    ) -> Response:
        """The answer. Raises HttpError, and TooLongError for an answer of more than `longest` bytes.

        It has no deadline of its own: `asyncio.timeout` around it counts waiting for a turn as well, and whoever
        cancels it closes the connection. What a server closes while it is being asked is asked once more: most
        likely it had been idle for too long.
        """
        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                return await self._post(url, body, headers, trust, longest)
            except (aiohttp.ClientError, OSError, ValueError) as error:
                if not (attempts_left and _may_have_been_idle(error)):
                    raise HttpError(_described(error)) from None
        raise AssertionError("the last attempt returns or raises")

    async def close(self) -> None:
        """Close all connections; a later post opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _post(
        self, url: str, body: bytes, headers: Mapping[str, str], trust: ssl.SSLContext | None, longest: int
    ) -> Response:
        # Bytes would be written at a stretch; a file in memory is written in pieces.
        sending = self._opened().post(
            url, data=io.BytesIO(body), headers=headers, ssl=trust or True, allow_redirects=False
        )
        async with sending as response:
            return Response(response.status, await _read(response, longest) if response.status == 200 else b"")

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, socket_factory=_socket),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=_HEADERS,
                timeout=aiohttp.ClientTimeout(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session


async def _read(response: aiohttp.ClientResponse, longest: int) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > longest:
            raise TooLongError(f"answer is longer than {longest} bytes")
        # What has come already is there without waiting: others get their turn all the same.
        await asyncio.sleep(0)
    return bytes(body)


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVED)
    return made


def _may_have_been_idle(error: Exception) -> bool:
    """Whether a connection was closed before any of an answer came."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return False
    return isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError | ConnectionError)


def _described(error: Exception) -> str:
    """What went wrong, in words of our own: those of the library show addresses, and what a server sent."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "cannot connect: its name cannot be looked up"
        case aiohttp.ClientConnectorCertificateError(certificate_error=ssl.SSLCertVerificationError() as problem):
            return f"cannot connect: its certificate is not trusted: {problem.verify_message}"
        case aiohttp.ClientSSLError():
            return "cannot connect: no agreement on TLS"
        case aiohttp.ClientConnectorError():
            return f"cannot connect: {_reason(error)}"
        case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError() | ConnectionError():
            return "connection was closed before the answer was complete"
        case aiohttp.ClientResponseError():
            return "answer is no HTTP"
        case _:
            return f"cannot be asked: {type(error).__name__}"


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno and error.errno > 0 else "no connection"
