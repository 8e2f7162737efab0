"""The command line: `extproc COMMAND`."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from extproc import __version__

Run = Callable[[argparse.Namespace], int]
_MOST_WORKERS = 64

_EPILOG = """\
examples:
  extproc demo                       the whole story on this machine: Envoy, limiter, model
  extproc demo maas | gloo           tiers by API key and token; JWT, RBAC and three windows a user
  extproc demo plano | guard         providers, edits, limits of prompts; patterns, a guard model, cut answers
  extproc check deploy/extproc.yaml  is it valid, and what will it do?
  extproc serve deploy/extproc.yaml  serve Envoy
  extproc envoy-config extproc.yaml  the Envoy that fits: clusters, routes, buffers, timeouts
  extproc compile policies/          what Kuadrant's documents come to
  extproc top                        who spends what, and how near limits are
  extproc limiter deploy/limits.yaml --listen 0.0.0.0:8081
                                     the embedded limiter for other gateways
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0 done, 1 failed, 2 wrong configuration or usage."""
    # gRPC's core writes lines of its own between ours, about every GOAWAY and every client that fails its TLS
    # handshake; it reads this when it is first imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    words = sys.argv[1:] if arguments is None else arguments
    options = _parser(asked=words[0] if words else "").parse_args(words)
    run: Run = options.run
    try:
        return run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1


def _parser(asked: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="extproc",
        description="Token metering and token rate limits for LLM traffic on Envoy, as an external processor.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"extproc {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_check(commands)
    _add_schema(commands)
    _add_limiter(commands)
    _add_elsewhere(
        commands, asked, "simulator", "a simulated model that speaks any provider's API", "extproc.simulator.cli"
    )
    _add_elsewhere(
        commands, asked, "vocab", "fill and verify the vocabularies of token estimates", "extproc.usage.vocabulary_cli"
    )
    _add_elsewhere(
        commands,
        asked,
        "compile",
        "print what Kuadrant's policies come to, here or in Limitador",
        "extproc.policies.cli",
    )
    _add_elsewhere(
        commands, asked, "envoy-config", "print the gateway configuration that fits", "extproc.gateway.envoy_config_cli"
    )
    _add_elsewhere(commands, asked, "top", "watch who spends what, and how near limits are", "extproc.top.cli")
    _add_elsewhere(commands, asked, "demo", "play the story on the real Envoy, on this machine", "extproc.demo.cli")
    return parser


def _add_serve(commands: Any) -> None:
    parser = commands.add_parser(
        "serve",
        help="serve Envoy",
        description="Serve Envoy until SIGTERM, which drains. SIGHUP and changes of the files reload; a configuration "
        "that is wrong is refused and the old one stays.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="configuration file (YAML or JSON)")
    parser.add_argument(
        "--workers",
        type=_workers,
        default=1,
        metavar="N",
        help="processes, each with ports or sockets of its own: prints Envoy's cluster with all of them (default: 1)",
    )
    parser.set_defaults(run=_serve)


def _workers(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to {_MOST_WORKERS}, found `{text}`")
    return int(text)


def _add_check(commands: Any) -> None:
    parser = commands.add_parser(
        "check",
        help="validate a configuration and say what it will do",
        description="Validate a configuration and say in words what it will do. Nothing is started or connected. "
        "Exit status 2 when it is wrong; warnings alone do not fail unless --strict.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG")
    parser.add_argument("--strict", action="store_true", help="fail on warnings too")
    parser.add_argument(
        "--without-credentials",
        action="store_true",
        help="do not read credentials and API keys, which need not be there, as in CI",
    )
    parser.set_defaults(run=_check)


def _add_schema(commands: Any) -> None:
    parser = commands.add_parser(
        "schema",
        help="print the JSON Schema of the configuration",
        description="Print the JSON Schema of the configuration, for editors and CI.",
    )
    parser.set_defaults(run=_schema)


def _add_limiter(commands: Any) -> None:
    parser = commands.add_parser(
        "limiter",
        help="serve the embedded limiter over gRPC",
        description="Serve a limits file (Limitador's format) over gRPC: CheckRateLimit and Report "
        "(kuadrant.service.ratelimit.v1) and ShouldRateLimit (envoy.service.ratelimit.v3). Counters are in "
        "memory, or in Redis.",
    )
    parser.add_argument("limits", type=Path, metavar="LIMITS", help="limits file; changes are noticed")
    parser.add_argument("--listen", default="127.0.0.1:8081", metavar="ADDRESS", help="default: %(default)s")
    parser.add_argument("--admin", metavar="ADDRESS", help="health and metrics over HTTP, e.g. 127.0.0.1:8080")
    parser.add_argument(
        "--rate-limit-headers",
        default="NONE",
        choices=["NONE", "DRAFT_VERSION_03"],
        help="x-ratelimit headers for clients, with answers to ShouldRateLimit; default: %(default)s",
    )
    parser.add_argument(
        "--storage", default="memory", metavar="URL", help="memory, or redis://... as in a configuration's `storage`"
    )
    parser.add_argument(
        "--storage-password-file", type=Path, metavar="FILE", help="holds Redis's password: others can see arguments"
    )
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--log-format", default="auto", choices=["auto", "json", "console"])
    parser.set_defaults(run=_limiter)


def _add_elsewhere(commands: Any, asked: str, name: str, summary: str, module: str) -> None:
    """A command with requirements of its own: its module is imported only when it is asked for."""
    if name != asked:
        commands.add_parser(name, help=summary)
        return
    try:
        command = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("extproc"):
            raise
        sys.exit(f"extproc {name} needs `{error.name}`: pip install 'extproc[demo]'")
    parser = commands.add_parser(
        name, help=summary, description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_arguments(parser)
    parser.set_defaults(run=command.run)


def _serve(options: argparse.Namespace) -> int:
    if options.workers > 1:
        return _serve_workers(options)
    from extproc.admin.server import AdminError
    from extproc.config.errors import ConfigError
    from extproc.server import Server
    from extproc.telemetry.logs import configure
    from extproc.transport.listener import ListenError

    async def serve() -> None:
        server = Server(options.config)
        server.load()
        configure(server.config.log.level, server.config.log.format)
        await server.run()

    return _run_loop(serve(), ConfigError, ListenError, AdminError)


def _serve_workers(options: argparse.Namespace) -> int:
    import yaml

    from extproc.config.errors import ConfigError
    from extproc.gateway.bootstrap import extproc_cluster
    from extproc.workers.process import WorkerRefused
    from extproc.workers.supervisor import Supervisor

    def announce(addresses: Sequence[str]) -> None:
        sys.stdout.write(yaml.safe_dump([extproc_cluster(addresses)], sort_keys=False))
        sys.stdout.flush()

    try:
        return asyncio.run(Supervisor(options.config, options.workers, announce).run())
    except (ConfigError, WorkerRefused) as error:
        return _refuse(error)


def _check(options: argparse.Namespace) -> int:
    from extproc.active import Active, activate
    from extproc.config.errors import ConfigError
    from extproc.config.load import Loaded, load_config
    from extproc.explain import explain
    from extproc.identity.services import Authenticators
    from extproc.limiter.channel import Channels
    from extproc.limiter.embedded import EmbeddedLimiter
    from extproc.limiter.endpoints import Endpoints
    from extproc.limiter.limits import LimitSet
    from extproc.telemetry.metrics import Metrics
    from extproc.transport.listener import ListenError, check_tls

    async def load() -> Active:
        """As a server does, with channels that never connect; they belong to a loop."""
        channels = Channels(connect=False)
        endpoints = Endpoints(lambda _: EmbeddedLimiter(LimitSet()), channels, Metrics())

        def activated(loaded: Loaded) -> Active:
            return activate(loaded, endpoints.limiter_for, Authenticators(channels))

        try:
            loaded = load_config(options.config, credentials=not options.without_credentials)
        except ConfigError as error:
            # What is wrong besides credentials that are not there is worth telling too.
            try:
                activated(load_config(options.config, credentials=False))
            except ConfigError as other:
                raise ConfigError(dict.fromkeys((*error.problems, *other.problems))) from None
            raise
        active = activated(loaded)
        check_tls(active.config.listeners)
        return active

    try:
        active = asyncio.run(load())
    except (ConfigError, ListenError) as error:
        return _refuse(error)
    sys.stdout.write(explain(active))
    for warning in active.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    return 1 if options.strict and active.warnings else 0


def _schema(options: argparse.Namespace) -> int:
    from extproc.config.schema import json_schema

    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
    return 0


def _limiter(options: argparse.Namespace) -> int:
    from extproc.admin.server import AdminError
    from extproc.config.errors import ConfigError
    from extproc.config.model import Storage
    from extproc.limiter_server import LimiterServer
    from extproc.telemetry.logs import configure
    from extproc.transport.listener import ListenError

    password: Path | None = options.storage_password_file
    storage = Storage(url=options.storage, password_file=None if password is None else str(password.absolute()))

    async def serve() -> None:
        configure(options.log_level, options.log_format)
        headers = options.rate_limit_headers == "DRAFT_VERSION_03"
        server = LimiterServer(
            options.limits,
            options.listen,
            options.admin,
            ratelimit_headers=headers,
            storage=storage,
        )
        server.load()
        await server.run()

    return _run_loop(serve(), ConfigError, ListenError, AdminError)


def _run_loop(main: Coroutine[Any, Any, None], *refusals: type[Exception]) -> int:
    """Run until it ends; exceptions of the types `refusals` are told in a sentence."""
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)
    except refusals as error:
        return _refuse(error)
    return 0


def _refuse(error: Exception) -> int:
    sys.stderr.write(f"extproc: {error}\n")
    return 2
