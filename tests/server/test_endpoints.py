"""Which limiter a service gets, and how long a channel lives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from extproc.config.errors import ConfigError
from extproc.config.load import parse_config
from extproc.config.model import Config
from extproc.limiter import channel as module
from extproc.limiter.channel import Channels
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.endpoints import Endpoints
from extproc.limiter.limits import LimitSet
from extproc.limiter.seam import Code, Decision, Limiter, Query
from extproc.telemetry.metrics import Metrics


def config(endpoint: str = '"127.0.0.1:1"') -> Config:
    text = f"""
    services:
      check: {{type: ratelimit-check, endpoint: limitador}}
      report: {{type: ratelimit-report, endpoint: limitador, timeout: 1s}}
    actionSets: []
    endpoints: {{limitador: {endpoint}}}
    """
    return parse_config(text, name="test.yaml", base=Path.cwd()).config


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses of the channels that were opened."""
    addresses: list[str] = []
    original = module.open_channel

    def noted(endpoint: Any) -> grpc.aio.Channel:
        addresses.append(endpoint.address)
        return original(endpoint)

    monkeypatch.setattr(module, "open_channel", noted)
    return addresses


def limiters(endpoints: Endpoints, chosen: Config) -> list[Limiter]:
    return [endpoints.limiter_for(chosen, service) for service in chosen.services.values()]


async def test_services_and_reloads_share_a_channel(opened: list[str]) -> None:
    """A reload that changes nothing here does not connect anew."""
    endpoints = Endpoints(lambda service: EmbeddedLimiter(LimitSet()), Channels(), Metrics())
    before = limiters(endpoints, config())
    after = limiters(endpoints, config())
    assert (len(before), len(after), opened) == (2, 2, ["127.0.0.1:1"])


async def test_a_channel_goes_with_the_last_who_used_it(opened: list[str]) -> None:
    """Reloads must not pile up connections."""
    endpoints = Endpoints(lambda service: EmbeddedLimiter(LimitSet()), Channels(), Metrics())
    held = limiters(endpoints, config())
    del held[0]
    limiters(endpoints, config())
    assert len(opened) == 1
    held.clear()
    limiters(endpoints, config())
    assert len(opened) == 2


async def test_the_embedded_limiter_needs_no_channel(opened: list[str]) -> None:
    endpoints = Endpoints(lambda service: EmbeddedLimiter(LimitSet()), Channels(), Metrics())
    for limiter in limiters(endpoints, config("embedded")):
        assert limiter.check(Query("d", ())) == Decision(Code.OK, unlimited=True)
    assert opened == []


async def test_tls_files_that_cannot_be_used(tmp_path: Path) -> None:
    """S0.D19: a configuration error with the field, so that a reload keeps what works."""
    (authority := tmp_path / "ca.pem").write_text("nonsense")
    chosen = config(f'{{address: "127.0.0.1:1", tls: {{ca: {authority}}}}}')
    endpoints = Endpoints(lambda service: EmbeddedLimiter(LimitSet()), Channels(), Metrics())
    with pytest.raises(ConfigError) as caught:
        limiters(endpoints, chosen)
    [problem] = caught.value.problems
    assert problem.path == "endpoints.limitador"
    assert problem.message.startswith(f"tls.ca: cannot load `{authority}`")
