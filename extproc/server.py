"""The life of a server: load, listen, become ready, reload, drain, stop."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from extproc.active import Active, activate
from extproc.admin.server import AdminServer
from extproc.config.errors import ConfigError, Snapshot
from extproc.config.load import Loaded, load_config
from extproc.config.masking import masked
from extproc.config.model import Config
from extproc.config.watch import watch
from extproc.exchange import Exchange, Surroundings
from extproc.lifecycle import Signals
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.endpoints import Endpoints
from extproc.limiter.limits import LimitSet
from extproc.limiter.reports import ReportQueue
from extproc.telemetry.decisions import DecisionLog
from extproc.telemetry.logs import configure
from extproc.telemetry.metrics import Metrics
from extproc.transport.listener import GrpcServer
from extproc.transport.process import SERVICE, add_external_processor
from extproc.usage.estimate import Estimator
from extproc.usage.held import PromptBudget
from extproc.usage.vocabulary import Vocabulary

_LOG = logging.getLogger("extproc.server")
_AT_START = ("listeners", "admin", "bodies.message", "estimates.vocabulary", "estimates.encoding", "estimates.held")
"""Fields that are read only then."""
_FLUSH = 1.0
"""Seconds that reports get at least: those of exchanges that the deadline cuts begin when it is over."""


class Server:
    """One ext_proc server for one configuration file."""

    def __init__(self, path: Path) -> None:
        self.metrics = Metrics()
        self.decisions = DecisionLog()
        self._path = path
        self.limiter = EmbeddedLimiter(LimitSet())
        self._endpoints = Endpoints(self.limiter, self.metrics)
        self._files: Snapshot = {}
        self._reloading = asyncio.Lock()
        self._active: Active
        self._reports: ReportQueue
        self._estimator: Estimator
        self._counting = ""
        self._shared: Surroundings
        self._unready: str | None = "starting"
        self._grpc: GrpcServer | None = None
        self._admin: AdminServer | None = None

    @property
    def config(self) -> Config:
        """The active configuration."""
        return self._active.config

    @property
    def addresses(self) -> list[str]:
        """Where Envoy reaches this server, with the ports that were really bound."""
        return [] if self._grpc is None else self._grpc.addresses

    @property
    def admin_address(self) -> str | None:
        """Where health and metrics are, None without an admin port."""
        return None if self._admin is None else self._admin.address

    def load(self) -> None:
        """Read and compile the configuration and make it the active one, all of it or nothing. Raises ConfigError."""
        try:
            self._adopt(load_config(self._path))
        except ConfigError as error:
            self._files = error.files or self._files
            raise

    def _adopt(self, loaded: Loaded) -> None:
        self._files = loaded.files
        active = activate(loaded, self._endpoints.limiter_for)
        self.limiter.replace_limits(active.limits)
        self._active = active
        self.metrics.configs += 1
        for warning in active.warnings:
            _LOG.warning("%s", warning, extra={"fields": {"file": str(self._path)}})

    async def start(self) -> None:
        """Listen and become ready. Raises ListenError or AdminError."""
        config = self.config
        self._reports = ReportQueue(self.metrics, capacity=config.report.queue, retry_for=config.report.retry_for)
        self._estimator = await self._open_estimator()
        prompts = PromptBudget(config.estimates.held)
        self._shared = Surroundings(self.metrics, self._reports, self.decisions, self._estimator, prompts)
        self._grpc = GrpcServer(config.bodies.message)
        add_external_processor(self._grpc.server, self._open_exchange)
        self._grpc.listen(config.listeners)
        if config.admin is not None:
            self._admin = AdminServer(
                config.admin.address,
                readiness=lambda: self._unready,
                metrics=self._metrics_page,
                config=self._masked,
            )
            await self._admin.start()
        await self._grpc.start([SERVICE])
        await self._set_ready(None)
        fields = {"listeners": self.addresses, "admin": self.admin_address, "estimates": self._counting}
        _LOG.info("ready", extra={"fields": fields})

    async def _open_estimator(self) -> Estimator:
        """Vocabularies are loaded before there is traffic: that takes the interpreter for a tenth of a second."""
        wanted = self.config.estimates
        directory = None if wanted.vocabulary is None else Path(wanted.vocabulary)
        vocabulary = await asyncio.to_thread(Vocabulary.open, directory, fallback=wanted.encoding)
        await asyncio.to_thread(vocabulary.load)
        self._counting = ", ".join(vocabulary.loaded) or f"by size: {vocabulary.reason}"
        return Estimator(vocabulary)

    async def reload(self) -> bool:
        """Load the configuration again, beside the traffic; when it is wrong the old one stays. False then."""
        async with self._reloading:
            old = self.config
            try:
                self._adopt(await asyncio.to_thread(load_config, self._path))
            except ConfigError as error:
                self._files = error.files or self._files
                self.metrics.reloaded("rejected")
                _LOG.error("reload rejected, the old configuration stays", extra={"fields": {"problems": str(error)}})
                return False
            self.metrics.reloaded("ok")
            _LOG.info("reloaded", extra={"fields": {"file": str(self._path)}})
            self._apply(old, self.config)
            return True

    def _apply(self, old: Config, new: Config) -> None:
        """Give what outlives a configuration its new settings, or say that only a restart will."""
        if self._grpc is not None:
            self._reports.capacity, self._reports.retry_for = new.report.queue, new.report.retry_for
        if new.log != old.log:
            configure(new.log.level, new.log.format)
        for field in _AT_START:
            if attrgetter(field)(new) != attrgetter(field)(old):
                _LOG.warning("a change waits for a restart", extra={"fields": {"field": field}})

    async def drain(self) -> None:
        """Stop in the order that loses nothing: not ready, new streams still served, GOAWAY, reports flushed."""
        assert self._grpc is not None
        shutdown = self.config.shutdown
        await self._set_ready("draining")
        _LOG.info("draining", extra={"fields": {"open_exchanges": self.metrics.exchanges_open}})
        await asyncio.sleep(shutdown.delay)
        deadline = asyncio.get_running_loop().time() + shutdown.deadline
        await self._grpc.stop(shutdown.deadline)
        lost = await self._reports.flush(max(_FLUSH, deadline - asyncio.get_running_loop().time()))
        self._estimator.close()
        if self._admin is not None:
            await self._admin.stop()
        self.decisions.flush()
        _LOG.info("stopped", extra={"fields": {"reports_lost": lost}})

    async def run(self) -> None:
        """Serve a loaded configuration until SIGTERM or SIGINT; SIGHUP and changed files reload."""
        signals = Signals(self.reload)
        await self.start()
        _tune_collector()
        watching = asyncio.create_task(self.watch())
        await signals.stop()
        watching.cancel()
        await self.drain()

    async def watch(self) -> None:
        """Reload when a file of the configuration changes; runs until cancelled."""
        await watch(lambda: self._files, self._changed)

    async def _changed(self) -> None:
        await self.reload()

    async def _set_ready(self, unready: str | None) -> None:
        assert self._grpc is not None
        self._unready = unready
        await self._grpc.set_ready(ready=unready is None)

    def _open_exchange(self) -> Exchange:
        return Exchange(self._active.plan, self._shared)

    def _metrics_page(self, accept: str) -> tuple[bytes, str]:
        self.limiter.sweep()
        return self.metrics.render(accept)

    def _masked(self) -> Mapping[str, Any]:
        return masked(self.config)


def _tune_collector() -> None:
    """What start-up made stays for good, and an exchange makes no cycles: the collector has little to find."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
