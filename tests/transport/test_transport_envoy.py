"""The real Envoy reaches us over every kind of listener."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.envoy_client import assert_clean, client_of
from support.harness import LIMITS, configured
from support.pki import Pki

from extproc.demo import stack as demo
from extproc.gateway.bootstrap import FILTER, bootstrap

pytestmark = pytest.mark.e2e

STREAM = {"json": {"model": "m", "stream": True, "stream_options": {"include_usage": True}, "messages": []}}


def used(stack: demo.Stack) -> int:
    return sum(counter.used for counter in stack.server.limiter.snapshot())


async def counted_through(stack: demo.Stack) -> None:
    """A JSON answer and a streamed one, each 24 tokens."""
    async with client_of(stack) as client:
        assert (await client.send()).status == 200
        assert (await client.send(**STREAM)).status == 200
    assert used(stack) == 48
    await assert_clean(stack)


async def test_over_a_unix_socket(socket_path: Path) -> None:
    async with demo.Stack(configured(**LIMITS, listeners=[f"unix:{socket_path}"])) as stack:
        assert stack.server.addresses == [f"unix:{socket_path}"]
        await counted_through(stack)


async def test_over_mutual_tls(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_tls(**options: Any) -> dict[str, Any]:
        config = bootstrap(**options)
        [cluster] = [found for found in config["static_resources"]["clusters"] if found["name"] == FILTER]
        cluster["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": {
                    "tls_certificates": [
                        {
                            "certificate_chain": {"filename": pki / "client.crt"},
                            "private_key": {"filename": pki / "client.key"},
                        }
                    ],
                    "validation_context": {"trusted_ca": {"filename": pki / "ca.crt"}},
                },
            },
        }
        return config

    monkeypatch.setattr(demo, "bootstrap", with_tls)
    tls = {"cert": pki / "server.crt", "key": pki / "server.key", "clientCa": pki / "ca.crt"}
    async with demo.Stack(configured(**LIMITS, listeners=[{"address": "127.0.0.1:0", "tls": tls}])) as stack:
        await counted_through(stack)
