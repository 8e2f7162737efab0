"""The SDKs that most clients of a gateway are written with, each asking one short question in four ways."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from itertools import product
from types import ModuleType, SimpleNamespace
from typing import Any, Literal, NamedTuple

import anthropic
import openai
import pytest

Profile = Literal["openai", "anthropic"]
MODEL = "m"
_MESSAGES: list[Any] = [{"role": "user", "content": "Tell me a story."}]


class Used(NamedTuple):
    """Tokens, as the SDK has read them."""

    prompt: int
    completion: int


class Clock:
    """Seconds that only go by when somebody says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Naps:
    """Stands for the sleep between an SDK's attempts: tells how long it would be, and has `clock` go on by that.

    `wake_early_by` seconds are left of the first one.
    """

    def __init__(self, clock: Clock, patch: pytest.MonkeyPatch) -> None:
        self.taken: list[float] = []
        self.wake_early_by = 0.0
        self._clock = clock
        for sdk in ("openai", "anthropic"):
            timing = SimpleNamespace(sleep=self._sleep, time=time.time, time_ns=time.time_ns)
            patch.setattr(f"{sdk}._base_client.time", timing)
            patch.setattr(f"{sdk}._base_client.anyio", SimpleNamespace(sleep=self._sleep_async))

    def _sleep(self, seconds: float) -> None:
        self.taken.append(seconds)
        self._clock.now += seconds - self.wake_early_by
        self.wake_early_by = 0.0

    async def _sleep_async(self, seconds: float) -> None:
        self._sleep(seconds)


@dataclass(frozen=True)
class Sdk:
    """One of the SDKs, its errors, and how it is used."""

    profile: Profile
    waiting: Literal["sync", "async"]
    streams: bool

    def __str__(self) -> str:
        return f"{self.profile}-{self.waiting}-{'stream' if self.streams else 'json'}"

    @property
    def errors(self) -> ModuleType:
        """Where RateLimitError and its like are."""
        return openai if self.profile == "openai" else anthropic

    async def ask(
        self,
        url: str,
        *,
        key: str = "key",
        model: str = MODEL,
        retries: int = 0,
        headers: Mapping[str, str] | None = None,
    ) -> Used:
        """What a whole answer said that it used. Raises the SDK's own errors."""
        options = {"api_key": key, "max_retries": retries, "default_headers": headers, "timeout": 10}
        return await _ASKING[self.profile, self.waiting](url, model, self.streams, options)


_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts nobody, and so reads no certificates: what takes an SDK longest before its first request."""


async def _openai(url: str, model: str, streams: bool, options: Mapping[str, Any]) -> Used:
    http = openai.DefaultAsyncHttpxClient(verify=_NO_TLS)
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", http_client=http, **options) as client:
        if not streams:
            answer = await client.chat.completions.create(model=model, messages=_MESSAGES)
            return _of_openai([answer])
        stream = await client.chat.completions.create(
            model=model, messages=_MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        return _of_openai([chunk async for chunk in stream])


async def _openai_in_thread(url: str, model: str, streams: bool, options: Mapping[str, Any]) -> Used:
    def ask() -> Used:
        http = openai.DefaultHttpxClient(verify=_NO_TLS)
        with openai.OpenAI(base_url=f"{url}/v1", http_client=http, **options) as client:
            if not streams:
                answer = client.chat.completions.create(model=model, messages=_MESSAGES)
                return _of_openai([answer])
            stream = client.chat.completions.create(
                model=model, messages=_MESSAGES, stream=True, stream_options={"include_usage": True}
            )
            return _of_openai(list(stream))

    return await asyncio.to_thread(ask)


def _of_openai(parts: list[Any]) -> Used:
    [usage] = [part.usage for part in parts if part.usage is not None]
    return Used(usage.prompt_tokens, usage.completion_tokens)


async def _anthropic(url: str, model: str, streams: bool, options: Mapping[str, Any]) -> Used:
    http = anthropic.DefaultAsyncHttpxClient(verify=_NO_TLS)
    async with anthropic.AsyncAnthropic(base_url=url, http_client=http, **options) as client:
        if not streams:
            answer = await client.messages.create(model=model, max_tokens=16, messages=_MESSAGES)
            return Used(answer.usage.input_tokens, answer.usage.output_tokens)
        stream = await client.messages.create(model=model, max_tokens=16, messages=_MESSAGES, stream=True)
        return _of_anthropic([event async for event in stream])


async def _anthropic_in_thread(url: str, model: str, streams: bool, options: Mapping[str, Any]) -> Used:
    def ask() -> Used:
        http = anthropic.DefaultHttpxClient(verify=_NO_TLS)
        with anthropic.Anthropic(base_url=url, http_client=http, **options) as client:
            if not streams:
                answer = client.messages.create(model=model, max_tokens=16, messages=_MESSAGES)
                return Used(answer.usage.input_tokens, answer.usage.output_tokens)
            stream = client.messages.create(model=model, max_tokens=16, messages=_MESSAGES, stream=True)
            return _of_anthropic(list(stream))

    return await asyncio.to_thread(ask)


def _of_anthropic(events: list[Any]) -> Used:
    [start] = [event.message.usage for event in events if event.type == "message_start"]
    [end] = [event.usage for event in events if event.type == "message_delta"]
    return Used(start.input_tokens, end.output_tokens)


_ASKING: Mapping[tuple[str, str], Callable[..., Awaitable[Used]]] = {
    ("openai", "sync"): _openai_in_thread,
    ("openai", "async"): _openai,
    ("anthropic", "sync"): _anthropic_in_thread,
    ("anthropic", "async"): _anthropic,
}
_PROFILES: tuple[Profile, ...] = ("openai", "anthropic")
_WAITING: tuple[Literal["sync", "async"], ...] = ("sync", "async")
SDKS = [Sdk(profile, waiting, streams) for profile, waiting, streams in product(_PROFILES, _WAITING, (False, True))]
