"""An authenticator behind gRPC: Authorino, or any other server of envoy.service.auth.v3."""

from __future__ import annotations

import time
from collections.abc import Callable

import grpc

from extproc.facts import RequestFacts
from extproc.identity.messages import CHECK, Unreadable, decode_verdict, encode_request
from extproc.identity.seam import AuthError, Metadata, Verdict
from extproc.limiter.calls import CallError, UnaryCall


class RemoteAuthenticator:
    """Asks over `channel`, `timeout` seconds a call, and never repeats a call by itself."""

    def __init__(self, channel: grpc.aio.Channel, timeout: float, clock: Callable[[], float] = time.time) -> None:
        self._check = UnaryCall(channel, CHECK, timeout)
        self._clock = clock

    async def authenticate(self, facts: RequestFacts, scope: str, metadata: Metadata = ()) -> Verdict:
        """The server's verdict; its dynamic metadata is `auth`.

        Raises AuthError, whose text begins with `unreachable`, `deadline`, `refused` or `nonsense`.
        """
        try:
            return decode_verdict(await self._check(encode_request(facts, scope, self._clock()), metadata), facts)
        except CallError as error:
            raise AuthError(str(error)) from None
        except Unreadable as error:
            raise AuthError(f"nonsense: {error}") from None
