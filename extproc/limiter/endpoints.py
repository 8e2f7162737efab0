"""Which limiter a service gets: the embedded one, or a remote one over a shared channel."""

from __future__ import annotations

from collections.abc import Callable

from extproc.config.errors import ConfigError, Problem
from extproc.config.model import Config, Service
from extproc.limiter.channel import Channels
from extproc.limiter.metered import CallMetrics, metered
from extproc.limiter.remote import RemoteLimiter
from extproc.limiter.seam import Limiter

Embedded = Callable[[Service], Limiter]


class Endpoints:
    """Hands out limiters for one configuration after another, over `channels` that others may share.

    `embedded` gives the limiter of a service whose endpoint is the embedded one.
    """

    def __init__(self, embedded: Embedded, channels: Channels, metrics: CallMetrics) -> None:
        self._embedded = embedded
        self._channels = channels
        self._metrics = metrics

    def limiter_for(self, config: Config, service: Service) -> Limiter:
        """The limiter of `service`; its endpoint must exist. Connecting to a remote one starts at once.

        Raises ConfigError for TLS files that cannot be used.
        """
        endpoint = config.endpoints[service.endpoint]
        if endpoint.embedded:
            return metered(self._embedded(service), service.endpoint, self._metrics)
        try:
            channel = self._channels.get(endpoint)
        except ValueError as error:
            raise ConfigError([Problem.at(("endpoints", service.endpoint), str(error))]) from None
        return metered(RemoteLimiter(channel, service.timeout), service.endpoint, self._metrics)
