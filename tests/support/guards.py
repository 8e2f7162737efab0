"""Guards in an exchange, and whom they ask."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from extproc.active import activate
from extproc.config.load import parse_config
from extproc.exchange import Exchange
from extproc.guards.room import GuardRoom
from extproc.limiter.reports import ReportQueue
from extproc.telemetry.decisions import DecisionLog
from extproc.telemetry.metrics import Metrics
from extproc.wire.external_processor_pb2 import ImmediateResponse, ProcessingRequest, ProcessingResponse
from support.harness import Gateway
from support.messages import request_body, request_headers

DENIED = "我的账号"
"""The word that the ASM proxy's own example denies, in a sentence."""
DENY = [".*账号.*"]


class GuardedGateway(Gateway):
    """A gateway whose guards may wait for threads and servers: `async with` it."""

    def __init__(self, config: Mapping[str, Any], limiter: Any = None) -> None:
        super().__init__(config, limiter)
        self.room = GuardRoom()
        loaded = parse_config(orjson.dumps(config).decode(), name="test.json", base=Path.cwd())
        self.active = activate(loaded, lambda _, service: self.limiter, None, self.room)

    def anew(self) -> Self:
        """The same configuration, which takes long to compile; nothing is counted yet."""
        other = copy(self)
        other.metrics, other.decisions = Metrics(), DecisionLog()
        report = self.active.config.report
        other.reports = ReportQueue(other.metrics, capacity=report.queue, retry_for=report.retry_for)
        other.room = GuardRoom()
        return other

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.reports.flush(5)
        self.decisions.flush()
        await self.room.close()

    async def ask(self, body: bytes, headers: Mapping[str, str] | None = None, **head: Any) -> ProcessingResponse:
        """The reply to a whole request body."""
        return (await self.exchange(request_headers(headers, **head), request_body(body)))[-1]


async def until_passed(gateway: Gateway, *messages: ProcessingRequest) -> tuple[Exchange, list[ProcessingResponse]]:
    """An exchange that is still open, and its replies so far."""
    exchange = gateway.open()
    return exchange, await gateway.send(exchange, *messages)


def guarded(*, hosts: tuple[str, ...] = ("*",), **fields: Any) -> dict[str, Any]:
    """A configuration with one guard, `chat`, that denies what ASM's example denies unless told otherwise."""
    return {"guards": {"chat": {"hosts": list(hosts), "deny": DENY, **fields}}}


def chat(*texts: Any, role: str = "user", **more: Any) -> bytes:
    """A chat completion request in which `role` says each of `texts`."""
    messages = [{"role": role, "content": text} for text in texts]
    return orjson.dumps({"model": "gpt-4", "messages": messages, **more})


def refusal(reply: ProcessingResponse) -> ImmediateResponse:
    """What is answered in the model's place; fails where it goes on."""
    assert reply.WhichOneof("response") == "immediate_response", reply
    return reply.immediate_response


def passes(reply: ProcessingResponse) -> bool:
    """Whether it goes on."""
    return reply.WhichOneof("response") != "immediate_response"


def header(answer: ImmediateResponse, name: str) -> list[str]:
    """The values of one header of a refusal."""
    return [option.header.raw_value.decode() for option in answer.headers.set_headers if option.header.key == name]


@contextmanager
def no_defects() -> Iterator[None]:
    """Fails where one of ours was caught meanwhile."""
    found: list[logging.LogRecord] = []
    watching = logging.Handler()
    watching.emit = found.append  # type: ignore[method-assign]
    logger = logging.getLogger("extproc.exchange")
    logger.addHandler(watching)
    try:
        yield
    finally:
        logger.removeHandler(watching)
    assert not [record for record in found if record.getMessage() == "internal error"]
