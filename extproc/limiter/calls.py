"""One unary gRPC call: bytes there and back, and one kind of error for whatever goes wrong on the way."""

from __future__ import annotations

import asyncio

import grpc

from extproc.limiter.remote import passable, reason_of
from extproc.limiter.seam import Metadata, Reason

_MAX_DETAIL = 300


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
                raise
            raise CallError("refused", "the channel was closed during the call") from None

    def _state(self) -> grpc.ChannelConnectivity:
        try:
            return self._channel.get_state()
        except grpc.aio.UsageError:
            return grpc.ChannelConnectivity.SHUTDOWN
