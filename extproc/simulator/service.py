"""What the simulated endpoints answer. Knows requests and answers, no transport."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import orjson

from extproc.simulator.answers import Answer, Wire, accepted, answer
from extproc.simulator.contents import JSON, Content, fixed
from extproc.simulator.dialects import Route, route
from extproc.simulator.dialects.dialect import Endpoint, Question
from extproc.simulator.dialects.openai import failure
from extproc.simulator.judge import judging
from extproc.simulator.options import HEADER_PREFIX, OptionError, Options

KEPT_REQUESTS = 100
KEPT_BODY = 4096
DEFAULT_MODEL = "meta-llama/Llama-3.1-8B-Instruct"
_MAX_MODEL = 256
Header = tuple[bytes, bytes]


class Request(NamedTuple):
    """A complete request. Header names are lower-case."""

    method: bytes
    target: bytes
    headers: list[Header]
    body: bytes = b""
    keep_alive: bool = True
    http_10: bool = False
    customised: bool = False
    """Some header is an `x-sim-` one."""


class Record(NamedTuple):
    """What is kept of a request. `body` is its first 4 KiB, `body_length` the whole in bytes."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body_length: int
    body: str


class Refusal(Exception):
    """The request itself is answered with an error."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Service:
    """Endpoints, the requests they have seen, and the answers that are on hold."""

    def __init__(self, options: Options, kept_requests: int = KEPT_REQUESTS) -> None:
        self.options = options
        self._seen: deque[Request] = deque(maxlen=kept_requests)
        self._lengths: deque[int] = deque(maxlen=kept_requests)
        self._held: dict[str, set[Callable[[], None]]] = {}
        self._usual = functools.lru_cache(maxsize=256)(self._usual_answer)

    @property
    def requests(self) -> list[Record]:
        """The last requests to the model, oldest first."""
        return [_record(*pair) for pair in zip(self._seen, self._lengths, strict=True)]

    def forget(self) -> None:
        self._seen.clear()
        self._lengths.clear()

    def hold(self, name: str, release: Callable[[], None]) -> None:
        """`release` is called when `name` is released, unless `unhold` comes first."""
        self._held.setdefault(name, set()).add(release)

    def unhold(self, name: str, release: Callable[[], None]) -> None:
        waiting = self._held.get(name, set())
        waiting.discard(release)
        if not waiting:
            self._held.pop(name, None)

    def release(self, name: str) -> int:
        """Let every answer held as `name` go on; how many there were."""
        waiting = self._held.pop(name, set())
        for release in waiting:
            release()
        return len(waiting)

    def answer(self, request: Request) -> Answer | bytes:
        """Bytes where the whole answer is known beforehand."""
        try:
            path, query, _ = request.target.partition(b"?")
            found = route(path)
            if found is None:
                return self._other(request)
            self._remember(request)
            if request.customised or query:
                return self._special_answer(found, request)
            return self._completion(found, request)
        except OptionError as error:
            return self._refuse(request, HTTPStatus.BAD_REQUEST, str(error))
        except Refusal as refusal:
            return self._refuse(request, refusal.status, str(refusal))

    def _remember(self, request: Request) -> None:
        self._lengths.append(len(request.body))
        short = request if len(request.body) <= KEPT_BODY else request._replace(body=request.body[:KEPT_BODY])
        self._seen.append(short)

    def _completion(self, found: Route, request: Request) -> Answer | bytes:
        if request.method != b"POST" or not request.keep_alive or self.options.is_particular:
            return self._special_answer(found, request)
        return self._usual(found.endpoint, _question(found, request.body))

    def _usual_answer(self, endpoint: Endpoint, question: Question) -> Answer | bytes:
        usual = self._complete(endpoint, question, self.options, Wire())
        whole = usual.at_once()
        return usual if whole is None else whole

    def _special_answer(self, found: Route, request: Request) -> Answer:
        query, headers = _own_options(request)
        options = self.options.updated(query, headers)
        if options.require_length and not _header(request, b"content-length"):
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "content-length: required")
        if request.method == b"HEAD":
            question = Question(found.model or DEFAULT_MODEL)
        elif request.method != b"POST":
            raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "use POST")
        elif options.echo or options.body:
            body = request.body if options.echo else options.body.encode()
            return answer(Content(JSON, lambda: iter((body,))), options, _wire(request, options), options.status)
        else:
            question = _question(found, request.body, sse=("alt", "sse") in query)
            options = judging(options, request.body)
        return self._complete(found.endpoint, question, options, _wire(request, options))

    def _complete(self, endpoint: Endpoint, question: Question, options: Options, wire: Wire) -> Answer:
        if options.status >= HTTPStatus.BAD_REQUEST:
            content = fixed(endpoint.failure(options.status, f"simulated status {options.status}"))
        else:
            content = endpoint.content(question, options)
        return answer(content, options, wire, options.status)

    def _other(self, request: Request) -> Answer:
        path, _, query = request.target.decode("latin-1").partition("?")
        status = HTTPStatus.OK
        if (request.method, path) == (b"POST", "/sim/release"):
            released = self.release(dict(parse_qsl(query)).get("id", ""))
            document: Any = {"released": released}
            status = HTTPStatus.OK if released else HTTPStatus.NOT_FOUND
        elif (request.method, path) == (b"DELETE", "/sim/requests"):
            self.forget()
            document = []
        elif request.method not in (b"GET", b"HEAD"):
            raise Refusal(HTTPStatus.NOT_FOUND, f"no such endpoint: {path}")
        elif path == "/sim/requests":
            document = [record._asdict() for record in self.requests]
        elif path == "/health":
            document = {"status": "ok"}
        elif path == "/v1/models":
            self._remember(request)
            document = {"object": "list", "data": [{"id": DEFAULT_MODEL, "object": "model", "owned_by": "simulator"}]}
        else:
            raise Refusal(HTTPStatus.NOT_FOUND, f"no such endpoint: {path}")
        return answer(fixed(document), Options(), _wire(request, Options()), status)

    @staticmethod
    def _refuse(request: Request, status: HTTPStatus, message: str) -> Answer:
        return answer(fixed(failure(status, message)), Options(), _wire(request, Options()), status)


def _question(found: Route, body: bytes, sse: bool = False) -> Question:
    """Raises Refusal unless `body` is a JSON object."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise Refusal(HTTPStatus.BAD_REQUEST, "the body is not a JSON object")
    model = found.model or document.get("model")
    stream_options = document.get("stream_options")
    asked = stream_options if isinstance(stream_options, dict) else {}
    return Question(
        model[:_MAX_MODEL] if isinstance(model, str) else DEFAULT_MODEL,
        _streams(found.endpoint, document),
        asked.get("include_usage") is True,
        asked.get("continuous_usage_stats") is True,
        document.get("encoding_format") == "base64" or document.get("embedding_types") == ["base64"],
        sse,
    )


