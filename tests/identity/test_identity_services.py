"""Which authenticator a service gets, and over which channel."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from extproc.config.errors import ConfigError
from extproc.config.model import Config, Endpoint
from extproc.identity.seam import Verdict
from extproc.identity.services import Authenticators
from extproc.limiter.channel import Channels
from extproc.wire.external_auth_pb2 import CheckResponse


def config(address: str, **endpoint: Any) -> Config:
    data = {
        "services": {"who": {"type": "auth", "endpoint": "authorino", "timeout": 10.0}},
        "actionSets": [],
        "endpoints": {"authorino": {"address": address, **endpoint}},
    }
    return Config.model_validate(data)


async def test_a_remote_service_is_asked(net, make) -> None:
    async def check(_: bytes, __: Any) -> bytes:
        return CheckResponse().SerializeToString()

    configured = config(await net.serve(check))
    authenticators = Authenticators(Channels())
    authenticator = authenticators.authenticator_for(configured, configured.services["who"])
    assert await authenticator.authenticate(make.facts(), "s") == Verdict()


async def test_a_channel_is_shared_and_goes_with_the_last_that_uses_it() -> None:
    """A reload with the same endpoint keeps its connection; one without it leaves none behind."""
    channels = Channels(connect=False)
    endpoint = Endpoint(address="127.0.0.1:1")
    first = channels.get(endpoint)
    assert channels.get(Endpoint(address="127.0.0.1:1")) is first
    assert channels.get(Endpoint(address="127.0.0.1:2")) is not first
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None


async def test_tls_files_that_cannot_work_are_named() -> None:
    configured = config("127.0.0.1:1", tls={"ca": "/none.pem"})
    with pytest.raises(ConfigError, match=r"endpoints\.authorino: tls\.ca: cannot load `/none\.pem`"):
        Authenticators(Channels()).authenticator_for(configured, configured.services["who"])
