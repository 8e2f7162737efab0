"""One unary gRPC call: bytes there and back, and one kind of error for whatever goes wrong on the way."""

from __future__ import annotations

import asyncio
import re

import grpc

from extproc.limiter.seam import Metadata, Reason

MAX_METADATA_VALUE = 1024
"""Bytes; a longer value is not passed on. Servers refuse calls with more than some 8 KiB of metadata."""
_MAX_DETAIL = 300

_READY = grpc.ChannelConnectivity.READY
_CONNECTING = (grpc.ChannelConnectivity.CONNECTING, grpc.ChannelConnectivity.TRANSIENT_FAILURE)
_PASSABLE = re.compile(rf"[\x20-\x7e]{{0,{MAX_METADATA_VALUE}}}")
_NOT_CONNECTED = re.compile(r"failed to connect to all addresses|errors resolving ")
"""What gRPC says of a call for which it found no connection (1.80 to 1.85)."""
_NOT_PROCESSED = re.compile(
    # The server's own word that it did not look at the stream: RFC 9113, sections 6.8 and 8.7.
    r"(Stream removed \()?GOAWAY received;"
    r"|(Stream removed \(RST_STREAM \()?Received RST_STREAM with error code 7\b"
    # An Envoy before the limiter, such as a sidecar, that could not connect and did not retry.
    r"|no healthy upstream$"
    r"|upstream connect error or disconnect/reset before headers\. reset reason: (remote |local )?connection failure"
)


class CallError(Exception):
    """There is no answer. What the reasons mean is told at LimiterError."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


class UnaryCall:
    """Calls `path` over `channel`, `timeout` seconds a call, and never repeats one by itself."""

    def __init__(self, channel: grpc.aio.Channel, path: str, timeout: float) -> None:
        self._channel = channel
        self._timeout = timeout
        # Without a deserialiser: grpc.aio logs its errors and hands back None.
        self._call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)

    async def __call__(self, message: bytes, metadata: Metadata = ()) -> bytes:
        """The answer to `message`. Raises CallError."""
        try:
            before = self._channel.get_state()
            return await self._call(message, timeout=self._timeout, metadata=passable(metadata))
        except grpc.aio.AioRpcError as error:
            detail = f"{error.code().name}: {error.details() or ''}"[:_MAX_DETAIL]
            raise CallError(reason_of(error, before, self._state()), detail) from None
        except grpc.aio.UsageError as error:
            raise CallError("unreachable", str(error)) from None
        except grpc.aio.BaseError as error:
            raise CallError("refused", str(error)[:_MAX_DETAIL]) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the caller's doing
            raise CallError("refused", "the channel was closed during the call") from None

    def _state(self) -> grpc.ChannelConnectivity:
        try:
            return self._channel.get_state()
        except grpc.aio.UsageError:
            return grpc.ChannelConnectivity.SHUTDOWN


def reason_of(error: grpc.aio.AioRpcError, before: grpc.ChannelConnectivity, after: grpc.ChannelConnectivity) -> Reason:
    """Why a call failed, given the state of its channel before the call and after it.

    gRPC has one status, UNAVAILABLE, for a connection never made, a connection lost during the call, and a
    server that says so itself; only its text tells them apart. A text of "no connection" is believed
    when the channel is indeed not connected, because a server that is itself a client could hand it on: not any more,
    or not when the call began, after a failure to connect, which ends a call at once. (The limiter may be back since.)
    A deadline that passed while the channel was still connecting counted nothing either.
    Whatever is not certain is not "unreachable", so that nothing is counted twice.
    """
    text = error.details() or ""
    match error.code():
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            unsent = text == "Deadline Exceeded" and before is not _READY and after in _CONNECTING
            return "unreachable" if unsent else "deadline"
        case grpc.StatusCode.UNAVAILABLE:
            unconnected = after is not _READY or before is grpc.ChannelConnectivity.TRANSIENT_FAILURE
            unsent = unconnected and _NOT_CONNECTED.match(text) is not None
            return "unreachable" if unsent or _NOT_PROCESSED.match(text) else "refused"
        case _:
            return "refused"


def passable(metadata: Metadata) -> Metadata:
    """`metadata` without the values that gRPC would refuse, and the whole call with them.

    They come from a client's request: with one bad byte it could otherwise switch off a limit that
    fails open.
    """
    if all(_PASSABLE.fullmatch(value) for _, value in metadata):
        return metadata
    return tuple((key, value) for key, value in metadata if _PASSABLE.fullmatch(value))