def _streams(endpoint: Endpoint, document: dict[str, Any]) -> bool:
    match endpoint.streams:
        case "asked":
            return document.get("stream") is True
        case "unless declined":
            return document.get("stream") is not False
        case always_or_never:
            return always_or_never == "always"


def _own_options(request: Request) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Query parameters and `x-sim-` headers."""
    query = request.target.partition(b"?")[2].decode("latin-1")
    prefix = HEADER_PREFIX.encode()
    headers = [
        (name.decode("latin-1"), _text(name, value)) for name, value in request.headers if name.startswith(prefix)
    ]
    return parse_qsl(query, keep_blank_values=True), headers


def _text(name: bytes, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise OptionError(f"{name.decode('latin-1')}: expected UTF-8") from None


def _wire(request: Request, options: Options) -> Wire:
    allowed = options.force_encoding or accepted(
        options.encoding, _header(request, b"accept-encoding").decode("latin-1")
    )
    return Wire(
        request.keep_alive,
        request.http_10,
        head_only=request.method == b"HEAD",
        encoding=options.encoding if allowed else "identity",
    )


def _header(request: Request, name: bytes) -> bytes:
    return b", ".join(value for key, value in request.headers if key == name)


def _record(request: Request, body_length: int) -> Record:
    return Record(
        request.method.decode("latin-1"),
        request.target.decode("latin-1"),
        [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers],
        body_length,
        request.body.decode(errors="replace"),
    )
