"""A real browser, over its own DevTools protocol."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import aiohttp

PATIENCE = 30.0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


def find_chromium() -> str | None:
    """Where it is installed, None where it is not."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Chromium:
    """`async with Chromium() as browser:` opens one tab.

    `requests` are the addresses that it asked for, `complaints` what it wrote to its console as error or warning.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._session: str | None = None

    async def __aenter__(self) -> Self:
        command = find_chromium()
        assert command is not None
        self._profile = TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = await asyncio.create_subprocess_exec(
            command, *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank", stdout=DEVNULL, stderr=PIPE
        )
        try:
            address = await asyncio.wait_for(self._address(), PATIENCE)
            self._client = aiohttp.ClientSession()
            self._socket = await self._client.ws_connect(address, max_msg_size=0)
            self._reading = asyncio.create_task(self._read())
            target = await self.call("Target.createTarget", url="about:blank")
            attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Network", "Runtime", "Log"):
                await self.call(f"{domain}.enable")
        except BaseException:
            self._process.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reading.cancel()
        await self._socket.close()
        await self._client.close()
        self._process.terminate()
        await self._process.communicate()
        self._profile.cleanup()

    async def _address(self) -> str:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            if b"DevTools listening on " in line:
                return line.decode().split("listening on ")[1].strip()
        raise RuntimeError("the browser ended at once")

    async def _read(self) -> None:
        async for message in self._socket:
            event = message.json()
            if "id" in event:
                self._waiting.pop(event["id"]).set_result(event)
                continue
            parameters = event["params"]
            match event["method"]:
                case "Network.requestWillBeSent":
                    self.requests.append(parameters["request"]["url"])
                case "Log.entryAdded" if parameters["entry"]["level"] in {"error", "warning"}:
                    self.complaints.append(parameters["entry"]["text"])
                case "Runtime.exceptionThrown":
                    self.complaints.append(str(parameters["exceptionDetails"]))
                case "Runtime.consoleAPICalled" if parameters["type"] in {"error", "warning"}:
                    self.complaints.append(str(parameters["args"]))

    async def call(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol and its result."""
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        session = {} if self._session is None else {"sessionId": self._session}
        await self._socket.send_json({"id": number, "method": method, "params": parameters, **session})
        event = await asyncio.wait_for(answer, PATIENCE)
        assert "error" not in event, event
        return event["result"]

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; of a promise, what comes of it."""
        answer = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until a JavaScript expression is true; the page itself looks whenever it is drawn."""
        await self.evaluate(
            "new Promise(done => { const look = () => (" + condition + ") ? done() : setTimeout(look, 20); look(); })"
        )
