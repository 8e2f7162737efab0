"""The embedded limiter as a server of its own, for other gateways."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import Any

from extproc.admin.server import AdminServer
from extproc.admin.usage import UsagePage, nearest
from extproc.config.errors import ConfigError, Problem, Snapshot
from extproc.config.files import take_snapshot
from extproc.config.load import load_limits
from extproc.config.model import Storage
from extproc.config.watch import watch
from extproc.lifecycle import Signals
from extproc.limiter.counters import open_counters
from extproc.limiter.limits import InvalidLimit, LimitSet
from extproc.limiter.metered import metered
from extproc.limiter.server import SERVICES, add_limiter_service
from extproc.telemetry.metrics import Metrics
from extproc.telemetry.nearness import LimitWatch
from extproc.transport.listener import GrpcServer

_LOG = logging.getLogger("extproc.limiter")
_MAX_MESSAGE = 4 * 1024 * 1024
_STOP_WITHIN = 5.0


class LimiterServer:
    """Serves one limits file over gRPC until SIGTERM.

    With `ratelimit_headers`, answers to ShouldRateLimit bring x-ratelimit headers for the client. Counters are in
    `storage`, `timeout` seconds away at most. Raises ConfigError for a storage that cannot be used.
    """

    def __init__(
        self,
        limits: Path,
        listen: str,
        admin: str | None = None,
        *,
        ratelimit_headers: bool = False,
        storage: Storage | None = None,
        timeout: float = 1.0,
    ) -> None:
        self._path = limits
        self._listen = listen
        self._admin_address = admin
        self._ratelimit_headers = ratelimit_headers
        self._timeout = timeout
        self._counters = open_counters(storage or Storage())
        limits_watch = LimitWatch(partial(nearest, self._counters))
        self.metrics = Metrics(tally=self._counters.tally, limits=limits_watch)
        self._limits = LimitSet()
        self._files: Snapshot = {}
        self._unready: str | None = "starting"

    def load(self) -> None:
        """Read the limits file; counters of limits that stay are kept. Raises ConfigError."""
        self._files = take_snapshot([self._path])
        try:
            limits = LimitSet(load_limits(self._path))
        except InvalidLimit as error:
            raise ConfigError([Problem("", str(error), str(self._path))], what="limits file") from None
        self._counters.replace_limits(limits, tells_quotas=self._ratelimit_headers)
        self._limits = limits
        self.metrics.configs += 1
        for warning in limits.warnings:
            _LOG.warning("%s", warning)

    async def reload(self) -> None:
        """Read the limits file again; when it is wrong the old limits stay."""
        try:
            self.load()
        except ConfigError as error:
            self.metrics.reloaded("rejected")
            _LOG.error("reload rejected, the old limits stay", extra={"fields": {"problems": str(error)}})
        else:
            self.metrics.reloaded("ok")
            _LOG.info("reloaded", extra={"fields": {"limits": len(self._limits.limits)}})

    async def run(self) -> None:
        """Serve until asked to stop. Raises ListenError or AdminError."""
        signals = Signals(self.reload)
        grpc_server = GrpcServer(_MAX_MESSAGE)
        await self._counters.start()
        limiter = metered(self._counters.limiter(self._timeout), "embedded", self.metrics)
        add_limiter_service(grpc_server.server, limiter, headers=self._ratelimit_headers)
        grpc_server.bind(self._listen, "--listen")
        admin = await self._start_admin()
        await grpc_server.start(SERVICES)
        await grpc_server.set_ready(ready=True)
        self._unready = None
        fields: dict[str, Any] = {"listen": grpc_server.addresses[0], "limits": len(self._limits.limits)}
        _LOG.info("ready", extra={"fields": fields})
        watching = asyncio.create_task(watch(lambda: self._files, self.reload))
        await signals.stop()
        self._unready = "draining"
        watching.cancel()
        await grpc_server.set_ready(ready=False)
        await grpc_server.stop(_STOP_WITHIN)
        await self._counters.close()
        if admin is not None:
            await admin.stop()

    async def _start_admin(self) -> AdminServer | None:
        if self._admin_address is None:
            return None
        admin = AdminServer(
            self._admin_address,
            readiness=lambda: self._unready,
            metrics=self.metrics.page,
            config=self._view,
            usage=UsagePage(self.metrics),
        )
        await admin.start()
        return admin

    def _view(self) -> dict[str, Any]:
        return {"limits": [limit.label for limit in self._limits.limits]}
