"""Which authenticator an `auth` service gets whose endpoint is not the embedded one."""

from __future__ import annotations

from extproc.config.errors import ConfigError, Problem
from extproc.config.model import Config, Service
from extproc.identity.remote import RemoteAuthenticator
from extproc.identity.seam import Authenticator
from extproc.limiter.channel import Channels


class Authenticators:
    """Hands out authenticators for one configuration after another, over channels that limiters share."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    def authenticator_for(self, config: Config, service: Service) -> Authenticator:
        """The authenticator of `service`; its endpoint must exist, and be remote. Connecting starts at once.

        Raises ConfigError for TLS files that cannot be used.
        """
        try:
            channel = self._channels.get(config.endpoints[service.endpoint])
        except ValueError as error:
            raise ConfigError([Problem.at(("endpoints", service.endpoint), str(error))]) from None
        return RemoteAuthenticator(channel, service.timeout)
