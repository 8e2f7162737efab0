"""What a model is asked: the text and the rest of a request body, of any dialect, that become prompt tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

MESSAGE_TOKENS = 4
"""Around every message: three as OpenAI documents for its chat models, and one for the role."""
NAME_TOKENS = 1
"""For the `name` of a message, beside the name itself."""
ANSWER_TOKENS = 3
"""Every answer to messages is primed with these."""
ATTACHMENT_TOKENS = 765
"""For an image, sound, video or file, whose real cost no body tells: what OpenAI documents for 1024 x 1024 pixels."""

MAX_BODY = 4 << 20
"""Bytes. No longer body is read."""
_MAX_MARKS = 300_000
"""Quotes, commas and opening brackets: parsing that many takes up to 30 ms, and nobody else runs meanwhile."""
_MAX_NODES = 20_000
"""Members of lists and objects that are looked at."""

_MARKS = b'",{['


class Prompt(NamedTuple):
    """`texts` are in no particular order; everything else is a number of things."""

    texts: tuple[str, ...] = ()
    messages: int = 0
    names: int = 0
    ids: int = 0
    """Tokens of prompts that were given as token ids."""
    attachments: int = 0

    @property
    def overhead(self) -> int:
        """Tokens beside those of the texts."""
        return (
            self.ids
            + self.messages * MESSAGE_TOKENS
            + self.names * NAME_TOKENS
            + (ANSWER_TOKENS if self.messages else 0)
            + self.attachments * ATTACHMENT_TOKENS
        )


def read_prompt(body: bytes) -> Prompt | None:
    """The prompt of a request body.

    None for what is not JSON, is cut short, is too much to be read, or has no field that is known for a prompt: its
    size has to do. A multipart upload, such as a recording to transcribe, is one attachment.
    """
    if body.startswith(b"--"):
        return Prompt(attachments=1)
    if len(body) > MAX_BODY or len(body) - len(body.translate(None, _MARKS)) > _MAX_MARKS:
        return None
    try:
        request = orjson.loads(body)
        return _read(request) if isinstance(request, dict) else None
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, _TooMuchError):
        return None


class _TooMuchError(Exception):
    """More values than are looked at."""


def _read(request: dict[str, Any]) -> Prompt | None:
    reader = _Reader(embeds="embed" in str(request.get("model", "")).lower())
    known = False
    for key, value in request.items():
        field = _FIELDS.get(key)
        if field is not None:
            known = True
            field(reader, value)
    reader.walk()
    return reader.prompt() if known else None


class _Reader:
    """Collects a prompt. Its own stack instead of recursion: depth is the client's choice."""

    __slots__ = ("_attachments", "_embeds", "_ids", "_left", "_messages", "_names", "_stack", "_texts")

    def __init__(self, embeds: bool) -> None:
        self._embeds = embeds
        self._texts: list[str] = []
        self._messages = 0
        self._names = 0
        self._ids = 0
        self._attachments = 0
        self._stack: list[Any] = []
        self._left = _MAX_NODES

    def prompt(self) -> Prompt:
        return Prompt(tuple(self._texts), self._messages, self._names, self._ids, self._attachments)

    def walk(self) -> None:
        """Empty the stack."""
        while self._stack:
            value = self._stack.pop()
            if isinstance(value, str):
                self._texts.append(value)
            elif isinstance(value, list):
                self._list(value)
            elif isinstance(value, dict):
                self._object(value)

    def _spend(self, values: int) -> None:
        self._left -= values
        if self._left < 0:
            raise _TooMuchError

    def _list(self, values: list[Any]) -> None:
        if values and set(map(type, values)) == {int}:
            self._ids += len(values)
            return
        self._spend(len(values))
        self._stack.extend(values)

    def _object(self, value: dict[str, Any]) -> None:
        self._spend(len(value))
        for key, member in value.items():
            part = _PARTS.get(key)
            if part is not None and member is not None:
                part(self, member)

    def content(self, value: Any) -> None:
        """Strings, parts, or lists of them."""
        self._stack.append(value)

    def json(self, value: Any) -> None:
        """Text as it stands, anything else as its JSON."""
        if value is not None:
            self._texts.append(value if isinstance(value, str) else orjson.dumps(value).decode())

    def data(self, value: Any) -> None:
        """Of a document; a string under this name may be anything in base64."""
        if isinstance(value, dict):
            self.json(value)

    def attachment(self, value: Any) -> None:
        self._attachments += len(value) if isinstance(value, list) else 1

    def source(self, value: Any) -> None:
        """Where Anthropic has the content of an image or a document: text, blocks, base64 or a URL."""
        if not isinstance(value, dict):
            return
        if value.get("type") == "text":
            self.content(value.get("data"))
        elif "content" in value:
            self.content(value["content"])
        else:
            self._attachments += 1

    def document(self, value: Any) -> None:
        """Cohere's has data, Bedrock's a source of text, of blocks or of bytes."""
        document = value if isinstance(value, dict) else {}
        source = document.get("source")
        if "data" in document:
            self.json(document["data"])
        elif isinstance(source, dict) and ("text" in source or "content" in source):
            self.content(source.get("text") or source.get("content"))
        else:
            self._attachments += 1

    def documents(self, value: Any) -> None:
        """Cohere's list to answer from: strings, or objects with their text under `data` or beside an id."""
        documents = value if isinstance(value, list) else []
        self._spend(len(documents))
        for document in documents:
            self.json(document.get("data", document) if isinstance(document, dict) else document)

    def message(self, value: Any) -> None:
        """The one message that a whole field is."""
        if value:
            self._messages += 1
            self.content(value)

    def messages(self, value: Any) -> None:
        """A list of messages, or a single one."""
        messages = value if isinstance(value, list) else [value]
        self._spend(len(messages))
        for message in messages:
            self.message(message)
            if isinstance(message, dict) and "role" in message and isinstance(message.get("name"), str):
                self._names += 1

    def input(self, value: Any) -> None:
        """Responses: a message or a list of items. Embeddings: strings, token ids, or lists of these."""
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            self.messages(value)
        elif isinstance(value, str) and not self._embeds:
            self.message(value)
        else:
            self.content(value)

    def tools(self, value: Any) -> None:
        """Definitions, counted as their JSON: how a model is shown them is not documented."""
        if value:
            self.json(value)

    def tool_config(self, value: Any) -> None:
        """Bedrock Converse has its tools in here."""
        if isinstance(value, dict):
            self.tools(value.get("tools"))


