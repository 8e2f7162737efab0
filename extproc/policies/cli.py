"""Show what Kuadrant's policies mean: compile them to a configuration, or to a limits file for Limitador.

FILES are YAML or JSON documents, or folders of them: RateLimitPolicy, TokenRateLimitPolicy, AuthPolicy, HTTPRoute,
Gateway and Secret. A configuration reads the same documents by `policies: [FILES...]`, so nothing has to be compiled
to be used; what is printed is what that adds. Exit status 2 when something is wrong or not supported.

example:
  extproc compile deploy/examples/maas/policies
  extproc compile deploy/examples/tokens/policies --for limitador > limits.yaml
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import yaml

from extproc.config.errors import ConfigError
from extproc.config.files import Files
from extproc.policies.compile import compile_policies
from extproc.policies.documents import read_policies


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `extproc compile`."""
    parser.add_argument("files", nargs="+", metavar="FILES", help="documents, or folders of them")
    parser.add_argument(
        "--for",
        dest="reader",
        choices=["extproc", "limitador"],
        default="extproc",
        help="who will read what is printed (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Print YAML; 0, or 2 when the documents are refused."""
    try:
        compiled = compile_policies(read_policies(options.files, Files()))
    except ConfigError as error:
        sys.stderr.write(f"extproc: {error}\n")
        return 2
    sys.stdout.write(_yaml(compiled.limits if options.reader == "limitador" else compiled.data))
    for warning in compiled.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    return 0


class _Dumper(yaml.SafeDumper):
    """Writes equal parts out, in place of references to the first of them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(data: Any) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
