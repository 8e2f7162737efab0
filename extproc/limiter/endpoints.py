"""Which limiter a service gets: the embedded one, or a remote one over a shared channel."""

from __future__ import annotations

from weakref import WeakValueDictionary

import grpc

from extproc.config.errors import ConfigError, Problem
from extproc.config.model import Config, Endpoint, Service
from extproc.limiter.channel import EMBEDDED, open_channel, warm
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.metered import CallMetrics, MeteredLimiter
from extproc.limiter.remote import RemoteLimiter
from extproc.limiter.seam import Limiter


class Endpoints:
    """Hands out limiters for one configuration after another.

    Channels are shared between services and configurations. A channel that no plan uses any more is closed when
    the last exchange that began with such a plan is over, because nothing else refers to it then.
    """

    def __init__(self, embedded: EmbeddedLimiter, metrics: CallMetrics, *, connect: bool = True) -> None:
        self._embedded = embedded
        self._metrics = metrics
        self._connect = connect
        self._channels: WeakValueDictionary[Endpoint, grpc.aio.Channel] = WeakValueDictionary()

    def limiter_for(self, config: Config, service: Service) -> Limiter:
        """The limiter of `service`; its endpoint must exist. Connecting to a remote one starts at once.

        Raises ConfigError for TLS files that cannot be used.
        """
        endpoint = config.endpoints[service.endpoint]
        if endpoint.address == EMBEDDED:
            return MeteredLimiter(self._embedded, service.endpoint, self._metrics)
        try:
            channel = self._channel(endpoint)
        except ValueError as error:
            raise ConfigError([Problem.at(("endpoints", service.endpoint), str(error))]) from None
        return MeteredLimiter(RemoteLimiter(channel, service.timeout), service.endpoint, self._metrics)

    def _channel(self, endpoint: Endpoint) -> grpc.aio.Channel:
        channel = self._channels.get(endpoint)
        if channel is None:
            channel = self._channels[endpoint] = open_channel(endpoint)
            if self._connect:
                warm(channel)
        return channel
