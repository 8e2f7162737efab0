"""A model that answers what it is told to, as any of many providers would, for tests, demonstrations and benchmarks."""

from extproc.simulator.cli import add_arguments, run
from extproc.simulator.options import Options
from extproc.simulator.server import Simulator

__all__ = ["Options", "Simulator", "add_arguments", "run"]
