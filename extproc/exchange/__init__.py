"""The heart: what happens to one HTTP request."""

from extproc.exchange.exchange import Exchange
from extproc.exchange.record import Surroundings

__all__ = ["Exchange", "Surroundings"]
