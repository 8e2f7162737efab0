"""Print the gateway configuration that fits a configuration of extproc.

What CONFIG says decides what Envoy has to be told: how long a message may wait (services' timeouts, guards' deadlines,
`report.wait`), how much of requests and answers it has to be able to hold, which attributes and identities expressions
name, and a cluster and a route for every provider with an `address`. The comment at the top of what is printed tells
which fields led to what. No credential is read, so none has to be there. Print it again when CONFIG changes. Exit
status 2 when no gateway fits.

formats:
  envoy          a whole Envoy: `envoy --config-path FILE`
  istio          EnvoyFilter, DestinationRule; for providers ServiceEntry and HTTPRoute
  envoy-gateway  EnvoyExtensionPolicy, ClientTrafficPolicy; for providers Backend and HTTPRoute

examples:
  extproc envoy-config extproc.yaml --upstream model.internal:8000 --listen 0.0.0.0:8080 -o envoy.yaml
  extproc envoy-config extproc.yaml --workers 4 --upstream https://api.example.com
  extproc envoy-config extproc.yaml --format istio --namespace llm --gateway llm | kubectl apply -f -
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from extproc.config.address import Tcp, parse_address
from extproc.config.errors import ConfigError, Problem
from extproc.config.load import load_config
from extproc.config.model import Config
from extproc.config.origins import parse_origin
from extproc.gateway import envoy_gateway, istio
from extproc.gateway.bootstrap import bootstrap
from extproc.gateway.buffers import USUAL
from extproc.gateway.clusters import SYSTEM_ROOTS
from extproc.gateway.fitted import Fitted, Unfit, fit
from extproc.gateway.kubernetes import Where
from extproc.gateway.listening import listening, port, serves_tls, tls_files

Json = dict[str, Any]
Printed = tuple[Sequence[Json], Sequence[str]]
"""Documents, and what to know about them."""

_WIDTH = 120
_WRAPPER = textwrap.TextWrapper(
    _WIDTH - 2, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
)
_SIZE = re.compile(r"([0-9]{1,12})(KiB|MiB)?")
_UNITS = {None: 1, "KiB": 1024, "MiB": 1024 * 1024}
_LARGEST = 1024 * 1024 * 1024
_ONLY = {
    "envoy": ("upstream", "listen", "admin", "workers", "ca", "extproc_ca", "extproc_cert", "extproc_key"),
    "istio": ("position",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `extproc envoy-config`."""
    parser.add_argument("config", type=Path, metavar="CONFIG", help="configuration file of extproc")
    parser.add_argument("--format", choices=["envoy", "istio", "envoy-gateway"], default="envoy", help="%(default)s")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write there, not to standard output")
    parser.add_argument(
        "--extproc",
        type=_checked(parse_address),
        action="append",
        metavar="ADDRESS",
        help="where the gateway finds extproc, `host:port` or `unix:/path`; again for each worker (default: "
        "`listeners` of CONFIG; in Kubernetes the Service `extproc`)",
    )
    parser.add_argument(
        "--request-buffer",
        type=_size,
        metavar="SIZE",
        help=f"how much of a request may be held, as 8MiB: a larger one that has to be seen whole is answered 413 "
        f"(default: {USUAL // 1024 // 1024}MiB)",
    )
    envoy = parser.add_argument_group("of --format envoy")
    envoy.add_argument(
        "--upstream",
        type=_checked(parse_origin),
        metavar="ADDRESS",
        help="gets the requests that name no provider with an address: `host:port` or `https://host[:port]` "
        "(default: the default provider)",
    )
    envoy.add_argument("--listen", type=_place, metavar="ADDRESS", help="for clients (default: 0.0.0.0:8080)")
    envoy.add_argument("--admin", type=_place, metavar="ADDRESS", help="of Envoy itself (default: 127.0.0.1:9901)")
    envoy.add_argument("--workers", type=_workers, metavar="N", help="as many as `extproc serve --workers N` has")
    envoy.add_argument("--ca", metavar="FILE", help=f"roots by which providers are verified (default: {SYSTEM_ROOTS})")
    envoy.add_argument("--extproc-ca", metavar="FILE", help="roots by which extproc is verified, where it serves TLS")
    envoy.add_argument("--extproc-cert", metavar="FILE", help="Envoy's certificate, where extproc demands one")
    envoy.add_argument("--extproc-key", metavar="FILE", help="its key")
    kubernetes = parser.add_argument_group("of --format istio and envoy-gateway")
    kubernetes.add_argument("--namespace", metavar="NAME", help="of the gateway and of what is printed (default: llm)")
    kubernetes.add_argument("--gateway", metavar="NAME", help="the Gateway that gets the filter (default: llm)")
    kubernetes.add_argument(
        "--position",
        choices=["router", "authn"],
        help="istio: right before the router, which is after authentication, or before everything (default: router)",
    )


def run(options: argparse.Namespace) -> int:
    """Print YAML; 0, 1 when it cannot be written, 2 when no gateway fits."""
    try:
        text = _printed(options)
    except (ConfigError, Unfit) as error:
        sys.stderr.write(f"extproc: {error}\n")
        return 2
    if options.output is None:
        sys.stdout.write(text)
        return 0
    try:
        options.output.write_text(text)
    except OSError as error:
        sys.stderr.write(f"extproc: {options.output}: {error.strerror}\n")
        return 1
    return 0


