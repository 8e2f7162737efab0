"""`python -m extproc.simulator`: the model alone, without the rest of the package."""

import argparse
import sys

from extproc.simulator.cli import add_arguments, run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="extproc simulator", description="A simulated model, of any provider.")
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