_Read = Callable[[_Reader, Any], None]

_FIELDS: dict[str, _Read] = {
    # OpenAI, Anthropic, Bedrock Converse, Ollama, Cohere v2, Mistral; Gemini; Cohere v1
    **dict.fromkeys(("messages", "contents", "chat_history"), _Reader.messages),
    **dict.fromkeys(("system", "systemInstruction", "system_instruction", "instructions"), _Reader.message),
    **dict.fromkeys(("message", "preamble"), _Reader.message),
    "input": _Reader.input,
    # legacy completions, Ollama, Llama; Titan; embeddings of Cohere, Gemini and Vertex; reranking
    **dict.fromkeys(("prompt", "suffix", "inputText", "texts", "inputs"), _Reader.content),
    **dict.fromkeys(("content", "requests", "instances", "query"), _Reader.content),
    "documents": _Reader.documents,
    "images": _Reader.attachment,
    **dict.fromkeys(("tools", "functions"), _Reader.tools),
    "toolConfig": _Reader.tool_config,
}
"""Fields of a request that are prompt. What is not here, such as a temperature or metadata, is not."""

_PARTS: dict[str, _Read] = {
    **dict.fromkeys(("content", "contents", "parts", "text", "message", "refusal", "name"), _Reader.content),
    **dict.fromkeys(("thinking", "reasoning", "reasoning_content", "summary", "tool_plan"), _Reader.content),
    **dict.fromkeys(("reasoningContent", "reasoningText", "guardContent"), _Reader.content),
    **dict.fromkeys(("tool_calls", "function", "function_call", "functionCall", "toolUse"), _Reader.content),
    **dict.fromkeys(("functionResponse", "toolResult", "tool_results", "outputs", "output"), _Reader.content),
    **dict.fromkeys(("executableCode", "code", "codeExecutionResult", "title", "context"), _Reader.content),
    **dict.fromkeys(("arguments", "input", "args", "response", "json"), _Reader.json),
    **dict.fromkeys(("image", "images", "image_url", "input_image", "video", "video_url"), _Reader.attachment),
    **dict.fromkeys(("audio", "input_audio", "file", "file_data", "file_id", "file_url"), _Reader.attachment),
    **dict.fromkeys(("inlineData", "inline_data", "fileData", "file_uri"), _Reader.attachment),
    "data": _Reader.data,
    "source": _Reader.source,
    "document": _Reader.document,
}
"""Members of messages and their parts that are prompt. What is not here, such as an id or a signature, is not."""
