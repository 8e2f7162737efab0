"""The life of a server: load, listen, become ready, reload, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from extproc import memory
from extproc.active import Active, activate
from extproc.admin.server import AdminServer
from extproc.admin.usage import UsagePage, nearest
from extproc.config.errors import ConfigError, Snapshot
from extproc.config.load import Loaded, load_config
from extproc.config.masking import masked
from extproc.config.model import Admin, Config, Listener, Service, Storage
from extproc.config.watch import watch
from extproc.exchange import Exchange, Surroundings
from extproc.guards.room import GuardRoom
from extproc.identity.services import Authenticators
from extproc.lifecycle import Signals
from extproc.limiter.channel import Channels
from extproc.limiter.counters import Counters, open_counters
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.endpoints import Embedded, Endpoints
from extproc.limiter.reports import ReportQueue
from extproc.limiter.seam import Limiter
from extproc.telemetry.decisions import DecisionLog
from extproc.telemetry.logs import configure
from extproc.telemetry.metrics import Metrics
from extproc.telemetry.nearness import LimitWatch
from extproc.telemetry.redact import mask
from extproc.telemetry.spending import Spending
from extproc.transport.listener import GrpcServer
from extproc.transport.process import SERVICE, add_external_processor
from extproc.usage.estimate import Estimator
from extproc.usage.held import PromptBudget
from extproc.usage.vocabulary import Vocabulary

_LOG = logging.getLogger("extproc.server")
_AT_START = (
    "listeners",
    "admin",
    "storage",
    "bodies.message",
    "estimates.vocabulary",
    "estimates.encoding",
    "estimates.held",
)
"""Fields that are read only then."""
_FLUSH = 1.0
"""Seconds that reports get at least: those of exchanges that the deadline cuts begin when it is over."""


class Place(NamedTuple):
    """Where a server is reached, by Envoy and by its operator."""

    listeners: Sequence[Listener]
    admin: Admin | None


class Server:
    """One ext_proc server for one configuration file.

    One of several workers has a `place` other than the configuration's, and perhaps `counting` elsewhere. `clock` times
    the windows of limits.
    """

    def __init__(
        self,
        path: Path,
        *,
        place: Place | None = None,
        counting: Embedded | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spending = Spending((), 1)
        self.metrics = Metrics(spending=self.spending)
        self.decisions = DecisionLog()
        self._path = path
        self._clock = clock
        self.counters = Counters(Storage(), clock)
        self._place = place
        channels = Channels()
        self._endpoints = Endpoints(counting or self._counting, channels, self.metrics)
        self._authenticators = Authenticators(channels)
        self._guards = GuardRoom()
        self._files: Snapshot = {}
        self._reloading = asyncio.Lock()
        self._active: Active
        self._reports: ReportQueue
        self._estimator: Estimator
        self._estimating = ""
        self._shared: Surroundings
        self._unready: str | None = "starting"
        self._grpc: GrpcServer | None = None
        self._admin: AdminServer | None = None

    @property
    def limiter(self) -> EmbeddedLimiter:
        """The counters of this process; empty when they are in Redis."""
        return self.counters.memory

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
            loaded = load_config(self._path)
            self._open_storage(loaded.config.storage)
            self._adopt(loaded)
        except ConfigError as error:
            self._files = error.files or self._files
            raise

    def _open_storage(self, storage: Storage) -> None:
        self.counters = open_counters(storage, self._clock)
        self.metrics.tally = self.counters.tally
        self.metrics.limits = LimitWatch(partial(nearest, self.counters))

    def _counting(self, service: Service) -> Limiter:
        return self.counters.limiter(service.timeout)

    def _adopt(self, loaded: Loaded) -> None:
        self._files = loaded.files
        active = activate(loaded, self._endpoints.limiter_for, self._authenticators, self._guards)
        config = loaded.config
        self.counters.replace_limits(active.limits, tells_quotas=config.rate_limit_headers == "always")
        self.spending.reconfigure(active.plan.labels.names, config.metrics.series, config.metrics.families)
        self._active = active
        self.metrics.configs += 1
        for warning in active.warnings:
            # The name of a field stands apart: before a colon, that of a credential would hide what follows.
            fields = {"field": warning.path, "file": warning.file or str(self._path)}
            _LOG.warning("%s", warning.message, extra={"fields": fields})

    async def start(self) -> None:
        """Listen and become ready. Raises ListenError or AdminError."""
        config = self.config
        await self.counters.start()
        self._reports = ReportQueue(self.metrics, capacity=config.report.queue, retry_for=config.report.retry_for)
        self._estimator = await self._open_estimator()
        prompts = PromptBudget(config.estimates.held)
        self._shared = Surroundings(
            self.metrics, self._reports, self.spending, self.decisions, self._estimator, prompts
        )
        self._grpc = GrpcServer(config.bodies.message)
        add_external_processor(self._grpc.server, self._open_exchange)
        place = self._place or Place(config.listeners, config.admin)
        self._grpc.listen(place.listeners)
        if place.admin is not None:
            self._admin = AdminServer(
                place.admin.address,
                readiness=lambda: self._unready,
                metrics=self._metrics_page,
                config=self._masked,
                usage=UsagePage(self.metrics),
            )
            await self._admin.start()
        await self._grpc.start([SERVICE])
        await self._set_ready(None)
        fields = {"listeners": self.addresses, "admin": self.admin_address, "estimates": self._estimating}
        _LOG.info("ready", extra={"fields": fields})

    async def _open_estimator(self) -> Estimator:
        """Vocabularies are loaded before there is traffic: that takes the interpreter for a tenth of a second."""
        wanted = self.config.estimates
        directory = None if wanted.vocabulary is None else Path(wanted.vocabulary)
        vocabulary = await asyncio.to_thread(Vocabulary.open, directory, fallback=wanted.encoding)
        await asyncio.to_thread(vocabulary.load)
        self._estimating = ", ".join(vocabulary.loaded) or f"by size: {vocabulary.reason}"
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
                _LOG.error(
                    "reload rejected, the old configuration stays", extra={"fields": {"problems": _apart(error)}}
                )
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
        await self.counters.close()
        self._estimator.close()
        await self._guards.close()
        if self._admin is not None:
            await self._admin.stop()
        self.decisions.flush()
        _LOG.info("stopped", extra={"fields": {"reports_lost": lost}})

    async def run(self) -> None:
        """Serve a loaded configuration until SIGTERM or SIGINT; SIGHUP and changed files reload."""
        async with self.serving() as signals:
            await signals.stop()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Signals]:
        """Serve a loaded configuration within the block, then drain. Raises ListenError or AdminError."""
        signals = Signals(self.reload)
        await self.start()
        memory.settle()
        watching = asyncio.create_task(self.watch())
        yield signals
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

    async def _metrics_page(self, accept: str) -> tuple[bytes, str]:
        self.counters.sweep()
        return await self.metrics.page(accept)

    def _masked(self) -> Mapping[str, Any]:
        return masked(self.config)


def _apart(error: ConfigError) -> str:
    """The text of `error`, with fields apart where their names would hide what follows in a log."""
    lines = (str(problem) for problem in error.problems)
    readable = (
        line if mask(line) == line else f"{problem.message} ({problem.path})"
        for line, problem in zip(lines, error.problems, strict=True)
    )
    return f"failed to parse {error.what}: " + "\n".join(readable)