def _printed(options: argparse.Namespace) -> str:
    _refuse_others(options)
    config = load_config(options.config, credentials=False).config
    fitted = fit(config, request_buffer=options.request_buffer)
    documents, notes = _FORMATS[options.format](options, config, fitted)
    title = f"Fits {options.config.name}: printed by `extproc envoy-config`; print it again when that changes."
    return _comment(title, [*fitted.reasons(), *notes]) + _yaml(documents)


def _refuse_others(options: argparse.Namespace) -> None:
    """An option that would have no effect was meant to have one."""
    kubernetes = ("namespace", "gateway") if options.format == "envoy" else ()
    for name in (*(each for only, names in _ONLY.items() if only != options.format for each in names), *kubernetes):
        if getattr(options, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise Unfit([Problem(flag, f"has no meaning with --format {options.format}")])


def _envoy(options: argparse.Namespace, config: Config, fitted: Fitted) -> Printed:
    if options.upstream is None:
        if fitted.unplaced:
            message = "missing: its requests have no cluster; or say with --upstream where they go"
            raise Unfit([Problem(field, message) for field in fitted.unplaced])
        if not fitted.providers:
            raise Unfit([Problem("--upstream", "missing: without `providers`, nothing says where the model is")])
    tls = tls_files(config, options.extproc_ca, options.extproc_cert, options.extproc_key)
    whole = bootstrap(
        upstream=options.upstream,
        extproc=options.extproc or listening(config, options.workers or 1),
        listen=options.listen or "0.0.0.0:8080",
        admin=options.admin or "127.0.0.1:9901",
        providers={placed.name: placed.address for placed in fitted.providers},
        routing_header=fitted.routing_header,
        default_provider=None if fitted.default is None else fitted.default.name,
        buffers=fitted.buffers,
        ca=options.ca or SYSTEM_ROOTS,
        extproc_tls=tls,
        access_log="stdout",
        **fitted.options,
    )
    younger = "`request_body_buffer_limit` of routes needs Envoy 1.37."
    return [whole], [younger] if fitted.buffers.route else []


def _istio(options: argparse.Namespace, config: Config, fitted: Fitted) -> Printed:
    where = _where(options, config)
    notes = [*istio.NOTES, *_of_tls(config, "`trafficPolicy.tls` in the DestinationRule `extproc`")]
    if options.position == "authn":
        notes.append(istio.AUTHN_NOTE)
    return istio.istio(fitted, where, position=options.position or "router"), notes


def _envoy_gateway(options: argparse.Namespace, config: Config, fitted: Fitted) -> Printed:
    documents = envoy_gateway.envoy_gateway(fitted, _where(options, config))
    notes = [*envoy_gateway.NOTES, *_of_tls(config, "a BackendTLSPolicy for its Service")]
    if fitted.providers:
        notes.append(envoy_gateway.BACKEND_NOTE)
    return documents, notes


_FORMATS: dict[str, Callable[[argparse.Namespace, Config, Fitted], Printed]] = {
    "envoy": _envoy,
    "istio": _istio,
    "envoy-gateway": _envoy_gateway,
}


def _of_tls(config: Config, remedy: str) -> list[str]:
    field = serves_tls(config)
    return [] if field is None else [f"{field}: extproc serves TLS, so it needs {remedy}."]


def _where(options: argparse.Namespace, config: Config) -> Where:
    """The Service, as `--extproc` names it or with the port of the first listener."""
    namespace = options.namespace or "llm"
    host, number = "extproc", port(config)
    if options.extproc is not None:
        address = parse_address(options.extproc[0])
        if len(options.extproc) > 1 or not isinstance(address, Tcp):
            raise Unfit([Problem("--extproc", "one Service of Kubernetes, `name.namespace:port`")])
        host, number = address.host, address.port
    if number is None:
        raise Unfit([Problem("listeners[0].address", "has no port: say with --extproc which one the Service has")])
    parts = host.split(".")
    full = host if len(parts) > 2 else f"{parts[0]}.{parts[1] if parts[1:] else namespace}.svc.cluster.local"
    return Where(options.gateway or "llm", namespace, full, number)


def _comment(title: str, sentences: Iterable[str]) -> str:
    lines = [title, ""]
    for sentence in sentences:
        lines += _WRAPPER.wrap(sentence)
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


class _Dumper(yaml.SafeDumper):
    """Writes equal parts out, in place of references to the first of them, and a text of lines on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if "\n" in data else None)


_Dumper.add_representer(str, _Dumper.represent_str)


def _yaml(documents: Sequence[Json]) -> str:
    return yaml.dump_all(
        documents, Dumper=_Dumper, explicit_start=len(documents) > 1, sort_keys=False, allow_unicode=True, width=_WIDTH
    )


def _checked(parse: Callable[[str], object]) -> Callable[[str], str]:
    """A text that `parse` understands."""

    def check(text: str) -> str:
        try:
            parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return check


def _place(text: str) -> str:
    """An address to listen at, over TCP."""
    try:
        address = parse_address(text, bind=True)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not isinstance(address, Tcp):
        raise argparse.ArgumentTypeError("write `host:port`")
    return text


def _size(text: str) -> int:
    found = _SIZE.fullmatch(text)
    size = 0 if found is None else int(found[1]) * _UNITS[found[2]]
    if not 0 < size <= _LARGEST:
        raise argparse.ArgumentTypeError(f"expected bytes, as `8MiB` or `512KiB`, up to 1024MiB, found `{text}`")
    return size


def _workers(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 64, found `{text}`")
    return int(text)
