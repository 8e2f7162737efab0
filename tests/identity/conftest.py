"""What the identity tests share: requests and AuthConfigs in one line, and ext_authz servers that do as told."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from support.messages import request_headers

from extproc.config.keys import KeyEntry
from extproc.config.model import AuthConfig, Endpoint
from extproc.facts import RequestFacts
from extproc.identity.embedded import EmbeddedAuthenticator
from extproc.identity.seam import Verdict
from extproc.limiter.channel import open_channel

JWT = "envoy.filters.http.jwt_authn"
SCOPE = "maas"
Check = Callable[[bytes, Any], Awaitable[bytes]]
"""From a serialised CheckRequest and the context of the call to the answer."""


class Make:
    """Short forms."""

    @staticmethod
    def facts(headers: Mapping[str, str | bytes] | None = None, *, claims: Any = None, **fields: Any) -> RequestFacts:
        """A request, with `claims` of a token that Envoy verified."""
        if claims is not None:
            fields["metadata"] = {JWT: {"principal": claims}}
        return RequestFacts(request_headers(headers, **fields))

    @staticmethod
    def entry(key: str, **identity: Any) -> KeyEntry:
        return KeyEntry(hashlib.sha256(key.encode()).digest(), identity)

    @staticmethod
    def key_source(prefix: str = "APIKEY", **credentials: str) -> dict[str, Any]:
        return {"apiKeys": {"files": ["keys.yaml"]}, "credentials": {"prefix": prefix} | credentials}

    @staticmethod
    def jwt_source(**fields: Any) -> dict[str, Any]:
        return {"jwt": fields}


class Asked:
    """An authenticator with one AuthConfig."""

    def __init__(self, config: Mapping[str, Any], *entries: KeyEntry) -> None:
        model = AuthConfig.model_validate(config)
        self.authenticator = EmbeddedAuthenticator(
            {SCOPE: model}, {(SCOPE, name): entries for name in model.authentication}
        )

    def __call__(self, headers: Mapping[str, str | bytes] | None = None, **fields: Any) -> Verdict:
        return self.authenticator.authenticate(Make.facts(headers, **fields), SCOPE)


@pytest.fixture(scope="session")
def make() -> type[Make]:
    return Make


@pytest.fixture(scope="session")
def asked() -> type[Asked]:
    return Asked


class _Authorization(grpc.GenericRpcHandler):
    def __init__(self, check: Check) -> None:
        self._check = check

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if handler_call_details.method != "/envoy.service.auth.v3.Authorization/Check":
            return None
        return grpc.unary_unary_rpc_method_handler(self._check)


class Net:
    """ext_authz servers and channels on the loopback interface, closed after the test."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def serve(self, check: Check) -> str:
        """A server that answers by `check`; its address is returned."""
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((_Authorization(check),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self._stack.push_async_callback(server.stop, None)
        return f"127.0.0.1:{port}"

    def channel(self, address: str) -> grpc.aio.Channel:
        channel = open_channel(Endpoint(address=address))
        self._stack.push_async_callback(channel.close)
        return channel


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    async with AsyncExitStack() as stack:
        yield Net(stack)
