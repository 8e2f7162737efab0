"""What an operator asks over HTTP: is it alive, is it ready, what does it count, what does it run, who spends what.

Reading only and without authentication: it belongs on a private address.
"""

from __future__ import annotations

import asyncio
import html
import logging
import os
import re
import stat
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from extproc.admin.page import PAGE

Readiness = Callable[[], str | None]
"""None when traffic is welcome, otherwise why not: `starting`, `draining`."""
RenderMetrics = Callable[[str], tuple[bytes, str] | Awaitable[tuple[bytes, str]]]
"""From the `Accept` header to a body and its content type."""
ActiveConfig = Callable[[], Mapping[str, Any]]
"""The running configuration as JSON values, its secrets already masked."""
Usage = Callable[[], Awaitable[Mapping[str, Any]]]
"""Who spends what, as `extproc.admin.usage` has it."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_LINE = 4096
"""Bytes of a request line and of one header field."""
KEEP_ALIVE = 30.0
STOP_TIMEOUT = 2.0
"""Seconds that running requests get when the server stops."""

_TCP = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:/\s]+)):(?P<port>\d{1,5})")
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Server": "extproc"}
_NO_HEADERS: Mapping[str, str] = {}

_logger = logging.getLogger(__name__)
# aiohttp would log a traceback for every scanner that speaks no HTTP; they get their 400, that is enough.
_protocol_logger = logging.getLogger(f"{__name__}.protocol")
_protocol_logger.setLevel(logging.CRITICAL)


class AdminError(Exception):
    """The server cannot listen; the message begins with `admin.address`."""


@dataclass(frozen=True, slots=True)
class View:
    """One page: where it is, what the index says about it, what makes it."""

    path: str
    about: str
    show: Handler


class AdminServer:
    """Serves `/healthz`, `/readyz`, `/metrics`, `/config` and `/usage` on `host:port` or `unix:/path`.

    `/` shows `/usage` to people; without a callable `usage` there is neither, and `/` is a list of links.
    Raises AdminError for an address that cannot be understood. The callables are called on the event loop, once
    a request, and must not block.
    """

    def __init__(
        self,
        address: str,
        *,
        readiness: Readiness,
        metrics: RenderMetrics,
        config: ActiveConfig,
        usage: Usage | None = None,
    ) -> None:
        self._asked = address
        self._target = _parse(address)
        self._readiness = readiness
        self._metrics = metrics
        self._config = config
        self._usage = usage
        self._views = [
            View("/healthz", "alive", self._healthz),
            View("/readyz", "ready for traffic, or why not", self._readyz),
            View("/metrics", "counters for Prometheus", self._show_metrics),
            View("/config", "the active configuration", self._show_config),
        ]
        if usage is not None:
            self._views.append(View("/usage", "who spends what", self._show_usage))
        self._runner: web.AppRunner | None = None
        self._address = ""

    @property
    def address(self) -> str:
        """Where the server listens, with the port that port 0 became; empty while it does not."""
        return self._address

    async def start(self) -> None:
        """Listen. Raises AdminError when the address is taken or cannot be bound."""
        runner = web.AppRunner(
            self._app(),
            access_log=None,
            logger=_protocol_logger,
            keepalive_timeout=KEEP_ALIVE,
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
            shutdown_timeout=STOP_TIMEOUT,
        )
        await runner.setup()
        try:
            await self._listen(runner)
        except OSError as error:
            await runner.cleanup()
            raise AdminError(f"admin.address: cannot listen on {self._asked}: {_reason(error)}") from error
        self._runner = runner

    async def stop(self) -> None:
        """Stop listening and let running requests finish, for two seconds at most. May be called again."""
        runner, self._runner, self._address = self._runner, None, ""
        if runner is None:
            return
        if isinstance(self._target, str):
            # First, so that a successor's socket at the same path is never the one removed.
            with suppress(FileNotFoundError):
                os.unlink(self._target)
        await runner.cleanup()

    async def _listen(self, runner: web.AppRunner) -> None:
        if isinstance(self._target, str):
            await _make_way(self._target)
            await web.UnixSite(runner, self._target).start()
            self._address = f"unix:{self._target}"
            return
        host, port = self._target
        await web.TCPSite(runner, host, port).start()
        host, port = runner.addresses[0][:2]
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[_plain_errors], client_max_size=MAX_LINE)
        app.router.add_get("/", self._index)
        for view in self._views:
            app.router.add_get(view.path, view.show)
        return app

    async def _index(self, request: web.Request) -> web.Response:
        if self._usage is not None:
            return _response(PAGE.html, content_type="text/html; charset=utf-8", more=PAGE.headers)
        links = "".join(
            f'<li><a href="{view.path}">{view.path}</a> {html.escape(view.about)}</li>\n' for view in self._views
        )
        page = f"<!doctype html>\n<title>extproc</title>\n<h1>extproc</h1>\n<ul>\n{links}</ul>\n"
        return _response(page.encode(), content_type="text/html; charset=utf-8")

    async def _healthz(self, request: web.Request) -> web.Response:
        return _response(b"ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        reason = self._readiness()
        return _response(b"ready\n") if reason is None else _response(f"{reason}\n".encode(), status=503)

    async def _show_metrics(self, request: web.Request) -> web.Response:
        answer = self._metrics(request.headers.get("Accept", ""))
        body, content_type = answer if isinstance(answer, tuple) else await answer
        return _response(body, content_type=content_type)

    async def _show_config(self, request: web.Request) -> web.Response:
        body = orjson.dumps(dict(self._config()), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        return _response(body, content_type="application/json")

    async def _show_usage(self, request: web.Request) -> web.Response:
        assert self._usage is not None
        return _response(orjson.dumps(await self._usage()), content_type="application/json")


def _response(
    body: bytes,
    *,
    status: int = 200,
    content_type: str = "text/plain; charset=utf-8",
    more: Mapping[str, str] = _NO_HEADERS,
) -> web.Response:
    return web.Response(body=body, status=status, headers={"Content-Type": content_type, **_HEADERS, **more})


@web.middleware
async def _plain_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error is one line of text; what went wrong inside is for the log."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        response = _response(f"{error.reason}\n".encode(), status=error.status)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except Exception:
        _logger.exception("admin request failed", extra={"fields": {"path": request.path}})
        return _response(b"Internal Server Error\n", status=500)


def _parse(address: str) -> tuple[str, int] | str:
    """Host and port, or the path of a Unix socket."""
    if address.startswith("unix:") and len(address) > len("unix:"):
        return address.removeprefix("unix:")
    found = _TCP.fullmatch(address)
    if not found or int(found["port"]) > 65535:
        raise AdminError(f"admin.address: expected `host:port` or `unix:/path`, got `{address}`")
    return found["v6"] or found["host"], int(found["port"])


async def _make_way(path: str) -> None:
    """Remove the socket that a process left behind; raise OSError when somebody still listens on it."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise FileExistsError("the file exists and is not a socket")
        _, writer = await asyncio.wait_for(asyncio.open_unix_connection(path), 1.0)
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        os.unlink(path)
        return
    writer.close()
    await writer.wait_closed()
    raise OSError("another process listens there")


def _reason(error: OSError) -> str:
    known = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
    return known or str(error) or type(error).__name__
