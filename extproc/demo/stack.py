"""Model, server and gateway together, each real but for the model."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from extproc.gateway.bootstrap import bootstrap
from extproc.gateway.process import EnvoyProcess
from extproc.server import Server
from extproc.simulator import Options, Simulator

LOCAL = {
    "listeners": ["127.0.0.1:0"],
    "admin": {"address": "127.0.0.1:0"},
    "shutdown": {"delay": "0s", "deadline": "5s"},
}
"""Free ports, and no waiting for a control plane at the end."""


class Stack:
    """`async with Stack(config) as stack:` runs client -> Envoy -> model, with a server for `config` attached.

    `config` gets free ports unless it names its own. `model` are the simulated model's options, `gateway` the
    keyword arguments of `bootstrap`; `providers` are options of more such models, by the value of the routing header
    with which requests get there. `clock` gives the seconds that the embedded limiter's windows go by. Raises what its
    parts raise: ConfigError, EnvoyNotFound, PortInUse ...
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        model: Options | None = None,
        gateway: Mapping[str, Any] | None = None,
        providers: Mapping[str, Options] | None = None,
        directory: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = {**LOCAL, **config}
        self._gateway = dict(gateway or {})
        self._directory = directory
        self._clock = clock
        self.model = Simulator(options=model or Options())
        self.providers = {name: Simulator(options=options) for name, options in (providers or {}).items()}
        self.server: Server
        self.envoy: EnvoyProcess
        self.config_file: Path

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as parts:
            directory = self._directory or Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="extproc-")))
            self.config_file = directory / "extproc.json"
            self.configure(self._config)
            for model in (self.model, *self.providers.values()):
                await parts.enter_async_context(model)
            self.server = Server(self.config_file, clock=self._clock)
            self.server.load()
            await self.server.start()
            parts.push_async_callback(self.server.drain)
            options = {
                "upstream": self.model.address,
                "extproc": self.server.addresses[0],
                "providers": {name: provider.address for name, provider in self.providers.items()},
                **self._gateway,
            }
            self.envoy = await parts.enter_async_context(EnvoyProcess(bootstrap(**options)))
            self._parts = parts.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._parts.aclose()

    def configure(self, config: Mapping[str, Any]) -> None:
        """Write the configuration file, in one step as an editor does; `server.reload()` reads it."""
        draft = self.config_file.with_suffix(".new")
        draft.write_text(json.dumps({**LOCAL, **config}))
        draft.replace(self.config_file)

    @property
    def url(self) -> str:
        """Where clients reach the gateway."""
        return f"http://{self.envoy.address}"
